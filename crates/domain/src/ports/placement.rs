//! What Placement is asked, and what it hears of the workers.
//!
//! ```text
//!  WorkerManager ──PlaceRequest──► Placement ◄──Observed── Worker
//!                ◄─────Place──────
//! ```

use async_trait::async_trait;

use super::WorkerReport;
use crate::arn::FunctionArn;
use crate::function::FunctionVersion;
use crate::ids::{SandboxId, WorkerId};

/// Where does a new sandbox go?
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlaceRequest {
    /// The id that it will have: who answers counts it on the worker until the worker's own reports do. Asked twice about one
    /// sandbox, only the second answer counts.
    pub sandbox: SandboxId,
    /// `MemorySize` in MB.
    pub memory_mb: u32,
    /// Whose it is.
    pub function: FunctionArn,
    /// [`crate::CodeRef::sha256`] of its code.
    pub package: String,
    /// Workers that it does not go to: they have refused it.
    pub except: Vec<WorkerId>,
}

impl PlaceRequest {
    /// For a sandbox of this version.
    pub fn new(sandbox: SandboxId, version: &FunctionVersion, except: Vec<WorkerId>) -> Self {
        let (memory_mb, function, package) = (version.memory_mb, version.arn.clone(), version.code.sha256.clone());
        Self { sandbox, memory_mb, function, package, except }
    }
}

/// A place for a sandbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// There. It has the last word: [`WorkerError::Full`].
    pub worker: WorkerId,
    /// Why there, in words.
    pub reason: String,
}

/// Why there is no answer to a [`PlaceRequest`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlaceError {
    /// No worker has room now; the text says what is missing.
    #[error("{0}")]
    NoCapacity(String),
    /// Nobody could be asked, or the answer did not come in time.
    #[error("placement does not answer: {0}")]
    Unavailable(String),
}

/// Decides for many managers where sandboxes go. Without it each manager decides from what it knows itself, so that an
/// implementation should rather give up than wait.
#[async_trait]
pub trait Placement: Send + Sync + 'static {
    /// Decides, and counts the sandbox as one that is there.
    async fn place(&self, request: PlaceRequest) -> Result<Place, PlaceError>;
}

/// How the packages and images on a worker have changed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PackageChanges {
    /// They are there now.
    pub added: Vec<String>,
    /// They are not there any more.
    pub removed: Vec<String>,
}

/// What a worker tells of itself to who places on it: the whole of it first, then what has changed.
#[derive(Clone, PartialEq, Debug)]
pub struct Observed {
    /// Load and capacity.
    pub report: WorkerReport,
    /// `added` has every sandbox that there is, in place of what was known.
    pub whole: bool,
    /// They are to be made, or were.
    pub added: Vec<ObservedSandbox>,
    /// Their Init is over.
    pub initialised: Vec<SandboxId>,
    /// Nothing is left of them.
    pub gone: Vec<SandboxId>,
    /// What came to the host and went.
    pub packages: PackageChanges,
}

/// A sandbox on a worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedSandbox {
    /// Which.
    pub sandbox: SandboxId,
    /// `MemorySize` in MB.
    pub memory_mb: u32,
    /// Whose.
    pub function: FunctionArn,
    /// [`crate::CodeRef::sha256`] of its code.
    pub package: String,
    /// Its Init is not over.
    pub starting: bool,
}

/// Who hears of workers. Calls must not block.
pub trait WorkerObserver: Send + Sync + 'static {
    /// A worker is like this now.
    fn observed(&self, observed: Observed);
    /// Nothing is heard of it until it is observed again, as a whole.
    fn lost(&self, worker: &WorkerId);
}
