//! The shell around the rules: reads from memory, commits to the store, background steps.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use domain::{Clock, FunctionArn, FunctionVersion, ImageRef, VersionKey};
use lambda_api::{ApiError, ErrorCode};
use packages::Packages;
use parking_lot::Mutex;
use secrets::Keyring;
use store::{Op, Precondition, Store, StoreError};
use tokio::sync::{RwLock, broadcast, watch};
use tokio::task::JoinHandle;

use crate::catalog::{BadRecord, Catalog, Entry};
use crate::function::{Function, Published, Stamp};
use crate::record::{FUNCTION, Failure, Stored, VERSION, function_key, version_key};
use crate::sealed::{self, Sealing};

mod background;
mod event_invoke;
mod event_source;
mod followed;
mod functions;
mod invoke;
mod limits;
mod policies;
mod snapshots;
mod versions;

pub use event_invoke::EventSettings;
pub use event_source::EventSourceCheck;
use event_source::EventSources;
pub use followed::Behind;
use followed::Followed;
pub use invoke::Resolved;

/// Changes of different functions go on at the same time; those of one, and few that share a stripe, in turn.
const STRIPES: usize = 64;

/// Tries of a commit that another process' commits came before.
const TRIES: u32 = 50;

/// Keys that a slow receiver of retirements may fall behind before it misses some.
const RETIRED_CAPACITY: usize = 4096;

/// Limits of an account in a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Concurrent executions of all functions.
    pub account_concurrency: u32,
    /// What reserved concurrency must leave.
    pub min_unreserved: u32,
    /// All code of all versions, in bytes.
    pub total_code_size: u64,
    /// Other processes have the same metadata, so that what is unused when this one starts may be about to be used.
    pub shared: bool,
}

impl Default for Config {
    /// AWS's quotas.
    fn default() -> Self {
        Self { account_concurrency: 1000, min_unreserved: 100, total_code_size: 75 * 1024 * 1024 * 1024, shared: false }
    }
}

/// Which runtimes there are, and how they are made ready.
#[async_trait]
pub trait RuntimeCatalog: Send + Sync {
    /// Whether functions may be made for a runtime; if not, the message says how to get it.
    fn check(&self, runtime: &str) -> Result<(), String>;
    /// What the API shows as `RuntimeVersionArn`.
    fn version_arn(&self, runtime: &str, region: &str) -> String;
    /// Makes a runtime ready on this host; returns when functions can run. May take as long as an installation does.
    async fn ensure(&self, runtime: &str) -> Result<(), String>;
}

/// Where container images come from, and where they are kept.
#[async_trait]
pub trait ImageCatalog: Send + Sync {
    /// What the name of an image means now. Asks the registry, which has to answer within a minute.
    async fn resolve(&self, uri: &str) -> Result<ImageRef, ImageFault>;
    /// Makes an image ready on this host; returns when functions can run. May take as long as a pull does.
    async fn ensure(&self, image: &ImageRef) -> Result<(), ImageFault>;
    /// Removes what is kept of an image that nothing runs on any more.
    async fn remove(&self, digest: &str) -> Result<(), String>;
}

/// Where versions with SnapStart are initialised once, and kept.
#[async_trait]
pub trait SnapshotCatalog: Send + Sync {
    /// Runs the Init of a version and keeps what is there then, for all of its sandboxes to start from. May take as long as
    /// the version's Init may: 15 minutes. In place of one that is kept already.
    async fn take(&self, version: Arc<FunctionVersion>) -> Result<(), SnapshotFault>;
    /// Removes what is kept of a version, if anything is.
    async fn remove(&self, version: &VersionKey) -> Result<(), String>;
}

/// The other processes that answer requests from their own copies of the metadata.
#[async_trait]
pub trait Peers: Send + Sync {
    /// Returns when each of them has followed the commits up to `revision`, or is not worth waiting for.
    async fn caught_up(&self, revision: u64);
}

/// Why there is no snapshot of a version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotFault {
    /// Sandboxes of this host cannot be kept; the text says why. The version starts as any other does.
    Unsupported(String),
    /// The version's Init failed, or what it needs is not there: the version cannot be used.
    Failed(Failure),
    /// The server is being stopped: the next start has it taken again.
    Stopping,
}

/// Why there is no such image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageFault {
    /// In one word.
    pub kind: ImageFaultKind,
    /// What is wrong, and what can be done.
    pub reason: String,
}

