//! MicroVMs by the real, unmodified Firecracker and jailer, from the engine's start to its end.
//!
//! Where KVM only emulates, as on the machines that run CI, no guest comes to user space: there it is seen what becomes of
//! guests that do not come up, by a guest of a few instructions and by the guest kernel. Whole sandboxes are for where KVM
//! works, and elsewhere it is said what was not shown.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::microvm::{Accel, EngineKind, MicrovmConfig, MicrovmEngine};
use sandbox::process::{Egress, Network};
use sandbox::{ExitStatus, Listener, Sandbox, SandboxEngine, SandboxError, SandboxEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::support::{
    self, Guest, PATIENCE, build_root, command, eventually, kernel, missing_programs, read_all, read_now, spec,
};

#[path = "../../../firecracker/tests/contract/guest.rs"]
#[allow(dead_code, reason = "the other guest is for other tests")]
mod code;

/// First argument of the program as a server that will be killed.
pub const SERVER: &str = "firecracker-server";
/// A guest that does not come up is given so long, where it is to be seen that it does not.
const SHORT: Duration = Duration::from_secs(6);

pub fn tests() -> Vec<Trial> {
    vec![
        test("firecracker_guest_that_does_not_come_up_is_an_error_with_its_console", no_guest),
        test("firecracker_that_is_killed_fails_its_sandbox_at_once", killed),
        test("firecracker_has_the_tap_of_its_vm_and_no_other_network", has_a_tap),
        test("firecracker_leaves_nothing_when_the_server_is_killed", leaves_nothing),
        test("firecracker_boots_the_guest_kernel", boots_the_kernel),
        test("firecracker_runs_sandboxes", runs_sandboxes),
    ]
}

fn programs() -> PathBuf {
    std::env::var_os("EMBERBOX_TEST_FIRECRACKER").map(PathBuf::from).unwrap_or_default()
}

/// What this host lacks, if anything.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    let absent = |program: &&str| !programs().join(program).is_file();
    if let Some(program) = ["firecracker", "jailer"].into_iter().find(absent) {
        return Some(format!("{program} in the directory EMBERBOX_TEST_FIRECRACKER (cargo xtask test installs it)"));
    }
    if !kernel().exists() {
        return Some(format!("a guest kernel at {} or in EMBERBOX_TEST_KERNEL", kernel().display()));
    }
    let absent = missing_programs(&["mksquashfs", "mkfs.ext4"]);
    absent.or_else(|| (!Path::new("/dev/kvm").exists()).then(|| "/dev/kvm".to_owned()))
}

fn test<F: Future<Output = ()>>(name: &'static str, body: impl FnOnce() -> F + Send + 'static) -> Trial {
    // All but KVM can be had on every machine.
    support::trial(name, missing, || Path::new("/dev/kvm").exists(), body)
}

/// An engine whose guest is this kernel.
struct Host {
    engine: Arc<MicrovmEngine>,
    directory: tempfile::TempDir,
}

fn config(directory: &Path, kernel: PathBuf) -> MicrovmConfig {
    let mut config = MicrovmConfig::new(directory.join("state"), kernel, Accel::Kvm);
    config.engine = EngineKind::Firecracker;
    config.firecracker.program = Some(programs().join("firecracker"));
    config.firecracker.jailer = Some(programs().join("jailer"));
    config.boot_limit = SHORT;
    config
}

/// A kernel that writes letters to its console, and never does anything else.
fn letters(directory: &Path) -> PathBuf {
    let path = directory.join("letters.elf");
    fs::write(&path, code::elf(code::LETTERS)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    path
}

impl Host {
    async fn start(change: impl FnOnce(&Path, &mut MicrovmConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        build_root(directory.path());
        let mut config = config(directory.path(), letters(directory.path()));
        change(directory.path(), &mut config);
        let engine = MicrovmEngine::start(config).await.unwrap();
        Self { engine: Arc::new(engine), directory }
    }

    /// One is made, in the background, with a name of its own.
    fn create(&self) -> JoinHandle<Result<Box<dyn Sandbox>, SandboxError>> {
        let (engine, spec) = (Arc::clone(&self.engine), spec(self.directory.path()));
        tokio::spawn(async move { engine.create(spec).await })
    }

    /// Stops it, and looks for what is left.
    async fn stop(self) {
        self.engine.stop().await;
        assert_eq!(left(self.directory.path()), Vec::<PathBuf>::new());
    }
}

/// The Firecracker of the one VM that is there, or will be.
async fn firecracker(directory: &Path) -> i32 {
    let jails = directory.join("state/jails/firecracker");
    let mut pid = None;
    eventually("Firecracker runs in its jail", || {
        let jail = fs::read_dir(&jails).ok().and_then(|mut jails| Some(jails.next()?.ok()?.path()));
        let file = jail.and_then(|jail| fs::read_to_string(jail.join("root/firecracker.pid")).ok());
        pid = file.and_then(|text| text.trim().parse().ok());
        // The kernel's name for it, which it has once the jailer has become it.
        pid.is_some_and(|pid: i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "firecracker\n")
        })
    })
    .await;
    pid.unwrap()
}

