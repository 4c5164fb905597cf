//! The package directory of one host.
//!
//! `zips/` is durable: a file gets its name only after its content was synced. `unpacked/` is a cache that is never
//! synced; since a power loss can leave files in it empty, it is emptied when the host has rebooted since.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use domain::CodeRef;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::s3::{self, S3Config};
use crate::{Limits, PackageError, extract};

/// Names the boot in which `unpacked/` was filled.
const BOOT_FILE: &str = "boot-id";

/// Where packages are kept and what they may be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of its own; made if it is not there.
    pub dir: PathBuf,
    /// Limits of one package.
    pub limits: Limits,
    /// For [`Packages::fetch_s3`].
    pub s3: Option<S3Config>,
    /// Owner (user and group) of unpacked files; needs root, and is ignored without.
    pub owner: Option<u32>,
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
    zips: PathBuf,
    unpacked: PathBuf,
    temp: PathBuf,
    config: Config,
    /// One lock for each package that is being unpacked.
    unpacking: Mutex<HashMap<PackageId, Weak<tokio::sync::Mutex<()>>>>,
}

/// SHA-256 of the zip.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PackageId([u8; 32]);

impl PackageId {
    fn of(zip: &[u8]) -> Self {
        Self(Sha256::digest(zip).into())
    }

    /// `None` unless `text` is the base64 of 32 bytes.
    fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }

    fn base64(&self) -> String {
        BASE64.encode(self.0)
    }

    fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl Packages {
    /// Opens the storage, and clears away what an earlier process left half done.
    pub fn open(config: Config) -> Result<Self, PackageError> {
        let root = rustix::process::geteuid().is_root();
        let config = Config { owner: config.owner.filter(|_| root), ..config };
        let inner = Inner {
            zips: config.dir.join("zips"),
            unpacked: config.dir.join("unpacked"),
            temp: config.dir.join("temp"),
            unpacking: Mutex::default(),
            config,
        };
        for dir in [&inner.zips, &inner.unpacked, &inner.temp] {
            fs::create_dir_all(dir).map_err(PackageError::io("create", dir))?;
        }
        inner.drop_cache_of_earlier_boot()?;
        let packages = Self { inner: Arc::new(inner) };
        packages.sweep()?;
        Ok(packages)
    }

    /// Removes temporary files and unpacked packages whose zip is gone. Legal only before anything is in flight, hence
    /// called by [`Self::open`].
    fn sweep(&self) -> Result<(), PackageError> {
        for path in entries(&self.inner.temp)? {
            remove_all(&path)?;
        }
        for path in entries(&self.inner.unpacked)? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name != BOOT_FILE && !self.inner.zips.join(format!("{name}.zip")).exists() {
                self.inner.discard(&path)?;
            }
        }
        Ok(())
    }

    /// Checks a directly uploaded zip in full and stores it. When this returns it survives power loss. Storing the same
    /// zip again is cheap, and repairs a damaged one.
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
        let inner = self.inner.clone();
        blocking(move || inner.ingest(&zip)).await
    }

    /// Reads an object from the configured S3-compatible endpoint; at most `limits.unzipped` bytes.
    pub async fn fetch_s3(&self, bucket: &str, key: &str, version: Option<&str>) -> Result<Bytes, PackageError> {
        let Some(s3) = &self.inner.config.s3 else {
            return Err(PackageError::S3Unreachable {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                cause: "no S3 endpoint is configured; set [s3] in the configuration".to_owned(),
            });
        };
        s3::get_object(s3, bucket, key, version, self.inner.config.limits.unzipped).await
    }

    /// The zip as it was uploaded, checked against its hash.
    pub async fn zip(&self, sha256_base64: &str) -> Result<Bytes, PackageError> {
        let id = parse(sha256_base64)?;
        let inner = self.inner.clone();
        blocking(move || {
            let zip = inner.read(id)?;
            inner.verify(id, &zip)?;
            Ok(zip.into())
        })
        .await
    }

    /// Removes the zip. What is unpacked stays until [`Self::evict`] or the next start, since sandboxes may still run
    /// from it. No error if it is gone.
    pub async fn remove(&self, sha256_base64: &str) -> Result<(), PackageError> {
        let id = parse(sha256_base64)?;
        let inner = self.inner.clone();
        blocking(move || remove_all(&inner.zip_path(id))).await
    }

    /// Removes the unpacked package from this host. Legal when no sandbox uses it.
    pub async fn evict(&self, sha256_base64: &str) -> Result<(), PackageError> {
        let id = parse(sha256_base64)?;
        let inner = self.inner.clone();
        blocking(move || inner.discard(&inner.unpacked_path(id))).await
    }

    /// The package's directory on this host, unpacked first if need be. Concurrent callers share one unpacking; a
    /// package that is there costs one `stat`.
    pub async fn unpacked(&self, code: &CodeRef) -> Result<Unpacked, PackageError> {
        let id = parse(&code.sha256)?;
        let path = self.inner.unpacked_path(id);
        if path.is_dir() {
            return Ok(Unpacked { path, cached: true });
        }
        let lock = self.inner.unpack_lock(id);
        let _guard = lock.lock().await;
        if path.is_dir() {
            return Ok(Unpacked { path, cached: true });
        }
        let inner = self.inner.clone();
        blocking(move || inner.unpack(id)).await?;
        Ok(Unpacked { path, cached: false })
    }

    /// Whether [`Self::unpacked`] would be cheap.
    pub fn is_unpacked(&self, sha256_base64: &str) -> bool {
        PackageId::parse(sha256_base64).is_some_and(|id| self.inner.unpacked_path(id).is_dir())
    }
}