/// See [`ImageFault`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageFaultKind {
    /// It is not named as images are.
    Name,
    /// There is no such repository, tag or digest.
    Missing,
    /// The registry wants other credentials.
    Denied,
    /// It is no image that can run here, or too large, or damaged.
    Invalid,
    /// The registry, or this host, failed.
    Unavailable,
}

/// Where the metadata are, and what opens the secrets in them.
#[derive(Clone)]
pub struct Metadata {
    /// All records.
    pub store: Arc<dyn Store>,
    /// Keys of the customers' environment variables.
    pub keys: Arc<Keyring>,
}

/// Why the control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The metadata could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Part of the metadata makes no sense.
    #[error(transparent)]
    Record(#[from] BadRecord),
}

/// Handle to the control plane; clones share it. One method per operation of the API, each for an authenticated caller
/// and an input whose constraints were checked.
#[derive(Clone)]
pub struct ControlPlane {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    store: Arc<dyn Store>,
    keys: Arc<Keyring>,
    packages: Packages,
    runtimes: Arc<dyn RuntimeCatalog>,
    images: Arc<dyn ImageCatalog>,
    snapshots: Arc<dyn SnapshotCatalog>,
    clock: Arc<dyn Clock>,
    catalog: Catalog,
    event_sources: EventSources,
    /// How far the catalog has followed the store.
    followed: watch::Sender<Followed>,
    peers: OnceLock<Arc<dyn Peers>>,
    retired: broadcast::Sender<VersionKey>,
    hasher: RandomState,
    stripes: Vec<tokio::sync::Mutex<()>>,
    /// Held for changes of what the functions of an account share.
    accounts: tokio::sync::Mutex<()>,
    /// Read: a package is being stored for a function that is not yet. Write: unused packages are removed.
    package_gate: RwLock<()>,
    /// Packages and images that a function dropped, and when (monotonic).
    dropped: Mutex<BTreeMap<Stored, Duration>>,
    /// States whose background step is under way.
    settling: Mutex<HashSet<(String, String)>>,
    /// Versions whose snapshots are being taken.
    taking: Mutex<HashSet<VersionKey>>,
    /// How many background steps are under way.
    busy: watch::Sender<usize>,
    tasks: Mutex<Vec<Task>>,
}

/// Ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ControlPlane {
    /// Reads all metadata into memory, and takes up the background steps and removals that an earlier process left.
    pub async fn open(
        config: Config,
        metadata: Metadata,
        packages: Packages,
        runtimes: Arc<dyn RuntimeCatalog>,
        images: Arc<dyn ImageCatalog>,
        snapshots: Arc<dyn SnapshotCatalog>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let Metadata { store, keys } = metadata;
        let inner = Arc::new(Inner {
            config,
            store,
            catalog: Catalog::new(Arc::clone(&keys)),
            keys,
            packages,
            runtimes,
            images,
            snapshots,
            clock,
            event_sources: EventSources::default(),
            followed: watch::Sender::default(),
            peers: OnceLock::new(),
            retired: broadcast::Sender::new(RETIRED_CAPACITY),
            hasher: RandomState::new(),
            stripes: (0..STRIPES).map(|_| tokio::sync::Mutex::default()).collect(),
            accounts: tokio::sync::Mutex::default(),
            package_gate: RwLock::default(),
            dropped: Mutex::default(),
            settling: Mutex::default(),
            taking: Mutex::default(),
            busy: watch::Sender::new(0),
            tasks: Mutex::default(),
        });
        background::start(&inner).await?;
        Ok(Self { inner })
    }

    /// States of versions that were replaced or deleted: their sandboxes have no more work. A receiver that lags misses
    /// some; sandboxes that nobody uses go in the end anyway.
    pub fn retired(&self) -> broadcast::Receiver<VersionKey> {
        self.inner.retired.subscribe()
    }

    /// From now on a change is answered only when these have it as well. Legal once.
    ///
    /// # Panics
    /// The second time.
    pub fn with_peers(&self, peers: Arc<dyn Peers>) {
        assert!(self.inner.peers.set(peers).is_ok(), "the peers were given before");
    }

    /// Waits until no function is Pending or being updated: for tests, and for a stop that leaves nothing half done.
    pub async fn wait_idle(&self) {
        // Cannot fail: the sender is in `inner`, which `self` holds.
        let _ = self.inner.busy.subscribe().wait_for(|busy| *busy == 0).await;
    }
}

