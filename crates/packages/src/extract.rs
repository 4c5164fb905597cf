//! Carries a [`Plan`] out: into a directory, or into nothing to check that it could be.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::Path;
use std::time::SystemTime;

use crate::archive::{self, Archive, FileEntry, Kind, Plan};
use crate::{Limits, PackageError};

/// Bytes per read: large enough that the decompressor, not the calls, sets the pace.
const CHUNK: usize = 128 * 1024;

/// Decompresses everything, with checksums and limits, and keeps nothing.
pub(crate) fn check(zip: &[u8], limits: &Limits) -> Result<(), PackageError> {
    let (mut archive, plan) = archive::plan(zip, limits)?;
    let mut budget = Budget::new(limits);
    for file in files(&plan) {
        copy_entry(&mut archive, file, &mut budget, |_| Ok(()))?;
    }
    Ok(())
}

/// Unpacks into `dir`, which is empty and on the way to nobody else. Nothing is synced: an unpacked package is a cache.
pub(crate) fn unpack(zip: &[u8], limits: &Limits, dir: &Path, owner: Option<u32>) -> Result<(), PackageError> {
    let (mut archive, plan) = archive::plan(zip, limits)?;
    let mut budget = Budget::new(limits);
    finish_directory(dir, owner)?;
    for (path, kind) in &plan {
        let path = dir.join(path);
        match kind {
            Kind::Directory => {
                fs::create_dir(&path).map_err(PackageError::io("create", &path))?;
                finish_directory(&path, owner)?;
            }
            Kind::File(entry) => write_file(&mut archive, entry, &mut budget, &path, owner)?,
            Kind::Symlink(_) => {}
        }
    }
    // Last, so that no path above could have led through one.
    for (path, kind) in &plan {
        if let Kind::Symlink(target) = kind {
            let path = dir.join(path);
            symlink(target, &path).map_err(PackageError::io("create symlink", &path))?;
            if owner.is_some() {
                lchown(&path, owner, owner).map_err(PackageError::io("change owner of", &path))?;
            }
        }
    }
    Ok(())
}

fn files(plan: &Plan) -> impl Iterator<Item = &FileEntry> {
    plan.values().filter_map(|kind| match kind {
        Kind::File(entry) => Some(entry),
        _ => None,
    })
}

/// As Lambda does, whatever the zip says; explicit since the umask bears on `create_dir`.
fn finish_directory(path: &Path, owner: Option<u32>) -> Result<(), PackageError> {
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(PackageError::io("set mode of", path))?;
    if owner.is_some() {
        lchown(path, owner, owner).map_err(PackageError::io("change owner of", path))?;
    }
    Ok(())
}

fn write_file(
    archive: &mut Archive<'_>,
    entry: &FileEntry,
    budget: &mut Budget,
    path: &Path,
    owner: Option<u32>,
) -> Result<(), PackageError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(PackageError::io("create", path))?;
    copy_entry(archive, entry, budget, |chunk| file.write_all(chunk).map_err(PackageError::io("write", path)))?;
    finish_file(&file, entry, owner).map_err(PackageError::io("set owner, mode and time of", path))
}

fn finish_file(file: &File, entry: &FileEntry, owner: Option<u32>) -> io::Result<()> {
    if owner.is_some() {
        fchown(file, owner, owner)?;
    }
    file.set_permissions(Permissions::from_mode(entry.mode))?;
    match entry.modified {
        Some(at) => file.set_modified(SystemTime::from(at.assume_utc())),
        None => Ok(()),
    }
}

/// Unpacked bytes that are left.
struct Budget {
    left: u64,
    limit: u64,
    buffer: Vec<u8>,
}

impl Budget {
    fn new(limits: &Limits) -> Self {
        Self { left: limits.unzipped, limit: limits.unzipped, buffer: vec![0; CHUNK] }
    }
}

/// Decompresses one entry to its end, where the zip library compares size and checksum.
fn copy_entry(
    archive: &mut Archive<'_>,
    entry: &FileEntry,
    budget: &mut Budget,
    mut write: impl FnMut(&[u8]) -> Result<(), PackageError>,
) -> Result<(), PackageError> {
    let mut reader = archive.by_index(entry.index).map_err(archive::refused)?;
    loop {
        let read = match reader.read(&mut budget.buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PackageError::unzip(error.to_string())),
        };
        let left = budget.left.checked_sub(read as u64);
        budget.left = left.ok_or(PackageError::UnzippedTooLarge { limit: budget.limit })?;
        write(&budget.buffer[..read])?;
    }
}