impl Inner {
    fn zip_path(&self, id: PackageId) -> PathBuf {
        self.zips.join(format!("{}.zip", id.hex()))
    }

    fn unpacked_path(&self, id: PackageId) -> PathBuf {
        self.unpacked.join(id.hex())
    }

    fn ingest(&self, zip: &[u8]) -> Result<CodeRef, PackageError> {
        let id = PackageId::of(zip);
        let code = CodeRef { sha256: id.base64(), size: zip.len() as u64, image: None };
        let path = self.zip_path(id);
        if fs::read(&path).is_ok_and(|stored| stored == zip) {
            return Ok(code);
        }
        extract::check(zip, &self.config.limits)?;
        let mut temp =
            tempfile::NamedTempFile::new_in(&self.temp).map_err(PackageError::io("create file in", &self.temp))?;
        temp.write_all(zip).map_err(PackageError::io("write", &path))?;
        temp.as_file().sync_all().map_err(PackageError::io("sync", &path))?;
        temp.persist(&path).map_err(|e| e.error).map_err(PackageError::io("rename to", &path))?;
        let dir = File::open(&self.zips).map_err(PackageError::io("open", &self.zips))?;
        dir.sync_all().map_err(PackageError::io("sync", &self.zips))?;
        Ok(code)
    }

    fn read(&self, id: PackageId) -> Result<Vec<u8>, PackageError> {
        let path = self.zip_path(id);
        fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => PackageError::NotFound { sha256: id.base64() },
            _ => PackageError::io("read", &path)(error),
        })
    }

    fn verify(&self, id: PackageId, zip: &[u8]) -> Result<(), PackageError> {
        let same = PackageId::of(zip) == id;
        same.then_some(()).ok_or_else(|| PackageError::Damaged { sha256: id.base64(), path: self.zip_path(id) })
    }

    fn unpack(&self, id: PackageId) -> Result<(), PackageError> {
        let zip = self.read(id)?;
        let temp = tempfile::tempdir_in(&self.temp).map_err(PackageError::io("create directory in", &self.temp))?;
        // The hash takes about as long as the unpacking, so both run at once; damage wins over what it made of the zip.
        let (verified, unpacked) = std::thread::scope(|scope| {
            let verifier = scope.spawn(|| self.verify(id, &zip));
            let unpacked = extract::unpack(&zip, &self.config.limits, temp.path(), self.config.owner);
            (verifier.join().expect("hashing does not panic"), unpacked)
        });
        verified?;
        unpacked?;
        let path = self.unpacked_path(id);
        match fs::rename(temp.path(), &path) {
            Ok(()) => drop(temp.keep()),
            // A caller that went away left its unpacking to finish on its own: the content is the same.
            Err(_) if path.is_dir() => {}
            Err(error) => return Err(PackageError::io("rename to", &path)(error)),
        }
        Ok(())
    }

    /// Removes an unpacked package so that nobody ever sees part of it.
    fn discard(&self, path: &Path) -> Result<(), PackageError> {
        if !path.exists() {
            return Ok(());
        }
        let temp = tempfile::tempdir_in(&self.temp).map_err(PackageError::io("create directory in", &self.temp))?;
        fs::rename(path, temp.path().join("discarded")).map_err(PackageError::io("move", path))?;
        temp.close().map_err(PackageError::io("remove", path))
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

fn parse(sha256_base64: &str) -> Result<PackageId, PackageError> {
    PackageId::parse(sha256_base64).ok_or_else(|| PackageError::NotFound { sha256: sha256_base64.to_owned() })
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, PackageError> {
    let read = fs::read_dir(dir).map_err(PackageError::io("list", dir))?;
    read.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(PackageError::io("list", dir))
}

fn remove_all(path: &Path) -> Result<(), PackageError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.map_err(PackageError::io("remove", path))
}

/// Zip work is CPU and disk: it stays off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PackageError> + Send + 'static,
) -> Result<T, PackageError> {
    tokio::task::spawn_blocking(work).await.expect("package work neither panics nor is cancelled")
}
