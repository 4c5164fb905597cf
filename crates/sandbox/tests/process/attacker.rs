//! The program that runs inside: it tries one thing and prints what came of it, `denied` with the kernel's error number,
//! or `succeeded`, or what it found.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

pub const PART: &str = "attack";

/// What the function knows that another one must not.
const SECRET: &str = "the secret of this very function";

pub fn run(arguments: &[String]) {
    let [name, arguments @ ..] = arguments else { panic!("no attack named") };
    let text = |index: usize| arguments.get(index).map(String::as_str).expect("an argument");
    let number = |index: usize| text(index).parse::<i64>().expect("a number");
    let outcome = match name.as_str() {
        "read" => File::open(text(0)).and_then(|mut file| file.read(&mut [0; 64]).map(drop)),
        "write" => OpenOptions::new().append(true).create(true).open(text(0)).and_then(|mut f| f.write_all(b"x")),
        "list" => fs::read_dir(text(0)).map(drop),
        "syscall" => call(number(0), [1, 2, 3].map(|index| arguments.get(index).map_or(0, |_| number(index)))),
        "mount" => mount(),
        "chroot" => std::os::unix::fs::chroot("/tmp"),
        "device" => device(),
        "push-input" => call(libc::SYS_ioctl, [0, libc::TIOCSTI as i64, c"x".as_ptr() as i64]),
        "core-limit" => core_limit(number(0)),
        "32-bit" => thirty_two_bit(),
        "read-memory" => read_memory(number(0)),
        "connect" => connect(text(0)),
        "execute" => Command::new(text(0)).stdout(Stdio::null()).status().map(drop),
        "look-up" => return look_up(),
        "descriptors" => return descriptors(),
        "print" => return print!("{}", fs::read_to_string(text(0)).expect("a readable file")),
        "user" => return print!("{}", rustix::process::geteuid().as_raw()),
        "processes" => return processes(),
        "fork-bomb" => return fork_bomb(),
        "memory-bomb" => return memory_bomb(),
        "hold-memory" => return hold_memory(number(0)),
        "disk-filler" => return disk_filler(),
        "inotify-filler" => return inotify_filler(),
        "inode-filler" => return inode_filler(),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "secret" => return hold_secret(),
        other => panic!("unknown attack {other}"),
    };
    match outcome {
        Ok(()) => println!("succeeded"),
        Err(error) => println!("denied {}", error.raw_os_error().unwrap_or(0)),
    }
}

/// By 0: setrlimit(2), else by prlimit64(2) of the process itself.
fn core_limit(by: i64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let (pointer, core) = (&raw const limit as i64, i64::from(libc::RLIMIT_CORE));
    match by {
        0 => call(libc::SYS_setrlimit, [core, pointer, 0]),
        _ => call(libc::SYS_prlimit64, [0, core, pointer]),
    }
}

/// Asks who it is by the entry of 32-bit programs, where numbers mean other calls.
#[cfg(target_arch = "x86_64")]
fn thirty_two_bit() -> io::Result<()> {
    let mut number: i64 = 20;
    // SAFETY: getpid takes no arguments and touches no memory.
    unsafe { std::arch::asm!("int 0x80", inout("rax") number, out("r8") _, out("r9") _, out("r10") _, out("r11") _) };
    if number < 0 { Err(io::Error::from_raw_os_error(-number as i32)) } else { Ok(()) }
}

#[cfg(not(target_arch = "x86_64"))]
fn thirty_two_bit() -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

fn call(number: i64, [a, b, c]: [i64; 3]) -> io::Result<()> {
    // SAFETY: none: the arguments are what the test says, and whatever the kernel does with them is the experiment. Tests
    // pass null or pointers that live as long as this process.
    if unsafe { libc::syscall(number, a, b, c, 0, 0, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn mount() -> io::Result<()> {
    rustix::mount::mount("none", "/tmp", "tmpfs", rustix::mount::MountFlags::empty(), None).map_err(Into::into)
}

fn device() -> io::Result<()> {
    let path = CString::new("/tmp/disk").expect("no zero byte");
    let (mode, device) = (i64::from(libc::S_IFBLK | 0o600), 0xfe00);
    // SAFETY: the path ends in NUL and outlives the call.
    let made = unsafe { libc::syscall(libc::SYS_mknodat, libc::AT_FDCWD, path.as_ptr(), mode, device) };
    if made < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn read_memory(pid: i64) -> io::Result<()> {
    let mut buffer = [0u8; 16];
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: SECRET.as_ptr().cast_mut().cast(), iov_len: buffer.len() };
    // SAFETY: `local` describes a live buffer of that length; the kernel checks `remote` against the other process.
    let read = unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const remote, 1, 0) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn connect(address: &str) -> io::Result<()> {
    let address: SocketAddr = address.parse().expect("an address");
    TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => io::Error::from_raw_os_error(libc::ETIMEDOUT),
        _ => error,
    })
}

/// Climbs from an open directory, and says whether it got anywhere above the root.
fn look_up() {
    let root = fs::metadata("/").expect("a root");
    let directory = File::open("/tmp").expect("/tmp");
    let above = format!("/proc/self/fd/{}{}", directory.as_raw_fd(), "/..".repeat(20));
    for path in [above.as_str(), "/proc/self/root/..", "/proc/self/cwd/../../../..", "/../../.."] {
        let there = fs::metadata(path).expect("a directory");
        assert_eq!((there.dev(), there.ino()), (root.dev(), root.ino()), "{path}");
    }
    println!("{}", fs::read_dir("/").expect("a root").count());
}

fn descriptors() {
    // The last is that of the directory itself.
    let mut open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .map(|entry| entry.expect("an entry").file_name().to_str().expect("a number").parse().expect("a number"))
        .collect();
    open.sort_unstable();
    println!("{open:?}");
}

fn processes() {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.expect("an entry").file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    println!("{}", pids.len());
}

fn fork_bomb() {
    let mut count = 0;
    let error = loop {
        match Command::new("/usr/bin/sleep").arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    println!("{count} {}", error.raw_os_error().unwrap_or(0));
}

fn memory_bomb() {
    let mut hoard = Vec::new();
    loop {
        hoard.push(vec![1u8; 1 << 20]);
    }
}

fn hold_memory(megabytes: i64) {
    let hoard: Vec<_> = (0..megabytes).map(|_| vec![1u8; 1 << 20]).collect();
    std::thread::sleep(Duration::from_secs(60));
    drop(hoard);
}

fn disk_filler() {
    let mut file = File::create("/tmp/fill").expect("a file in /tmp");
    let block = vec![1; 64 * 1024];
    let mut written = 0;
    let error = loop {
        match file.write(&block) {
            Ok(length) => written += length,
            Err(error) => break error,
        }
    };
    println!("{written} {}", error.raw_os_error().unwrap_or(0));
}

/// Takes all that it can have, says how many, and keeps them.
fn inotify_filler() {
    for count in 0.. {
        if let Err(error) = call(libc::SYS_inotify_init1, [0; 3]) {
            println!("{count} {}", error.raw_os_error().unwrap_or(0));
            break;
        }
    }
    hold_secret();
}

fn inode_filler() {
    let mut count = 0;
    let error = loop {
        match File::create(format!("/tmp/{count}")) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    println!("{count} {}", error.raw_os_error().unwrap_or(0));
}

fn hold_secret() {
    println!("{SECRET}");
    std::thread::sleep(Duration::from_secs(1000));
}
