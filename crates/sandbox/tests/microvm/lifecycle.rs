//! The life of a sandbox.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use sandbox::microvm::{MicrovmConfig, MicrovmEngine};
use sandbox::process::{Egress, Network};
use sandbox::{ExitStatus, Listener, SandboxEngine, SandboxError, SandboxEvent, SandboxSpec, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::network::{self, devices, is_filtered, pool};
use crate::support::{
    Guest, Host, PATIENCE, PROGRAM, build_root, command, config, eventually, processes, read_all, read_now, spec, test,
    test_with,
};

/// First argument of the program as a server that will be killed.
pub const SERVER: &str = "server";

pub fn tests() -> Vec<Trial> {
    vec![
        test("microvm_boots_and_is_gone_when_destroyed", boots_and_is_gone),
        test("microvm_runs_processes", runs_processes),
        test("microvm_carries_connections_and_output_in_order", carries_connections),
        test("microvm_is_paused_and_resumed", is_paused_and_resumed),
        test("microvm_that_is_idle_gives_memory_back", gives_memory_back),
        test("microvm_limits_hold", limits_hold),
        test("microvm_that_dies_is_gone", dies),
        test_with(network::PROGRAMS, "microvm_leaves_nothing_when_the_server_is_killed", leaves_nothing),
    ]
}

async fn boots_and_is_gone() {
    let host = Host::start().await;
    let begin = std::time::Instant::now();
    let guest = host.guest().await;
    eprintln!("booted in {:?}", begin.elapsed());
    let vms = host.directory.path().join("state/vms");
    assert_eq!(std::fs::read_dir(&vms).unwrap().count(), 1);
    guest.sandbox.destroy().await;
    assert_eq!(std::fs::read_dir(&vms).unwrap().count(), 0);
    host.engine.stop().await;
}

async fn runs_processes() {
    let host = Host::start().await;
    let mut guest: Guest = host.guest().await;
    let (text, status) = guest.sh("echo out; echo err >&2; exit 3").await;
    assert_eq!((text.as_str(), status), ("out\nerr\n", ExitStatus::Code(3)));
    let (text, _) = guest.sh("cat text; echo; cat /etc/hosts; echo kept >/tmp/f && cat /tmp/f; echo x > text").await;
    assert!(text.contains("the code of this function") && text.contains("192.0.2.7 db.internal"), "{text}");
    assert!(text.contains("kept") && text.contains("Read-only file system"), "{text}");
    let (text, _) = guest.run(&["/bin/cat", "/proc/self/status"]).await;
    assert!(text.contains("Uid:\t993\t993\t993\t993") && text.contains("CapEff:\t0000000000000000"), "{text}");

    let (process, output) = guest.spawn(&["/bin/sleep", "1000"]).await.unwrap();
    guest.sandbox.signal(process, Signal::Terminate).await.unwrap();
    assert_eq!(guest.exit_of(process).await, (ExitStatus::Signal(15), false));
    assert_eq!(read_all(output).await, "");

    match guest.spawn(&["/no/such/program"]).await {
        Err(SandboxError::Exec { program, source }) => {
            assert_eq!((program.as_str(), source.kind()), ("/no/such/program", std::io::ErrorKind::NotFound));
        }
        other => panic!("{other:?}"),
    }
    let (text, _) = guest.sh("echo still here").await;
    assert_eq!(text, "still here\n");
    let (process, _output) = guest.spawn(&["/bin/sleep", "1000"]).await.unwrap();
    guest.sandbox.kill_all().await.unwrap();
    assert_eq!(guest.exit_of(process).await.0, ExitStatus::Signal(9));
    host.engine.stop().await;
}

/// The processes of VMs below this directory: one of them is mounted for each of these.
pub fn machines(below: &Path) -> Vec<i32> {
    let all = processes("qemu-system").into_iter().chain(processes("vhost-device-vsock"));
    all.filter(|pid| has_mount(*pid, below, "/vms/")).collect()
}

/// Whether a process has a mount of something below this directory, with this word in its path.
fn has_mount(pid: i32, below: &Path, word: &str) -> bool {
    let name = below.file_name().unwrap().to_str().unwrap();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mounts.lines().any(|line| line.contains(name) && line.contains(word))
}

async fn carries_connections() {
    let host = Host::start().await;
    let mut guest = host.guest().await;
    let Some(Listener::Unix(listener)) = guest.sandbox.take_listener(9001) else { panic!("no listener") };
    assert!(guest.sandbox.take_listener(9001).is_none());
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    for round in 0..3 {
        let argv = [crate::support::PROGRAM, crate::inside::PART, "talk", "question"];
        let (process, output) = guest.spawn(&argv).await.unwrap();
        let (mut stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut text = [0; 12];
        stream.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"\0\0\0\x08question");
        assert_eq!(read_now(&output), "before\n", "round {round}: what was said before has come before");
        // It is said on another connection, before, and heard by another task.
        eventually("its memory is known", || guest.sandbox.memory_peak() > 1 << 20).await;
        stream.write_all(b"answer").await.unwrap();
        assert_eq!(guest.exit_of(process).await.0, ExitStatus::Code(0));
        assert_eq!(read_all(output).await, "answer\n");
        let mut text = [1; 4];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut text)).await.unwrap().unwrap();
        assert_eq!(text, [0; 4], "it has said all that it had to say");
    }
    assert_eq!(guest.inside(&["vsock"]).await.0, "denied\n", "only the agent speaks to the host");
    host.engine.stop().await;
}

