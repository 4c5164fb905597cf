//! One jail: a directory that becomes `/` of one Firecracker.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD};
use rustix::mount::MountFlags;

use crate::api::LogLevel;
use crate::error::{Doing, Error, Result};
use crate::jailer::{Jailer, SOCKET};
use crate::leftovers;
use crate::vmm::Vmm;

/// What a jail is like.
#[derive(Clone, Debug)]
pub struct JailSpec {
    /// Names the jail, its cgroup and the VM: 1 to 64 letters, digits and `-`.
    pub id: String,
    /// Firecracker's user, not root. Its own for each VM, so that they cannot signal each other.
    pub uid: u32,
    /// Firecracker's group, not root's.
    pub gid: u32,
    /// A network namespace, e.g. `/run/netns/x`; none is the host's.
    pub netns: Option<PathBuf>,
    /// Files of the VM's cgroup and what is written to them, e.g. `pids.max` and `64`. None is no cgroup.
    pub cgroup: Vec<(String, String)>,
    /// Descriptors; none is the jailer's 2048.
    pub open_files: Option<u64>,
    /// Bytes of the largest file that it can write. Disks of a VM count.
    pub file_size: Option<u64>,
    /// How many of the last bytes of its standard output (its log, and the guest's serial console) are kept. With 0
    /// there is none: what it writes is lost, and a guest that floods its console costs us nothing.
    pub console_bytes: usize,
    /// How much it logs; none is Info, which has a line for each request.
    pub log_level: Option<LogLevel>,
}

impl JailSpec {
    /// One without limits, with a console of 64 KiB.
    pub fn new(id: impl Into<String>, uid: u32, gid: u32) -> Self {
        Self {
            id: id.into(),
            uid,
            gid,
            netns: None,
            cgroup: Vec::new(),
            open_files: None,
            file_size: None,
            console_bytes: 64 << 10,
            log_level: None,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what, value: &str, why| Err(Error::Invalid { what, value: value.to_owned(), why });
        let letters = self.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !letters || !(1..=64).contains(&self.id.len()) {
            return refuse("id", &self.id, "it has 1 to 64 letters, digits and hyphens");
        }
        if self.uid == 0 || self.gid == 0 {
            let owner = format!("{}:{}", self.uid, self.gid);
            return refuse("user and group", &owner, "root in a jail is no jail");
        }
        for (file, value) in &self.cgroup {
            // The jailer takes the controller from before the dot.
            let good = file.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
            if !good || !file.contains('.') || file.contains("..") {
                return refuse("cgroup file", file, "it is the name of a controller's file, such as pids.max");
            }
            if value.is_empty() || value.contains(['=', '\n']) {
                return refuse("cgroup value", value, "the jailer refuses empty ones and those with =");
            }
        }
        Ok(())
    }
}

/// How a file of the host comes into a jail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A hard link, for what VMs share; on another file system a [`Place::Bind`]. Owner and rights stay: what the jail's
    /// user may write, it writes for all.
    Link,
    /// A read-only bind mount; for block devices too.
    Bind,
    /// A copy of its own, which it may write.
    Copy,
}

/// A jail. Whatever happens to it, dropping it leaves nothing: processes, mounts, cgroup, directory. That blocks for
/// some milliseconds; [`Vmm::stop`] does not.
#[derive(Debug)]
pub struct Jail {
    pub(crate) jailer: Jailer,
    pub(crate) spec: JailSpec,
    directory: PathBuf,
    /// Of Firecracker, once it runs.
    pub(crate) process: Option<Arc<OwnedFd>>,
    /// Held while it is removed.
    removed: Mutex<bool>,
}

impl Jail {
    pub(crate) fn create(jailer: Jailer, spec: JailSpec) -> Result<Self> {
        let directory = jailer.config().jail_directory(&spec.id);
        let doing = || format!("creating the jail {}", directory.display());
        fs::create_dir_all(directory.parent().unwrap_or_else(|| Path::new("/"))).doing(doing)?;
        // Fails if it is there: the id is in use.
        fs::DirBuilder::new().mode(0o700).create(&directory).doing(doing)?;
        let jail = Self { jailer, spec, directory, process: None, removed: Mutex::new(false) };
        // The jailer gives it to the user.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(jail.root())
            .doing(|| format!("creating {}", jail.root().display()))?;
        Ok(jail)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.spec.id
    }

