//! Attacks from inside. Each is tried for real; what counts is what the kernel answers.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::Duration;

use libc::{EACCES, EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH, ENOENT, ENOSPC, ENOSYS, EPERM, EROFS, ESRCH};
use libtest_mimic::Trial;
use sandbox::process::{Egress, Network};
use sandbox::{ExitStatus, SandboxEngine};

use crate::support::{ATTACKER, Guest, Host, eventually, find_process, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("attack_read_host_files", read_host_files),
        test("attack_write_outside_tmp", write_outside_tmp),
        test("attack_gain_privileges", gain_privileges),
        test("attack_system_calls", system_calls),
        test("attack_sockets", sockets),
        test("attack_escape_by_path_or_descriptor", escape_by_path_or_descriptor),
        test("attack_other_processes", other_processes),
        test("attack_fork_bomb", fork_bomb),
        test("attack_quotas_of_the_host", quotas_of_the_host),
        test("attack_memory_bomb", memory_bomb),
        test("attack_memory_bombs_together", memory_bombs_together),
        test("attack_disk_filler", disk_filler),
        test("attack_run_while_frozen", run_while_frozen),
        test("attack_network_none", network_none),
        test("attack_network_egress", network_egress),
    ]
}

async fn read_host_files() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    let directory = host.directory.path().to_str().unwrap();
    for path in ["/etc/shadow", "/root", "/home", "/sys/kernel", "/var/lib", "/run", directory, "/dev/vda", "/dev/kvm"]
    {
        guest.denied(&["list", path], &[ENOENT]).await;
    }
    // Of PID 1, which came from outside, nothing is to be seen.
    for path in ["/proc/1/root", "/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/fd", "/proc/1/cwd"] {
        guest.denied(&["read", path], &[ENOENT]).await;
    }
    for path in ["/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/kpagecount", "/proc/kcore"] {
        if fs::exists(path).unwrap() {
            assert_eq!(guest.attack(&["print", path]).await, "", "{path}");
        }
    }
    guest.denied(&["read", "/proc/kpageflags"], &[EACCES, EPERM]).await;
    let mounts = guest.attack(&["print", "/proc/self/mountinfo"]).await;
    assert!(!mounts.contains(" / /etc "), "{mounts}");
    assert_eq!(
        guest.attack(&["print", "/proc/self/cgroup"]).await.lines().filter(|l| l.contains("emberbox")).count(),
        0
    );
}

async fn write_outside_tmp() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    for path in ["/x", "/var/task/x", "/var/task/secret.txt", "/usr/x", "/etc/hosts", "/dev/x", "/opt/x", "/proc/x"] {
        guest.denied(&["write", path], &[EROFS, EACCES, ENOENT, EPERM]).await;
    }
    for path in ["/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger"] {
        if fs::exists(path).unwrap() {
            let output = guest.attack(&["write", path]).await;
            // What is covered takes the write and does nothing.
            assert!(output.starts_with("denied") || path.ends_with("trigger"), "{path}: {output}");
        }
    }
    assert_eq!(guest.attack(&["write", "/tmp/x"]).await.trim(), "succeeded");
    assert_eq!(guest.attack(&["write", "/dev/null"]).await.trim(), "succeeded");
}

