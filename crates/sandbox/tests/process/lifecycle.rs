//! Making, using and destroying sandboxes, and what is left of them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as HostCommand, Stdio};

use libtest_mimic::Trial;
use sandbox::process::{Egress, Network, ProcessEngine};
use sandbox::{ExitStatus, SandboxEngine, SandboxError, SandboxEvent, SandboxSpec, Signal};

use crate::attacks::own_address;
use crate::support::{
    Guest, Host, PATIENCE, build_root, command, config, eventually, find_process, read_all, spec, test,
};

/// Part of this program: an engine and a sandbox, without being root.
pub const ROOTLESS: &str = "rootless";
/// Part of this program: an engine with one sandbox, to be killed.
pub const ENGINE: &str = "engine";

pub fn tests() -> Vec<Trial> {
    vec![
        test("runs_a_process", runs_a_process),
        test("refuses_what_cannot_be_executed", refuses_what_cannot_be_executed),
        test("carries_a_large_environment", carries_a_large_environment),
        test("signals_reach_the_whole_group", signals_reach_the_whole_group),
        test("kill_all_leaves_tmp", kill_all_leaves_tmp),
        test("listens_inside", listens_inside),
        test("says_when_it_is_gone", says_when_it_is_gone),
        test("a_failed_creation_leaves_nothing", a_failed_creation_leaves_nothing),
        test("many_at_once", many_at_once),
        test("nothing_is_left_after_destroy", nothing_is_left_after_destroy),
        test("nothing_is_left_after_the_engine_is_killed", nothing_is_left_after_the_engine_is_killed),
        test("the_next_engine_sweeps_up", the_next_engine_sweeps_up),
        test("reaches_outside_by_nat", reaches_outside_by_nat),
        test("works_without_root", works_without_root),
    ]
}

async fn runs_a_process() {
    let host = Host::start(Network::None).await;
    assert!(host.engine.describe().iter().any(|note| note.contains("cgroup")));
    let mut guest = host.guest().await;
    let script = "pwd; id -un; id -G; echo $GREETING; cat /etc/hosts; cat; echo to stderr >&2; exit 3";
    let mut command = command(&["/bin/sh", "-c", script]);
    command.env.push(("GREETING".to_owned(), "hello".to_owned()));
    let process = guest.sandbox.spawn(command).await.unwrap();
    assert_eq!(guest.exit_of(process.id).await, (ExitStatus::Code(3), false));
    let expected = "/var/task\nsbx_user1051\n990\nhello\n127.0.0.1 localhost localhost.localdomain\n\
                    169.254.100.1 sandbox.localdomain sandbox\n192.0.2.7 db.internal\nto stderr\n";
    assert_eq!(read_all(process.output).await, expected);
    let usage = guest.sandbox.usage();
    assert!(usage.memory_peak > 0 && usage.cpu.as_nanos() > 0, "{usage:?}");
    assert!(guest.sandbox.take_events().is_none());
}

async fn refuses_what_cannot_be_executed() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    for (program, errno) in [("/nowhere", libc::ENOENT), ("/etc/passwd", libc::EACCES), ("/tmp", libc::EACCES)] {
        match guest.spawn(&[program]).await {
            Err(SandboxError::Exec { program: named, source }) => {
                assert_eq!((named.as_str(), source.raw_os_error()), (program, Some(errno)));
            }
            other => panic!("{other:?}"),
        }
    }
    let mut nowhere = command(&["/bin/true"]);
    nowhere.cwd = "/nowhere".into();
    let error = guest.sandbox.spawn(nowhere).await.unwrap_err();
    assert!(matches!(&error, SandboxError::WorkingDirectory { directory, .. } if directory == "/nowhere"), "{error}");
    assert!(matches!(guest.spawn(&[]).await, Err(SandboxError::Exec { .. })));
    assert!(matches!(guest.spawn(&["/bin/true", "a\0b"]).await, Err(SandboxError::Exec { .. })));
    assert_eq!(guest.run(&["/bin/true"]).await.1, ExitStatus::Code(0));
}

