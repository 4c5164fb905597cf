//! File operations that several stores of this crate need.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::PackageError;

/// Whether a file that gets its name has to be there after a power failure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// File and directory are synced.
    PowerLoss,
    /// It can be had again.
    None,
}

/// Writes a file that appears under its name whole or not at all. `temp` is on the same file system.
pub(crate) fn write(path: &Path, content: &[u8], temp: &Path, durability: Durability) -> Result<(), PackageError> {
    let mut file = tempfile::NamedTempFile::new_in(temp).map_err(PackageError::io("create file in", temp))?;
    file.write_all(content).map_err(PackageError::io("write", path))?;
    if durability == Durability::PowerLoss {
        file.as_file().sync_all().map_err(PackageError::io("sync", path))?;
    }
    file.persist(path).map_err(|e| e.error).map_err(PackageError::io("rename to", path))?;
    if durability == Durability::PowerLoss {
        let dir = path.parent().expect("a file is in a directory");
        let opened = File::open(dir).map_err(PackageError::io("open", dir))?;
        opened.sync_all().map_err(PackageError::io("sync", dir))?;
    }
    Ok(())
}

/// `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, PackageError> {
    found(fs::read(path)).map_err(PackageError::io("read", path))
}

pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>, PackageError> {
    let read = fs::read_dir(dir).map_err(PackageError::io("list", dir))?;
    read.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(PackageError::io("list", dir))
}

/// Removes a file, or a directory with all that is in it. No error if it is gone, which another process may have seen to
/// meanwhile.
pub(crate) fn remove_all(path: &Path) -> Result<(), PackageError> {
    let remove = || match fs::symlink_metadata(path)? {
        meta if meta.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    found(remove()).map(drop).map_err(PackageError::io("remove", path))
}

pub(crate) fn create_dir(dir: &Path) -> Result<(), PackageError> {
    fs::create_dir_all(dir).map_err(PackageError::io("create", dir))
}

/// `None` where something is not there.
pub(crate) fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Zip work is CPU and disk: it stays off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PackageError> + Send + 'static,
) -> Result<T, PackageError> {
    tokio::task::spawn_blocking(work).await.expect("package work neither panics nor is cancelled")
}