async fn gain_privileges() {
    let host = Host::start(Network::None).await;
    let setuid = host.directory.path().join("code/setuid");
    fs::copy(host.directory.path().join("code/attacker"), &setuid).unwrap();
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let mut guest = host.guest().await;

    let status = guest.attack(&["print", "/proc/self/status"]).await;
    let value = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {status}"));
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(value(set), "0000000000000000", "{set}");
    }
    assert_eq!((value("NoNewPrivs"), value("Seccomp")), ("1".to_owned(), "2".to_owned()));
    assert_eq!((value("Uid"), value("Gid")), ("993\t993\t993\t993".to_owned(), "990\t990\t990\t990".to_owned()));
    assert_eq!(value("Groups"), "");
    assert_eq!(guest.attack(&["descriptors"]).await.trim(), "[0, 1, 2, 3]");

    let (user, _) = guest.run(&["/var/task/setuid", crate::attacker::PART, "user"]).await;
    assert_eq!(user, "993");
    for call in [libc::SYS_setuid, libc::SYS_setgid] {
        guest.denied(&["syscall", &call.to_string(), "0"], &[EPERM]).await;
    }
    let limits = guest.attack(&["print", "/proc/self/limits"]).await;
    for (name, value) in [("Max open files", "1024"), ("Max processes", "1024"), ("Max core file size", "1")] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line[name.len()..].split_whitespace().take(2).collect::<Vec<_>>(), [value, value], "{line}");
    }
}

async fn system_calls() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    guest.denied(&["mount"], &[EPERM]).await;
    guest.denied(&["chroot"], &[EPERM]).await;
    guest.denied(&["device"], &[EPERM]).await;
    guest.denied(&["push-input"], &[EPERM]).await;
    let new_user = libc::CLONE_NEWUSER.to_string();
    for call in [
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_fsopen,
        libc::SYS_open_tree,
        libc::SYS_mount_setattr,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_sethostname,
        libc::SYS_settimeofday,
        libc::SYS_syslog,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        libc::SYS_iopl,
        libc::SYS_modify_ldt,
    ] {
        guest.denied(&["syscall", &call.to_string()], &[EPERM]).await;
    }
    guest.denied(&["syscall", &libc::SYS_clone.to_string(), &new_user], &[EPERM]).await;
    for call in [libc::SYS_clone3, libc::SYS_io_setup] {
        guest.denied(&["syscall", &call.to_string()], &[ENOSYS]).await;
    }
    // With the upper half of the word, which the kernel ignores, and by the other two ways into the kernel.
    let new_user = (libc::CLONE_NEWUSER as i64 | 1 << 40).to_string();
    guest.denied(&["syscall", &libc::SYS_clone.to_string(), &new_user], &[EPERM]).await;
    let push_input = (libc::TIOCSTI as i64 | 1 << 40).to_string();
    guest.denied(&["syscall", &libc::SYS_ioctl.to_string(), "0", &push_input], &[EPERM]).await;
    for call in [libc::SYS_ptrace, libc::SYS_unshare, libc::SYS_getpid] {
        guest.denied(&["syscall", &(call | 0x4000_0000).to_string()], &[EPERM, ENOSYS]).await;
    }
    if cfg!(target_arch = "x86_64") {
        let (text, status) = guest.run(&[ATTACKER, crate::attacker::PART, "32-bit"]).await;
        assert!(matches!(status, ExitStatus::Signal(libc::SIGSYS | libc::SIGSEGV)), "{text} {status:?}");
    }
    // The limit at which the host's program for core dumps is not started.
    for way in ["0", "1"] {
        guest.denied(&["core-limit", way], &[EPERM]).await;
    }
    let limits = libc::SYS_prlimit64.to_string();
    assert_eq!(guest.attack(&["syscall", &limits, "0", &libc::RLIMIT_CORE.to_string()]).await.trim(), "succeeded");
}

async fn sockets() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    let socket = |family: i32, kind: i32, protocol: i32| {
        [libc::SYS_socket as i32, family, kind, protocol].map(|n| n.to_string())
    };
    let cases = [
        (socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP), EPERM),
        (socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6), EPERM),
        (socket(libc::AF_PACKET, libc::SOCK_RAW, 0), EAFNOSUPPORT),
        (socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0), EAFNOSUPPORT),
        (socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0), EAFNOSUPPORT),
        (socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER), EPERM),
    ];
    for ([call, family, kind, protocol], error) in cases {
        guest.denied(&["syscall", &call, &family, &kind, &protocol], &[error]).await;
    }
    let [call, family, kind, protocol] = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    assert_eq!(guest.attack(&["syscall", &call, &family, &kind, &protocol]).await.trim(), "succeeded");
}

