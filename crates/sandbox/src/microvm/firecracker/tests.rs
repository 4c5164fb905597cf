//! The engine with the real, unmodified `firecracker` and `jailer`, and guests of a few instructions, which run also where
//! KVM only emulates. That whole sandboxes work is for `tests/microvm`, where KVM can run a kernel.

#[path = "../../../../firecracker/tests/contract/guest.rs"]
mod guest_code;

use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::firecracker::Client;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::microvm::EngineKind;
use crate::process::cgroup::{Group, Hierarchy};

/// Nothing here takes longer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the VMs, user and group.
const OWNER: u32 = 61_236;

/// An engine, its files, and a cgroup for its VMs.
struct Host {
    engine: Firecracker,
    directory: tempfile::TempDir,
    group: Option<Group>,
}

/// What this host lacks, if anything.
fn missing() -> Option<String> {
    let programs = programs();
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    let absent = |program: &&str| !programs.join(program).is_file();
    if let Some(program) = ["firecracker", "jailer"].into_iter().find(absent) {
        return Some(format!("{program} in the directory EMBERBOX_TEST_FIRECRACKER (cargo xtask test installs it)"));
    }
    (!Path::new("/dev/kvm").exists()).then(|| "/dev/kvm".to_owned())
}

fn programs() -> PathBuf {
    std::env::var_os("EMBERBOX_TEST_FIRECRACKER").map(PathBuf::from).unwrap_or_default()
}

fn config(directory: &Path, guest: &[u8]) -> MicrovmConfig {
    let kernel = directory.join("kernel.elf");
    fs::write(&kernel, guest_code::elf(guest)).unwrap();
    fs::set_permissions(&kernel, Permissions::from_mode(0o644)).unwrap();
    let mut config = MicrovmConfig::new(directory.join("state"), kernel, Accel::Kvm);
    config.engine = EngineKind::Firecracker;
    config.firecracker.program = Some(programs().join("firecracker"));
    config.firecracker.jailer = Some(programs().join("jailer"));
    config
}

/// Runs a test on a host of its own, or says what it lacks.
async fn on_host(name: &str, guest: &[u8], body: impl AsyncFnOnce(&Host)) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if let Some(missing) = missing() {
        let skipped = format!("SKIPPED {name}: needs {missing}");
        // All but KVM can be had on every machine.
        let required = std::env::var_os("EMBERBOX_REQUIRE_ALL").is_some_and(|value| value == "1");
        assert!(!required || !Path::new("/dev/kvm").exists(), "{skipped}");
        eprintln!("{skipped}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let engine = Firecracker::new(&config(directory.path(), guest), b"an initramfs").await.unwrap();
    // Far above the numbers of instances.
    let number = 1_000_000 + std::process::id() * 100 + COUNT.fetch_add(1, Ordering::Relaxed);
    let group = Hierarchy::detect().map(|hierarchy| hierarchy.instance(number));
    let host = Host { engine, directory, group };
    tokio::time::timeout(PATIENCE * 3, body(&host)).await.unwrap();
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            group.children().iter().for_each(|child| drop(group.child(child).remove()));
            let _ = group.remove();
        }
    }
}

