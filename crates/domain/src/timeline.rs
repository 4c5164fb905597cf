//! What happened to one invocation, step by step, each with its time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A step of an invocation, in the order of ARCHITECTURE.md.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The Frontend has read the whole request.
    Received,
    /// The event of an asynchronous invocation is durable.
    Queued,
    /// It was taken from the queue (note: which attempt).
    Dequeued,
    /// The Worker Manager gave a lease (note: `warm` or `cold`).
    Assigned,
    /// Placement named a worker (note: worker and reason).
    Placed,
    /// The package is on the worker (note: `cache` or `storage`).
    PackageFetched,
    /// The sandbox exists (note: `pool` when a microVM that waited was taken).
    SandboxCreated,
    /// The runtime process runs.
    RuntimeStarted,
    /// The runtime and all extensions asked for their first event (note: `failed: …` when Init failed).
    InitDone,
    /// The payload was handed to the runtime.
    Invoked,
    /// The runtime posted its answer, or the invocation failed (note: the error type).
    Answered,
    /// The runtime and all extensions asked for the next event; the sandbox may be frozen.
    Frozen,
    /// What became of an event of an asynchronous invocation (note: how it ended, or when it is tried again).
    Settled,
}

/// One mark on a [`Timeline`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// What was reached.
    pub step: Step,
    /// Monotonic time by the clock of the process that made the mark.
    pub at: Duration,
    /// A word on how; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The marks of one invocation. Cheap when short: a warm invocation has five marks without notes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Timeline {
    /// In the order in which they were made.
    pub marks: Vec<Mark>,
}

impl Timeline {
    /// Adds a mark without a note.
    pub fn mark(&mut self, step: Step, at: Duration) {
        self.marks.push(Mark { step, at, note: String::new() });
    }

    /// Adds a mark of something that went on beside the rest, where its time puts it.
    pub fn mark_beside(&mut self, step: Step, at: Duration) {
        let place = self.marks.iter().position(|mark| mark.at > at).unwrap_or(self.marks.len());
        self.marks.insert(place, Mark { step, at, note: String::new() });
    }

    /// Adds a mark with a note.
    pub fn note(&mut self, step: Step, at: Duration, note: impl Into<String>) {
        self.marks.push(Mark { step, at, note: note.into() });
    }

    /// Time of the first mark of `step`.
    pub fn at(&self, step: Step) -> Option<Duration> {
        self.marks.iter().find(|m| m.step == step).map(|m| m.at)
    }

    /// Appends the marks of a later part of the path.
    pub fn append(&mut self, other: Timeline) {
        self.marks.extend(other.marks);
    }
}
