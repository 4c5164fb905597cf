//! The directory that all jails of one server are in, and the jailer's command line.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Doing, Error, Result};
use crate::jail::{Jail, JailSpec};
use crate::leftovers;
use crate::version::Version;

/// The API's socket, in the root of every jail.
pub(crate) const SOCKET: &str = "api.sock";

/// Marks a directory as one of jails, so that nothing else is ever swept, and is locked by the server that has it.
const LOCK: &str = "emberbox-jails.lock";

/// Where Firecracker is, and where its jails go.
#[derive(Clone, Debug)]
pub struct JailerConfig {
    /// The static release binary. Its name must have `firecracker` in it.
    pub firecracker: PathBuf,
    /// Of the same version.
    pub jailer: PathBuf,
    /// Becomes the jails' place; made if it is not there, and refused if it has anything else in it. Its file system
    /// must allow device nodes. Hard links need the images on the same one.
    pub directory: PathBuf,
    /// Which hierarchy [`JailSpec::cgroup`] is written to.
    pub cgroup_version: CgroupVersion,
    /// The cgroup above those of the VMs, relative to the hierarchy's root; used by nobody else.
    pub parent_cgroup: String,
}

/// Which hierarchy of cgroups the host has its controllers in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "numbers of versions")]
pub enum CgroupVersion {
    V1,
    V2,
}

impl CgroupVersion {
    /// By what is mounted at `/sys/fs/cgroup`.
    pub fn of_host() -> Self {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { Self::V2 } else { Self::V1 }
    }
}

/// What was left by a server that was killed, and is gone now.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Swept {
    /// Their ids.
    pub jails: Vec<String>,
    /// Processes that still ran in them.
    pub processes: usize,
}

/// Makes jails in a directory that it has to itself.
#[derive(Clone, Debug)]
pub struct Jailer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: JailerConfig,
    version: Version,
    /// Locked as long as it is open. It is closed on exec, so no VM keeps it.
    _lock: File,
}

impl Jailer {
    /// Checks the versions of both programs, locks the directory, and removes what is in it. Needs root.
    ///
    /// # Errors
    /// [`Error::Unsuitable`], [`Error::Locked`], [`Error::Invalid`], [`Error::Io`].
    pub async fn open(mut config: JailerConfig) -> Result<(Self, Swept)> {
        let version = Version::of(&config.firecracker).await?;
        let of_jailer = Version::of(&config.jailer).await?;
        if version != of_jailer {
            // The jailer hands Firecracker arguments, so they are released in pairs.
            let found = format!("{of_jailer} beside a firecracker of {version}");
            return Err(Error::Unsuitable { program: config.jailer, found });
        }
        check_parent_cgroup(&config.parent_cgroup)?;
        tokio::task::spawn_blocking(move || {
            // The jailer names the jails' directory after what a symbolic link leads to.
            config.firecracker = canonical(&config.firecracker)?;
            let lock = lock(&config.directory)?;
            config.directory = canonical(&config.directory)?;
            let swept = leftovers::sweep(&config.directory, &config.parent_cgroup)?;
            Ok((Self(Arc::new(Inner { config, version, _lock: lock })), swept))
        })
        .await
        .doing(|| "sweeping jails".to_owned())?
    }

    /// The version of firecracker and jailer.
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// Makes the directory of a new jail. Blocks for as long as that takes a file system.
    ///
    /// # Errors
    /// [`Error::Invalid`], or [`Error::Io`] if there is one of this id.
    pub fn jail(&self, spec: JailSpec) -> Result<Jail> {
        spec.check()?;
        Jail::create(self.clone(), spec)
    }

    pub(crate) fn config(&self) -> &JailerConfig {
        &self.0.config
    }
}

impl JailerConfig {
    /// Directory of a jail; below it is `root`, which is `/` inside.
    pub(crate) fn jail_directory(&self, id: &str) -> PathBuf {
        self.directory.join(self.firecracker.file_name().unwrap_or_default()).join(id)
    }

    /// What the jailer writes Firecracker's process id to.
    pub(crate) fn pid_file(&self, id: &str) -> PathBuf {
        let mut name = self.firecracker.file_name().unwrap_or_default().to_owned();
        name.push(".pid");
        self.jail_directory(id).join("root").join(name)
    }

    /// The jailer's command line. Standard output stays ours, so no `--daemonize`.
    pub(crate) fn arguments(&self, spec: &JailSpec) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| arguments.extend([OsString::from(name), value]);
        add("--id", spec.id.clone().into());
        add("--exec-file", self.firecracker.clone().into());
        add("--uid", spec.uid.to_string().into());
        add("--gid", spec.gid.to_string().into());
        add("--chroot-base-dir", self.directory.clone().into());
        if let Some(netns) = &spec.netns {
            add("--netns", netns.clone().into());
        }
        // Without settings the jailer makes no cgroup for the VM; on version 2 it would put it into the parent.
        if !spec.cgroup.is_empty() {
            let version = match self.cgroup_version {
                CgroupVersion::V1 => "1",
                CgroupVersion::V2 => "2",
            };
            add("--cgroup-version", version.into());
            add("--parent-cgroup", self.parent_cgroup.clone().into());
        }
        for (file, value) in &spec.cgroup {
            add("--cgroup", format!("{file}={value}").into());
        }
        if let Some(files) = spec.open_files {
            add("--resource-limit", format!("no-file={files}").into());
        }
        if let Some(bytes) = spec.file_size {
            add("--resource-limit", format!("fsize={bytes}").into());
        }
        arguments.extend(["--new-pid-ns", "--", "--api-sock", SOCKET_IN_JAIL].map(OsString::from));
        if let Some(level) = spec.log_level {
            arguments.extend(["--level".into(), format!("{level:?}").into()]);
        }
        arguments
    }
}