impl Host {
    /// What a sandbox of this name is made of: two drives, and a socket for the host's port 1024.
    fn vm(&self, number: u128) -> Vm {
        let id = SandboxId(uuid::Uuid::from_u128(number));
        let directory = self.directory.path().join(format!("vm-{number}"));
        fs::DirBuilder::new().mode(0o700).create(&directory).unwrap();
        let socket = directory.join(format!("{VSOCK}_1024"));
        drop(UnixListener::bind(&socket).unwrap());
        chown(&socket, Some(OWNER), Some(OWNER)).unwrap();
        let image = self.directory.path().join(format!("image-{number}"));
        fs::write(&image, [0; 1 << 16]).unwrap();
        fs::set_permissions(&image, Permissions::from_mode(0o644)).unwrap();
        let scratch = rustix::fs::open(
            self.directory.path(),
            OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        );
        let scratch = File::from(scratch.unwrap());
        scratch.set_len(1 << 20).unwrap();
        std::os::unix::fs::fchown(&scratch, Some(OWNER), Some(OWNER)).unwrap();
        let group = self.group.as_ref().map(|group| group.child(&jail_id(id)));
        if let Some(group) = &group {
            group.make().and_then(|()| group.limit(256, 1.0)).unwrap();
        }
        let drives = vec![
            machine::Drive { file: File::open(&image).unwrap(), writable: false },
            machine::Drive { file: scratch, writable: true },
        ];
        Vm {
            id,
            directory,
            user: Some((OWNER, OWNER)),
            group,
            memory_mb: 64,
            vcpus: 1,
            tap: None,
            drives,
            blank: false,
        }
    }

    async fn boot(&self, number: u128) -> Running {
        let vm = self.vm(number);
        let (id, group) = (vm.id, vm.group.clone());
        self.running(self.engine.boot(vm).await.unwrap(), id, group)
    }

    async fn restore(&self, number: u128, snapshot: &Path) -> Running {
        let vm = self.vm(number);
        let (id, group) = (vm.id, vm.group.clone());
        self.running(self.engine.restore(vm, snapshot).await.unwrap(), id, group)
    }

    fn running(&self, machine: Box<dyn Machine>, id: SandboxId, group: Option<Group>) -> Running {
        let root = self.directory.path().join("state/jails/firecracker").join(jail_id(id)).join("root");
        let pid = fs::read_to_string(root.join("firecracker.pid")).unwrap().trim().parse().unwrap();
        Running { machine, root, pid, group }
    }
}

/// A machine, and what can be seen of it on the host.
struct Running {
    machine: Box<dyn Machine>,
    root: PathBuf,
    pid: i32,
    group: Option<Group>,
}

impl Running {
    fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    }

    fn namespace(&self, kind: &str) -> u64 {
        fs::metadata(format!("/proc/{}/ns/{kind}", self.pid)).unwrap().ino()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid).unwrap(), signal).unwrap();
    }

    /// How often its guest has come to the end of the alphabet, as far as its console is kept.
    fn rounds(&self) -> usize {
        self.machine.console().matches("xyz").count()
    }

    async fn goes_on(&self) {
        let before = self.rounds();
        eventually("the guest goes on", || self.rounds() > before).await;
    }

    /// Ends, and leaves nothing.
    async fn ends(self) {
        tokio::time::timeout(PATIENCE, self.machine.ended()).await.unwrap();
        assert!(has_ended(self.pid), "the process");
        assert!(!self.root.exists() && !self.root.parent().unwrap().exists(), "the jail");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&*self.root.to_string_lossy()), "mounts");
        if let Some(group) = &self.group {
            eventually("its cgroup is empty", || group.remove().is_ok()).await;
        }
        // Again, and of a dead one.
        self.machine.ended().await;
        self.machine.kill();
        self.machine.pause().unwrap();
    }
}

/// It may wait for init to take note of it.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let every = async {
        let mut every = tokio::time::interval(Duration::from_millis(5));
        while !condition() {
            every.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, every).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}

