//! Copies files of this host into directories that functions see.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use walkdir::WalkDir;

use crate::RuntimeError;

/// Copies one file, following symlinks. The copy is readable by all, executable by all if the file is by anyone, and
/// carries none of its owner, setuid bits, attributes and times.
pub(crate) fn file(from: &Path, to: &Path) -> Result<(), RuntimeError> {
    if let Some(parent) = to.parent() {
        directory(parent)?;
    }
    let executable = host_mode(from)? & 0o111 != 0;
    // A removed destination, since `fs::copy` would write through a symlink.
    let _ = fs::remove_file(to);
    fs::copy(from, to).map_err(RuntimeError::io("copy", from))?;
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(to, Permissions::from_mode(mode)).map_err(RuntimeError::io("set mode of", to))
}

fn host_mode(path: &Path) -> Result<u32, RuntimeError> {
    Ok(path.metadata().map_err(RuntimeError::io("read", path))?.permissions().mode())
}

/// Makes a directory with its parents, enterable by all whatever the umask.
pub(crate) fn directory(path: &Path) -> Result<(), RuntimeError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        directory(parent)?;
    }
    fs::create_dir(path).map_err(RuntimeError::io("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(RuntimeError::io("set mode of", path))
}

pub(crate) fn link(target: &str, at: &Path) -> Result<(), RuntimeError> {
    if let Some(parent) = at.parent() {
        directory(parent)?;
    }
    symlink(target, at).map_err(RuntimeError::io("create symlink", at))
}

pub(crate) fn text(content: &str, at: &Path) -> Result<(), RuntimeError> {
    if let Some(parent) = at.parent() {
        directory(parent)?;
    }
    fs::write(at, content).map_err(RuntimeError::io("write", at))?;
    readable(at)
}

/// By all, whatever the umask.
pub(crate) fn readable(file: &Path) -> Result<(), RuntimeError> {
    fs::set_permissions(file, Permissions::from_mode(0o644)).map_err(RuntimeError::io("set mode of", file))
}

/// The regular files below `from`, by their path relative to it and sorted, without those whose relative path or any
/// parent's `keep` refuses. A symlink to a file counts as the file; one to a directory is left out.
pub(crate) fn files_below(from: &Path, keep: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>, RuntimeError> {
    let relative = |path: &Path| path.strip_prefix(from).unwrap_or(path).to_owned();
    let walk = WalkDir::new(from).sort_by_file_name().into_iter().filter_entry(|entry| keep(&relative(entry.path())));
    let mut files = Vec::new();
    for entry in walk {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(from).to_owned();
            RuntimeError::Io { operation: "list", path, source: e.into() }
        })?;
        // `is_file` of the path, not of the entry: follows symlinks.
        if entry.path().is_file() {
            files.push(relative(entry.path()));
        }
    }
    Ok(files)
}

/// Gives everything below and with `path` to the owner, and makes it durable: after this it may get its final name.
pub(crate) fn finish(path: &Path, owner: Option<u32>) -> Result<(), RuntimeError> {
    if owner.is_some() {
        for entry in WalkDir::new(path) {
            let entry =
                entry.map_err(|e| RuntimeError::Io { operation: "list", path: path.to_owned(), source: e.into() })?;
            lchown(entry.path(), owner, owner).map_err(RuntimeError::io("change owner of", entry.path()))?;
        }
    }
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(RuntimeError::io("set mode of", path))?;
    let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let synced = dir.and_then(rustix::fs::syncfs);
    synced.map_err(|e| RuntimeError::io("sync", path)(e.into()))
}

/// Renames a finished directory to its final place. Another process may have put the same there first: just as well.
pub(crate) fn publish(temp: tempfile::TempDir, to: &Path) -> Result<(), RuntimeError> {
    match fs::rename(temp.path(), to) {
        Ok(()) => {
            // It is no temporary directory any more.
            let _ = temp.keep();
            Ok(())
        }
        Err(_) if to.is_dir() => Ok(()),
        Err(error) => Err(RuntimeError::io("rename to", to)(error)),
    }
}