    /// What is `/` inside.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Where a file of the jail's root is on the host.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is not the plain name of a file, or is the jailer's or this crate's.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let config = self.jailer.config();
        let program = config.firecracker.file_name().unwrap_or_default().to_string_lossy();
        let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        let reserved = ["", ".", "..", "dev", "run", "sys", "old_root", SOCKET].contains(&name);
        if !letters || reserved || name == program || name.strip_suffix(".pid") == Some(&program) {
            let why = "it is a plain file name of letters, digits, '.', '_' and '-', and not one of the jailer's";
            return Err(Error::Invalid { what: "file name", value: name.to_owned(), why });
        }
        Ok(self.root().join(name))
    }

    /// Brings a file of the host in, as `/name`. Blocks; a copy for as long as it takes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the jail's user could not read it, [`Error::Io`].
    pub fn add(&self, source: &Path, name: &str, place: Place) -> Result<()> {
        let target = self.path(name)?;
        let doing = || format!("bringing {} into the jail as {}", source.display(), target.display());
        // A link to a symbolic link would lead nowhere inside.
        let source = &source.canonicalize().doing(doing)?;
        let metadata = fs::metadata(source).doing(doing)?;
        if place != Place::Copy && !self.may_read(&metadata) {
            let why = "the jail's user has no right to read it: make the file readable, or copy it";
            return Err(Error::Invalid { what: "file", value: source.display().to_string(), why });
        }
        match place {
            Place::Link => match fs::hard_link(source, &target) {
                Err(error) if error.kind() == ErrorKind::CrossesDevices => self.bind(source, &target).doing(doing),
                done => done.doing(doing),
            },
            Place::Bind => self.bind(source, &target).doing(doing),
            Place::Copy => {
                let mut from = File::open(source).doing(doing)?;
                let mut to = self.new_file(&target).doing(doing)?;
                std::io::copy(&mut from, &mut to).map(drop).doing(doing)
            }
        }
    }

    /// Brings an open file of the host in, as `/name`, by a hard link: one with a name, or one made with `O_TMPFILE`, which
    /// has its only name there then. Owner and rights stay.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the jail's user could not read it. [`Error::Io`], also if it is on another file system, or
    /// has lost its last name.
    pub fn add_file(&self, file: &File, name: &str) -> Result<()> {
        let target = self.path(name)?;
        let doing = || format!("linking an open file into the jail as {}", target.display());
        if !self.may_read(&file.metadata().doing(doing)?) {
            let why = "the jail's user has no right to read it: make the file readable";
            return Err(Error::Invalid { what: "file", value: name.to_owned(), why });
        }
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, source, CWD, &target, AtFlags::SYMLINK_FOLLOW).doing(doing)
    }

    /// Makes a file of `bytes` zeroes that the jail's user can write: a scratch disk, a file for metrics. Takes no space
    /// until it is written.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Io`].
    pub fn create_file(&self, name: &str, bytes: u64) -> Result<()> {
        let path = self.path(name)?;
        let made = self.new_file(&path).and_then(|file| file.set_len(bytes));
        made.doing(|| format!("creating {}", path.display()))
    }

    /// Moves a file out that Firecracker wrote, such as a snapshot's; it belongs to root then. `target` does not exist,
    /// in a directory that only root can write, best on the same file system.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not a file that Firecracker made: a process in the jail could put another of the jail's
    /// files there, or a link. [`Error::Io`].
    pub fn take_file(&self, name: &str, target: &Path) -> Result<()> {
        let source = self.path(name)?;
        let doing = || format!("moving {} to {}", source.display(), target.display());
        // First moved, where nobody in the jail can exchange it; then looked at.
        match fs::rename(&source, target) {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                let mut from = self.own_file(&source)?;
                let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).doing(doing)?;
                std::io::copy(&mut from, &mut to).map(drop).doing(doing)
            }
            moved => {
                moved.doing(doing)?;
                let checked = self.own_file(target).and_then(|file| fchown(&file, Some(0), Some(0)).doing(doing));
                checked.inspect_err(|_| drop(fs::remove_file(target)))
            }
        }
    }

    /// Starts Firecracker in it, and waits until its API answers.
    ///
    /// # Errors
    /// [`Error::NotStarted`], with what the jailer said; [`Error::Io`].
    pub async fn start(self) -> Result<Vmm> {
        Vmm::start(self).await
    }

    fn bind(&self, source: &Path, target: &Path) -> std::io::Result<()> {
        OpenOptions::new().write(true).create_new(true).open(target)?;
        rustix::mount::mount_bind(source, target)?;
        rustix::mount::mount_remount(target, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID, c"")?;
        Ok(())
    }

    fn new_file(&self, path: &Path) -> std::io::Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        fchown(&file, Some(self.spec.uid), Some(self.spec.gid))?;
        Ok(file)
    }

    fn may_read(&self, metadata: &fs::Metadata) -> bool {
        let needed = match (metadata.uid() == self.spec.uid, metadata.gid() == self.spec.gid) {
            (true, _) => 0o400,
            (false, true) => 0o040,
            (false, false) => 0o004,
        };
        metadata.mode() & needed != 0
    }

    /// Opens a regular file that the jail's user made, under no other name.
    fn own_file(&self, path: &Path) -> Result<File> {
        let doing = || format!("opening {}", path.display());
        // A named pipe would keep us waiting.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path).doing(doing)?;
        let metadata = file.metadata().doing(doing)?;
        if !metadata.is_file() || metadata.nlink() != 1 || metadata.uid() != self.spec.uid {
            let why = "it is not a file that Firecracker made: what runs in the jail is not what we started";
            return Err(Error::Invalid { what: "file", value: path.display().to_string(), why });
        }
        Ok(file)
    }

    /// Ends what runs in it and removes it. Blocks, also while another does it. Without effect once it is done.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut removed = self.removed.lock();
        if !*removed {
            let parent = &self.jailer.config().parent_cgroup;
            leftovers::remove(&self.directory, &self.spec.id, parent, self.process.as_deref())?;
            *removed = true;
        }
        Ok(())
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!("jail {} is left until the next start: {error}", self.spec.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_jailer_would_refuse_or_should_is_refused() {
        let refused = |change: fn(&mut JailSpec)| {
            let mut spec = JailSpec::new("vm-1", 7, 7);
            assert!(spec.check().is_ok());
            change(&mut spec);
            assert!(matches!(spec.check(), Err(Error::Invalid { .. })), "{spec:?}");
        };
        refused(|spec| spec.id = String::new());
        refused(|spec| spec.id = "../vm".into());
        refused(|spec| spec.id = "vm_1".into());
        refused(|spec| spec.id = "v".repeat(65));
        refused(|spec| spec.uid = 0);
        refused(|spec| spec.gid = 0);
        refused(|spec| spec.cgroup = vec![("pids".into(), "1".into())]);
        refused(|spec| spec.cgroup = vec![("../pids.max".into(), "1".into())]);
        refused(|spec| spec.cgroup = vec![("pids.max".into(), String::new())]);
        refused(|spec| spec.cgroup = vec![("io.max".into(), "8:0 rbps=1".into())]);
    }
}
