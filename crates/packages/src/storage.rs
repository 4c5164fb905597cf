//! The handle: what comes in is checked and stored, what is needed is fetched and unpacked.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use domain::CodeRef;
use parking_lot::Mutex;

use crate::files::blocking;
use crate::host::{Checked, Host};
use crate::id::PackageId;
use crate::s3::{self, S3Config};
use crate::zips::{S3Storage, Zips};
use crate::{Limits, PackageError, extract};

/// Where packages are kept and what they may be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of this host: what is unpacked, caches, and with [`Storage::Own`] the zips. Made if it is not there. Not on
    /// a network file system that other hosts use.
    pub dir: PathBuf,
    /// Where the zips are.
    pub storage: Storage,
    /// Limits of one package.
    pub limits: Limits,
    /// For [`Packages::fetch_s3`].
    pub s3: Option<S3Config>,
    /// Owner (user and group) of unpacked files; needs root, and is ignored without.
    pub owner: Option<u32>,
}

/// Where the zips of a process are, which is where its packages survive.
#[derive(Clone, Debug)]
pub enum Storage {
    /// `zips/` in [`Config::dir`].
    Own,
    /// A directory that the processes of a fleet share, e.g. over NFS; made if it is not there. It must rename atomically,
    /// and keep what was synced. Packages are unpacked in [`Config::dir`].
    Shared(PathBuf),
    /// A bucket.
    S3(Box<S3Storage>),
}

/// An unpacked package.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unpacked {
    /// Directory with the package's content; never written to.
    pub path: PathBuf,
    /// It was there already.
    pub cached: bool,
}

/// Handle to the package storage; clones share it.
#[derive(Clone)]
pub struct Packages {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    host: Host,
    zips: Zips,
    /// One lock for each package that is being fetched and unpacked.
    unpacking: Mutex<HashMap<PackageId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Packages {
    /// Opens the storage, and clears away what earlier processes left half done. Asks no service: a bucket that cannot be
    /// used shows with its first use.
    pub fn open(config: Config) -> Result<Self, PackageError> {
        let root = rustix::process::geteuid().is_root();
        let config = Config { owner: config.owner.filter(|_| root), ..config };
        let mut host = Host::open(&config.dir)?;
        let zips = Zips::open(&config, host.temp())?;
        host.clear_up(|name| zips.has_file(name))?;
        Ok(Self { inner: Arc::new(Inner { config, host, zips, unpacking: Mutex::default() }) })
    }

    /// Checks a directly uploaded zip in full and stores it. When this returns it survives power loss. Storing the same
    /// zip again is cheap in a directory and one more PUT in a bucket, and repairs a damaged one.
    pub async fn ingest(&self, zip: Bytes) -> Result<CodeRef, PackageError> {
        let limit = self.inner.config.limits.zipped;
        if zip.len() as u64 > limit {
            return Err(PackageError::ZippedTooLarge { limit });
        }
        self.ingest_unbounded(zip).await
    }

    /// [`Self::fetch_s3`] and store, without the limit of direct uploads.
    pub async fn ingest_s3(&self, bucket: &str, key: &str, version: Option<&str>) -> Result<CodeRef, PackageError> {
        let zip = self.fetch_s3(bucket, key, version).await?;
        self.ingest_unbounded(zip).await
    }

    async fn ingest_unbounded(&self, zip: Bytes) -> Result<CodeRef, PackageError> {
        let (inner, checked) = (Arc::clone(&self.inner), zip.clone());
        let (id, stored) = blocking(move || {
            let id = PackageId::of(&checked);
            let stored = inner.zips.holds(id, &checked);
            if !stored {
                extract::check(&checked, &inner.config.limits)?;
            }
            Ok((id, stored))
        })
        .await?;
        let code = CodeRef { sha256: id.base64(), size: zip.len() as u64, image: None };
        if !stored {
            self.inner.zips.put(id, zip).await?;
        }
        Ok(code)
    }

    /// Reads an object from the configured S3-compatible endpoint; at most `limits.unzipped` bytes.
    pub async fn fetch_s3(&self, bucket: &str, key: &str, version: Option<&str>) -> Result<Bytes, PackageError> {
        let Some(s3) = &self.inner.config.s3 else {
            return Err(PackageError::NoS3 { bucket: bucket.to_owned(), key: key.to_owned() });
        };
        s3::get_object(s3, bucket, key, version, self.inner.config.limits.unzipped).await
    }

    /// The zip as it was uploaded, checked against its hash, for a client's download: from a bucket it is not kept here.
    pub async fn zip(&self, sha256_base64: &str) -> Result<Bytes, PackageError> {
        self.inner.zips.read(PackageId::parse(sha256_base64)?, self.inner.config.limits.unzipped).await
    }

    /// Removes the zip. What is unpacked stays until [`Self::evict`] or the next start, since sandboxes may still run
    /// from it. No error if it is gone. Other hosts' caches find out by themselves that nobody uses it.
    pub async fn remove(&self, sha256_base64: &str) -> Result<(), PackageError> {
        self.inner.zips.remove(PackageId::parse(sha256_base64)?).await
    }

    /// Removes the unpacked package from this host. Legal when no sandbox uses it.
    pub async fn evict(&self, sha256_base64: &str) -> Result<(), PackageError> {
        let id = PackageId::parse(sha256_base64)?;
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.host.discard(&inner.host.path(id))).await
    }