#[tokio::test]
async fn a_machine_runs_in_its_jail() {
    on_host("firecracker_jail", guest_code::LETTERS, async |host| {
        let vm = host.boot(1).await;
        eventually("the guest runs", || vm.machine.console().contains("abc")).await;
        assert_eq!(vm.status("Uid"), [OWNER; 4].map(|id| id.to_string()).join(" "));
        assert_eq!(vm.status("Gid"), [OWNER; 4].map(|id| id.to_string()).join(" "));
        assert_eq!(vm.status("CapEff"), "0000000000000000");
        assert_eq!(vm.status("Seccomp"), "2", "its filters are on");
        assert_eq!(vm.status("NSpid"), format!("{} 1", vm.pid));
        for kind in ["net", "mnt", "pid_for_children"] {
            assert_ne!(vm.namespace(kind), fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino(), "{kind}");
        }
        let devices = fs::read_to_string(format!("/proc/{}/net/dev", vm.pid)).unwrap();
        assert_eq!(devices.lines().filter(|line| line.contains(':')).count(), 1, "loopback alone: {devices}");
        assert_eq!(fs::metadata(format!("/proc/{}/root/", vm.pid)).unwrap().ino(), vm.root.metadata().unwrap().ino());
        assert!(fs::read(format!("/proc/{}/environ", vm.pid)).unwrap().is_empty());
        if let Some(group) = &vm.group {
            // Once for each controller.
            let mut processes = group.processes();
            processes.dedup();
            assert_eq!(processes, [vm.pid]);
            assert!(group.usage().memory_now > 0);
        }

        let api = Client::new(&vm.root, "api.sock").unwrap();
        let made = api.vm_config().await.unwrap();
        assert_eq!((made.machine_config.mem_size_mib, made.machine_config.vcpu_count), (64, 1));
        let drives: Vec<_> = made.drives.iter().map(|drive| (&*drive.drive_id, drive.is_read_only)).collect();
        assert_eq!(drives, [("drive0", true), ("drive1", false)]);
        assert!(made.drives.iter().all(|drive| drive.rate_limiter == Some(host.engine.disk)));
        assert_eq!(made.vsock, Some(Vsock { guest_cid: GUEST, uds_path: VSOCK.to_owned() }));
        // What the guest connects to is what the host listens on.
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let listened = host.directory.path().join("vm-1").join(format!("{VSOCK}_1024"));
        assert_eq!(inode(&vm.root.join(format!("{VSOCK}_1024"))), inode(&listened));
        assert_eq!(fs::metadata(vm.root.join("drive0")).unwrap().uid(), 0, "an image is not its own");
        vm.machine.kill();
        vm.ends().await;
        assert_eq!(fs::metadata(host.directory.path().join("image-1")).unwrap().len(), 1 << 16);
    })
    .await;
}

#[tokio::test]
async fn a_machine_is_given_other_drives_and_more_sockets() {
    on_host("firecracker_exchange", guest_code::LETTERS, async |host| {
        let blank = Vm { blank: true, ..host.vm(1) };
        let directory = blank.directory.clone();
        let (id, group) = (blank.id, blank.group.clone());
        let vm = host.running(host.engine.boot(blank).await.unwrap(), id, group);
        vm.goes_on().await;
        let drives = host.vm(2).drives;
        drives[1].file.set_len(3 << 20).unwrap();
        let inodes: Vec<_> = drives.iter().map(|drive| drive.file.metadata().unwrap().ino()).collect();
        let socket = directory.join(format!("{VSOCK}_74537"));
        drop(UnixListener::bind(&socket).unwrap());
        chown(&socket, Some(OWNER), Some(OWNER)).unwrap();
        vm.machine.exchange(drives, &directory).await.unwrap();

        let api = Client::new(&vm.root, "api.sock").unwrap();
        let made = api.vm_config().await.unwrap();
        let seen: Vec<_> = made.drives.iter().map(|drive| (&*drive.path_on_host, drive.is_read_only)).collect();
        assert_eq!(seen, [("drive0", true), ("drive1", false)], "by the names that a snapshot of it will have");
        assert!(made.drives.iter().all(|drive| drive.rate_limiter == Some(host.engine.disk)), "as before");
        let opened: Vec<_> = fs::read_dir(format!("/proc/{}/fd", vm.pid))
            .unwrap()
            .filter_map(|entry| Some(fs::metadata(entry.ok()?.path()).ok()?.ino()))
            .collect();
        assert!(inodes.iter().all(|inode| opened.contains(inode)), "it has them open");
        assert_eq!(
            fs::metadata(vm.root.join(format!("{VSOCK}_74537"))).unwrap().ino(),
            socket.metadata().unwrap().ino()
        );
        vm.goes_on().await;

        vm.machine.kill();
        vm.ends().await;
    })
    .await;
}

