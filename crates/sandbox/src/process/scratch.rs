//! `/tmp`: a file system of a fixed size on disk, gone with the sandbox.
//!
//! An ext4 without journal, on a loop device over an unlinked sparse file. Neither the device nor the file has a name
//! that could be left behind: both live as long as the mount does. A template for each size is formatted once; a copy of
//! it costs about a hundred kilobytes. Where that cannot be done, it is a tmpfs, which counts as memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest::protocol::{During, Failure};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Gid, Uid};

use super::sys;

/// One inode for this many bytes of size, ext4's own ratio.
const BYTES_PER_INODE: u64 = 16 * 1024;
const MKFS: &str = "mkfs.ext4";

/// What `/tmp`s are made of.
#[derive(Debug)]
pub enum Scratch {
    /// Files in this directory.
    Disk(PathBuf),
    /// Memory.
    Memory,
}

impl Scratch {
    /// Tries what this host can do. The second part says, in words, what it is.
    pub fn new(state_dir: &Path) -> (Self, String) {
        let directory = state_dir.join("scratch");
        let disk = Self::Disk(directory.clone());
        let tried = fs::create_dir_all(&directory)
            .during(format!("make {}", directory.display()))
            .and_then(|()| disk.make(64, (0, 0)));
        match tried {
            Ok(_) => (disk, format!("/tmp is on disk, below {}, limited in size", directory.display())),
            Err(failure) => {
                let why = format!("{}: {}", failure.operation, failure.source());
                (Self::Memory, format!("/tmp is in memory and counts as such, since disk cannot be used ({why})"))
            }
        }
    }

    /// A new, empty one of `size_mb`, mounted nowhere yet, that belongs to `owner` and is open to all.
    pub fn make(&self, size_mb: u32, owner: (u32, u32)) -> Result<OwnedFd, Failure> {
        let mount = match self {
            Self::Disk(directory) => {
                let template = template(directory, size_mb)?;
                let backing = copy(directory, &template).during("copy the template of /tmp")?;
                mount_loop(&backing).during("mount /tmp from a loop device")?
            }
            Self::Memory => mount_tmpfs(size_mb).during("mount /tmp in memory")?,
        };
        open_to_all(&mount, owner).during("set the mode of /tmp")?;
        Ok(mount)
    }
}

/// A formatted, empty file of `size_mb` in `directory`, without a name.
#[cfg(feature = "microvm")]
pub fn disk(directory: &Path, size_mb: u32) -> Result<File, Failure> {
    let template = template(directory, size_mb)?;
    copy(directory, &template).during("copy the template of /tmp")
}

/// The formatted, empty file of a size.
fn template(directory: &Path, size_mb: u32) -> Result<PathBuf, Failure> {
    let path = directory.join(format!("empty-{size_mb}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    let size = u64::from(size_mb) * 1024 * 1024;
    let draft = directory.join(format!("empty-{size_mb}.{}", std::process::id()));
    let made = File::create(&draft).and_then(|file| file.set_len(size)).and_then(|()| {
        let output = Command::new(MKFS)
            .args(["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode"])
            .args(["-E", "lazy_itable_init=1,nodiscard"])
            .args(["-N", &(size / BYTES_PER_INODE).max(1024).to_string()])
            .arg(&draft)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        fs::rename(&draft, &path)
    });
    if made.is_err() {
        let _ = fs::remove_file(&draft);
    }
    made.during(format!("format {} with {MKFS} (package e2fsprogs)", draft.display()))?;
    Ok(path)
}

/// An unlinked copy of a sparse file.
fn copy(directory: &Path, template: &Path) -> io::Result<File> {
    let mut source = File::open(template)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut target = File::from(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?);
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut position = 0;
    // ENXIO: only a hole follows.
    while let Ok(start) = rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(position)) {
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(start))?;
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        io::copy(&mut (&source).take(end - start), &mut target)?;
        position = end;
    }
    Ok(target)
}

fn mount_loop(backing: &File) -> io::Result<OwnedFd> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    loop {
        let path = format!("/dev/loop{}", sys::free_loop_device(&control)?);
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        match sys::configure_loop_device(&device, backing.as_fd(), "emberbox") {
            // Somebody else took that one in between.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => continue,
            other => other?,
        }
        // Nothing survives the sandbox, so nothing needs to reach the disk in order.
        return mount("ext4", &[("source", &path), ("barrier", "0")]);
    }
}

fn mount_tmpfs(size_mb: u32) -> io::Result<OwnedFd> {
    let inodes = u64::from(size_mb) * 1024 * 1024 / BYTES_PER_INODE;
    mount("tmpfs", &[("size", &format!("{size_mb}m")), ("nr_inodes", &inodes.to_string())])
}

fn mount(kind: &str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let filesystem = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(filesystem.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(filesystem.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn open_to_all(mount: &OwnedFd, (uid, gid): (u32, u32)) -> io::Result<()> {
    let root = rustix::fs::openat(mount, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
        Err(rustix::io::Errno::NOENT) => {}
        other => other?,
    }
    rustix::fs::fchmod(&root, Mode::SVTX | Mode::RWXU | Mode::RWXG | Mode::RWXO)?;
    Ok(rustix::fs::fchown(&root, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}
