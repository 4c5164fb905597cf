//! From a kernel that has just booted to one in which a sandbox can be made.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags};
use rustix::time::{ClockId, Timespec};

use super::drives::device;
use super::protocol::{Start, Used};
use crate::protocol::{During, Failure};
use crate::sys;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Of the sandbox.
const GROUP: &str = "/sys/fs/cgroup/sandbox";
/// What an image may be made with, the likeliest first.
const IMAGE_KINDS: [&str; 3] = ["squashfs", "erofs", "ext4"];

/// Mounts what the agent itself needs. The kernel starts it in the initramfs, which can be neither left nor unmounted by
/// `pivot_root`, as the stage does; so a tmpfs is laid over it first.
pub fn file_systems() -> Result<(), Failure> {
    let new = "/new";
    fs::create_dir(new).during("make a directory in the initramfs")?;
    mount("tmpfs", new)?;
    for (kind, path) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"), ("cgroup2", "sys/fs/cgroup")] {
        let path = format!("{new}/{path}");
        if kind != "cgroup2" {
            fs::create_dir(&path).during(format!("make {path}"))?;
        }
        mount(kind, &path)?;
    }
    rustix::process::chdir(new).during("enter the first root")?;
    rustix::mount::mount_move(".", "/").during("lay the first root over the initramfs")?;
    rustix::process::chroot(".").during("make it the root")?;
    rustix::process::chdir("/").during("enter it")
}

fn mount(kind: &str, path: &str) -> Result<(), Failure> {
    rustix::mount::mount(kind, path, kind, MountFlags::NOSUID | MountFlags::NOEXEC, None)
        .during(format!("mount {kind} at {path}"))
}

/// Sets the clock to what the host said, in nanoseconds since 1970. `ago`: for how long its word has been on its way.
pub fn clock(time: u64, ago: Duration) -> Result<(), Failure> {
    let time = Timespec::try_from(Duration::from_nanos(time).saturating_add(ago));
    time.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
        .and_then(|time| Ok(rustix::time::clock_settime(ClockId::Realtime, time)?))
        .during("set the clock")
}

/// Adds the host's random bytes to the kernel's, and has all that comes from now on depend on them.
pub fn entropy(seed: &[u8]) -> Result<(), Failure> {
    sys::add_entropy(seed).during("add entropy")
}

/// Makes the cgroup of the sandbox, with its limits.
pub fn limits(start: &Start) -> Result<(), Failure> {
    let write = |path: String, value: &str| fs::write(&path, value).during(format!("write {value} to {path}"));
    // By default the kernel refuses what is more than all its memory, at once. On a host that is never reached; here it is
    // just above the limit, at which a function is to be killed and not to be refused.
    write("/proc/sys/vm/overcommit_memory".to_owned(), "1")?;
    write(format!("{CGROUPS}/cgroup.subtree_control"), "+memory +pids")?;
    fs::create_dir(GROUP).during(format!("make {GROUP}"))?;
    write(format!("{GROUP}/memory.max"), &start.memory.to_string())?;
    // One more, for the sandbox's PID 1.
    write(format!("{GROUP}/pids.max"), &(start.pids + 1).to_string())
}

/// Puts a process into that cgroup.
pub fn limit(pid: i32) -> Result<(), Failure> {
    fs::write(format!("{GROUP}/cgroup.procs"), pid.to_string()).during("put the sandbox into its cgroup")
}

/// Lets no process of that cgroup run, or all again.
pub fn hold(held: bool) -> Result<(), Failure> {
    fs::write(format!("{GROUP}/cgroup.freeze"), if held { "1" } else { "0" }).during("hold the sandbox")
}

/// Waits until all of them are held, a second at most.
pub fn await_held() -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let events = fs::read_to_string(format!("{GROUP}/cgroup.events")).during("look whether the sandbox is held")?;
        if events.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::host("hold the sandbox", &io::ErrorKind::TimedOut.into()));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// What the sandbox has used; zero where the kernel does not say.
pub fn used() -> Used {
    let read = |file: &str| fs::read_to_string(format!("{GROUP}/{file}")).unwrap_or_default();
    let number = |file: &str| read(file).trim().parse().unwrap_or(0);
    let field = |file: &str, name: &str| {
        let text = read(file);
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0)
    };
    Used {
        memory_peak: number("memory.peak"),
        memory_now: number("memory.current"),
        oom_kills: field("memory.events", "oom_kill"),
        cpu_us: field("cpu.stat", "usage_usec"),
    }
}

/// The file that holds the peak of memory, to be kept open.
pub fn memory_peak() -> Option<fs::File> {
    fs::File::open(format!("{GROUP}/memory.peak")).ok()
}

/// The read-only contents of a drive, mounted nowhere yet.
pub fn image(drive: &str) -> Result<OwnedFd, Failure> {
    let path = device(drive)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mut first_error = None;
    for kind in IMAGE_KINDS {
        match new_mount(kind, &path, &["ro"], &[], attributes) {
            Ok(mount) => return Ok(mount),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::NotFound.into())).during(format!("mount the drive {drive}"))
}

/// The writable contents of a drive, open to all, mounted nowhere yet.
pub fn scratch(drive: &str) -> Result<OwnedFd, Failure> {
    let path = device(drive)?;
    // Nothing survives the sandbox, so nothing needs to reach the disk in order.
    let mount = new_mount("ext4", &path, &[], &[("barrier", "0")], MountAttrFlags::empty());
    mount
        .and_then(|mount| {
            let root = rustix::fs::openat(&mount, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            rustix::fs::fchmod(&root, Mode::SVTX | Mode::RWXU | Mode::RWXG | Mode::RWXO)?;
            Ok(mount)
        })
        .during(format!("mount the drive {drive}"))
}

fn new_mount(
    kind: &str,
    source: &Path,
    flags: &[&str],
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let filesystem = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(filesystem.as_fd(), "source", source)?;
    for flag in flags {
        rustix::mount::fsconfig_set_flag(filesystem.as_fd(), *flag)?;
    }
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(filesystem.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(filesystem.as_fd())?;
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Ends the VM. The kernel is told to restart, which both engines take for its end.
pub fn end() -> ! {
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    // Its end is the kernel's panic, and so the VM's.
    sys::exit(1)
}
