//! Where the zips are kept: in a directory, or in a bucket.
//!
//! ```text
//!            put  ──►  directory: written, synced, renamed to <dir>/zips/<sha256>.zip
//!                 ──►  bucket:    PUT <prefix>/zips/<sha256>.zip, again after what passes by itself
//!   fetch (to unpack)  bucket:    host's cache of zips ──not there or damaged──► GET, held against its hash ──► cache
//!   read (a download)  bucket:    cache, or GET; kept nowhere
//! ```

mod bucket;
mod cache;
mod directory;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use bucket::S3Storage;

use crate::PackageError;
use crate::files::blocking;
use crate::id::PackageId;
use crate::storage::{Config, Storage};
use bucket::Bucket;
use directory::Directory;

/// A zip from the storage.
pub(crate) struct Zip {
    pub bytes: Bytes,
    /// Its hash was looked at already.
    pub checked: bool,
}

/// The storage of a process.
pub(crate) enum Zips {
    Directory(Arc<Directory>),
    Bucket(Box<Bucket>),
}

impl Zips {
    /// `temp` is the host's own directory for what is not finished.
    pub(crate) fn open(config: &Config, temp: &Path) -> Result<Self, PackageError> {
        Ok(match &config.storage {
            Storage::Own => Self::Directory(Arc::new(Directory::open_own(&config.dir, temp)?)),
            Storage::Shared(dir) => Self::Directory(Arc::new(Directory::open_shared(dir)?)),
            Storage::S3(s3) => Self::Bucket(Box::new(Bucket::open(s3, &config.dir.join("cache"), temp)?)),
        })
    }

    /// Whether there is a file of this name on this host, or in the shared directory. Asks no service.
    pub(crate) fn has_file(&self, name: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.has_file(name),
            Self::Bucket(bucket) => bucket.cache().has_file(name),
        }
    }

    /// Notes that somebody needs the package now, though not its zip: the cache keeps what is used.
    pub(crate) fn used(&self, id: PackageId) {
        match self {
            Self::Directory(_) => {}
            Self::Bucket(bucket) => bucket.cache().used(id),
        }
    }

    /// Stores a checked zip. When this returns the zip survives power loss.
    pub(crate) async fn put(&self, id: PackageId, zip: Bytes) -> Result<(), PackageError> {
        match self {
            Self::Directory(directory) => {
                let directory = Arc::clone(directory);
                blocking(move || directory.put(id, &zip)).await
            }
            Self::Bucket(bucket) => bucket.put(id, zip).await,
        }
    }

    /// Whether exactly this zip is known to be stored.
    pub(crate) fn holds(&self, id: PackageId, zip: &[u8]) -> bool {
        match self {
            Self::Directory(directory) => directory.holds(id, zip),
            // Only the bucket itself knows, and another process may have removed the object.
            Self::Bucket(_) => false,
        }
    }

    /// The zip, to be unpacked on this host; of at most `limit` bytes.
    pub(crate) async fn fetch(&self, id: PackageId, limit: u64) -> Result<Zip, PackageError> {
        match self {
            Self::Directory(directory) => {
                let directory = Arc::clone(directory);
                let bytes = blocking(move || directory.read(id)).await?;
                Ok(Zip { bytes, checked: false })
            }
            Self::Bucket(bucket) => Ok(Zip { bytes: bucket.fetch(id, limit).await?, checked: true }),
        }
    }

    /// The zip, checked against its hash, for somebody else's use; of at most `limit` bytes.
    pub(crate) async fn read(&self, id: PackageId, limit: u64) -> Result<Bytes, PackageError> {
        match self {
            Self::Directory(directory) => {
                let directory = Arc::clone(directory);
                blocking(move || {
                    let zip = directory.read(id)?;
                    if PackageId::of(&zip) == id { Ok(zip) } else { Err(directory.damaged(id)) }
                })
                .await
            }
            Self::Bucket(bucket) => bucket.read(id, limit).await,
        }
    }

    /// Removes the zip; no error if it is gone.
    pub(crate) async fn remove(&self, id: PackageId) -> Result<(), PackageError> {
        match self {
            Self::Directory(directory) => {
                let directory = Arc::clone(directory);
                blocking(move || directory.remove(id)).await
            }
            Self::Bucket(bucket) => bucket.remove(id).await,
        }
    }

    /// For a zip that does not have its hash.
    pub(crate) fn damaged(&self, id: PackageId) -> PackageError {
        match self {
            Self::Directory(directory) => directory.damaged(id),
            Self::Bucket(bucket) => bucket.damaged(id),
        }
    }
}