async fn escape_by_path_or_descriptor() {
    let host = Host::start(Network::None).await;
    let directory = host.directory.path();
    // Links in what the user uploads, and even in the root where something is to be mounted.
    symlink("/etc/shadow", directory.join("code/shadow")).unwrap();
    symlink("../../../../../../etc/shadow", directory.join("code/climb")).unwrap();
    symlink("../../../../../../opt", directory.join("root/layer")).unwrap();
    let mut spec = host.spec();
    spec.mounts.push(sandbox::Mount { source: directory.join("code"), target: "/layer".to_owned() });
    let mut guest = Guest::of(host.engine.create(spec).await.unwrap());
    for path in ["/var/task/shadow", "/var/task/climb"] {
        guest.denied(&["read", path], &[ENOENT]).await;
    }
    guest.attack(&["look-up"]).await;
    let (text, _) = guest.run(&["/usr/bin/cat", "/opt/secret.txt"]).await;
    assert_eq!(text, "the code of this function");
}

async fn other_processes() {
    let host = Host::start(Network::None).await;
    let victim = host.guest().await;
    let mark = uuid::Uuid::new_v4().to_string();
    let (process, _output) = victim.spawn(&[ATTACKER, crate::attacker::PART, "secret", &mark]).await.unwrap();
    let pid = find_process(&mark).await;
    let mut guest = host.guest().await;

    // Itself, and nobody else: not PID 1, not the neighbour.
    assert_eq!(guest.attack(&["processes"]).await.trim(), "1");
    let pid = pid.to_string();
    guest.denied(&["read-memory", &pid], &[EPERM]).await;
    guest.denied(&["read", &format!("/proc/{pid}/mem")], &[ENOENT]).await;
    let kill = libc::SYS_kill.to_string();
    guest.denied(&["syscall", &kill, &pid, "9"], &[ESRCH]).await;
    guest.denied(&["syscall", &kill, "1", "9"], &[EPERM]).await;
    guest.denied(&["syscall", &libc::SYS_pidfd_open.to_string(), &pid], &[ESRCH]).await;
    let worker = std::process::id().to_string();
    guest.denied(&["syscall", &kill, &worker, "9"], &[ESRCH, EPERM]).await;
    // Everything that it can: itself.
    let (_, status) = guest.run(&["/bin/sh", "-c", "kill -9 -1; exit 7"]).await;
    assert!(matches!(status, ExitStatus::Code(7) | ExitStatus::Signal(9)), "{status:?}");
    assert_eq!(guest.attack(&["user"]).await, "993");
    victim.sandbox.signal(process, sandbox::Signal::Kill).await.unwrap();
}

async fn fork_bomb() {
    let host = Host::start(Network::None).await;
    let mut spec = host.spec();
    spec.memory_mb = 1024;
    let mut guest = Guest::of(host.engine.create(spec).await.unwrap());
    let output = guest.attack(&["fork-bomb"]).await;
    let (count, error) = output.trim().split_once(' ').unwrap();
    assert_eq!(error, libc::EAGAIN.to_string(), "{output}");
    assert!((900..1024).contains(&count.parse::<u32>().unwrap()), "{output}");
    // The host can still start processes, and the sandbox can be used again.
    assert!(Command::new("true").status().unwrap().success());
    guest.sandbox.kill_all().await.unwrap();
    assert_eq!(guest.attack(&["processes"]).await.trim(), "1");
}

