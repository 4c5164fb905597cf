//! Processes that were started before their sandbox had a purpose.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use sandbox::process::Network;
use sandbox::{Command, ExitStatus, SandboxEngine, SandboxSpec, Signal, Standby};

use crate::support::{Guest, Host, PATIENCE, eventually, find_process, processes, read_all, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_standby_is_like_a_process_started_late", a_standby_is_like_a_process_started_late),
        test("a_standby_serves_its_own_command_only", a_standby_serves_its_own_command_only),
        test("a_standby_that_died_is_started_again", a_standby_that_died_is_started_again),
    ]
}

/// Says whether it stood by, then all that it can find out and do.
const SCRIPT: &str = r#"
import ctypes, os, sys, time
fd = os.environ.pop("_EMBERBOX_STANDBY", None)
if fd:
    with open(int(fd), "rb") as purpose:
        cwd, *env = purpose.read().decode().split("\0")[:-1]
    os.environ.clear()
    os.environ.update(variable.split("=", 1) for variable in env)
    os.chdir(cwd)
print("stood by" if fd else "started")
os.environ.pop("LC_CTYPE", None)
print(os.getcwd(), sorted(os.environ.items()), open("/var/task/secret.txt").read())
wanted = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp")
print(*(line for line in open("/proc/self/status") if line.startswith(wanted)), open("/proc/self/limits").read())
print(sorted(os.listdir("/proc/self/fd")), len([name for name in os.listdir("/proc") if name.isdigit()]))
print(sorted(line.split()[4:6] for line in open("/proc/self/mountinfo")))
print(*(open(file).read() for file in ("/etc/hosts", "/etc/resolv.conf", "/proc/self/oom_score_adj", "/proc/self/cgroup")))
libc = ctypes.CDLL(None, use_errno=True)
def mount():
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, 0):
        raise OSError(ctypes.get_errno(), "")
def signal_all():
    # A process that has ended is there until PID 1 has reaped it.
    for _ in range(200):
        os.kill(-1, 0)
        time.sleep(0.01)
attempts = [
    mount,
    lambda: open("/tmp/mine", "w"),
    lambda: open("/var/task/mine", "w"),
    lambda: open("/dev/mine", "w"),
    lambda: open("/proc/sys/kernel/hostname", "w"),
    lambda: os.listdir("/proc/1/fd"),
    lambda: os.kill(1, 9),
    signal_all,
    lambda: os.setuid(0),
    lambda: os.unshare(os.CLONE_NEWUSER) if hasattr(os, "unshare") else None,
    lambda: os.chroot("/tmp"),
]
for number, attempt in enumerate(attempts):
    try:
        attempt()
        print(number, "succeeded")
    except OSError as error:
        print(number, error.errno)
sys.stdout.flush()
if "SLEEP" in os.environ:
    time.sleep(1000)
"#;

fn command(mark: &str, more: &[&str]) -> Command {
    let argv = ["/usr/bin/python3", "-c", SCRIPT, mark];
    Command { argv: argv.map(str::to_owned).to_vec(), env: environment(more), cwd: "/var/task".into() }
}