impl Inner {
    /// Applies a rule to a function and stores the result, if it changed anything. The rule runs again when another
    /// process came first.
    async fn change<T>(
        &self,
        key: &str,
        missing: impl Fn() -> ApiError,
        rule: impl Fn(&mut Function, &mut Stamp<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let _turn = self.turn(key).await;
        for _ in 0..TRIES {
            let entry = self.catalog.function(key).ok_or_else(&missing)?;
            let mut function = entry.function.clone();
            let output = self.stamped(|stamp| rule(&mut function, stamp))?;
            let Some(ops) = self.difference(&entry, &function) else { return Ok(output) };
            match self.commit(ops).await {
                Ok(()) => return Ok(output),
                Err(error) if error.retryable() => self.let_others_in().await,
                Err(error) => return Err(service_error(&error)),
            }
        }
        Err(too_busy())
    }

    /// Commits, and waits until the catalog shows it. What this process cannot read it does not write over.
    async fn commit(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        if let Some(bad) = self.catalog.blocked(&ops) {
            return Err(StoreError::Unreadable { reason: bad.to_string() });
        }
        let revision = self.store.commit(ops).await?;
        self.has_followed(revision).await?;
        // Whoever asked for the change may send the next request to another process.
        if let Some(peers) = self.peers.get() {
            peers.caught_up(revision).await;
        }
        Ok(())
    }

    fn stamped<T>(&self, work: impl FnOnce(&mut Stamp<'_>) -> T) -> T {
        let now = self.now();
        work(&mut Stamp { now: &now, id: &mut || uuid::Uuid::new_v4().to_string() })
    }

    /// The time in the form of `LastModified`.
    fn now(&self) -> String {
        const FORM: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]+0000"
        );
        time::OffsetDateTime::from(self.clock.wall()).format(FORM).expect("the form holds only what a UTC time has")
    }

    /// What to store of a changed function; `None` if it is the same. With a change, all of the function that is encrypted with
    /// an old key, or not at all, is encrypted anew.
    fn difference(&self, entry: &Entry, function: &Function) -> Option<Vec<Op>> {
        let old = &entry.function;
        let is_same =
            |number: &u64, new: &Arc<Published>| old.versions.get(number).is_some_and(|old| Arc::ptr_eq(old, new));
        let gone: Vec<_> = old.versions.keys().filter(|number| !function.versions.contains_key(number)).collect();
        if old.record == function.record
            && gone.is_empty()
            && function.versions.iter().all(|(number, new)| is_same(number, new))
        {
            return None;
        }
        let mut ops: Vec<Op> = gone.into_iter().map(|n| Op::delete(VERSION, version_key(&function.arn, *n))).collect();
        for (number, published) in &function.versions {
            if !is_same(number, published) || published.sealing != Sealing::Current {
                ops.push(self.put_version(&function.arn, *number, published));
            }
        }
        ops.push(self.put_function(function, Precondition::Version(entry.stored)));
        Some(ops)
    }

    fn put_function(&self, function: &Function, precondition: Precondition) -> Op {
        let key = function_key(&function.arn);
        let value = sealed::encode(&self.keys, FUNCTION, &key, &function.record);
        Op::put(FUNCTION, key, value).when(precondition)
    }

    fn put_version(&self, arn: &FunctionArn, number: u64, published: &Published) -> Op {
        let key = version_key(arn, number);
        let value = sealed::encode(&self.keys, VERSION, &key, &published.version);
        Op::put(VERSION, key, value)
    }

    /// Held while a function is changed.
    async fn turn(&self, key: &str) -> tokio::sync::MutexGuard<'_, ()> {
        self.stripes[self.hasher.hash_one(key) as usize % STRIPES].lock().await
    }

    /// After a conflict: the other's commit has to come through the feed first.
    async fn let_others_in(&self) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn service_error(error: &StoreError) -> ApiError {
    tracing::error!(%error, "metadata store");
    ApiError::new(
        ErrorCode::ServiceException,
        format!("An error occurred and the request cannot be processed: {error}"),
    )
}

fn too_busy() -> ApiError {
    ApiError::new(
        ErrorCode::TooManyRequestsException,
        "The function is being changed by too many requests at once. Try again.",
    )
}
