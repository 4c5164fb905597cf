//! Where a server keeps everything, and the lock that keeps a second server out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Has the server whose directory is `data` use the runtimes in `kept`, where what it installs stays.
pub fn share_runtimes(kept: &Path, data: &Path) -> Result<()> {
    make(kept)?;
    make(data)?;
    for part in ["runtimes", "roots"] {
        let (target, link) = (kept.join(part), data.join(part));
        fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
        match fs::read_link(&link) {
            Ok(there) if there == target => continue,
            // Of an earlier fleet, whose runtimes were elsewhere and may be gone.
            Ok(_) => fs::remove_file(&link).with_context(|| format!("remove the link {}", link.display()))?,
            // It has its own.
            Err(_) if link.is_dir() => continue,
            Err(_) => {}
        }
        std::os::unix::fs::symlink(&target, &link)
            .with_context(|| format!("link {} to {}", link.display(), target.display()))?;
    }
    Ok(())
}

/// A data directory that this process owns while the value lives. The kernel drops the lock with the process, however it
/// ended, so that a server that was killed does not block the next one.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if needed, and takes the lock.
    pub fn open(path: &Path) -> Result<Self> {
        make(path)?;
        let path = fs::canonicalize(path).with_context(|| format!("resolve the data directory {}", path.display()))?;
        let file = path.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            // It is written to: what another user of the directory made it lead to is not this process' to empty.
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&file)
            .with_context(|| format!("open {}; `--data-dir` names another data directory", file.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                lock.read_to_string(&mut owner).ok();
                bail!(
                    "the data directory {} is in use by another Emberbox (process {}). Stop that one, or name another \
                     directory with --data-dir",
                    path.display(),
                    if owner.trim().is_empty() { "unknown" } else { owner.trim() }
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", file.display()));
            }
        }
        let write_owner = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_owner(&mut lock).with_context(|| format!("write {}", file.display()))?;
        Ok(Self { path, _lock: lock })
    }

    /// Absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a data directory, if it is not there, for this user alone: environment variables, code and logs of functions are
/// nobody else's to read. One that is there stays as its owner wants it.
pub fn make(path: &Path) -> Result<()> {
    (fs::DirBuilder::new().recursive(true).mode(0o700).create(path))
        .with_context(|| format!("make the data directory {}; `--data-dir` names another", path.display()))
}

/// `/var/lib/emberbox` for root, else as the XDG base directory specification says.
pub fn default_dir() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/emberbox".into());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    if let Some(data) = absolute("XDG_DATA_HOME") {
        return Ok(data.join("emberbox"));
    }
    match absolute("HOME") {
        Some(home) => Ok(home.join(".local/share/emberbox")),
        None => bail!(
            "there is no default data directory, as neither XDG_DATA_HOME nor HOME is set; name one with --data-dir"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_owner_at_a_time_and_a_stale_lock_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/data");
        let first = DataDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let error = format!("{:#}", DataDir::open(&path).unwrap_err());
        assert!(error.contains(&std::process::id().to_string()) && error.contains("--data-dir"), "{error}");
        drop(first);
        fs::write(path.join("lock"), "99999999\n").unwrap();
        DataDir::open(&path).unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "precious").unwrap();
        fs::remove_file(path.join("lock")).unwrap();
        std::os::unix::fs::symlink(&other, path.join("lock")).unwrap();
        DataDir::open(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
    }

    #[test]
    fn runtimes_are_shared_with_where_they_are_now() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new, data) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("data"));
        share_runtimes(&old, &data).unwrap();
        fs::remove_dir_all(&old).unwrap();
        fs::create_dir_all(data.join("own")).unwrap();
        for kept in [&new, &new] {
            share_runtimes(kept, &data).unwrap();
            assert_eq!(fs::read_link(data.join("runtimes")).unwrap(), new.join("runtimes"));
        }
        // What is no link stays.
        let own = dir.path().join("own");
        fs::create_dir_all(own.join("runtimes")).unwrap();
        share_runtimes(&new, &own).unwrap();
        assert!(fs::symlink_metadata(own.join("runtimes")).unwrap().is_dir());
        assert!(fs::read_link(own.join("roots")).is_ok());
    }

    #[test]
    fn explains_a_directory_that_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = format!("{:#}", DataDir::open(&dir.path().join("file")).unwrap_err());
        assert!(error.contains("--data-dir"), "{error}");
    }
}