/// What is there of VMs.
fn left(directory: &Path) -> Vec<PathBuf> {
    let state = directory.join("state");
    let below = |path: &str| fs::read_dir(state.join(path)).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts: Vec<PathBuf> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).collect();
    let mounts = mounts.into_iter().filter(|mount| mount.starts_with(directory));
    below("vms").chain(below("jails/firecracker")).chain(mounts).collect()
}

/// The directories of its cgroups.
fn cgroups(pid: i32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let ours = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let first = controllers.split(',').next().unwrap_or_default();
        path.contains("/emberbox/").then(|| Path::new("/sys/fs/cgroup").join(first).join(path.trim_start_matches('/')))
    });
    ours.collect()
}

fn ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

async fn no_guest() {
    let host = Host::start(|_, _| ()).await;
    assert!(host.engine.describe()[0].starts_with("microVMs by Firecracker 1."), "{:?}", host.engine.describe());
    let creating = host.create();
    let pid = firecracker(host.directory.path()).await;
    let field = |name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    eventually("its filters are on", || field("Seccomp:") == "2").await;
    let user: u32 = field("Uid:").split_whitespace().next().unwrap().parse().unwrap();
    assert!(user > 700_000_000, "a user of its own: {user}");
    assert_eq!(field("CapEff:"), "0000000000000000");
    eventually("it is in the cgroup of its sandbox", || {
        !cgroups(pid).is_empty() || !Path::new("/sys/fs/cgroup/memory").exists()
    })
    .await;
    for group in cgroups(pid) {
        let limit = ["memory.limit_in_bytes", "memory.max"].map(|file| fs::read_to_string(group.join(file)));
        if let Some(limit) = limit.into_iter().flatten().next() {
            assert!(limit.trim().parse::<u64>().unwrap() < 512 << 20, "{}: {limit}", group.display());
        }
    }
    let groups = cgroups(pid);
    let error = creating.await.unwrap().err().expect("nothing that boots").to_string();
    assert!(error.contains("boot a microVM for sandbox") && error.contains("timed out"), "{error}");
    assert!(error.contains("its console: ") && error.contains("abc"), "{error}");
    assert!(ended(pid) && left(host.directory.path()).is_empty(), "{:?}", left(host.directory.path()));
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
    host.stop().await;
}

async fn killed() {
    let host = Host::start(|_, config| config.boot_limit = PATIENCE).await;
    for _ in 0..2 {
        let creating = host.create();
        let pid = firecracker(host.directory.path()).await;
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let begin = Instant::now();
        let error = creating.await.unwrap().err().expect("it is dead").to_string();
        assert!(begin.elapsed() < PATIENCE / 2 && error.contains("sandbox"), "{error}");
        assert!(ended(pid) && left(host.directory.path()).is_empty(), "its place is free");
    }
    // What the engine's stop meets is ended by it.
    let creating = host.create();
    let pid = firecracker(host.directory.path()).await;
    host.engine.stop().await;
    creating.await.unwrap().err().expect("it was stopped");
    assert!(ended(pid));
    host.stop().await;
}

async fn has_a_tap() {
    if let Some(missing) = missing_programs(&["nft"]) {
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none_or(|value| value != "1"), "it needs {missing}");
        return eprintln!("SKIPPED firecracker_has_the_tap_of_its_vm_and_no_other_network: needs {missing}");
    }
    let host = Host::start(|_, config| config.network = Network::Egress(Egress::default())).await;
    let creating = host.create();
    let pid = firecracker(host.directory.path()).await;
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let names: BTreeSet<_> = devices.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(names, BTreeSet::from(["bridge", "eth0", "lo", "tap0"]), "a namespace of its own");
    let opened = || {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == Path::new("/dev/net/tun"))
    };
    eventually("it opens the tap", opened).await;
    let api = ::firecracker::Client::new(&jail(host.directory.path()), "api.sock").unwrap();
    let card = api.vm_config().await.unwrap().network_interfaces;
    assert_eq!((card.len(), card[0].host_dev_name.as_str()), (1, "tap0"));
    assert!(card[0].guest_mac.as_ref().unwrap().starts_with("02:eb:") && card[0].rx_rate_limiter.is_some(), "{card:?}");
    creating.await.unwrap().err().expect("nothing that boots");
    host.stop().await;
}

/// The root of the one jail.
fn jail(directory: &Path) -> PathBuf {
    let mut jails = fs::read_dir(directory.join("state/jails/firecracker")).unwrap();
    jails.next().unwrap().unwrap().path().join("root")
}

/// As a server: a VM that boots, and the word that it is there; then nothing, until it is killed.
pub fn run_server(directory: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let directory = Path::new(directory);
        let mut config = config(directory, letters(directory));
        config.boot_limit = PATIENCE * 10;
        let engine = MicrovmEngine::start(config).await.unwrap();
        let seen = async {
            let pid = firecracker(directory).await;
            eventually("it is in its cgroup", || !cgroups(pid).is_empty()).await;
            println!("{pid}");
            std::future::pending::<()>().await;
        };
        tokio::join!(seen, async { engine.create(spec(directory)).await.map(drop).unwrap() });
    });
}

