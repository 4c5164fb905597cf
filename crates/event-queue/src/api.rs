//! The contract that every engine fulfils.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A queue: for asynchronous invocation one per function, so that one function's backlog does not delay another's
/// first event.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueueName(pub Arc<str>);

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event to keep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Which queue.
    pub queue: QueueName,
    /// Names the event. The caller sees to it that it does not come twice in a queue.
    pub id: Uuid,
    /// What the pollers need; the queue does not look into it. At most 2 MiB.
    pub body: Bytes,
    /// Not handed out before this has passed.
    pub delay: Duration,
}

/// What a body consists of, for an engine (SQS) that takes some bytes only in another form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// UTF-8, and only characters that go into a message of SQS as they are and come back so.
    Text,
    /// Anything else.
    Binary,
}

impl Content {
    /// Of these bytes. Text behind text is text.
    pub fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.chars().all(plain) => Self::Text,
            _ => Self::Binary,
        }
    }
}

/// The characters that `SendMessage` takes: those of XML 1.0. A carriage return is among them, but XML's rules for line
/// ends make another character of it.
fn plain(c: char) -> bool {
    matches!(c, '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// The right to work on an event until its lease ends. A later lease of the same event has another id, so that a
/// poller that was too slow cannot acknowledge what another one has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub Uuid);

/// An event that was handed out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// For [`EventQueue::ack`] and its like.
    pub id: LeaseId,
    /// Where the event is from.
    pub queue: QueueName,
    /// The event's id.
    pub event: Uuid,
    /// As given to [`EventQueue::enqueue`] or, since, to [`EventQueue::release`].
    pub body: Bytes,
    /// When it was first put into the queue; the same over all leases.
    pub enqueued_at: SystemTime,
    /// How often it was handed out, this time included; an engine that only one process uses may not know of those times
    /// that ended with an earlier process.
    pub deliveries: u32,
}

/// How much there is in a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Depth {
    /// Ready to be handed out.
    pub ready: u64,
    /// Leased.
    pub in_flight: u64,
    /// Delayed.
    pub delayed: u64,
    /// Age of the oldest event that is there, leased or not.
    pub oldest: Option<Duration>,
}

/// A durable queue. What [`EventQueue::enqueue`] has answered with success is handed out at least once until it is
/// acknowledged: it survives `kill -9` and power loss. Order is not kept.
#[async_trait]
pub trait EventQueue: Send + Sync + 'static {
    /// Keeps the events; durable (on disk, or with the service) when it returns. All or none.
    async fn enqueue(&self, entries: Vec<Entry>) -> Result<(), QueueError>;
    /// Hands out up to `most` ready events for `lease`, fair between queues: a queue with few events is not kept
    /// waiting by one with many. Waits up to `wait` for the first.
    async fn lease(&self, most: usize, lease: Duration, wait: Duration) -> Result<Vec<Lease>, QueueError>;
    /// As [`EventQueue::lease`], but at once and of none of the queues in `but`, whose events stay ready. An engine that
    /// cannot choose (SQS) brings theirs all the same.
    async fn lease_but(
        &self,
        but: &BTreeSet<QueueName>,
        most: usize,
        lease: Duration,
    ) -> Result<Vec<Lease>, QueueError>;
    /// Prolongs leases to `lease` from now. Those that are over are left out of the answer.
    async fn extend(&self, leases: &[LeaseId], lease: Duration) -> Result<Vec<LeaseId>, QueueError>;
    /// The events are done with. A lease that is over changes nothing.
    async fn ack(&self, leases: &[LeaseId]) -> Result<(), QueueError>;
    /// Gives an event back, to be handed out again after `delay`, with a new body if given (say, a higher count of
    /// attempts). A lease that is over changes nothing.
    async fn release(&self, lease: LeaseId, delay: Duration, body: Option<Bytes>) -> Result<(), QueueError>;
    /// The largest body of such content that it surely takes, in bytes.
    fn largest_body(&self, content: Content) -> usize;
    /// How much there is in one queue.
    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError>;
    /// The queues that have events.
    async fn queues(&self) -> Result<Vec<QueueName>, QueueError>;
    /// Drops all events of a queue, leased ones included; returns how many.
    async fn purge(&self, queue: &QueueName) -> Result<u64, QueueError>;
    /// Stops background work and closes files and connections.
    async fn close(&self);
}

/// Why the queue could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The disk is full, the service is away, a connection broke: try again.
    #[error("{operation}: {cause}")]
    Unavailable {
        /// What was being done, to what.
        operation: String,
        /// Why it failed.
        cause: String,
    },
    /// The event is larger than the queue takes.
    #[error("an event of {size} bytes is larger than the queue takes ({limit})")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The queue's file or schema is damaged, or of a newer Emberbox; says what to do.
    #[error("{0}")]
    Damaged(String),
    /// Closed by [`EventQueue::close`].
    #[error("the event queue is closed")]
    Closed,
}

impl QueueError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