fn environment(more: &[&str]) -> Vec<(String, String)> {
    let of_all = [("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    of_all.into_iter().chain(more.iter().map(|name| ((*name).to_owned(), "an own=value".to_owned()))).collect()
}

/// A sandbox that can have a standby with this mark as its last argument. It finds `/usr`, and no code.
fn spec(host: &Host, mark: &str) -> SandboxSpec {
    let command = Command { cwd: "/".into(), ..command(mark, &[]) };
    SandboxSpec { standby: Some(Standby { command, mounts: 1 }), ..host.spec() }
}

async fn run(guest: &mut Guest, command: Command) -> (String, String) {
    let process = guest.sandbox.spawn(command).await.unwrap();
    assert_eq!(guest.exit_of(process.id).await, (ExitStatus::Code(0), false));
    let output = read_all(process.output).await;
    let (how, rest) = output.split_once('\n').expect("a line");
    (how.to_owned(), rest.to_owned())
}

/// The first of a kind has no standby. One of the next has.
async fn with_standby(host: &Host, mark: &str) -> Guest {
    host.engine.create(spec(host, mark)).await.unwrap().destroy().await;
    find_process(mark).await;
    // The helper hears of it a moment later; an ordinary sandbox may be given until then.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let guest = Guest::of(host.engine.create(spec(host, mark)).await.unwrap());
        // An interpreter, not just PID 1.
        if guest.sandbox.usage().memory_now > 3 << 20 {
            return guest;
        }
        assert!(Instant::now() < deadline, "no standby");
        guest.sandbox.destroy().await;
        // In which no sandbox is asked for, so that standbys are made.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn with_mark(mark: &str) -> impl Iterator<Item = i32> {
    processes().filter(move |(_, words)| words.last().is_some_and(|last| last == mark)).map(|(pid, _)| pid)
}

async fn a_standby_is_like_a_process_started_late() {
    let host = Host::start(Network::None).await;
    let mark = "standby-alike";
    let mut guest = with_standby(&host, mark).await;
    let (how, of_standby) = run(&mut guest, command(mark, &["GREETING"])).await;
    assert_eq!(how, "stood by");
    assert!(of_standby.contains("the code of this function"));
    let mut other = host.guest().await;
    let (how, of_other) = run(&mut other, command(mark, &["GREETING"])).await;
    assert_eq!(how, "started");
    let without_cgroups =
        |text: String| text.lines().filter(|line| !line.contains("emberbox")).collect::<Vec<_>>().join("\n");
    assert_eq!(without_cgroups(of_standby), without_cgroups(of_other));
    // After a reset it is started in the ordinary way.
    guest.sandbox.kill_all().await.unwrap();
    assert_eq!(run(&mut guest, command(mark, &[])).await.0, "started");
    // It can be signalled, and counts for the limits.
    let mut guest = with_standby(&host, mark).await;
    let process = guest.sandbox.spawn(command(mark, &["SLEEP"])).await.unwrap();
    assert!(guest.sandbox.memory_peak() > 1 << 20);
    guest.sandbox.signal(process.id, Signal::Terminate).await.unwrap();
    assert_eq!(guest.exit_of(process.id).await.0, ExitStatus::Signal(libc::SIGTERM));
    host.engine.stop().await;
    eventually("no standby is left", || with_mark(mark).count() == 0).await;
}

async fn a_standby_serves_its_own_command_only() {
    let host = Host::start(Network::None).await;
    let mark = "standby-other";
    let mut guest = with_standby(&host, mark).await;
    let mut other = command(mark, &[]);
    other.argv.push("more".to_owned());
    assert_eq!(run(&mut guest, other).await.0, "started");
    assert_eq!(run(&mut guest, command(mark, &[])).await.0, "started", "it was killed");
    // Nor is it given to a sandbox with other directories.
    let mut different = spec(&host, mark);
    different.mounts.push(sandbox::Mount { source: "/usr/share".into(), target: "/opt".to_owned() });
    different.standby.as_mut().unwrap().mounts = 3;
    let mut guest = Guest::of(host.engine.create(different).await.unwrap());
    assert_eq!(run(&mut guest, command(mark, &[])).await.0, "started");
}

async fn a_standby_that_died_is_started_again() {
    let host = Host::start(Network::None).await;
    let mark = "standby-dead";
    let mut guest = with_standby(&host, mark).await;
    let pids: Vec<i32> = with_mark(mark).collect();
    for pid in &pids {
        // Those that are kept may be about to go.
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_raw(*pid).unwrap(), rustix::process::Signal::KILL);
    }
    // Their parent is told when they are zombies; their words, by which they are found, are gone before.
    let ended = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    };
    eventually("they have ended", || pids.iter().all(ended)).await;
    assert_eq!(run(&mut guest, command(mark, &[])).await.0, "started");
}
