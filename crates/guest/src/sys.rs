//! System calls that no safe wrapper exists for.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// What [`clone`] returns in.
#[derive(Debug)]
pub enum Cloned {
    /// The child.
    Child,
    /// The caller.
    Parent {
        /// The child's process id in the caller's namespace.
        pid: i32,
        /// Refers to the child, whatever becomes of its id.
        pidfd: OwnedFd,
    },
}

/// Forks into new namespaces (`CLONE_NEW*`) and, with `CLONE_PARENT`, as a sibling. The caller must have one thread
/// only; otherwise the child could find a lock held for ever, and the call is refused.
pub fn clone(flags: c_int) -> io::Result<Cloned> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::other("cannot fork a process that has threads"));
    }
    let mut pidfd: c_int = -1;
    let sibling = flags & libc::CLONE_PARENT != 0;
    // SAFETY: clone_args is plain numbers, for which all zeros is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (flags | libc::CLONE_PIDFD) as u64;
    args.pidfd = &raw mut pidfd as u64;
    // With CLONE_PARENT, the kernel takes the caller's own exit signal.
    args.exit_signal = if sibling { 0 } else { libc::SIGCHLD as u64 };
    // SAFETY: without CLONE_VM and a stack this is fork: the child goes on, on a copy of this stack. The process has one
    // thread (checked above), so that no lock is held by a thread which the child does not have. `args` and `pidfd`
    // outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match pid {
        0 => Ok(Cloned::Child),
        // SAFETY: the call succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor that nobody else owns.
        1.. => Ok(Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Enters new namespaces (`CLONE_NEW*`).
pub fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: takes no pointers. Callers have one thread, and hold nothing that namespaces could invalidate.
    check(unsafe { libc::unshare(flags) })
}

/// Ends the process at once: no destructors, no exit handlers, which belong to the parent.
pub fn exit(code: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Replaces the program. Returns only on failure.
pub fn execve(program: &CStr, argv: &[CString], envp: &[CString]) -> io::Error {
    let terminated = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, envp) = (terminated(argv), terminated(envp));
    // SAFETY: all strings end in NUL, both arrays in a null pointer, and all outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Closes every descriptor but `keep`.
pub fn close_all_but(keep: &[RawFd]) {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            close_range(first as u32, fd as u32 - 1, 0);
        }
        first = fd + 1;
    }
    close_range(first as u32, u32::MAX, 0);
}

/// Marks every descriptor from `first` on as closed on exec.
pub fn close_on_exec_from(first: u32) {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: u32) {
    // SAFETY: takes no pointers. Descriptors owned by values of the parent's are closed under them: callers never run
    // those values' destructors (they end in `exit` or `execve`). Fails only for bad arguments.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// Kills every process that the caller may kill, but itself. To PID 1 of a namespace: everything in it.
pub fn kill_all() {
    // SAFETY: takes no pointers. Fails only when there is nothing to kill.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Sends `signal` to a process, and to the group that it leads. No error if it is gone.
pub fn kill_group(pid: i32, signal: c_int) {
    // SAFETY: takes no pointers. Fails only when there is nothing to signal.
    unsafe {
        libc::kill(pid, signal);
        libc::kill(-pid, signal);
    }
}

/// A descriptor that is readable when a child has ended. The caller gets no signals of that kind any more.
pub fn child_events() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before it is read, and outlives the calls; the result of signalfd is a
    // new descriptor that nobody else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()))?;
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sets every signal to its default, and blocks none: exec would pass on what is ignored or blocked.
pub fn reset_signals() {
    // SAFETY: SIG_DFL is a valid disposition, so no handler runs on memory that is gone; `set` is initialised by
    // sigemptyset. Numbers that cannot be set (KILL, STOP, those of the C library) are refused harmlessly.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// Takes capability number `capability` out of the bounding set. False when there is none of that number.
pub fn drop_bounding(capability: u32) -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, c_ulong::from(capability), 0, 0, 0) == 0 }
}

/// Changes properties (`MOUNT_ATTR_*`) of the mount that `mount` refers to, and of those below when `recursive`. With
/// `id_map`, a user namespace, the mount shows the owners of files as that namespace maps them.
pub fn mount_setattr(mount: impl AsFd, set: u64, recursive: bool, id_map: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    if let Some(namespace) = id_map {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = namespace.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attributes` is of the size given, and both outlive the call.
    let result: c_long = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    check(result as c_int)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Version of the kernel's Landlock; `None` without.
pub fn landlock_abi() -> Option<u32> {
    const VERSION: c_ulong = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag the kernel reads no attributes and makes nothing.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0usize, VERSION) };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}

/// Connects to a port by virtio-vsock. Blocking, closed on exec.
pub fn vsock_connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: the call succeeded, so that `fd` is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_vm is plain numbers, for which all zeros is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    // SAFETY: `address` is of the size given, and outlives the call.
    check(unsafe { libc::connect(fd, (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) })?;
    Ok(socket)
}

/// Adds random bytes to the kernel's entropy, counting every bit, and makes its generator anew from that. Takes the privilege of PID 1 of a VM.
pub fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: c_ulong = 0x5207;
    const MOST: usize = 256;
    #[repr(C)]
    struct PoolInfo {
        bits: c_int,
        size: c_int,
        bytes: [u8; MOST],
    }
    let bytes = &bytes[..bytes.len().min(MOST)];
    let mut info = PoolInfo { bits: bytes.len() as c_int * 8, size: bytes.len() as c_int, bytes: [0; MOST] };
    info.bytes[..bytes.len()].copy_from_slice(bytes);
    let device = std::fs::File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the two numbers and `size` bytes behind them, which are there, and outlive the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const info) })?;
    // SAFETY: this request has no argument, and touches no memory of ours.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) })
}
