//! The terms that all parts of Emberbox share, and the calls that travel between them.
//!
//! Plain data and traits only: no IO, no clock, no randomness. A part depends on this crate to talk to another part
//! without depending on it, so that each can later run in a process of its own.
#![forbid(unsafe_code)]

pub mod arn;
pub mod clock;
pub mod event_source;
pub mod function;
pub mod ids;
pub mod invoke;
pub mod lineage;
pub mod ports;
pub mod quota;
pub mod rendezvous;
pub mod timeline;
pub mod trace;

pub use arn::{FunctionArn, FunctionRef};
pub use clock::{Clock, SystemClock};
pub use event_source::{EventSource, EventSourceMapping, QueueArn};
pub use function::{CodeRef, FunctionVersion, ImageConfig, ImageRef, LogFormat, LoggingSettings, VersionKey};
pub use ids::{AccountId, RequestId, SandboxId, WorkerId};
pub use invoke::{InvokeOutcome, InvokeRequest, LogType};
pub use ports::{
    AssignError, AssignRequest, ConcurrencyLimits, InitDone, InitRequest, Lease, Observed, ObservedSandbox,
    PackageChanges, Place, PlaceError, PlaceRequest, Placement, RetireReason, SandboxState, SlotEvents, SlotPhase,
    SnapshotError, ThrottleReason, Worker, WorkerError, WorkerEvents, WorkerManager, WorkerObserver, WorkerReport,
    WorkerRoute,
};
pub use timeline::{Step, Timeline};
