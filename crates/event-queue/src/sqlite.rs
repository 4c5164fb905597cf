//! The embedded engine: one SQLite file in WAL mode, used by one process at a time.
//!
//! ```text
//!  enqueue, lease, ack, … ──► requests ──► writer task: BEGIN, all that wait, COMMIT (one fsync) ──► answers
//!  depth, queues ──► pool of read-only connections; never wait for the writer
//! ```
//!
//! - Durability: a group with an enqueue, a release or a purge in it is synced to disk before anybody gets an answer.
//!   Groups of leases, extensions and acks alone are written without a sync: `kill -9` loses none of them, a power
//!   failure may lose the last ones, and then their events are handed out again, as at-least-once allows.
//! - Leases are kept in the file, so that [`Lease::deliveries`] survives. When the file is opened, all of them end at
//!   once: the process that had them is gone, since the file is locked by the one that uses it.
//! - Memory: a few words per queue, nothing per event.
//! - Fairness: ready queues take turns (see `rotation`).
//! - Time is the [`Clock`]'s wall clock. It is looked at every 20 ms while something is delayed or leased, so a clock
//!   that is moved by hand wakes [`EventQueue::lease`] as well. How long a lease call waits is real time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::Clock;
use sqlx::Row as _;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::api::{Depth, Entry, EventQueue, Lease, LeaseId, QueueError, QueueName};
use crate::check_sizes;
use crate::time::{age, millis};

mod open;
mod statements;
mod ticket;
mod writer;

use writer::{Answer, Op, Request, Writer};

/// Connections that read.
const READERS: u32 = 2;
/// Requests that may wait for the writer before callers wait to hand theirs in.
const WAITING: usize = 1024;

/// Events in an SQLite file.
pub struct SqliteQueue {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    readers: SqlitePool,
    requests: mpsc::Sender<Request>,
    /// One permit whenever there may be something ready.
    ready: Arc<Notify>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for SqliteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteQueue").field("path", &self.path).finish_non_exhaustive()
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
        let path = path.as_ref().to_owned();
        let lock = open::lock(&path)?;
        let connection = open::connect(&path).await?;
        let ready = Arc::new(Notify::new());
        let writer = Writer::start(path.clone(), connection, Arc::clone(&clock), Arc::clone(&ready), lock).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_lazy_with(open::options(&path).create_if_missing(false).read_only(true));
        let (requests, received) = mpsc::channel(WAITING);
        let writer = tokio::spawn(writer.run(received));
        Ok(Self { path, clock, readers, requests, ready, writer: Mutex::new(Some(writer)) })
    }

    async fn write(&self, op: Op) -> Result<Answer, QueueError> {
        let (done, answer) = oneshot::channel();
        self.requests.send(Request::Op { op, done }).await.map_err(|_| QueueError::Closed)?;
        answer.await.map_err(|_| QueueError::Closed)?
    }

    fn now(&self) -> i64 {
        millis(self.clock.wall())
    }

    fn failed(&self, error: sqlx::Error) -> QueueError {
        open::sql_failed("read", &self.path, &error)
    }

    async fn read_depth(&self, queue: &QueueName) -> Result<Depth, sqlx::Error> {
        let now = self.now();
        // Counts only what is delayed or leased, in an index; a backlog that is ready costs nothing.
        let row = sqlx::query(
            "SELECT q.events,
                 (SELECT count(*) FROM events e WHERE e.queue = q.number AND e.due > ?2),
                 (SELECT count(*) FROM events e WHERE e.queue = q.number AND e.due > ?2 AND e.leased = 1),
                 (SELECT enqueued_at FROM events e WHERE e.queue = q.number ORDER BY e.seq LIMIT 1)
             FROM queues q WHERE q.name = ?1",
        )
        .bind(&*queue.0)
        .bind(now)
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(Depth::default()) };
        let count = |column: usize| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
        let (events, later, in_flight) = (count(0)?, count(1)?, count(2)?);
        Ok(Depth {
            ready: events.saturating_sub(later),
            in_flight,
            delayed: later.saturating_sub(in_flight),
            oldest: row.try_get::<Option<i64>, _>(3)?.map(|enqueued_at| age(now, enqueued_at)),
        })
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
            let leases = self.write(Op::Lease { most, lease }).await?.leases;
            if !leases.is_empty() || most == 0 {
                return Ok(leases);
            }
            // The permit is kept if it is given between the answer and here.
            if timeout_at(until, self.ready.notified()).await.is_err() {
                return Ok(Vec::new());
            }
        }
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

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        self.read_depth(queue).await.map_err(|error| self.failed(error))
    }

    async fn queues(&self) -> Result<Vec<QueueName>, QueueError> {
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM queues WHERE events > 0 ORDER BY name")
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(names.into_iter().map(|name| QueueName(name.into())).collect())
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
        self.readers.close().await;
        let (done, closed) = oneshot::channel();
        // Either the writer answers, or it is gone already.
        if self.requests.send(Request::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.await;
        }
        // Those that wait for events look again, and see it closed.
        self.ready.notify_waiters();
    }
}
