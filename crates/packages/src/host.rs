//! What a host has for itself: unpacked packages, and the temporary files on the way to them.
//!
//! `unpacked/` is a cache that is never synced; since a power loss can leave files in it empty, it is emptied when the host
//! has rebooted since. Several processes may use one directory at the same time: clearing up is for whoever opens it while
//! nobody else has it open, which a lock on `lock` tells.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::files::{self, entries, remove_all};
use crate::id::PackageId;
use crate::{Limits, PackageError, extract};

/// Names the boot in which `unpacked/` was filled.
const BOOT_FILE: &str = "boot-id";

pub(crate) struct Host {
    unpacked: PathBuf,
    temp: PathBuf,
    /// Shared by all that use the directory; held alone while it is cleared up.
    lock: File,
    lock_path: PathBuf,
    alone: bool,
}

impl Host {
    /// Waits for another process that is clearing up.
    pub(crate) fn open(dir: &Path) -> Result<Self, PackageError> {
        let (unpacked, temp, lock_path) = (dir.join("unpacked"), dir.join("temp"), dir.join("lock"));
        files::create_dir(&unpacked)?;
        files::create_dir(&temp)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(PackageError::io("open", &lock_path))?;
        let alone = match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => {
                lock.lock_shared().map_err(PackageError::io("lock", &lock_path))?;
                false
            }
            Err(TryLockError::Error(error)) => return Err(PackageError::io("lock", &lock_path)(error)),
        };
        Ok(Self { unpacked, temp, lock, lock_path, alone })
    }

    pub(crate) fn temp(&self) -> &Path {
        &self.temp
    }

    /// Unless somebody else uses the directory: removes temporary files, the cache of an earlier boot, and unpacked packages
    /// whose zip is gone (`has_zip`, by file name). Once, before anything is in flight; others may come in afterwards.
    pub(crate) fn clear_up(&mut self, has_zip: impl Fn(&str) -> bool) -> Result<(), PackageError> {
        if !std::mem::take(&mut self.alone) {
            return Ok(());
        }
        for path in entries(&self.temp)? {
            remove_all(&path)?;
        }
        self.drop_cache_of_earlier_boot()?;
        for path in entries(&self.unpacked)? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name != BOOT_FILE && !has_zip(&format!("{name}.zip")) {
                self.discard(&path)?;
            }
        }
        self.lock.lock_shared().map_err(PackageError::io("lock", &self.lock_path))
    }

    fn drop_cache_of_earlier_boot(&self) -> Result<(), PackageError> {
        // Without a boot id (no /proc) every start counts as one.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let file = self.unpacked.join(BOOT_FILE);
        if boot.is_some() && fs::read_to_string(&file).ok() == boot {
            return Ok(());
        }
        for path in entries(&self.unpacked)? {
            remove_all(&path)?;
        }
        fs::write(&file, boot.unwrap_or_default()).map_err(PackageError::io("write", &file))
    }

    pub(crate) fn path(&self, id: PackageId) -> PathBuf {
        self.unpacked.join(id.hex())
    }

    /// What is unpacked.
    pub(crate) fn ids(&self) -> Result<Vec<PackageId>, PackageError> {
        let name = |path: &PathBuf| PackageId::from_hex(path.file_name()?.to_str()?);
        Ok(entries(&self.unpacked)?.iter().filter_map(name).collect())
    }

    /// Unpacks a zip under its name. `check`: hold it against its hash, too; `false` is for one that was.
    pub(crate) fn unpack(
        &self,
        id: PackageId,
        zip: &Bytes,
        check: bool,
        limits: &Limits,
        owner: Option<u32>,
    ) -> Result<Checked, PackageError> {
        let temp = tempfile::tempdir_in(&self.temp).map_err(PackageError::io("create directory in", &self.temp))?;
        // The hash takes about as long as the unpacking, so both run at once; damage wins over what it made of the zip.
        let (same, unpacked) = std::thread::scope(|scope| {
            let same = check.then(|| scope.spawn(|| PackageId::of(zip) == id));
            let unpacked = extract::unpack(zip, limits, temp.path(), owner);
            (same.is_none_or(|same| same.join().expect("hashing does not panic")), unpacked)
        });
        if !same {
            return Ok(Checked::Damaged);
        }
        unpacked?;
        let path = self.path(id);
        match fs::rename(temp.path(), &path) {
            Ok(()) => drop(temp.keep()),
            // Another process came first: the content is the same.
            Err(_) if path.is_dir() => {}
            Err(error) => return Err(PackageError::io("rename to", &path)(error)),
        }
        Ok(Checked::Whole)
    }

    /// Removes an unpacked package so that nobody ever sees part of it.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), PackageError> {
        if !path.exists() {
            return Ok(());
        }
        let temp = tempfile::tempdir_in(&self.temp).map_err(PackageError::io("create directory in", &self.temp))?;
        fs::rename(path, temp.path().join("discarded")).map_err(PackageError::io("move", path))?;
        temp.close().map_err(PackageError::io("remove", path))
    }
}

/// What became of a zip that was to be unpacked.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// It is unpacked.
    Whole,
    /// It has not the hash that it should have.
    Damaged,
}