async fn carries_a_large_environment() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    let mut command = command(&["/bin/sh", "-c", "echo ${#A} ${#B} ${#C}"]);
    for name in ["A", "B", "C"] {
        command.env.push((name.to_owned(), "\"".repeat(100_000)));
    }
    let process = guest.sandbox.spawn(command).await.unwrap();
    assert_eq!(read_all(process.output).await, "100000 100000 100000\n");
    assert_eq!(guest.exit_of(process.id).await.0, ExitStatus::Code(0));
}

async fn signals_reach_the_whole_group() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    let script = "trap 'echo parent; exit 5' TERM; (trap 'echo child; exit' TERM; echo ready > /tmp/ready; \
                  while :; do sleep 0.05; done) & wait; wait";
    let (process, output) = guest.spawn(&["/bin/sh", "-c", script]).await.unwrap();
    loop {
        if guest.run(&["/usr/bin/test", "-e", "/tmp/ready"]).await.1 == ExitStatus::Code(0) {
            break;
        }
    }
    guest.sandbox.signal(process, Signal::Terminate).await.unwrap();
    assert_eq!(guest.exit_of(process).await.0, ExitStatus::Code(5));
    let output = read_all(output).await;
    assert!(output.contains("parent") && output.contains("child"), "{output}");
    // It is gone, which is no error.
    guest.sandbox.signal(process, Signal::Kill).await.unwrap();
}

async fn kill_all_leaves_tmp() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    let script = "echo kept > /tmp/file; (setsid sleep 1000 &); sleep 1000";
    let (process, output) = guest.spawn(&["/bin/sh", "-c", script]).await.unwrap();
    while guest.run(&["/usr/bin/test", "-s", "/tmp/file"]).await.1 != ExitStatus::Code(0) {}
    guest.sandbox.freeze().unwrap();
    guest.sandbox.kill_all().await.unwrap();
    assert_eq!(guest.exit_of(process).await.0, ExitStatus::Signal(libc::SIGKILL));
    assert_eq!(read_all(output).await, "");
    assert_eq!(guest.attack(&["processes"]).await.trim(), "1");
    assert_eq!(guest.run(&["/bin/cat", "/tmp/file"]).await.0, "kept\n");
}

async fn listens_inside() {
    let host = Host::start(Network::None).await;
    let guest = host.guest().await;
    let listener = guest.sandbox.take_listener(9001).unwrap();
    assert!(guest.sandbox.take_listener(9001).is_none());
    assert!(guest.sandbox.take_listener(9002).is_none());
    let client =
        "import socket; s = socket.create_connection(('169.254.100.1', 9001)); s.sendall(b'hi'); print(s.recv(9))";
    let (_, output) = guest.spawn(&["/usr/bin/python3", "-c", client]).await.unwrap();
    let sandbox::Listener::Tcp(listener) = listener else { panic!("{listener:?}") };
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (mut stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut text = [0; 2];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut text).await.unwrap();
    assert_eq!(&text, b"hi");
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"there").await.unwrap();
    drop(stream);
    assert_eq!(read_all(output).await, "b'there'\n");
}

async fn says_when_it_is_gone() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    let mark = uuid::Uuid::new_v4().to_string();
    let (process, _output) = guest.spawn(&["/bin/sh", "-c", "sleep 1000; true", &mark]).await.unwrap();
    let pid = find_process(&mark).await;
    let init = parent(pid);
    kill(init);
    match tokio::time::timeout(PATIENCE, guest.events.recv()).await.unwrap() {
        Some(SandboxEvent::Gone) => {}
        other => panic!("{other:?} of {process:?}"),
    }
    assert!(matches!(guest.spawn(&["/bin/true"]).await, Err(SandboxError::Gone(_))));
    guest.sandbox.destroy().await;
    assert!(!alive(pid));
}

