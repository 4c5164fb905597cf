//! The calls between Frontend, Worker Manager and Worker. Each is a trait, implemented directly when both parts live
//! in one process.
//!
//! ```text
//!  Frontend ──assign──► WorkerManager ──init, shutdown──► Worker
//!     └────────────────invoke(payload)───────────────────►  │
//!                       WorkerManager ◄──SlotEvents─────────┘
//!                       WorkerManager ──place──► Placement
//! ```

mod placement;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::function::{FunctionVersion, VersionKey};
use crate::ids::{SandboxId, WorkerId};
use crate::invoke::{InvokeOutcome, InvokeRequest};
use crate::timeline::Timeline;

pub use placement::{
    Observed, ObservedSandbox, PackageChanges, Place, PlaceError, PlaceRequest, Placement, WorkerObserver,
};

/// Lambda's concurrency settings that bear on one invocation, resolved by the Frontend from its copy of the metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConcurrencyLimits {
    /// Concurrency of the account that no function has reserved.
    pub unreserved: u32,
    /// The function's reserved concurrency, over all its versions.
    pub reserved: Option<u32>,
}

/// Step 1 of the synchronous path: a sandbox is wanted.
#[derive(Clone, Debug)]
pub struct AssignRequest {
    /// What it is wanted for.
    pub version: Arc<FunctionVersion>,
    /// How many may run at once.
    pub limits: ConcurrencyLimits,
}

/// The right to send exactly one `Invoke` to one sandbox.
///
/// Hand it to [`Worker::invoke`] by its id; from then on the worker's [`SlotEvents`] end it. A lease dropped before
/// that must be given back with [`WorkerManager::release`].
pub struct Lease {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Where it is.
    pub worker: Arc<dyn Worker>,
    /// Whether it was initialised for this request.
    pub cold: bool,
    /// Whether it was waited for until an invocation in it had ended.
    pub waited: bool,
    /// The manager that gave it, if that is in another process.
    pub manager: Option<Arc<str>>,
    /// Marks: assigned, and for a cold start those of placement and Init.
    pub timeline: Timeline,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("sandbox", &self.sandbox).field("cold", &self.cold).finish_non_exhaustive()
    }
}

/// Why a request was throttled: the `Reason` of `TooManyRequestsException`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThrottleReason {
    /// `ConcurrentInvocationLimitExceeded`: the account's unreserved concurrency is used up.
    Account,
    /// `ReservedFunctionConcurrentInvocationLimitExceeded`.
    Reserved,
    /// `FunctionInvocationRateLimitExceeded`: the +1,000 sandboxes per 10 s are used up.
    ScalingRate,
}

impl ThrottleReason {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Account => "ConcurrentInvocationLimitExceeded",
            Self::Reserved => "ReservedFunctionConcurrentInvocationLimitExceeded",
            Self::ScalingRate => "FunctionInvocationRateLimitExceeded",
        }
    }
}

/// Why no sandbox could be given.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// 429.
    #[error("throttled: {}", .0.as_str())]
    Throttled(ThrottleReason),
    /// No worker has room for a sandbox of this size even after idle ones were retired; try later.
    #[error("no worker has room: {0}")]
    NoCapacity(String),
    /// `Init` failed for a reason that is the platform's, not the function's.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Another manager is responsible for the function, or no live one could be asked: look again who is, and ask that one.
    #[error("another worker manager is responsible: {0}")]
    NotOwner(String),
}

/// Why a sandbox is taken down; for logs, metrics and the extensions' `shutdownReason`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RetireReason {
    /// Idle for too long, too old, its version was replaced or deleted, room was needed, or the worker stops.
    Spindown,
    /// An invocation timed out and the sandbox could not be reset.
    Timeout,
    /// The sandbox, runtime or an extension failed beyond reset.
    Failure,
}

/// Decides which sandbox serves a request.
#[async_trait]
pub trait WorkerManager: Send + Sync + 'static {
    /// Warm: answers at once. Cold: answers after `Init`.
    async fn assign(&self, request: AssignRequest) -> Result<Lease, AssignError>;
    /// Gives an unused lease back: the sandbox is idle again.
    fn release(&self, sandbox: SandboxId);
    /// The version was replaced or deleted: idle sandboxes go at once, busy ones after their invocation.
    fn retire(&self, version: &VersionKey);
    /// A lease could not be used, since nothing reached its worker: none of that worker's is given until the manager has claimed
    /// it anew. This lease is over.
    fn unreachable(&self, _worker: &WorkerId) {}
}

