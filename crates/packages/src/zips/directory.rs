//! Zips in a directory: of this process alone, or one that the processes of a fleet share, on NFS or the like.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use crate::PackageError;
use crate::files::{self, Durability};
use crate::id::PackageId;

/// Age of a file in a shared `temp/` at which nobody can still be writing it: a zip is written in seconds. A writer that
/// was stopped for longer finds its file gone, and its upload fails.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

pub(crate) struct Directory {
    zips: PathBuf,
    temp: PathBuf,
}

impl Directory {
    /// Whoever owns `temp` clears it.
    pub(crate) fn open_own(dir: &Path, temp: &Path) -> Result<Self, PackageError> {
        let directory = Self { zips: dir.join("zips"), temp: temp.to_owned() };
        files::create_dir(&directory.zips)?;
        Ok(directory)
    }

    /// Clears away what processes left half done, and leaves alone what others may be writing: locks are not to be relied on
    /// on every network file system, so the age decides.
    pub(crate) fn open_shared(dir: &Path) -> Result<Self, PackageError> {
        let directory = Self { zips: dir.join("zips"), temp: dir.join("temp") };
        files::create_dir(&directory.zips)?;
        files::create_dir(&directory.temp)?;
        directory.sweep()?;
        Ok(directory)
    }

    fn sweep(&self) -> Result<(), PackageError> {
        let stat = PackageError::io("create file in", &self.temp);
        // By the clock that stamps these files, which is the file server's.
        let now = tempfile::NamedTempFile::new_in(&self.temp).and_then(|file| file.as_file().metadata()?.modified());
        let now = now.map_err(stat)?;
        for path in files::entries(&self.temp)? {
            let modified = files::found(fs::symlink_metadata(&path).and_then(|meta| meta.modified()));
            let modified = modified.map_err(PackageError::io("look at", &path))?;
            let age = modified.and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > ABANDONED) {
                files::remove_all(&path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn has_file(&self, name: &str) -> bool {
        self.zips.join(name).exists()
    }

    pub(crate) fn holds(&self, id: PackageId, zip: &[u8]) -> bool {
        fs::read(self.path(id)).is_ok_and(|stored| stored == zip)
    }

    pub(crate) fn put(&self, id: PackageId, zip: &[u8]) -> Result<(), PackageError> {
        files::write(&self.path(id), zip, &self.temp, Durability::PowerLoss)
    }

    pub(crate) fn read(&self, id: PackageId) -> Result<Bytes, PackageError> {
        let zip = files::read(&self.path(id))?;
        zip.map(Bytes::from).ok_or_else(|| PackageError::NotFound { sha256: id.base64() })
    }

    pub(crate) fn remove(&self, id: PackageId) -> Result<(), PackageError> {
        files::remove_all(&self.path(id))
    }

    pub(crate) fn damaged(&self, id: PackageId) -> PackageError {
        PackageError::Damaged { sha256: id.base64(), place: self.path(id).display().to_string() }
    }

    fn path(&self, id: PackageId) -> PathBuf {
        self.zips.join(id.file_name())
    }
}