const SOCKET_IN_JAIL: &str = "/api.sock";

impl Drop for Inner {
    fn drop(&mut self) {
        leftovers::remove_parent_cgroup(&self.config.parent_cgroup);
    }
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().doing(|| format!("looking for {}", path.display()))
}

/// The jailer's rule, and it must be a group of its own: it is removed at the end.
fn check_parent_cgroup(parent: &str) -> Result<()> {
    let good = !parent.is_empty() && parent.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let why = "it is a relative path below the root of the hierarchy";
    good.then_some(()).ok_or_else(|| Error::Invalid { what: "parent cgroup", value: parent.to_owned(), why })
}

fn lock(directory: &Path) -> Result<File> {
    // The VMs' users do not come here: each sees its own root only.
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(directory).doing(|| format!("creating {}", directory.display()))?;
    let path = directory.join(LOCK);
    if !path.exists() {
        let mut entries = fs::read_dir(directory).doing(|| format!("reading {}", directory.display()))?;
        if entries.next().is_some() {
            return Err(Error::Invalid {
                what: "directory",
                value: directory.display().to_string(),
                why: "it has files of others in it, and what is in the jails' directory is removed: give an empty one",
            });
        }
    }
    let file = File::create(&path).doing(|| format!("creating {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(Error::Io { doing: format!("locking {}", path.display()), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::LogLevel;

    fn config() -> JailerConfig {
        JailerConfig {
            firecracker: "/opt/firecracker-1.12".into(),
            jailer: "/opt/jailer".into(),
            directory: "/var/jails".into(),
            cgroup_version: CgroupVersion::V2,
            parent_cgroup: "emberbox/vms".into(),
        }
    }

    #[test]
    fn paths_follow_the_name_of_the_program() {
        assert_eq!(config().jail_directory("vm-1"), Path::new("/var/jails/firecracker-1.12/vm-1"));
        let pid_file = "/var/jails/firecracker-1.12/vm-1/root/firecracker-1.12.pid";
        assert_eq!(config().pid_file("vm-1"), Path::new(pid_file));
        assert_eq!(SOCKET_IN_JAIL, format!("/{SOCKET}"));
    }

    #[test]
    fn arguments_of_a_plain_jail() {
        let expected = "--id vm-1 --exec-file /opt/firecracker-1.12 --uid 7 --gid 8 --chroot-base-dir /var/jails \
                        --new-pid-ns -- --api-sock /api.sock";
        assert_eq!(config().arguments(&JailSpec::new("vm-1", 7, 8)).join(" ".as_ref()), expected);
    }

    #[test]
    fn arguments_of_a_limited_jail() {
        let spec = JailSpec {
            netns: Some("/run/netns/x".into()),
            cgroup: vec![("cpu.max".into(), "50000 100000".into()), ("pids.max".into(), "64".into())],
            open_files: Some(256),
            file_size: Some(1 << 30),
            log_level: Some(LogLevel::Warning),
            ..JailSpec::new("vm-1", 7, 8)
        };
        let arguments = config().arguments(&spec);
        let expected = "--netns /run/netns/x --cgroup-version 2 --parent-cgroup emberbox/vms --cgroup cpu.max=50000 \
                        100000 --cgroup pids.max=64 --resource-limit no-file=256 --resource-limit fsize=1073741824 \
                        --new-pid-ns -- --api-sock /api.sock --level Warning";
        assert_eq!(arguments[10..].join(" ".as_ref()), expected);
        // One argument each, whatever is in it: nothing goes through a shell.
        assert!(arguments.contains(&OsString::from("cpu.max=50000 100000")));
    }

    #[test]
    fn parent_cgroups_stay_below_the_hierarchy() {
        for parent in ["", "/", "/emberbox", "emberbox/", "a/../b", ".", ".."] {
            assert!(check_parent_cgroup(parent).is_err(), "{parent}");
        }
        assert!(check_parent_cgroup("emberbox/vms").is_ok());
    }

    #[test]
    fn a_directory_is_locked_once_and_never_taken_from_others() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        assert!(matches!(lock(directory.path()), Err(Error::Locked(_))));
        drop(held);
        lock(directory.path()).unwrap();
        let foreign = tempfile::tempdir().unwrap();
        fs::write(foreign.path().join("precious"), "").unwrap();
        assert!(matches!(lock(foreign.path()), Err(Error::Invalid { .. })));
    }
}