async fn a_failed_creation_leaves_nothing() {
    let host = Host::start(Network::None).await;
    let kept = host.guest().await;
    let breaks: [fn(&mut SandboxSpec); 5] = [
        |spec| spec.root = "/nowhere".into(),
        |spec| spec.mounts[1].source = "/nowhere".into(),
        |spec| spec.mounts[1].target = "/nowhere".into(),
        |spec| spec.listen = vec![9001, 9001],
        |spec| spec.memory_mb = 0,
    ];
    for break_it in breaks {
        let mut spec = host.spec();
        break_it(&mut spec);
        match host.engine.create(spec).await {
            Err(SandboxError::Host { operation, .. }) => assert!(!operation.is_empty()),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it was made"),
        }
    }
    let remains = Remains::of(&kept).await;
    eventually("one cgroup for the kept, one for the blank", || {
        remains
            .cgroups()
            .iter()
            .all(|group| fs::read_dir(group).unwrap().flatten().filter(|entry| entry.path().is_dir()).count() <= 2)
    })
    .await;
}

async fn many_at_once() {
    let host = Host::start(Network::None).await;
    let made = (0..24).map(|_| host.guest());
    let mut guests = futures_join(made).await;
    for guest in &mut guests {
        assert_eq!(guest.run(&["/bin/echo", "here"]).await.0, "here\n");
    }
    for guest in &guests {
        guest.sandbox.destroy().await;
    }
}

async fn nothing_is_left_after_destroy() {
    let host = Host::start(Network::Egress(Egress::default())).await;
    let guest = host.guest().await;
    let mark = uuid::Uuid::new_v4().to_string();
    guest.spawn(&["/bin/sh", "-c", "sleep 1000; true", &mark]).await.unwrap();
    let pid = find_process(&mark).await;
    let remains = Remains::of(&guest).await;
    let group = remains.group.clone();
    assert!(group.exists() && remains.loops(host.directory.path()) > 0);
    guest.sandbox.freeze().unwrap();
    guest.sandbox.destroy().await;
    assert!(!alive(pid) && !group.exists());
    assert!(matches!(guest.spawn(&["/bin/true"]).await, Err(SandboxError::Gone(_))));
    guest.sandbox.destroy().await;
    drop(guest);
    host.engine.stop().await;
    remains.assert_nothing(host.directory.path()).await;
    assert!(matches!(host.engine.create(host.spec()).await, Err(SandboxError::Host { .. })));
}

async fn nothing_is_left_after_the_engine_is_killed() {
    let (mut engine, directory, pid) = start_engine().await;
    let remains = Remains::of_process(pid);
    engine.kill().unwrap();
    engine.wait().unwrap();
    eventually("the processes are dead", || !alive(pid)).await;
    remains.assert_nothing(directory.path()).await;
}

async fn the_next_engine_sweeps_up() {
    let (mut engine, directory, pid) = start_engine().await;
    let remains = Remains::of_process(pid);
    let helper = parent(parent(pid));
    assert_eq!(parent(helper), engine.id() as i32);
    kill(helper);
    engine.kill().unwrap();
    engine.wait().unwrap();
    let host = Host::start(Network::None).await;
    eventually("the processes are dead", || !alive(pid)).await;
    // By this engine, or by another one on this host that starts at the same time.
    eventually("the cgroup is gone", || !remains.group.exists()).await;
    host.engine.stop().await;
    remains.assert_nothing(directory.path()).await;
}