async fn leaves_nothing() {
    if !Path::new("/sys/fs/cgroup").read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        eprintln!("NOT SHOWN HERE: the end of cgroups, which this host does not have");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args([SERVER, directory.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid: i32 = line.trim().parse().unwrap();
    let groups = cgroups(pid);
    server.kill().unwrap();
    server.wait().unwrap();
    // This guest is none that notices the end of its server, so it runs until the next start.
    assert!(!ended(pid));
    let engine = MicrovmEngine::start(config(directory.path(), letters(directory.path()))).await.unwrap();
    assert!(ended(pid), "the process");
    assert_eq!(left(directory.path()), Vec::<PathBuf>::new());
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
    engine.stop().await;
}

/// With what this machine's KVM may lack masked, and the kernel's words on the console. See the contract suite of the crate
/// `firecracker`.
async fn boots_the_kernel() {
    let host = Host::start(|directory, config| {
        let template = directory.join("template.json");
        let bitmap = format!("0b{}0{}0{}", "x".repeat(8), "x".repeat(9), "x".repeat(13));
        let text = format!(
            r#"{{"cpuid_modifiers": [{{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                "modifiers": [{{"register": "ecx", "bitmap": "{bitmap}"}}]}}]}}"#
        );
        fs::write(&template, text).unwrap();
        config.firecracker.cpu_template = Some(template);
        config.kernel = kernel();
        config.kernel_args = "ignore_loglevel earlyprintk=ttyS0 nosmp noxsave no_timer_check".to_owned();
        config.boot_limit = PATIENCE / 3;
    })
    .await;
    match host.create().await.unwrap() {
        Ok(sandbox) => sandbox.destroy().await,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("boot a microVM") && text.contains("Linux version 6."), "{text}");
            let last = text.lines().rfind(|line| line.starts_with('[')).unwrap_or_default();
            eprintln!("NOT SHOWN HERE: user space under Firecracker; the kernel came to: {last}");
        }
    }
    host.stop().await;
}

/// Whether KVM runs a guest by the other engine, or why not.
async fn kvm_works() -> Result<(), SandboxError> {
    let directory = tempfile::tempdir().unwrap();
    let config = MicrovmConfig { accel: Accel::Kvm, boot_limit: SHORT, ..support::config(directory.path()) };
    sandbox::microvm::trial(config).await.map(drop)
}

async fn runs_sandboxes() {
    let host = Host::start(|_, config| {
        config.kernel = kernel();
        config.boot_limit = 2 * SHORT;
    })
    .await;
    match host.create().await.unwrap() {
        Ok(sandbox) => {
            let pid = firecracker(host.directory.path()).await;
            whole(Guest::of(sandbox), pid).await;
            crate::kept::goes_on(&host.engine, host.directory.path(), 2).await;
        }
        Err(error) => {
            let qemu = kvm_works().await.expect_err("it works with QEMU, so it must with Firecracker");
            eprintln!(
                "NOT SHOWN HERE: a sandbox under Firecracker: {error}; nor is there one with QEMU and KVM: {qemu}"
            );
        }
    }
    host.stop().await;
}

/// A sandbox from its first process to the death of its Firecracker.
async fn whole(mut guest: Guest, pid: i32) {
    let (text, status) =
        guest.sh("cat text; cat /etc/hosts; echo kept >/tmp/f && cat /tmp/f; echo x > text; exit 3").await;
    assert_eq!(status, ExitStatus::Code(3));
    for words in ["the code of this function", "192.0.2.7 db.internal", "kept", "Read-only file system"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let Some(Listener::Unix(listener)) = guest.sandbox.take_listener(9001) else { panic!("no listener") };
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let (process, output) = guest.spawn(&[support::PROGRAM, crate::inside::PART, "talk", "question"]).await.unwrap();
    let (mut stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut question = [0; 12];
    stream.read_exact(&mut question).await.unwrap();
    assert_eq!((&question, read_now(&output).as_str()), (b"\0\0\0\x08question", "before\n"));
    stream.write_all(b"answer").await.unwrap();
    assert_eq!(guest.exit_of(process).await.0, ExitStatus::Code(0));
    assert_eq!(read_all(output).await, "answer\n");

    guest.sandbox.freeze().unwrap();
    let state = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    eventually("it stands still", || state().contains("State:\tT")).await;
    guest.sandbox.thaw().unwrap();
    assert_eq!(guest.sh("echo here").await.0, "here\n");
    let (process, _output) = guest.spawn(&[support::PROGRAM, crate::inside::PART, "fill-memory"]).await.unwrap();
    assert_eq!(guest.exit_of(process).await, (ExitStatus::Signal(9), true), "killed, for want of memory");

    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, guest.events.recv()).await.unwrap(), Some(SandboxEvent::Gone));
    let spawned = guest.sandbox.spawn(command(&["/bin/true"])).await;
    assert!(matches!(spawned, Err(SandboxError::Gone(_))), "{spawned:?}");
    guest.sandbox.destroy().await;
}