/// The only one.
fn qemu(below: &Path) -> i32 {
    machines(below).into_iter().find(|pid| processes("qemu-system").contains(pid)).unwrap()
}

/// Of a process, as the kernel calls it.
fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

async fn gives_memory_back() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let rest_after = Duration::from_secs(1);
    let engine = MicrovmEngine::start(MicrovmConfig { rest_after, ..config(directory.path()) }).await.unwrap();
    let spec = SandboxSpec { memory_mb: 512, ..spec(directory.path()) };
    let mut guest = Guest::of(engine.create(spec).await.unwrap());
    let qemu = qemu(directory.path());
    // What the host has of the guest's memory, in MB.
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssShmem:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    let (_, ticks) = guest.spawn(&[PROGRAM, crate::inside::PART, "tick"]).await.unwrap();
    assert_eq!(guest.inside(&["use-memory", "400"]).await.0, "used 400\n");
    let used = resident();
    assert!(used > 400, "{used} MB");
    guest.sandbox.freeze().unwrap();
    // What it said before that may still be on its way through the device.
    while !read_now(&ticks).is_empty() {
        tokio::time::sleep(rest_after / 5).await;
    }
    eventually("memory is the host's again", || resident() < used - 300).await;
    eventually("it stands still again", || state(qemu) == 'T').await;
    eprintln!("{used} MB, and {} MB when it was idle", resident());
    // Once for each time that it was frozen, and then it stays so. It ran for long enough to say it a thousand times.
    tokio::time::sleep(3 * rest_after).await;
    let said = [read_now(&ticks), read_now(&ticks)].concat().lines().count();
    assert!(state(qemu) == 'T' && said < 100, "none but before it was told: {said}");
    guest.sandbox.thaw().unwrap();
    eventually("its processes run again", || !read_now(&ticks).is_empty()).await;
    assert_eq!(guest.inside(&["use-memory", "400"]).await.0, "used 400\n", "its memory is whole");
    // Needed in between.
    guest.sandbox.freeze().unwrap();
    eventually("it stands still", || state(qemu) == 'T').await;
    eventually("it gives memory back", || state(qemu) != 'T').await;
    assert_eq!(guest.sh("echo here").await.0, "here\n");
    guest.sandbox.freeze().unwrap();
    eventually("it stands still", || state(qemu) == 'T').await;
    guest.sandbox.thaw().unwrap();
    assert_eq!(guest.sh("echo here").await.0, "here\n");
    engine.stop().await;
}

async fn is_paused_and_resumed() {
    let host = Host::start().await;
    let mut guest = host.guest().await;
    let qemu = qemu(host.directory.path());
    let state = || state(qemu);
    for _ in 0..3 {
        guest.sandbox.freeze().unwrap();
        eventually("it stands still", || state() == 'T').await;
        guest.sandbox.thaw().unwrap();
        eventually("it runs", || state() != 'T').await;
        assert_eq!(guest.sh("echo here").await.0, "here\n");
    }
    guest.sandbox.freeze().unwrap();
    assert_eq!(guest.sh("echo thawed by the order").await.0, "thawed by the order\n");
    guest.sandbox.freeze().unwrap();
    guest.sandbox.destroy().await;
    assert!(machines(host.directory.path()).is_empty(), "a frozen one dies as well");
    host.engine.stop().await;
}