async fn reaches_outside_by_nat() {
    // A network namespace plays the internet: it knows no way back but to the address that masks the sandbox.
    let name = "embertest";
    let script = format!(
        "ip netns add {name} && ip link add {name}0 type veth peer name eth0 netns {name} && \
         ip addr add 198.51.100.1/24 dev {name}0 && ip link set {name}0 up && \
         ip -n {name} addr add 198.51.100.2/24 dev eth0 && ip -n {name} link set eth0 up && ip -n {name} link set lo up"
    );
    let clean = format!("ip netns del {name}; ip link del {name}0; true");
    HostCommand::new("sh").args(["-c", &clean]).stderr(Stdio::null()).status().unwrap();
    assert!(HostCommand::new("sh").args(["-c", &script]).status().unwrap().success(), "this takes iproute2");
    let server = "import socket\ns = socket.create_server(('198.51.100.2', 8080))\nwhile True: c, a = s.accept(); c.sendall(a[0].encode()); c.close()";
    let mut server = HostCommand::new("ip").args(["netns", "exec", name, "python3", "-c", server]).spawn().unwrap();

    let egress = Egress { allow: vec!["198.51.100.2".parse().unwrap()], ..Egress::default() };
    let host = Host::start(Network::Egress(egress)).await;
    let mut guest = host.guest().await;
    let client = "import socket, time
for attempt in range(100):
    try: print(socket.create_connection(('198.51.100.2', 8080)).recv(99).decode()); break
    except ConnectionRefusedError: time.sleep(0.05)";
    let (output, _) = guest.run(&["/usr/bin/python3", "-c", client]).await;
    server.kill().unwrap();
    server.wait().unwrap();
    HostCommand::new("sh").args(["-c", &clean]).stderr(Stdio::null()).status().unwrap();
    assert_eq!(output, "198.51.100.1\n");
}

/// In a process of its own: an engine with one frozen sandbox. Says when it is ready, then waits to be killed.
pub fn run_engine() {
    let directory = PathBuf::from(std::env::args().nth(2).expect("a directory"));
    let mark = std::env::args().nth(3).expect("a mark");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let network = Network::Egress(Egress::default());
        let engine = ProcessEngine::start(config(&directory, network)).await.expect("an engine");
        let sandbox = engine.create(spec(&directory)).await.expect("a sandbox");
        sandbox.spawn(command(&["/bin/sh", "-c", "sleep 1000; true", &mark])).await.expect("a process");
        sandbox.freeze().expect("a freezer");
        println!("ready");
        std::io::stdout().flush().expect("a pipe");
        std::future::pending::<()>().await;
    });
}

async fn works_without_root() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    // Nobody, which has no group of users to lend it anything.
    let chown = HostCommand::new("chown").args(["-R", "65534:65534"]).arg(directory.path()).status().unwrap();
    assert!(chown.success());
    // Where it is only for root, this user gets a device of its own to open, so that pasta works.
    let script = "cp -a /dev/net/tun $0/tun && chmod 666 $0/tun && mount --bind $0/tun /dev/net/tun; \
                  exec setpriv --reuid=65534 --regid=65534 --clear-groups $0/code/attacker $1 $0 $2";
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let part = HostCommand::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(directory.path())
        .arg(ROOTLESS)
        .arg(listener.local_addr().unwrap().port().to_string())
        .output()
        .unwrap();
    assert!(part.status.success(), "{}", String::from_utf8_lossy(&part.stderr));
}

/// In a process of its own, which is not root: what holds without, too.
pub fn run_rootless() {
    let directory = PathBuf::from(std::env::args().nth(2).expect("a directory"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let network = Network::Egress(Egress::default());
        let engine = ProcessEngine::start(config(&directory, network)).await.expect("an engine");
        for note in engine.describe() {
            eprintln!("{note}");
        }
        assert!(engine.describe().iter().any(|note| note.starts_with("not root")));
        let mut guest = Guest::of(engine.create(spec(&directory)).await.expect("a sandbox"));
        assert_eq!(guest.attack(&["user"]).await, "993");
        assert_eq!(guest.attack(&["processes"]).await.trim(), "1");
        assert_eq!(guest.attack(&["descriptors"]).await.trim(), "[0, 1, 2, 3]");
        assert!(guest.attack(&["print", "/proc/self/status"]).await.contains("CapBnd:\t0000000000000000"));
        guest.denied(&["list", directory.to_str().expect("a path")], &[libc::ENOENT]).await;
        guest.denied(&["write", "/var/task/x"], &[libc::EROFS, libc::EACCES]).await;
        guest.denied(&["mount"], &[libc::EPERM]).await;
        guest.denied(&["read", "/proc/1/environ"], &[libc::ENOENT, libc::EACCES]).await;
        // PID 1 has the same user here; the kernel keeps it from being killed all the same.
        guest.attack(&["syscall", &libc::SYS_kill.to_string(), "1", "9"]).await;
        assert_eq!(guest.attack(&["write", "/tmp/x"]).await.trim(), "succeeded");
        if engine.describe().iter().any(|note| note.contains("pasta process")) {
            let port = std::env::args().nth(3).expect("a port");
            let refused = [libc::ECONNREFUSED, libc::EHOSTUNREACH];
            for address in ["127.0.0.1".to_owned(), own_address().to_string(), "10.1.2.3".to_owned()] {
                guest.denied(&["connect", &format!("{address}:{port}")], &refused).await;
            }
            let (routes, _) = guest.run(&["/bin/cat", "/proc/net/route"]).await;
            assert!(routes.contains("eth0\t00000000"), "{routes}");
        }
        guest.sandbox.destroy().await;
        engine.stop().await;
    });
}