    /// The package's directory on this host, fetched and unpacked first if need be. Concurrent callers share one fetch and
    /// one unpacking, which goes on when they go away; a package that is there costs two system calls.
    pub async fn unpacked(&self, code: &CodeRef) -> Result<Unpacked, PackageError> {
        let id = PackageId::parse(&code.sha256)?;
        let path = self.inner.host.path(id);
        if path.is_dir() {
            self.inner.zips.used(id);
            return Ok(Unpacked { path, cached: true });
        }
        let alone = self.inner.unpack_lock(id).lock_owned().await;
        if path.is_dir() {
            return Ok(Unpacked { path, cached: true });
        }
        let (inner, size) = (Arc::clone(&self.inner), code.size);
        let work = tokio::spawn(async move {
            let result = inner.unpack(id, size).await;
            drop(alone);
            result
        });
        work.await.expect("package work neither panics nor is cancelled")?;
        Ok(Unpacked { path, cached: false })
    }

    /// Whether [`Self::unpacked`] would be cheap.
    pub fn is_unpacked(&self, sha256_base64: &str) -> bool {
        PackageId::parse(sha256_base64).is_ok_and(|id| self.inner.host.path(id).is_dir())
    }

    /// The `CodeSha256` of every package of which [`Self::is_unpacked`] is true. Reads a directory.
    pub fn all_unpacked(&self) -> Result<Vec<String>, PackageError> {
        Ok(self.inner.host.ids()?.into_iter().map(PackageId::base64).collect())
    }
}

impl Inner {
    /// `size`: the zip's, in bytes.
    async fn unpack(self: Arc<Self>, id: PackageId, size: u64) -> Result<(), PackageError> {
        let zip = self.zips.fetch(id, size).await?;
        blocking(move || {
            let Config { limits, owner, .. } = &self.config;
            match self.host.unpack(id, &zip.bytes, !zip.checked, limits, *owner)? {
                Checked::Whole => Ok(()),
                Checked::Damaged => Err(self.zips.damaged(id)),
            }
        })
        .await
    }

    fn unpack_lock(&self, id: PackageId) -> Arc<tokio::sync::Mutex<()>> {
        let mut unpacking = self.unpacking.lock();
        if let Some(lock) = unpacking.get(&id).and_then(Weak::upgrade) {
            return lock;
        }
        unpacking.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        unpacking.insert(id, Arc::downgrade(&lock));
        lock
    }
}
