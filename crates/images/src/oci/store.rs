//! The container images of functions, on one host.
//!
//! ```text
//!  images/<digest>/root         unpacked: the root of sandboxes, never written to
//!                 /layout       what was pulled; the next image of the repository takes what it shares from here
//!                 /repository   where from: who may have one of its images may have another's layers
//!                 /image.json   how it is started; the directory has its name when all of it is on disk
//!        /temp/                 what is being pulled; swept at the next start
//! ```
//!
//! An image is known by the digest of what its tag led to once, so it is the same for everybody who names it, whatever the
//! registry does later. Pulls do not wait for one another: a registry that answers slowly holds up its own image only.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::registry::{Access, Remote, pull, resolve};
use super::{Config, Layout};
use crate::build::unpack;
use crate::error::{ImageError, Refusal, at};
use crate::limits::Limits;

const ABOUT: &str = "image.json";
const REPOSITORY: &str = "repository";
/// Images that are unpacked at once: each takes a core, and memory for its tree.
const UNPACKING: usize = 2;

/// Settings of a [`Store`].
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Directory of its own; made if it is not there.
    pub dir: PathBuf,
    /// How large an image may be.
    pub limits: Limits,
    /// How long a pull may take.
    pub pull_limit: Duration,
    /// How registries are spoken to, by host (and port) as images name them; the others by default.
    pub registries: BTreeMap<String, Access>,
}

/// An image that is here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unpacked {
    /// Its root directory.
    pub root: PathBuf,
    /// How it wants to be started.
    pub config: Config,
}

/// Handle to the images; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: StoreConfig,
    /// One lock for each image that is being made or removed.
    busy: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    unpacking: Semaphore,
    /// What was looked at since the start.
    known: Mutex<HashMap<String, Arc<Unpacked>>>,
}