/// The engine, its directory, and a process in its sandbox.
async fn start_engine() -> (Child, tempfile::TempDir, i32) {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let mark = uuid::Uuid::new_v4().to_string();
    let mut engine = HostCommand::new(std::env::current_exe().unwrap())
        .arg(ENGINE)
        .arg(directory.path())
        .arg(&mark)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(engine.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = find_process(&mark).await;
    (engine, directory, pid)
}

/// The names that an instance has on the host.
struct Remains {
    instance: String,
    /// One of the cgroups of the sandbox.
    group: PathBuf,
}

impl Remains {
    async fn of(guest: &Guest) -> Self {
        let mark = uuid::Uuid::new_v4().to_string();
        let (process, _output) = guest.spawn(&["/bin/sh", "-c", "sleep 1000; true", &mark]).await.unwrap();
        let remains = Self::of_process(find_process(&mark).await);
        guest.sandbox.signal(process, Signal::Kill).await.unwrap();
        remains
    }

    fn of_process(pid: i32) -> Self {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let line = groups.lines().find(|line| line.contains("/emberbox/")).unwrap();
        let (controller, path) = line.split_once(':').unwrap().1.split_once(':').unwrap();
        let instance = path.split('/').nth(2).unwrap().to_owned();
        let group = Path::new("/sys/fs/cgroup").join(controller).join(path.trim_start_matches('/'));
        Self { instance, group }
    }

    /// The cgroups of the instance.
    fn cgroups(&self) -> Vec<PathBuf> {
        let controllers = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        // Version 2 has one tree for all.
        let trees = controllers.chain(["/sys/fs/cgroup".into()]);
        trees.map(|path| path.join("emberbox").join(&self.instance)).filter(|path| path.exists()).collect()
    }

    /// How many loop devices have their file below a directory.
    fn loops(&self, directory: &Path) -> usize {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        let files = devices.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
        files.filter(|file| file.starts_with(directory.to_str().unwrap())).count()
    }

    async fn assert_nothing(&self, directory: &Path) {
        let devices = format!("ebox{}-", self.instance);
        let tables = || {
            let output = HostCommand::new("nft").args(["list", "tables"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        // The kernel takes mounts and network namespaces down in its own time. And since the number of this instance is
        // free, another test may have taken it: its things have other names below.
        eventually("loop devices are gone", || self.loops(directory) == 0).await;
        eventually("the cgroup of the sandbox is gone", || !self.group.exists() || self.is_taken()).await;
        eventually("network devices are gone", || {
            self.is_taken()
                || !fs::read_dir("/sys/class/net")
                    .unwrap()
                    .flatten()
                    .any(|entry| entry.file_name().to_str().unwrap().starts_with(&devices))
        })
        .await;
        eventually("the packet filter is gone", || {
            self.is_taken() || !tables().lines().any(|line| line.ends_with(&format!("emberbox_{}", self.instance)))
        })
        .await;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(directory.to_str().unwrap()), "{mounts}");
    }

    /// Whether another engine has the number of this one.
    fn is_taken(&self) -> bool {
        let lock = fs::File::open(format!("/run/emberbox/block-{}.lock", self.instance)).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
    }
}

async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut results = Vec::new();
    let mut running: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        running.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(result) => {
                results.push(result);
                false
            }
            std::task::Poll::Pending => true,
        });
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    results
}

fn parent(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