#[tokio::test]
async fn a_machine_is_paused_and_resumed_at_once() {
    on_host("firecracker_pause", guest_code::LETTERS, async |host| {
        let vm = host.boot(1).await;
        for _ in 0..3 {
            vm.goes_on().await;
            vm.machine.pause().unwrap();
            eventually("it stands still", || vm.status("State").starts_with('T')).await;
            let threads = fs::read_dir(format!("/proc/{}/task", vm.pid)).unwrap();
            for thread in threads {
                let status = thread.unwrap().path().join("status");
                eventually("all of it", || fs::read_to_string(&status).unwrap().contains("T (stopped)")).await;
            }
            vm.machine.resume().unwrap();
            vm.machine.resume().unwrap();
        }
        vm.goes_on().await;
        vm.machine.pause().unwrap();
        vm.machine.kill();
        vm.ends().await;
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_machine_is_noticed() {
    on_host("firecracker_killed", guest_code::LETTERS, async |host| {
        let vm = host.boot(1).await;
        tokio::time::timeout(Duration::from_millis(100), vm.machine.ended()).await.expect_err("it lives");
        vm.signal(Signal::KILL);
        vm.ends().await;
        // Its name is free.
        fs::remove_dir_all(host.directory.path().join("vm-1")).unwrap();
        let vm = host.boot(1).await;
        let (pid, root) = (vm.pid, vm.root.clone());
        drop(vm);
        assert!(has_ended(pid) && !root.exists(), "dropped");
    })
    .await;
    on_host("firecracker_reset", guest_code::RESET, async |host| {
        // By itself, perhaps before we could look at it.
        let machine = host.engine.boot(host.vm(1)).await.unwrap();
        tokio::time::timeout(PATIENCE, machine.ended()).await.unwrap();
        assert_eq!(fs::read_dir(host.directory.path().join("state/jails/firecracker")).unwrap().count(), 0);
    })
    .await;
}

#[tokio::test]
async fn what_firecracker_refuses_is_told_and_leaves_nothing() {
    on_host("firecracker_refused", guest_code::LETTERS, async |host| {
        let vm = Vm { memory_mb: 0, ..host.vm(1) };
        let error = host.engine.boot(vm).await.err().unwrap().to_string();
        assert!(error.contains("boot a microVM for sandbox") && error.contains("PUT /machine-config"), "{error}");
        let vm = host.vm(2);
        vm.drives[1].file.set_permissions(Permissions::from_mode(0o000)).unwrap();
        let error = host.engine.boot(vm).await.err().unwrap().to_string();
        assert!(error.contains("drive1") && error.contains("no right to read it"), "{error}");
        let error = host.engine.restore(host.vm(3), Path::new("/none")).await.err().unwrap().to_string();
        assert!(error.contains("sandbox") && error.contains("No such file"), "{error}");
        assert_eq!(fs::read_dir(host.directory.path().join("state/jails/firecracker")).unwrap().count(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_goes_on_in_machines_that_share_its_memory() {
    on_host("firecracker_snapshot", guest_code::LETTERS, async |host| {
        // On the file system of the engine's state, closed.
        let snapshot = host.directory.path().join("state/snapshot");
        fs::DirBuilder::new().mode(0o700).create(&snapshot).unwrap();
        let origin = host.boot(1).await;
        origin.goes_on().await;
        // Also of one that is paused.
        origin.machine.pause().unwrap();
        origin.machine.snapshot(&snapshot, Box::new(|| Ok(()))).await.unwrap();
        origin.goes_on().await;
        let error = origin
            .machine
            .snapshot(&host.directory.path().join("none"), Box::new(|| Ok(())))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("take a snapshot of sandbox"), "{error}");
        origin.goes_on().await;
        origin.machine.kill();
        origin.ends().await;

        assert_eq!(fs::metadata(snapshot.join(MEMORY)).unwrap().len(), 64 << 20);
        let [one, two] = [host.restore(2, &snapshot).await, host.restore(3, &snapshot).await];
        for vm in [&one, &two] {
            vm.goes_on().await;
            assert_eq!((vm.status("Seccomp").as_str(), vm.status("CapEff").as_str()), ("2", "0000000000000000"));
            let maps = fs::read_to_string(format!("/proc/{}/maps", vm.pid)).unwrap();
            let memory: Vec<_> = maps.lines().filter(|line| line.ends_with("/memory")).collect();
            assert!(!memory.is_empty() && memory.iter().all(|line| line.contains(" rw-p ")), "{maps}");
            assert!(vm.root.join(VSOCK).exists(), "its vsock device");
        }
        // One's end is not the other's, and a restored one can be paused and kept like any other.
        one.machine.kill();
        one.ends().await;
        two.machine.pause().unwrap();
        two.machine.resume().unwrap();
        two.goes_on().await;
        let again = host.directory.path().join("state/again");
        fs::DirBuilder::new().mode(0o700).create(&again).unwrap();
        two.machine.snapshot(&again, Box::new(|| Ok(()))).await.unwrap();
        two.machine.kill();
        two.ends().await;
        let three = host.restore(4, &again).await;
        three.goes_on().await;
        three.machine.kill();
        three.ends().await;
    })
    .await;
}

#[tokio::test]
async fn what_it_cannot_work_with_is_named() {
    if missing().is_some() {
        // The other tests say so, and fail where they have to.
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let good = || config(directory.path(), guest_code::LETTERS);
    let error = async |config: MicrovmConfig| Firecracker::new(&config, b"").await.unwrap_err().to_string();

    let text = error(MicrovmConfig { accel: Accel::Tcg, ..good() }).await;
    assert!(text.contains("QEMU"), "{text}");
    let mut none = good();
    none.firecracker.program = Some("/none/firecracker".into());
    let text = error(none).await;
    assert!(text.contains("/none/firecracker, as configured") && text.contains("releases"), "{text}");
    // A program that says what an older one said.
    let old = directory.path().join("firecracker");
    fs::write(&old, "#!/bin/sh\necho Firecracker v1.11.0\n").unwrap();
    fs::set_permissions(&old, Permissions::from_mode(0o755)).unwrap();
    let mut older = good();
    older.firecracker.program = Some(old);
    let text = error(older).await;
    assert!(text.contains("firecracker is 1.11.0, but version 1.12.0 or later"), "{text}");
    let mut template = good();
    template.firecracker.cpu_template = Some(template.kernel.clone());
    let text = error(template).await;
    assert!(text.contains("read the CPU template") && text.contains("line 1"), "{text}");
    for (flag, name) in [(StatVfsMountFlags::NODEV, "nodev"), (StatVfsMountFlags::NOEXEC, "noexec")] {
        let text = check_mount(flag | StatVfsMountFlags::NOSUID).unwrap_err().to_string();
        assert!(text.contains(&format!("mounted with {name}")), "{text}");
    }
    check_mount(StatVfsMountFlags::NOSUID).unwrap();

    let first = Firecracker::new(&good(), b"").await.unwrap();
    let text = error(good()).await;
    assert!(text.contains("belongs to another running process"), "{text}");
    drop(first);
}

#[test]
fn disks_are_named_as_the_kernel_names_them() {
    let names = [0, 1, 25, 26, 27, 51, 52, 701, 702].map(device);
    assert_eq!(names, ["vda", "vdb", "vdz", "vdaa", "vdab", "vdaz", "vdba", "vdzz", "vdaaa"]);
}
