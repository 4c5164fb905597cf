//! Snapshots of versions with SnapStart, each in a directory of its own below one that root alone may enter: a snapshot has
//! all that a function knows.
//!
//! What the engine wrote is beside a manifest, which says what the snapshot is good for: it is used only while runtime, code,
//! engine and credentials are what they were. A directory gets its name when all is in it; what has the name of an unfinished
//! one is removed by the next start.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use domain::VersionKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::Held;

const MANIFEST: &str = "manifest.json";
const UNFINISHED: &str = ".unfinished";
/// Of a disk of over ten times as much: in bytes, what a snapshot leaves free.
const LEFT: u64 = 4 << 30;

/// Where they are.
#[derive(Debug)]
pub(crate) struct Snapshots(PathBuf);

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// What sandboxes were made of.
    made_of: Value,
    /// Their processes.
    held: Held,
}

/// One that is being taken. Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Unfinished {
    /// Empty, for the engine.
    pub(crate) directory: PathBuf,
    finished: PathBuf,
}

impl Snapshots {
    /// Makes the directory, and removes what an earlier process did not finish.
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?,
        }
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self(directory))
    }

    /// That of a version, if there is one that was made of this.
    pub(crate) fn find(&self, version: &VersionKey, made_of: &Value) -> Option<(PathBuf, Held)> {
        let directory = path(&self.0, version).ok()?;
        let manifest = fs::read(directory.join(MANIFEST)).ok()?;
        let manifest: Manifest = serde_json::from_slice(&manifest).ok()?;
        (manifest.made_of == *made_of).then_some((directory, manifest.held))
    }

    /// Whether there is room for one of so many bytes: a tenth of the disk, and [`LEFT`] of a large one, is left to what else is
    /// kept there.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`], or that of a disk that does not say.
    pub(crate) fn check_room(&self, bytes: u64) -> io::Result<()> {
        let disk = rustix::fs::statvfs(&self.0)?;
        let (free, all) = (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize));
        if free < bytes.saturating_add(LEFT.min(all / 10)) {
            let free = format!("{} MiB are free of {} MiB", free >> 20, all >> 20);
            return Err(io::Error::new(io::ErrorKind::StorageFull, free));
        }
        Ok(())
    }

    /// Makes a place for one.
    pub(crate) fn begin(&self, version: &VersionKey) -> io::Result<Unfinished> {
        let finished = path(&self.0, version)?;
        let mut directory = finished.clone().into_os_string();
        directory.push(UNFINISHED);
        let directory = PathBuf::from(directory);
        DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Unfinished { directory, finished })
    }

    /// Removes that of a version from such a directory, if there is one.
    pub(crate) fn remove(directory: &Path, version: &VersionKey) -> io::Result<()> {
        remove(&path(directory, version)?)
    }
}

/// A key is made of names without slashes, so this only holds off what nobody could have stored.
fn path(directory: &Path, version: &VersionKey) -> io::Result<PathBuf> {
    let name = &*version.0;
    if name.is_empty() || name.starts_with('.') || name.contains('/') || name.ends_with(UNFINISHED) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the version's key is no file name"));
    }
    Ok(directory.join(name))
}

impl Unfinished {
    /// Gives it its name, in the place of one that has it.
    pub(crate) fn finish(self, made_of: Value, held: Held) -> io::Result<()> {
        fs::write(self.directory.join(MANIFEST), serde_json::to_vec(&Manifest { made_of, held })?)?;
        remove(&self.finished)?;
        fs::rename(&self.directory, &self.finished)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Not there once it is finished.
        let _ = remove(&self.directory);
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_snapshot_is_found_while_it_is_what_it_was_made_of() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("snapshots");
        let snapshots = Snapshots::open(place.clone()).unwrap();
        let version = VersionKey("1:r:f:1:x".into());
        let held: Held = serde_json::from_value(json!({
            "runtime": 1, "runtime_state": "RestoreReady", "extensions": [],
        }))
        .unwrap();
        let made_of = json!({"engine": "a"});
        assert!(snapshots.find(&version, &made_of).is_none());
        for content in ["first", "second"] {
            let unfinished = snapshots.begin(&version).unwrap();
            assert!(snapshots.begin(&version).is_err(), "one at a time");
            fs::write(unfinished.directory.join("memory"), content).unwrap();
            unfinished.finish(made_of.clone(), held.clone()).unwrap();
            let (found, its) = snapshots.find(&version, &made_of).unwrap();
            assert_eq!((fs::read_to_string(found.join("memory")).unwrap(), its), (content.to_owned(), held.clone()));
        }
        assert!(snapshots.find(&version, &json!({"engine": "b"})).is_none(), "of another engine");

        drop(snapshots.begin(&version).unwrap());
        let left = snapshots.begin(&version).unwrap();
        std::mem::forget(left);
        Snapshots::open(place.clone()).unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1, "what was not finished is gone");
        Snapshots::remove(&place, &version).unwrap();
        Snapshots::remove(&place, &version).unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        for key in ["", "..", "a/b", "x.unfinished"] {
            assert!(Snapshots::remove(&place, &VersionKey(key.into())).is_err(), "{key}");
        }
    }
}
