//! A jailer of its own for each test, and what the tests ask of VMs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use firecracker::api::{Action, BootSource, LogLevel, MachineConfig};
use firecracker::{CgroupVersion, Error, Jail, JailSpec, Jailer, JailerConfig, Place, Vmm};
use libtest_mimic::{Failed, Trial};

use crate::guest;

/// Nothing in these tests takes longer, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the programs are.
pub fn programs() -> PathBuf {
    std::env::var_os("EMBERBOX_TEST_FIRECRACKER").map(PathBuf::from).unwrap_or_default()
}

/// What this host lacks, if anything.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Some("/dev/kvm".to_owned());
    }
    let absent = |program: &&str| !programs().join(program).is_file();
    let program = ["firecracker", "jailer"].into_iter().find(absent)?;
    Some(format!("{program} in the directory EMBERBOX_TEST_FIRECRACKER (cargo xtask test installs it)"))
}

/// A test that takes root, KVM and the programs.
pub fn test<F: Future<Output = ()> + 'static>(name: &'static str, body: fn() -> F) -> Trial {
    test_with(name, missing, body)
}

/// A test that takes what `more` looks for, too.
pub fn test_with<F: Future<Output = ()> + 'static>(
    name: &'static str,
    more: fn() -> Option<String>,
    body: fn() -> F,
) -> Trial {
    let run = move || -> Result<(), Failed> {
        if let Some(missing) = missing().or_else(more) {
            let missing = format!("SKIPPED {name}: needs {missing}");
            // All but KVM can be had on every machine.
            let required = std::env::var_os("EMBERBOX_REQUIRE_ALL").is_some_and(|value| value == "1");
            if required && Path::new("/dev/kvm").exists() {
                return Err(missing.into());
            }
            eprintln!("{missing}");
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(PATIENCE * 3, body()).await })?;
        Ok(())
    };
    Trial::test(name, run)
}

/// A jailer with a directory of its own.
pub struct Host {
    pub jailer: Jailer,
    pub parent_cgroup: String,
    pub directory: tempfile::TempDir,
}

pub fn config(directory: &Path, parent_cgroup: &str) -> JailerConfig {
    JailerConfig {
        firecracker: programs().join("firecracker"),
        jailer: programs().join("jailer"),
        directory: directory.join("jails"),
        cgroup_version: CgroupVersion::of_host(),
        parent_cgroup: parent_cgroup.to_owned(),
    }
}

impl Host {
    pub async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let parent_cgroup = format!("emberbox-firecracker-test-{}-{count}", std::process::id());
        let directory = tempfile::tempdir().unwrap();
        let (jailer, swept) = Jailer::open(config(directory.path(), &parent_cgroup)).await.unwrap();
        assert_eq!(swept, firecracker::Swept::default());
        Self { jailer, parent_cgroup, directory }
    }

    /// A file outside all jails, which everybody can read.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }

    pub fn jail(&self, id: &str) -> Jail {
        self.jailer.jail(spec(id)).unwrap()
    }

    /// One that is not configured.
    pub async fn vmm(&self, id: &str) -> Vmm {
        self.jail(id).start().await.unwrap()
    }

    /// One with a guest and a machine, not started.
    pub async fn configured(&self, id: &str, code: &[u8]) -> Vmm {
        let jail = self.jail(id);
        jail.add(&self.file(&format!("{id}.elf"), &guest::elf(code)), "kernel", Place::Link).unwrap();
        let vmm = jail.start().await.unwrap();
        vmm.api().put_machine_config(&machine()).await.unwrap();
        vmm.api().put_boot_source(&boot_source()).await.unwrap();
        vmm
    }

    /// One whose guest writes letters.
    pub async fn running(&self, id: &str) -> Vmm {
        let vmm = self.configured(id, guest::LETTERS).await;
        vmm.api().act(Action::InstanceStart).await.unwrap();
        assert!(vmm.console().wait_for("a", PATIENCE).await, "{}", vmm.console().text());
        vmm
    }
}

/// Small, and with nothing on the console but what the guest writes.
pub fn spec(id: &str) -> JailSpec {
    JailSpec { log_level: Some(LogLevel::Off), ..JailSpec::new(id, 61_234, 61_235) }
}

pub fn machine() -> MachineConfig {
    MachineConfig {
        vcpu_count: 1,
        mem_size_mib: 32,
        smt: false,
        track_dirty_pages: false,
        huge_pages: Default::default(),
    }
}

pub fn boot_source() -> BootSource {
    BootSource { kernel_image_path: "kernel".into(), initrd_path: None, boot_args: None }
}

/// Firecracker itself must have refused, with these words among its own.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Error>, words: &str) {
    let error = result.expect_err("refused");
    let fault = error.fault_message().unwrap_or_else(|| panic!("not by Firecracker: {error}"));
    assert!(fault.contains(words), "{words:?} is not in {fault:?}");
}

/// Whether a process has ended. It may wait for init to take note of it.
pub fn has_ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}
