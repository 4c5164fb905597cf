//! The file system of a sandbox, in two steps.
//!
//! [`build`] runs in a blank sandbox, off the invoke path: it leaves the host's tree for a bare tmpfs, the *stage*, with
//! `/dev` and `/proc` ready. [`enter`] puts the function's root onto it, moves everything to its place, and makes the
//! root the only thing that can be reached.
//!
//! ```text
//! stage (tmpfs)          after enter
//! ├── dev/    ─────────► /dev        null zero full random urandom tty, links to /proc/self/fd
//! ├── proc/   ─────────► /proc       own processes only; dangerous files covered; sys read-only
//! ├── files/  ─────────► /etc/hosts, /etc/resolv.conf
//! └── root/              /           read-only, from the engine, as are /var/task, /opt …; /tmp is the writable one
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::protocol::{During, Failure, SetUp};
use crate::sys;

/// The only devices there are.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Files in `/proc` that tell about the host or act on it: covered by `/dev/null`.
const COVERED_FILES: [&str; 10] = [
    "interrupts",
    "kcore",
    "keys",
    "key-users",
    "kmsg",
    "kpagecount",
    "latency_stats",
    "sched_debug",
    "sysrq-trigger",
    "timer_list",
];
/// Directories of the same kind: covered by an empty one.
const COVERED_DIRECTORIES: [&str; 4] = ["acpi", "asound", "driver", "scsi"];
/// Directories in `/proc` that may be read but never written.
const READ_ONLY: [&str; 4] = ["bus", "fs", "irq", "sys"];

const READ_ONLY_FILES: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Leaves the host's file system for a stage with `/dev` and `/proc`. `more`: names of devices that there are besides.
pub fn build(more: &[&str]) -> Result<(), Failure> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during("make mounts private")?;
    // The kernel gives a new /proc only to who can still see the host's, hence before it is left.
    let proc = new_mount("proc", &[("hidepid", "invisible")], MountAttrFlags::MOUNT_ATTR_NOEXEC)
        .during("mount /proc (does the host, a container perhaps, cover parts of its own /proc?)")?;
    let devices = DEVICES
        .iter()
        .chain(more)
        .map(|&name| {
            let device = clone_mount(&format!("/dev/{name}"))?;
            sys::mount_setattr(&device, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC, false, None)?;
            Ok((name, device))
        })
        .collect::<io::Result<Vec<_>>>()
        .during("clone devices from /dev")?;
    let stage = new_mount("tmpfs", &[("mode", "755"), ("size", "256k"), ("nr_inodes", "64")], MountAttrFlags::empty())
        .during("mount stage")?;
    // Any directory that is on every host does: it is covered for a moment only.
    place(&stage, "/proc").during("attach stage")?;
    pivot("/proc")?;

    for directory in ["/dev", "/proc", "/root", "/files", "/files/empty"] {
        fs::create_dir(directory).during(format!("make directory {directory}"))?;
    }
    build_dev(&devices).during("fill /dev")?;
    place(&proc, "/proc").during("attach /proc")?;
    // There is no way out by IPv6; without it nothing tries. Kernels without it have no such file.
    for scope in ["all", "default"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    cover_proc().during("cover parts of /proc")
}

