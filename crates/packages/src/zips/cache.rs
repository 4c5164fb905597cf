//! A host's cache of zips that are stored elsewhere: bounded in bytes, the least recently used go first.
//!
//! A file's modification time says when its package was last used, so that the order outlives the process and two processes
//! agree on it. Nothing is synced: what is read is held against its hash, and a damaged zip is fetched again.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use crate::PackageError;
use crate::files::{self, Durability};
use crate::id::PackageId;

pub(crate) struct Cache {
    dir: PathBuf,
    temp: PathBuf,
    /// In bytes, of all files.
    limit: u64,
}

impl Cache {
    pub(crate) fn open(dir: &Path, temp: &Path, limit: u64) -> Result<Self, PackageError> {
        files::create_dir(dir)?;
        let cache = Self { dir: dir.to_owned(), temp: temp.to_owned(), limit };
        // The limit may be another one now.
        cache.evict()?;
        Ok(cache)
    }

    pub(crate) fn has_file(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    /// Makes this the most recently used one, if it is here.
    pub(crate) fn used(&self, id: PackageId) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let now = Timestamps { last_access: now, last_modification: now };
        // Fails where it is not here; were it for another reason, it would at worst be evicted too soon.
        let _ = utimensat(CWD, self.path(id), &now, AtFlags::empty());
    }

    /// `None` if it is not here, or not what it should be.
    pub(crate) fn read(&self, id: PackageId) -> Result<Option<Bytes>, PackageError> {
        let path = self.path(id);
        let Some(zip) = files::read(&path)? else { return Ok(None) };
        if PackageId::of(&zip) != id {
            tracing::warn!(path = %path.display(), "a cached package is damaged; it is fetched again");
            files::remove_all(&path)?;
            return Ok(None);
        }
        self.used(id);
        Ok(Some(zip.into()))
    }

    /// Keeps a zip that has its hash, and makes room for it. One that is larger than the limit is not kept.
    pub(crate) fn keep(&self, id: PackageId, zip: &[u8]) -> Result<(), PackageError> {
        if zip.len() as u64 > self.limit {
            return Ok(());
        }
        files::write(&self.path(id), zip, &self.temp, Durability::None)?;
        self.evict()
    }

    pub(crate) fn remove(&self, id: PackageId) -> Result<(), PackageError> {
        files::remove_all(&self.path(id))
    }

    fn evict(&self) -> Result<(), PackageError> {
        let mut zips = Vec::new();
        for path in files::entries(&self.dir)? {
            let meta = files::found(fs::symlink_metadata(&path)).map_err(PackageError::io("look at", &path))?;
            // Another process may have evicted it meanwhile.
            let Some(meta) = meta else { continue };
            let used = meta.modified().map_err(PackageError::io("look at", &path))?;
            zips.push((used, path, meta.len()));
        }
        let mut total: u64 = zips.iter().map(|(_, _, size)| size).sum();
        zips.sort_unstable();
        for (_, path, size) in zips {
            if total <= self.limit {
                break;
            }
            files::remove_all(&path)?;
            total -= size;
        }
        Ok(())
    }

    fn path(&self, id: PackageId) -> PathBuf {
        self.dir.join(id.file_name())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn zip(n: u8) -> (PackageId, Vec<u8>) {
        let zip = vec![n; 100];
        (PackageId::of(&zip), zip)
    }

    /// Sets the last use of a cached zip: the kernel's time stamps are coarser than this test is fast.
    fn used_ago(cache: &Cache, id: PackageId, seconds: u64) {
        let file = fs::File::open(cache.path(id)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("cache");
        let cache = Cache::open(&at, dir.path(), 250).unwrap();
        let [(a, zip_a), (b, zip_b), (c, zip_c)] = [zip(1), zip(2), zip(3)];
        cache.keep(a, &zip_a).unwrap();
        cache.keep(b, &zip_b).unwrap();
        used_ago(&cache, a, 20);
        used_ago(&cache, b, 10);
        cache.used(a);
        cache.keep(c, &zip_c).unwrap();
        let here = |cache: &Cache| [a, b, c].map(|id| cache.read(id).unwrap().is_some());
        assert_eq!(here(&cache), [true, false, true], "b was used before a");

        used_ago(&cache, c, 10);
        let smaller = Cache::open(&at, dir.path(), 199).unwrap();
        assert_eq!(here(&smaller), [true, false, false], "a new limit holds from the start");
        let none = Cache::open(&at, dir.path(), 0).unwrap();
        none.keep(a, &zip_a).unwrap();
        assert_eq!(here(&none), [false, false, false]);
    }

    #[test]
    fn a_damaged_zip_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache"), dir.path(), 1000).unwrap();
        let (id, zip) = zip(1);
        cache.keep(id, &zip).unwrap();
        assert_eq!(cache.read(id).unwrap().unwrap(), zip);
        fs::write(cache.path(id), &zip[1..]).unwrap();
        assert_eq!(cache.read(id).unwrap(), None);
        assert!(!cache.has_file(&id.file_name()));
        cache.remove(id).unwrap();
    }
}
