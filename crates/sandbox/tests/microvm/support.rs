//! An engine, a small root file system made of this host's programs, and ways to run things in a sandbox.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::Trial;
use sandbox::microvm::{Accel, MicrovmConfig, MicrovmEngine};
use sandbox::process::Network;
use sandbox::{Command, ExitStatus, Mount, SandboxEngine, SandboxSpec};

pub use crate::guest::{Guest, eventually, read_all};

/// Nothing in these tests takes longer, emulated, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Where this program is, inside.
pub const PROGRAM: &str = "/var/task/program";
/// Programs that go into the root, from `/usr/bin`.
const PROGRAMS: [&str; 5] = ["cat", "dash", "env", "sleep", "true"];
/// And what they and this program are linked with.
const LIBRARIES: [&str; 3] = ["libc.so.6", "libgcc_s.so.1", "libm.so.6"];

pub struct Host {
    pub engine: MicrovmEngine,
    pub directory: tempfile::TempDir,
}

/// The guest kernel for tests.
pub fn kernel() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest-kernel/vmlinux");
    std::env::var_os("EMBERBOX_TEST_KERNEL").map_or(built, PathBuf::from)
}

/// Where `cargo xtask` installs it, if it did.
fn vsock_device() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin/vhost-device-vsock");
    installed.exists().then_some(installed)
}

/// What this host lacks, if anything. `more`: further programs.
fn missing(more: &[&str]) -> Option<String> {
    if !kernel().exists() {
        return Some(format!("a guest kernel at {} or in EMBERBOX_TEST_KERNEL", kernel().display()));
    }
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    missing_programs(&["qemu-system-x86_64", "vhost-device-vsock", "mksquashfs", "mkfs.ext4"])
        .or_else(|| missing_programs(more))
}

/// The first of these that this host lacks.
pub fn missing_programs(programs: &[&str]) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let there = |program: &str| path.split(':').any(|place| Path::new(place).join(program).exists());
    programs
        .iter()
        .find(|program| !there(program) && (**program != "vhost-device-vsock" || vsock_device().is_none()))
        .map(|program| format!("the program {program}"))
}

/// A test that takes a guest kernel, root, and some programs.
pub fn test<F: Future<Output = ()>>(name: &'static str, body: impl FnOnce() -> F + Send + 'static) -> Trial {
    test_with(&[], name, body)
}

/// One that takes these programs as well.
pub fn test_with<F: Future<Output = ()>>(
    programs: &'static [&'static str],
    name: &'static str,
    body: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    trial(name, || missing(programs), || true, body)
}

/// A test that takes what `missing` looks for; it may be required where `possible` says so.
pub fn trial<F: Future<Output = ()>>(
    name: &'static str,
    missing: impl FnOnce() -> Option<String> + Send + 'static,
    possible: fn() -> bool,
    body: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        if let Some(missing) = missing() {
            let missing = format!("SKIPPED {name}: needs {missing}");
            if possible() && std::env::var_os("EMBERBOX_REQUIRE_ALL").is_some_and(|value| value == "1") {
                return Err(missing.into());
            }
            eprintln!("{missing}");
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(PATIENCE * 4, body()).await })?;
        Ok(())
    })
}

impl Host {
    pub async fn start() -> Self {
        Self::start_with(Network::None).await
    }

    pub async fn start_with(network: Network) -> Self {
        let directory = tempfile::tempdir().unwrap();
        build_root(directory.path());
        let config = MicrovmConfig { network, ..config(directory.path()) };
        let engine = MicrovmEngine::start(config).await.unwrap();
        Self { engine, directory }
    }

    pub fn spec(&self) -> SandboxSpec {
        spec(self.directory.path())
    }

    pub async fn guest(&self) -> Guest {
        Guest::of(self.engine.create(self.spec()).await.unwrap())
    }
}

pub fn config(directory: &Path) -> MicrovmConfig {
    MicrovmConfig {
        vsock_device: vsock_device(),
        max_sandboxes: 64,
        ..MicrovmConfig::new(directory.join("state"), kernel(), Accel::Tcg)
    }
}

pub fn spec(directory: &Path) -> SandboxSpec {
    SandboxSpec {
        id: domain::SandboxId(uuid::Uuid::new_v4()),
        root: directory.join("root"),
        mounts: vec![Mount { source: directory.join("code"), target: "/var/task".to_owned() }],
        memory_mb: 128,
        vcpus: 1.0,
        ephemeral_mb: 64,
        hosts: vec![("192.0.2.7".parse().unwrap(), "db.internal".to_owned())],
        listen: vec![9001],
        standby: None,
    }
}

pub fn build_root(directory: &Path) {
    let root = directory.join("root");
    for path in ["proc", "dev", "tmp", "var/task", "opt", "etc", "bin", "lib64"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for program in PROGRAMS {
        fs::copy(Path::new("/usr/bin").join(program), root.join("bin").join(program)).unwrap();
    }
    fs::copy("/lib64/ld-linux-x86-64.so.2", root.join("lib64/ld-linux-x86-64.so.2")).unwrap();
    for library in LIBRARIES {
        let found =
            ["/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"].iter().map(|place| Path::new(place).join(library));
        let found = found.into_iter().find(|path| path.exists()).unwrap();
        fs::copy(found, root.join("lib64").join(library)).unwrap();
    }
    fs::write(root.join("etc/hosts"), "").unwrap();
    fs::write(root.join("etc/resolv.conf"), "").unwrap();
    fs::create_dir(directory.join("code")).unwrap();
    fs::copy(std::env::current_exe().unwrap(), directory.join("code/program")).unwrap();
    fs::write(directory.join("code/text"), "the code of this function").unwrap();
}

impl Guest {
    /// Runs a line of shell.
    pub async fn sh(&mut self, line: &str) -> (String, ExitStatus) {
        self.run(&["/bin/dash", "-c", line]).await
    }

    /// Runs this program.
    pub async fn inside(&mut self, arguments: &[&str]) -> (String, ExitStatus) {
        let argv: Vec<&str> = [PROGRAM, crate::inside::PART].iter().chain(arguments).copied().collect();
        self.run(&argv).await
    }
}

pub fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(|text| (*text).to_owned()).collect(),
        env: vec![("PATH".to_owned(), "/bin".to_owned()), ("LD_LIBRARY_PATH".to_owned(), "/lib64".to_owned())],
        cwd: "/var/task".into(),
    }
}

/// What has come by now.
pub fn read_now(output: &OwnedFd) -> String {
    let mut text = [0; 4096];
    let length = rustix::io::read(output, &mut text).unwrap_or(0);
    String::from_utf8_lossy(&text[..length]).into_owned()
}

/// The host's processes whose arguments contain `word`.
pub fn processes(word: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let with_word = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(word).then_some(pid)
    });
    with_word.collect()
}
