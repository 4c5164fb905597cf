//! What goes into the machine and what comes out.

use std::time::Duration;

use bytes::Bytes;
use std::fmt;

use domain::{RequestId, RetireReason};
use sandbox::{ProcessId, Signal};
use uuid::Uuid;

use super::Fault;

/// Extensions that may register, internal and external together.
pub const MAX_EXTENSIONS: usize = 10;

/// What is fixed for the life of a sandbox.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it begins with.
    pub begin: Begin,
    /// Limit of Init (10 s on AWS; before a snapshot 130 s, or the function's timeout if that is longer).
    pub init_limit: Duration,
    /// Limit of what the runtime does once it is restored (10 s on AWS).
    pub restore_limit: Duration,
    /// The function's `Timeout`.
    pub timeout: Duration,
    /// How long an idle sandbox runs on before it is frozen.
    pub freeze_after: Duration,
    /// File names of the external extensions.
    pub extensions: Vec<String>,
    /// Shutdown budget with internal extensions only (500 ms on AWS).
    pub internal_budget: Duration,
    /// Shutdown budget with an external extension (2 s on AWS).
    pub external_budget: Duration,
}

/// How a sandbox comes to take invocations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// By Init.
    OnDemand,
    /// By Init that ends where a snapshot may be taken, and from there, here or elsewhere, by a restore.
    Snapshot,
}

/// Why an Init or a restore failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InitFailure {
    /// e.g. `Runtime.ExitError`.
    pub kind: String,
    /// In words.
    pub message: String,
    /// It was out of time.
    pub timeout: bool,
}

impl fmt::Display for InitFailure {
    /// A note for the timeline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed: {}: {}", self.kind, self.message)
    }
}

/// How long a restore took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// All of it.
    pub duration: Duration,
    /// From when the processes ran again.
    pub billed: Duration,
}

/// One attempt at one invocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The same for all attempts.
    pub request: RequestId,
    /// `Lambda-Runtime-Invocation-Id`: this attempt's own.
    pub attempt: Uuid,
    /// The answer carries the log, so it waits for the end of the invocation.
    pub tail: bool,
}

/// What the function made of an invocation.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// The runtime's response.
    Success(Bytes),
    /// The error object, and its type for the log.
    Failure {
        /// What the caller gets.
        payload: Bytes,
        /// e.g. `Runtime.ExitError`.
        kind: String,
    },
}

/// Why an invocation ended without an answer of the function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    /// The function certainly did not see it.
    Unseen,
    /// The sandbox was taken down while the function worked on it.
    Interrupted,
}

/// Why an invocation was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// It has one already.
    Busy,
    /// It is being taken down, or is gone.
    Gone,
}

/// A system line of the log.
#[derive(Clone, PartialEq, Debug)]
pub enum Line {
    /// Processes are being started.
    InitStart,
    /// Init for a snapshot is over, and how long it took.
    Initialized(Duration),
    /// A sandbox is restored.
    RestoreStart,
    /// And that is over; the error is its type.
    RestoreReport {
        /// How long it took.
        duration: Duration,
        /// What went wrong.
        fault: Option<Fault>,
    },
    /// Init failed or timed out; successful ones are part of the REPORT.
    InitReport {
        /// How long it took.
        duration: Duration,
        /// Whether an invocation waited for it.
        suppressed: bool,
        /// What went wrong.
        fault: Fault,
    },
    /// An invocation begins.
    Start(RequestId),
    /// An invocation is over: END and REPORT.
    End(Report),
}

/// The figures of a finished invocation.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// Which.
    pub request: RequestId,
    /// From its start to the last `next`.
    pub duration: Duration,
    /// Of the Init that this is the first invocation after.
    pub init: Option<Duration>,
    /// Of the restore that this is the first invocation after.
    pub restored: Option<Restored>,
    /// The error type if it failed.
    pub error: Option<String>,
    /// It failed by timeout; the limit.
    pub timeout: Option<Duration>,
}

/// What the driver must do, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Start this external extension; answer with [`Machine::extension_started`].
    StartExtension {
        /// For the answer.
        epoch: u32,
        /// Its file name.
        name: String,
    },
    /// Start the runtime; answer with [`Machine::runtime_started`].
    StartRuntime {
        /// For the answer.
        epoch: u32,
    },
    /// Give the current invocation to the runtime's `next`.
    HandToRuntime {
        /// Epoch-independent deadline, in monotonic time.
        deadline: Duration,
    },
    /// Give the current invocation to an extension's `next`.
    HandToExtension {
        /// Which.
        id: Uuid,
        /// In monotonic time.
        deadline: Duration,
    },
    /// Give a SHUTDOWN event to an extension's `next`, now or when it asks.
    ShutdownExtension {
        /// Which.
        id: Uuid,
        /// Why.
        reason: RetireReason,
        /// In monotonic time.
        deadline: Duration,
    },
    /// Answer the runtime's `restore/next`, now or when it asks.
    ReleaseRuntime,
    /// Let the processes run.
    Thaw,
    /// Stop them from running.
    Freeze,
    /// Send a signal.
    Signal(ProcessId, Signal),
    /// Kill all processes and forget all connections; answer with [`Machine::killed`].
    KillAll {
        /// For the answer.
        epoch: u32,
    },
    /// Write a system line.
    Log(Line),
    /// The initial Init is over.
    InitDone(Result<(), InitFailure>),
    /// The restore is over.
    RestoreDone(Result<(), InitFailure>),
    /// The invocation's outcome.
    Answer(Answer),
    /// The invocation ended without one.
    Abort(Abort),
    /// Tell the manager: answered.
    SlotAnswered,
    /// Tell the manager: idle.
    SlotIdle,
    /// Tell the manager: dead.
    SlotDead(RetireReason),
    /// Remove the sandbox.
    Destroy,
}

/// Why a process could not be started.
#[derive(Clone, PartialEq, Debug)]
pub enum StartError {
    /// The customer's fault: missing or not executable.
    Exec(String),
    /// The customer's fault: no directory to start in.
    WorkingDirectory(String),
    /// The host's fault: the sandbox is of no use.
    Host(String),
}