fn build_dev(devices: &[(&str, OwnedFd)]) -> io::Result<()> {
    let options = [("mode", "755"), ("size", "16k"), ("nr_inodes", "32")];
    let dev = new_mount("tmpfs", &options, MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    place(&dev, "/dev")?;
    for (name, device) in devices {
        let path = format!("/dev/{name}");
        fs::File::create(&path)?;
        place(device, &path)?;
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(target, format!("/dev/{link}"))?;
    }
    sys::mount_setattr(&dev, libc::MOUNT_ATTR_RDONLY, false, None)
}

fn cover_proc() -> io::Result<()> {
    for name in COVERED_FILES {
        cover("/dev/null", &format!("/proc/{name}"), 0)?;
    }
    for name in COVERED_DIRECTORIES {
        cover("/files/empty", &format!("/proc/{name}"), READ_ONLY_FILES)?;
    }
    for name in READ_ONLY {
        let path = format!("/proc/{name}");
        cover(&path, &path, READ_ONLY_FILES | libc::MOUNT_ATTR_NOEXEC)?;
    }
    Ok(())
}

/// Puts the file or directory `source` over `target`, if the kernel has that.
fn cover(source: &str, target: &str, attributes: u64) -> io::Result<()> {
    if !fs::exists(target)? {
        return Ok(());
    }
    let cover = clone_mount(source)?;
    if attributes != 0 {
        sys::mount_setattr(&cover, attributes, false, None)?;
    }
    place(&cover, target)
}

/// Makes `root` the file system, with everything at its place. `mounts` belong to `set_up.targets`.
pub fn enter(set_up: &SetUp, root: &OwnedFd, tmp: &OwnedFd, mounts: &[OwnedFd]) -> Result<(), Failure> {
    place(root, "/root").during("attach root")?;
    let inside = rustix::fs::open("/root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .during("open root")?;
    move_into(&inside, "/dev").during("move /dev into root")?;
    move_into(&inside, "/proc").during("move /proc into root")?;
    place_inside(&inside, tmp, "/tmp").during("mount /tmp")?;
    for (mount, target) in mounts.iter().zip(&set_up.targets) {
        place_inside(&inside, mount, target).during(format!("mount {target}"))?;
    }
    for (target, contents) in [("/etc/hosts", &set_up.hosts), ("/etc/resolv.conf", &set_up.resolv_conf)] {
        write_over(&inside, target, contents).during(format!("write {target}"))?;
    }
    drop(inside);
    pivot("/root")
}

/// Attaches a mount at `path` of the file system that [`enter`] made.
pub fn attach(mount: &OwnedFd, path: &str) -> Result<(), Failure> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    root.map_err(io::Error::from).and_then(|root| place_inside(&root, mount, path)).during(format!("mount {path}"))
}

/// Covers a file of the root by one with `contents`; not if the root does not have it.
fn write_over(root: &OwnedFd, target: &str, contents: &str) -> io::Result<()> {
    let file = format!("/files/{}", target.replace('/', "-"));
    fs::write(&file, contents)?;
    let mount = clone_mount(&file)?;
    sys::mount_setattr(&mount, READ_ONLY_FILES | libc::MOUNT_ATTR_NOEXEC, false, None)?;
    match place_inside(root, &mount, target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes the directory `root`, a mount point, the root of the file system and lets go of what was there before.
fn pivot(root: &str) -> Result<(), Failure> {
    rustix::process::chdir(root).during(format!("enter {root}"))?;
    // Puts the old root on top of the new one, so that the next line finds it without a directory of its own.
    rustix::process::pivot_root(".", ".").during("pivot root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during("detach old root")?;
    rustix::process::chdir("/").during("enter new root")
}

/// A new file system, mounted nowhere yet.
pub fn new_mount(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let filesystem = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(filesystem.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(filesystem.as_fd())?;
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A second mount of what is at `path`, not yet anywhere.
pub fn clone_mount(path: &str) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// Mounts it there.
pub fn place(mount: &OwnedFd, path: &str) -> io::Result<()> {
    Ok(rustix::mount::move_mount(mount.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Attaches a mount at `path` below `root`. Links in the root cannot lead it elsewhere.
fn place_inside(root: &OwnedFd, mount: &OwnedFd, path: &str) -> io::Result<()> {
    let target = inside(root, path)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount.as_fd(), "", target.as_fd(), "", flags)?)
}

/// Moves the mount at `path` of the stage, and all on it, to the same path below `root`.
fn move_into(root: &OwnedFd, path: &str) -> io::Result<()> {
    let target = inside(root, path)?;
    Ok(rustix::mount::move_mount(CWD, path, target.as_fd(), "", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)?)
}

fn inside(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?)
}