/// What the kernel counts by user must not be counted for the host's root, nor for the neighbour.
async fn quotas_of_the_host() {
    let host = Host::start(Network::None).await;
    let guest = host.guest().await;
    let (process, output) = guest.spawn(&[ATTACKER, crate::attacker::PART, "inotify-filler"]).await.unwrap();
    rustix::io::ioctl_fionbio(&output, false).unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(File::from(output)).read_line(&mut line).map(|_| line)
    });
    let line = read.await.unwrap().unwrap();
    assert_eq!(line.trim().split_once(' ').map(|(_, error)| error), Some(&*libc::EMFILE.to_string()), "{line}");
    let mut neighbour = host.guest().await;
    let inotify = libc::SYS_inotify_init1.to_string();
    assert_eq!(neighbour.attack(&["syscall", &inotify]).await.trim(), "succeeded");
    rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).expect("the host's root still has some");
    guest.sandbox.signal(process, sandbox::Signal::Kill).await.unwrap();
}

async fn memory_bomb() {
    let host = Host::start(Network::None).await;
    let mut spec = host.spec();
    spec.memory_mb = 128;
    let mut guest = Guest::of(host.engine.create(spec).await.unwrap());
    let (process, _output) = guest.spawn(&[ATTACKER, crate::attacker::PART, "memory-bomb"]).await.unwrap();
    assert_eq!(guest.exit_of(process).await, (ExitStatus::Signal(9), true));
    let usage = guest.sandbox.usage();
    assert_eq!(usage.oom_kills, 1);
    assert!((120 << 20..=128 << 20).contains(&usage.memory_peak), "{usage:?}");
    // PID 1 lives, and the next end is not taken for the same.
    let (process, _output) = guest.spawn(&["/bin/false"]).await.unwrap();
    assert_eq!(guest.exit_of(process).await, (ExitStatus::Code(1), false));
}

/// Each within its own limit, together beyond what the host can spare.
async fn memory_bombs_together() {
    let host = Host::start_with(|config| config.memory_mb = Some(300)).await;
    let (mut one, mut two) = (host.guest().await, host.guest().await);
    let (first, _output) = one.spawn(&[ATTACKER, crate::attacker::PART, "hold-memory", "200"]).await.unwrap();
    eventually("the first one has its memory", || one.sandbox.usage().memory_now > 200 << 20).await;
    let (second, _output) = two.spawn(&[ATTACKER, crate::attacker::PART, "hold-memory", "200"]).await.unwrap();
    let (status, oom) = tokio::select! {
        end = one.exit_of(first) => end,
        end = two.exit_of(second) => end,
    };
    assert_eq!((status, oom), (ExitStatus::Signal(9), true));
}

async fn disk_filler() {
    let host = Host::start(Network::None).await;
    // More than fits into memory: what waits to be written to disk must not be taken for the function's own.
    let mut spec = host.spec();
    (spec.memory_mb, spec.ephemeral_mb) = (128, 512);
    let mut guest = Guest::of(host.engine.create(spec).await.unwrap());
    let output = guest.attack(&["disk-filler"]).await;
    let (written, error) = output.trim().split_once(' ').unwrap();
    assert_eq!(error, ENOSPC.to_string());
    assert!((480 << 20..=512 << 20).contains(&written.parse::<u64>().unwrap()), "{output}");
    assert_eq!(guest.sandbox.usage().oom_kills, 0);
    let (_, status) = guest.run(&["/bin/rm", "/tmp/fill"]).await;
    assert_eq!(status, ExitStatus::Code(0));
    let output = guest.attack(&["inode-filler"]).await;
    let (count, error) = output.trim().split_once(' ').unwrap();
    assert_eq!(error, ENOSPC.to_string());
    assert!((30_000..33_000).contains(&count.parse::<u64>().unwrap()), "{output}");
}