async fn limits_hold() {
    let host = Host::start().await;
    let mut guest = host.guest().await;
    let argv = [crate::support::PROGRAM, crate::inside::PART, "fill-memory"];
    let (process, _output) = guest.spawn(&argv).await.unwrap();
    assert_eq!(guest.exit_of(process).await, (ExitStatus::Signal(9), true), "killed, for want of memory");
    let usage = guest.sandbox.usage();
    assert!(usage.oom_kills == 1 && usage.memory_peak > 120 << 20 && usage.memory_peak <= 128 << 20, "{usage:?}");

    let (text, _) = guest.sh("cat /dev/zero >/tmp/full; echo; cat /dev/null >/tmp/full; echo room again").await;
    assert!(text.contains("No space left on device") && text.contains("room again"), "{text}");

    let argv = [crate::support::PROGRAM, crate::inside::PART, "fork-bomb"];
    let (_, _output) = guest.spawn(&argv).await.unwrap();
    guest.sandbox.kill_all().await.unwrap();
    let (text, status) = guest.sh("echo alive").await;
    assert_eq!((text.as_str(), status), ("alive\n", ExitStatus::Code(0)));
    host.engine.stop().await;
}

async fn dies() {
    let host = Host::start().await;
    for victim in ["qemu-system", "vhost-device-vsock"] {
        let mut guest = host.guest().await;
        let pid = machines(host.directory.path()).into_iter().find(|pid| processes(victim).contains(pid)).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, guest.events.recv()).await.unwrap(), Some(SandboxEvent::Gone));
        let spawned = guest.sandbox.spawn(command(&["/bin/true"])).await;
        assert!(matches!(spawned, Err(SandboxError::Gone(_))), "{spawned:?}");
        guest.sandbox.destroy().await;
        assert!(machines(host.directory.path()).is_empty());
        assert_eq!(fs::read_dir(host.directory.path().join("state/vms")).unwrap().count(), 0);
    }
    host.engine.stop().await;
}

/// With the network of a pool of its own, which the other tests here do not use.
fn connected(directory: &Path) -> MicrovmConfig {
    let network = Network::Egress(Egress { pool: pool(1), ..Egress::default() });
    MicrovmConfig { network, pool: 1, ..config(directory) }
}

/// As a server: a sandbox, a VM that waits, and the word that they are there; then nothing, until it is killed.
pub fn run_server(directory: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let engine = MicrovmEngine::start(connected(directory.as_ref())).await.unwrap();
        let _sandbox = engine.create(spec(directory.as_ref())).await.unwrap();
        eventually("another waits", || engine.waiting() == 1).await;
        println!("ready");
        std::future::pending::<()>().await;
    });
}

async fn leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args([SERVER, directory.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert_eq!(machines(directory.path()).len(), 4);
    assert_eq!((devices(1).len(), is_filtered(1)), (2, true));
    let launchers = processes("emberbox-microvm").into_iter();
    assert_eq!(launchers.filter(|pid| has_mount(*pid, directory.path(), "/trees/")).count(), 1);
    server.kill().unwrap();
    server.wait().unwrap();
    eventually("its processes are gone", || machines(directory.path()).is_empty()).await;
    // The launcher, by the places where it has mounted the programs.
    let launcher = || processes("emberbox-microvm").into_iter().any(|pid| has_mount(pid, directory.path(), "/trees/"));
    eventually("and the launcher", || !launcher()).await;
    let vms = directory.path().join("state/vms");
    assert_eq!(fs::read_dir(&vms).unwrap().count(), 2, "a directory has a name, and stays");
    eventually("its network is gone", || devices(1).is_empty()).await;
    assert!(is_filtered(1), "rules have a name, and stay");
    let engine = MicrovmEngine::start(config(directory.path())).await.unwrap();
    assert_eq!(fs::read_dir(&vms).unwrap().count(), 0, "until the next start");
    assert!(!is_filtered(1));
    engine.stop().await;
}