impl Store {
    /// Opens the store, and clears away what an earlier process left half done.
    pub fn open(config: StoreConfig) -> Result<Self, ImageError> {
        let temp = config.dir.join("temp");
        remove(&temp)?;
        fs::create_dir_all(&temp).map_err(at("create the directory", &temp))?;
        // Functions run as users of their own, and may only see what they are given.
        let closed = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&config.dir, closed).map_err(at("set the mode of", &config.dir))?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                busy: Mutex::default(),
                known: Mutex::default(),
                unpacking: Semaphore::new(UNPACKING),
            }),
        })
    }

    /// What the image's tag leads to now: its digest. Asks the registry.
    pub async fn resolve(&self, remote: &Remote) -> Result<String, ImageError> {
        resolve(remote, self.access(remote)).await
    }

    /// The image of this digest, pulled and unpacked first if need be. Concurrent callers share one pull.
    pub async fn ensure(&self, remote: &Remote, digest: &str) -> Result<Arc<Unpacked>, ImageError> {
        let path = self.path(digest)?;
        if let Some(known) = self.known(digest) {
            return Ok(known);
        }
        let lock = self.lock(digest);
        let _alone = lock.lock().await;
        if let Some(known) = self.known(digest) {
            return Ok(known);
        }
        if !path.is_dir() {
            self.make(&remote.at(digest), &path).await?;
        }
        let about = path.join(ABOUT);
        let bytes = fs::read(&about).map_err(at("read", &about))?;
        let config = serde_json::from_slice(&bytes)
            .map_err(|error| at("read", &about)(std::io::Error::new(ErrorKind::InvalidData, error)))?;
        let unpacked = Arc::new(Unpacked { root: path.join("root"), config });
        locked(&self.inner.known).insert(digest.to_owned(), Arc::clone(&unpacked));
        Ok(unpacked)
    }

    /// Whether [`Self::ensure`] would be cheap.
    pub fn is_here(&self, digest: &str) -> bool {
        self.path(digest).is_ok_and(|path| path.is_dir())
    }

    /// The digest of every image of which [`Self::is_here`] is true. Reads a directory.
    pub fn all(&self) -> Result<Vec<String>, ImageError> {
        let dir = &self.inner.config.dir;
        let mut digests = Vec::new();
        for entry in fs::read_dir(dir).map_err(at("list", dir))? {
            let name = entry.map_err(at("list", dir))?.file_name();
            digests
                .extend(name.to_str().map(|digits| format!("sha256:{digits}")).filter(|digest| self.is_here(digest)));
        }
        Ok(digests)
    }

    /// Removes the image. Legal when no sandbox runs on it. No error if it is gone; one that is being pulled is not waited
    /// for, which is an error.
    pub async fn remove(&self, digest: &str) -> Result<(), ImageError> {
        let path = self.path(digest)?;
        let lock = self.lock(digest);
        let busy = |_| at("remove", &path)(std::io::Error::new(ErrorKind::ResourceBusy, "it is being pulled"));
        let _alone = lock.try_lock().map_err(busy)?;
        locked(&self.inner.known).remove(digest);
        if !path.exists() {
            return Ok(());
        }
        // Nobody is to find part of it.
        let aside = self.temp()?;
        fs::rename(&path, aside.path().join("removed")).map_err(at("move", &path))?;
        blocking(move || remove(aside.path())).await
    }

    async fn make(&self, remote: &Remote, path: &Path) -> Result<(), ImageError> {
        let temp = self.temp()?;
        let (layout, root) = (temp.path().join("layout"), temp.path().join("root"));
        let (config, name) = (&self.inner.config, remote.to_string());
        let step = |what: &str| tracing::debug!(image = name, "{what}");
        let siblings = self.layouts(&remote.place())?;
        let pulled = pull(remote, self.access(remote), &layout, &siblings, config.limits, &step);
        let pulled: Layout = tokio::time::timeout(config.pull_limit, pulled).await.unwrap_or_else(|_| {
            let reason = format!("it took more than {} s", config.pull_limit.as_secs());
            Err(ImageError::Registry { what: format!("pull {name}"), kind: Refusal::Unavailable, reason })
        })?;
        let (limits, path, place) = (config.limits, path.to_owned(), remote.place());
        let _turn = self.inner.unpacking.acquire().await.expect("it is never closed");
        // The draft goes with the work, which goes on if the caller does not.
        blocking(move || {
            let container = unpack(&pulled, limits, &root, &|step| tracing::debug!(image = name, "{step}"))?;
            let about = temp.path().join(ABOUT);
            let text = serde_json::to_vec(&container.config).expect("strings are JSON");
            fs::write(&about, text).map_err(at("write", &about))?;
            let repository = temp.path().join(REPOSITORY);
            fs::write(&repository, place).map_err(at("write", &repository))?;
            let synced = File::open(temp.path()).and_then(|file| Ok(rustix::fs::syncfs(file)?));
            synced.map_err(at("write", temp.path()))?;
            fs::rename(temp.path(), &path).map_err(at("put in place", &path))?;
            // There is nothing of that name to remove any more.
            let _ = temp.keep();
            Ok(())
        })
        .await
    }

    fn temp(&self) -> Result<tempfile::TempDir, ImageError> {
        let temp = self.inner.config.dir.join("temp");
        tempfile::tempdir_in(&temp).map_err(at("create a directory in", &temp))
    }

    /// Of the images of this repository that are here. Another's layers are not for everybody who can name them.
    fn layouts(&self, place: &str) -> Result<Vec<PathBuf>, ImageError> {
        let dir = &self.inner.config.dir;
        let entries = dir.read_dir().map_err(at("read the directory", dir))?;
        let of_it = |image: &PathBuf| fs::read(image.join(REPOSITORY)).is_ok_and(|it| it == place.as_bytes());
        Ok(entries.flatten().map(|entry| entry.path()).filter(of_it).map(|image| image.join("layout")).collect())
    }

    fn access(&self, remote: &Remote) -> &Access {
        const DEFAULT: &Access = &Access { credentials: None, plain_http: false };
        self.inner.config.registries.get(remote.registry()).unwrap_or(DEFAULT)
    }

    fn known(&self, digest: &str) -> Option<Arc<Unpacked>> {
        let known = locked(&self.inner.known).get(digest).cloned();
        known.filter(|image| image.root.is_dir())
    }

    /// Of 64 hexadecimal digits, so that it leads nowhere else.
    fn path(&self, digest: &str) -> Result<PathBuf, ImageError> {
        let digits = digest.strip_prefix("sha256:").filter(|digits| {
            digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        });
        let refused = || ImageError::Source {
            source_name: digest.to_owned(),
            reason: "a digest is `sha256:` and 64 hexadecimal digits".to_owned(),
        };
        digits.map(|digits| self.inner.config.dir.join(digits)).ok_or_else(refused)
    }

    fn lock(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = locked(&self.inner.busy);
        if let Some(lock) = busy.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        busy.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        busy.insert(digest.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// Nothing is left half done under these locks.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.expect("it neither panics nor is cancelled")
}