async fn run_while_frozen() {
    let host = Host::start(Network::None).await;
    let mut guest = host.guest().await;
    let (process, _output) = guest.spawn(&[ATTACKER, crate::attacker::PART, "spin"]).await.unwrap();
    let cpu = || guest.sandbox.usage().cpu;
    eventually("the process runs", || cpu() > Duration::from_millis(30)).await;
    guest.sandbox.freeze().unwrap();
    // The kernel stops each thread at its next chance.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let frozen = cpu();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cpu(), frozen);
    guest.sandbox.thaw().unwrap();
    eventually("the process runs again", || cpu() > frozen + Duration::from_millis(30)).await;
    guest.sandbox.freeze().unwrap();
    guest.sandbox.signal(process, sandbox::Signal::Kill).await.unwrap();
    assert_eq!(guest.exit_of(process).await.0, ExitStatus::Signal(9));
}

async fn network_none() {
    let host = Host::start(Network::None).await;
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = host.guest().await;
    guest.denied(&["connect", &format!("127.0.0.1:{port}")], &[libc::ECONNREFUSED]).await;
    for address in ["1.1.1.1:53".to_owned(), format!("192.0.2.2:{port}"), "169.254.169.254:80".to_owned()] {
        guest.denied(&["connect", &address], &[ENETUNREACH]).await;
    }
}

async fn network_egress() {
    // The host's own addresses, and one server that is allowed.
    let forbidden = TcpListener::bind("0.0.0.0:0").unwrap();
    let allowed = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = forbidden.local_addr().unwrap().port();
    let allowed = allowed.local_addr().unwrap().port();
    let own = own_address();
    let egress = Egress { allow: vec![format!("{own}:{allowed}").parse().unwrap()], ..Egress::default() };
    let host = Host::start(Network::Egress(egress)).await;
    let mut guest = host.guest().await;
    let mut neighbour = host.guest().await;
    let address_of = async |guest: &mut Guest| {
        let (text, _) = guest.run(&["/usr/bin/python3", "-c", ADDRESS]).await;
        text.trim().parse::<std::net::Ipv4Addr>().unwrap_or_else(|_| panic!("{text}"))
    };
    let address = address_of(&mut guest).await;
    let other = address_of(&mut neighbour).await;
    assert_ne!(address, other);
    let gateway = std::net::Ipv4Addr::from(u32::from(address) - 1);

    let refused = [EHOSTUNREACH, ENETUNREACH, libc::ECONNREFUSED, EACCES];
    guest.denied(&["connect", &format!("127.0.0.1:{port}")], &refused).await;
    for target in [
        format!("{gateway}:{port}"),
        format!("{own}:{port}"),
        format!("{other}:9001"),
        "169.254.169.254:80".to_owned(),
        "10.1.2.3:80".to_owned(),
        "192.168.1.1:80".to_owned(),
        "100.64.0.1:80".to_owned(),
        "224.0.0.1:80".to_owned(),
    ] {
        guest.denied(&["connect", &target], &refused).await;
    }
    assert_eq!(guest.attack(&["connect", &format!("{own}:{allowed}")]).await.trim(), "succeeded");
    // In the neighbour's name: the answer would go there, the question must not get out.
    let (output, _) =
        guest.run(&["/usr/bin/python3", "-c", SPOOF, &other.to_string(), &own.to_string(), &allowed.to_string()]).await;
    assert_eq!(output, "denied\n");
    // And the neighbour's loopback is its own.
    guest.denied(&["connect", "169.254.100.1:9002"], &[libc::ECONNREFUSED]).await;
}

/// Prints the address of eth0.
const ADDRESS: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('1.1.1.1', 53))
print(s.getsockname()[0])";

/// Connects from an address that is not its own, which Linux lets everybody try (IP_FREEBIND is 15).
const SPOOF: &str = "import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_IP, 15, 1)
s.bind((sys.argv[1], 0))
s.settimeout(1)
try: s.connect((sys.argv[2], int(sys.argv[3]))); print('connected')
except OSError: print('denied')";

/// The address by which this host reaches the internet.
pub fn own_address() -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("1.1.1.1:53".parse::<SocketAddr>().unwrap()).expect("a default route");
    socket.local_addr().unwrap().ip()
}