/// `Init`: make a sandbox for a function version and start its runtime.
#[derive(Clone, Debug)]
pub struct InitRequest {
    /// The id that the sandbox will have.
    pub sandbox: SandboxId,
    /// What runs in it.
    pub version: Arc<FunctionVersion>,
}

/// The sandbox exists. Its runtime may have failed to initialise: as on AWS the invocation that follows tries again
/// ("suppressed init") under the function's timeout, and its caller sees the error.
#[derive(Clone, Debug)]
pub struct InitDone {
    /// Marks: package fetched, sandbox created, runtime started, init done.
    pub timeline: Timeline,
}

/// What the platform, not the function, failed at.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkerError {
    /// The package is not in storage or is damaged: `InvalidZipFileException`.
    #[error("code package: {0}")]
    Package(String),
    /// The container image is not on this worker and could not be had: `ServiceException`.
    #[error("container image: {0}")]
    Image(String),
    /// The runtime is not installed on this worker and could not be: `InvalidRuntimeException`.
    #[error("runtime: {0}")]
    Runtime(String),
    /// The sandbox could not be made: `ServiceException`.
    #[error("sandbox: {0}")]
    Sandbox(String),
    /// The sandbox is gone (it died before the payload reached it): safe to retry on another.
    #[error("sandbox {0} is gone")]
    Gone(SandboxId),
    /// The sandbox serves another invocation: it was leased twice, by a manager and by the one that took over from it.
    #[error("sandbox {0} has an invocation already")]
    Busy(SandboxId),
    /// The worker has no room for the sandbox: others were placed there since Placement had its report.
    #[error("worker {0} has no room for another sandbox")]
    Full(WorkerId),
    /// The worker could not be reached; whether the payload was seen is not known unless `unsent`.
    #[error("worker {worker}: {cause}")]
    Unreachable {
        /// Which.
        worker: WorkerId,
        /// Why, in words.
        cause: String,
        /// No byte of the request was sent.
        unsent: bool,
    },
    /// What the runtime does after it was restored from a snapshot failed: `SnapStartException`.
    #[error("{0}")]
    Restore(String),
    /// It took too long: `SnapStartTimeoutException`.
    #[error("{0}")]
    RestoreTimeout(String),
    /// The worker is stopping.
    #[error("worker is stopping")]
    Stopping,
}

impl WorkerError {
    /// Whether an `Init` may succeed on another worker.
    pub fn elsewhere(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Stopping | Self::Unreachable { .. })
    }

    /// Whether the same request may be sent to another sandbox: the payload was certainly not seen by the function.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Busy(_) | Self::Stopping | Self::Unreachable { unsent: true, .. })
    }
}

/// Why there is no snapshot of a version.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// Sandboxes of this worker cannot be kept, or this one could not; the version starts without a snapshot.
    #[error("{0}")]
    Unsupported(String),
    /// The version's Init failed.
    #[error("{kind}: {message}")]
    Init {
        /// e.g. `Runtime.ExitError`.
        kind: String,
        /// In words.
        message: String,
    },
    /// The platform failed before that.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// One host's sandboxes.
#[async_trait]
pub trait Worker: Send + Sync + 'static {
    /// Its id.
    fn id(&self) -> &WorkerId;
    /// Makes a sandbox: fetches the package, creates it, starts the runtime and extensions, waits for their first
    /// `next` (10 s at most, then the sandbox is kept for a suppressed init).
    async fn init(&self, request: InitRequest) -> Result<InitDone, WorkerError>;
    /// Runs one invocation in an idle sandbox. Answers as soon as the runtime has answered (with
    /// [`crate::LogType::Tail`]: when the invocation is over); the slot stays busy until [`SlotEvents::idle`].
    async fn invoke(&self, sandbox: SandboxId, request: InvokeRequest) -> Result<InvokeOutcome, WorkerError>;
    /// Runs the Init of a version with SnapStart in a sandbox of its own, and keeps that for later ones to be restored from:
    /// [`Worker::init`] does so from then on. In place of one that is kept already.
    async fn snapshot(&self, _version: Arc<FunctionVersion>) -> Result<(), SnapshotError> {
        Err(SnapshotError::Unsupported("This worker keeps no snapshots.".to_owned()))
    }
    /// Removes what is kept of a version, if anything is; the text says why it could not.
    async fn forget(&self, _version: &VersionKey) -> Result<(), String> {
        Ok(())
    }
    /// Takes a sandbox down, with the shutdown phases that its extensions are due. Returns when nothing is left of it.
    async fn shutdown(&self, sandbox: SandboxId, reason: RetireReason);
    /// Whether an invocation runs in the sandbox. Asked only about a lease older than [`LEASE_LIMIT`], to tell a long
    /// invocation from a lease that its holder lost; a worker that cannot tell, or cannot be asked, says `true`.
    async fn invoking(&self, _sandbox: SandboxId) -> bool {
        true
    }
    /// Every sandbox that there is, for a manager that takes over: the worker, not a manager's memory, is the truth about them.
    fn sandboxes(&self) -> Vec<SandboxState> {
        Vec::new()
    }
    /// Takes no new sandboxes from now on; those that there are serve on.
    fn drain(&self) {}
    /// Load and capacity, for Placement. Of a worker in another process: as last heard of, and draining while there is nothing
    /// to hear.
    fn report(&self) -> WorkerReport;
    /// Whether the unpacked package is on this host, for Placement.
    fn has_package(&self, sha256: &str) -> bool;
    /// Every [`crate::CodeRef::sha256`] that [`Self::has_package`] is true of, for managers in other processes; may read a directory.
    fn packages(&self) -> Vec<String> {
        Vec::new()
    }
    /// Whether [`Self::packages`] looks no further than memory, so that it may be called anywhere.
    fn packages_are_at_hand(&self) -> bool {
        false
    }
    /// How a process that gets a [`Lease`] on this worker reaches it; `None` of a worker that only this process can call.
    fn route(&self) -> Option<WorkerRoute> {
        None
    }
}

