//! What a hole in QEMU or its vsock device would open: nothing of the host.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::Path;

use libtest_mimic::Trial;
use sandbox::SandboxEngine;
use sandbox::microvm::{MicrovmConfig, MicrovmEngine};

use crate::lifecycle::machines;
use crate::support::{Host, build_root, config, spec, test};

/// First argument of the program when it is started in the place of the vsock device.
pub const DEVICE: &str = "--vm";
const NAMESPACES: [&str; 6] = ["user", "pid", "mnt", "net", "ipc", "uts"];

pub fn tests() -> Vec<Trial> {
    vec![
        test("microvm_processes_are_confined", are_confined),
        test("microvm_processes_see_nothing_of_the_host", see_nothing_of_the_host),
    ]
}

/// As the host sees the real ones.
async fn are_confined() {
    let host = Host::start().await;
    let guest = host.guest().await;
    let machines = machines(host.directory.path());
    assert_eq!(machines.len(), 2);
    let mut seen = Vec::new();
    for pid in machines {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(value(set), "0000000000000000", "{set}");
        }
        assert_eq!((value("NoNewPrivs"), value("Seccomp")), ("1".to_owned(), "2".to_owned()));
        assert!(value("Seccomp_filters").parse::<u32>().unwrap() >= 3, "{status}");
        assert_eq!(value("Groups"), "");
        for ids in [value("Uid"), value("Gid")] {
            let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert!(ids[0] >= 700_000_000 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        }
        for kind in NAMESPACES {
            let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
            let its = of(&pid.to_string());
            assert_ne!(its, of("self"), "{kind}");
            assert!(!seen.contains(&its), "{kind}: one of its own");
            seen.push(its);
        }
        let root = format!("/proc/{pid}/root");
        for path in ["root", "home", "var", "run", "sys", "boot", "etc/passwd", "etc/shadow", "usr/bin/cat", "dev/kvm"]
        {
            assert!(!Path::new(&root).join(path).exists(), "{path}");
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (target, options) = (fields[4], fields[5]);
            let writable = options.split(',').any(|option| option == "rw");
            // Devices, which also cover what is dangerous in /proc.
            let device = line.contains(" - devtmpfs ") && target != "/dev";
            assert!(!writable || device || ["/tmp", "/proc"].contains(&target), "{line}");
            assert!(options.contains("nosuid"), "{line}");
        }
    }
    guest.sandbox.destroy().await;
    host.engine.stop().await;
}

/// As one of them sees the host: this program is started in the place of the vsock device, tries things, and says what came
/// of them; with its end the VM's boot fails, and tells.
async fn see_nothing_of_the_host() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let program = directory.path().join("code/program");
    let engine = MicrovmEngine::start(MicrovmConfig { vsock_device: Some(program), ..config(directory.path()) });
    let engine = engine.await.unwrap();
    let error = engine.create(spec(directory.path())).await.err().expect("it is no vsock device");
    let text = std::error::Error::source(&error).unwrap().to_string();
    let said = |name: &str| {
        let lines = text.lines().map(|line| line.trim_start_matches("it ended: "));
        let line = lines.into_iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("{name} in {text}"))
    };
    for path in ["/etc/shadow", "/etc/passwd", "/root", "/var", "/sys", "/usr/bin/cat"] {
        assert_eq!(said(&format!("read {path}")), "denied ENOENT");
    }
    let root = said("root");
    for name in root.split(' ') {
        assert!(["dev", "etc", "lib", "lib64", "proc", "tmp", "usr", "vhost-device-vsock"].contains(&name), "{root}");
    }
    for path in ["/x", "/etc/x", "/dev/x", "/proc/sys/kernel/core_pattern"] {
        assert!(said(&format!("write {path}")).starts_with("denied "), "{path}: {text}");
    }
    assert_eq!(said("write /tmp/x"), "done");
    for call in ["mount", "unshare", "setns", "ptrace", "bpf", "keyctl", "reboot", "perf_event_open"] {
        assert_eq!(said(call), "denied EPERM", "{call}");
    }
    assert_eq!(said("setuid"), "denied EINVAL", "there is no root");
    assert_eq!(said("packet socket"), "denied EAFNOSUPPORT");
    assert_eq!(said("execute /bin/sh"), "denied ENOENT");
    assert_eq!(said("processes"), "[1]");
    assert_eq!(said("devices"), "[\"lo\"]");
    assert_eq!(said("descriptors"), "[0, 1, 2]");
    assert_eq!(said("connect"), "denied ENETUNREACH");
    assert_eq!(said("environment"), "[\"RUST_LOG\"]");
    assert_eq!(fs::read_dir(directory.path().join("state/vms")).unwrap().count(), 0);
    engine.stop().await;
}

/// In the place of the vsock device.
pub fn run() {
    for path in ["/etc/shadow", "/etc/passwd", "/root", "/var", "/sys", "/usr/bin/cat"] {
        say(&format!("read {path}"), fs::metadata(path).map(drop));
    }
    for path in ["/x", "/etc/x", "/dev/x", "/proc/sys/kernel/core_pattern", "/tmp/x"] {
        say(&format!("write {path}"), fs::write(path, "x"));
    }
    let calls = [
        ("mount", libc::SYS_mount, 0),
        ("unshare", libc::SYS_unshare, i64::from(libc::CLONE_NEWUSER)),
        ("setns", libc::SYS_setns, 0),
        ("ptrace", libc::SYS_ptrace, 0),
        ("bpf", libc::SYS_bpf, 0),
        ("keyctl", libc::SYS_keyctl, 0),
        ("setuid", libc::SYS_setuid, 0),
        ("reboot", libc::SYS_reboot, 0),
        ("perf_event_open", libc::SYS_perf_event_open, 0),
    ];
    for (name, number, argument) in calls {
        // SAFETY: none: whatever the kernel does with these numbers is the experiment; none is a pointer but null.
        let result = unsafe { libc::syscall(number, argument, 0, 0, 0, 0, 0) };
        say(name, if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    // SAFETY: takes no pointers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    say("packet socket", if socket < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    say("execute /bin/sh", std::process::Command::new("/bin/sh").spawn().map(drop));
    say("connect", TcpStream::connect("198.51.100.1:9").map(drop));
    let names = |directory: &str| {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let numbers = |directory: &str| {
        let mut numbers: Vec<i32> = names(directory).iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    };
    println!("root: {}", names("/").join(" "));
    println!("processes: {:?}", numbers("/proc"));
    let descriptors = numbers("/proc/self/fd");
    // The last is the directory's own.
    println!("descriptors: {:?}", &descriptors[..descriptors.len() - 1]);
    let devices = fs::read_to_string("/proc/net/dev").unwrap();
    let devices: Vec<&str> =
        devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    println!("devices: {devices:?}");
    println!("environment: {:?}", std::env::vars().map(|(name, _)| name).collect::<Vec<_>>());
}

fn say(name: &str, outcome: io::Result<()>) {
    let errors = [
        (libc::ENOENT, "ENOENT"),
        (libc::EPERM, "EPERM"),
        (libc::EINVAL, "EINVAL"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::ENETUNREACH, "ENETUNREACH"),
    ];
    match outcome {
        Ok(()) => println!("{name}: done"),
        Err(error) => {
            let number = error.raw_os_error().unwrap_or(0);
            let known = errors.iter().find(|(known, _)| *known == number);
            println!("{name}: denied {}", known.map_or_else(|| number.to_string(), |(_, word)| (*word).to_owned()));
        }
    }
}
