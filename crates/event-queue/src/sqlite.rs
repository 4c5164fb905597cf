//! The embedded engine: one SQLite file in WAL mode, used by one process at a time.
//!
//! ```text
//!  enqueue, lease, ack, … ──► requests ──► writer thread: BEGIN, all that wait, COMMIT ──► answers
//!                                                      └──► syncer thread: one fdatasync of the log ──► answers
//!                                                           (of what is promised to be durable)
//!                                                      └──► log thread: brings the log into the file
//!  depth, queues ──► a read-only connection; never wait for the writer
//! ```
//!
//! - Durability: a group with an enqueue, a release or a purge in it is synced to disk before anybody gets an answer.
//!   Groups of leases, extensions and acks alone are written without a sync: `kill -9` loses none of them, a power
//!   failure may lose the last ones, and then their events are handed out again, as at-least-once allows.
//! - Nothing is handed out before it is on disk: what ran was kept.
//! - Leases are kept in memory: a lease writes nothing. When the file is opened there are none: the process that had some
//!   is gone, since the file is locked by the one that uses it. [`Lease::deliveries`] does not count those.
//! - Damage: a file whose tables or log are damaged is not opened. What shows only later fails those requests that meet it;
//!   a queue whose events cannot be read is left alone for an hour, and the others go on.
//! - Memory: a few words per queue and per leased event, nothing per event that waits.
//! - Fairness: ready queues take turns (see `rotation`).
//! - Time is the [`Clock`]'s wall clock. It is looked at every 20 ms while something is delayed or leased, so a clock
//!   that is moved by hand wakes [`EventQueue::lease`] as well. How long a lease call waits is real time.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::Clock;
use parking_lot::Mutex;
use sqlite_file::SqliteFile;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::api::{Content, Depth, Entry, EventQueue, Lease, LeaseId, QueueError, QueueName};
use crate::check_sizes;
use crate::time::millis;

mod checkpoints;
mod format;
mod present;
mod reader;
mod state;
mod statements;
mod syncer;
mod ticket;
mod writer;

use format::FORMAT;
use present::Present;
use reader::Reader;
use writer::{Answer, Op, Request, Writer};

/// Requests that may wait for the writer before callers wait to hand theirs in.
const WAITING: usize = 1024;

/// Events in an SQLite file.
pub struct SqliteQueue {
    reader: Reader,
    clock: Arc<dyn Clock>,
    requests: mpsc::Sender<Request>,
    present: Arc<Mutex<Present>>,
    /// One permit whenever there may be something ready.
    ready: Arc<Notify>,
}

impl std::fmt::Debug for SqliteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteQueue").field("path", &self.reader.path()).finish_non_exhaustive()
    }
}

impl SqliteQueue {
    /// Opens the file, or makes it (and its folder) if there is none, and brings its schema up to date. Leases of the
    /// process that had it before end.
    ///
    /// # Errors
    /// [`QueueError::Damaged`] if it is damaged, not Emberbox's, or of a newer version, [`QueueError::Unavailable`] if
    /// another process uses it or the disk does not let us; both say what to do.
    pub async fn open(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> Result<Self, QueueError> {
        let file = SqliteFile::new(&FORMAT, path.as_ref());
        let (ready, (requests, received)) = (Arc::new(Notify::new()), mpsc::channel(WAITING));
        let present = Arc::<Mutex<Present>>::default();
        let start = {
            let (file, clock, ready, present) =
                (file.clone(), Arc::clone(&clock), Arc::clone(&ready), Arc::clone(&present));
            move || {
                let lock = file.lock()?;
                Writer::start(file.clone(), file.connect()?, clock, ready, present, lock)
            }
        };
        writer::spawn(start, received).await?;
        Ok(Self { reader: Reader::new(file), clock, requests, present, ready })
    }

    async fn write(&self, op: Op) -> Result<Answer, QueueError> {
        let (done, answer) = oneshot::channel();
        self.requests.send(Request::Op { op, done }).await.map_err(|_| QueueError::Closed)?;
        answer.await.map_err(|_| QueueError::Closed)?
    }
}

#[async_trait]
impl EventQueue for SqliteQueue {
    async fn enqueue(&self, entries: Vec<Entry>) -> Result<(), QueueError> {
        check_sizes(&entries)?;
        self.write(Op::Enqueue(entries)).await.map(drop)
    }

    async fn lease(&self, most: usize, lease: Duration, wait: Duration) -> Result<Vec<Lease>, QueueError> {
        let until = Instant::now() + wait;
        loop {
            let leases = self.lease_but(&BTreeSet::new(), most, lease).await?;
            if !leases.is_empty() || most == 0 {
                return Ok(leases);
            }
            // The permit is kept if it is given between the answer and here.
            if timeout_at(until, self.ready.notified()).await.is_err() {
                return Ok(Vec::new());
            }
        }
    }

    async fn lease_but(
        &self,
        but: &BTreeSet<QueueName>,
        most: usize,
        lease: Duration,
    ) -> Result<Vec<Lease>, QueueError> {
        Ok(self.write(Op::Lease { but: but.clone(), most, lease }).await?.leases)
    }

    async fn extend(&self, leases: &[LeaseId], lease: Duration) -> Result<Vec<LeaseId>, QueueError> {
        Ok(self.write(Op::Extend { leases: leases.to_vec(), lease }).await?.extended)
    }

    async fn ack(&self, leases: &[LeaseId]) -> Result<(), QueueError> {
        self.write(Op::Ack(leases.to_vec())).await.map(drop)
    }

    async fn release(&self, lease: LeaseId, delay: Duration, body: Option<Bytes>) -> Result<(), QueueError> {
        if let Some(body) = &body {
            crate::check_size(body.len())?;
        }
        self.write(Op::Release { lease, delay, body }).await.map(drop)
    }

    fn largest_body(&self, _: Content) -> usize {
        crate::MAX_BODY
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        let (queue, now) = (queue.clone(), millis(self.clock.wall()));
        let count = self.reader.read(move |connection| reader::count(connection, &queue, now)).await?;
        let Some((number, delayed, oldest)) = count else { return Ok(Depth::default()) };
        // What comes, goes or is given back between the two looks may be counted twice or not at all.
        let present = self.present.lock();
        let events = present.events.get(&number).copied().unwrap_or(0);
        let in_flight = present.leases.in_flight(number, now);
        Ok(Depth { ready: events.saturating_sub(delayed + in_flight), in_flight, delayed, oldest })
    }

    async fn queues(&self) -> Result<Vec<QueueName>, QueueError> {
        self.reader.read(reader::queues).await
    }

    /// In chunks between which others get their turn: events that are put in meanwhile stay.
    async fn purge(&self, queue: &QueueName) -> Result<u64, QueueError> {
        let mut dropped = 0;
        let mut below = None;
        loop {
            let answer = self.write(Op::Purge { queue: queue.clone(), below }).await?;
            dropped += answer.purged;
            below = answer.purge_on;
            if below.is_none() {
                return Ok(dropped);
            }
        }
    }

    async fn close(&self) {
        self.reader.close().await;
        let (done, closed) = oneshot::channel();
        // Either the writer answers, or it is gone already.
        if self.requests.send(Request::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
        // Those that wait for events look again, and see it closed.
        self.ready.notify_waiters();
    }
}