/// See [`Worker::route`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerRoute {
    /// `host:port`.
    pub address: Arc<str>,
    /// Of the view of the manager that gives the lease: the worker refuses it after a claim with a higher one.
    pub epoch: u64,
}

/// A sandbox as its worker sees it.
#[derive(Clone, Debug)]
pub struct SandboxState {
    /// Which.
    pub sandbox: SandboxId,
    /// What it was made for.
    pub version: Arc<FunctionVersion>,
    /// What it does.
    pub phase: SlotPhase,
}

/// See [`SlotEvents`], whose calls lead from one to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SlotPhase {
    /// `Init` is not over.
    Starting,
    /// It can take an invocation.
    Idle,
    /// It has one.
    Invoking,
    /// The answer is out; runtime or extensions still work.
    Finishing,
}

/// A worker's state as Placement sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Which worker.
    pub worker: WorkerId,
    /// Memory that sandboxes may have in all, in MB (with the operator's overcommit).
    pub memory_mb: u64,
    /// Memory promised to the sandboxes that exist, in MB.
    pub memory_used_mb: u64,
    /// How many sandboxes may exist.
    pub slots: u32,
    /// How many do.
    pub slots_used: u32,
    /// How many of them are initialising.
    pub starting: u32,
    /// Takes no new sandboxes.
    pub draining: bool,
}

/// What a worker tells the Worker Manager about its slots. Calls must not block: they run on the invoke path.
pub trait SlotEvents: Send + Sync + 'static {
    /// The answer of the running invocation is on its way to the caller; runtime or extensions still work.
    fn answered(&self, sandbox: SandboxId);
    /// The runtime and all extensions asked for the next event: the slot can take another invocation.
    fn idle(&self, sandbox: SandboxId);
    /// The sandbox is gone, or will not serve again.
    fn dead(&self, sandbox: SandboxId, reason: RetireReason);
}

/// What a manager hears of a worker in another process. Calls must not block.
///
/// ```text
///  claimed ──► reported ──► answered, idle, dead, adopted, reported … ──► lost ──► claimed …
/// ```
///
/// An event may be told that the list in `claimed` knew already: see `rpc::WorkerServer`.
pub trait WorkerEvents: SlotEvents {
    /// The worker's sandboxes that are this manager's: all of them, in place of what was known. Earlier managers' leases on them are
    /// refused from now on.
    fn claimed(&self, worker: &WorkerId, sandboxes: Vec<SandboxState>);
    /// One more: its Init was asked for by another manager, or by this one over a connection that broke.
    fn adopted(&self, worker: &WorkerId, sandbox: SandboxState);
    /// How the worker is, and which packages and images (as in [`crate::CodeRef::sha256`]) came to it or went since the last report.
    /// The first report after `claimed` has all of them.
    fn reported(&self, report: WorkerReport, packages: PackageChanges) {
        let _ = (report, packages);
    }
    /// Nothing is heard of the worker until it is claimed again; its sandboxes may live.
    fn lost(&self, worker: &WorkerId);
}

/// How long a lease may stay unused before the manager takes it back.
pub const LEASE_LIMIT: Duration = Duration::from_secs(30);
