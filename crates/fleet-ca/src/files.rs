//! Files that are there whole or not at all, with the mode that they are to have from the first byte on.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// For what is secret.
pub(crate) const SECRET: u32 = 0o600;
/// For what anybody may see.
pub(crate) const PUBLIC: u32 = 0o644;

/// What could not be done, to what, and why.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {cause}", path = path.display())]
pub struct FileError {
    /// A verb.
    pub doing: &'static str,
    /// To what.
    pub path: PathBuf,
    /// The system's word.
    #[source]
    pub cause: io::Error,
}

/// For `map_err`.
pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |cause| FileError { doing, path: path.to_owned(), cause }
}

/// Makes a directory for this user alone, with those above it, where it is missing.
pub(crate) fn make_dir(dir: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make the directory", dir))
}

/// Writes a file beside, brings it to disk and gives it its name, in the place of what had the name before.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    write(path, content, mode, |file| file.persist(path).map_err(|e| e.error))
}

/// As [`replace`], but fails with `AlreadyExists` where something has the name.
pub(crate) fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    write(path, content, mode, |file| file.persist_noclobber(path).map_err(|e| e.error))
}

fn write(
    path: &Path,
    content: &[u8],
    mode: u32,
    name: impl FnOnce(tempfile::NamedTempFile) -> io::Result<File>,
) -> Result<(), FileError> {
    let dir = path.parent().expect("a file's path has a directory");
    let work = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".new-").permissions(Permissions::from_mode(mode));
        let mut file = builder.tempfile_in(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        name(file)?;
        File::open(dir)?.sync_all()
    };
    work().map_err(failed("write", path))
}

/// Reads a file of text.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(failed("read", path))
}

/// Reads a secret, and refuses one that others on this machine can read or change.
pub(crate) fn read_secret(path: &Path) -> Result<String, FileError> {
    let mode = fs::metadata(path).map_err(failed("read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!("its mode is {mode:03o}, so that others can get at this secret; `chmod 600` it");
        return Err(failed("trust", path)(io::Error::other(why)));
    }
    read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_with_its_mode_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"one", SECRET).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(create(&path, b"two", SECRET).unwrap_err().cause.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read_secret(&path).unwrap(), "one");
        replace(&path, b"three", SECRET).unwrap();
        assert_eq!(read_secret(&path).unwrap(), "three");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.contains("640") && error.contains("chmod 600"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
