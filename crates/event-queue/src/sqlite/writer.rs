//! The one writer, on a thread of its own: SQLite blocks. Requests that arrive while a group is being synced to disk share the next transaction and sync.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use domain::Clock;
use rusqlite::Connection;
use sqlite_file::SqliteFile;
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use super::state::State;
use super::statements as sql;
use crate::api::{Entry, Lease, LeaseId, QueueError, QueueName};
use crate::time::millis;

/// Requests that share one transaction and one fsync.
const GROUP: usize = 256;
/// How often the clock is looked at while something is delayed or leased.
const TICK: Duration = Duration::from_millis(20);

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Op {
    Enqueue(Vec<Entry>),
    Lease {
        but: BTreeSet<QueueName>,
        most: usize,
        lease: Duration,
    },
    Extend {
        leases: Vec<LeaseId>,
        lease: Duration,
    },
    Ack(Vec<LeaseId>),
    Release {
        lease: LeaseId,
        delay: Duration,
        body: Option<Bytes>,
    },
    /// One chunk; `below` is what the chunk before has answered.
    Purge {
        queue: QueueName,
        below: Option<i64>,
    },
}

impl Op {
    /// Whether the caller is promised that it survives a power failure.
    pub(super) fn durable(&self) -> bool {
        matches!(self, Self::Enqueue(_) | Self::Release { .. } | Self::Purge { .. })
    }
}

/// What came of it; what the operation does not answer stays empty.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub leases: Vec<Lease>,
    pub extended: Vec<LeaseId>,
    pub purged: u64,
    /// For the next chunk of a purge; nothing if it is complete.
    pub purge_on: Option<i64>,
}

pub(super) type Done = oneshot::Sender<Result<Answer, QueueError>>;

/// What is sent to the writer.
pub(super) enum Request {
    /// Do it and answer.
    Op { op: Op, done: Done },
    /// Close the file, answer, and end.
    Close(oneshot::Sender<()>),
}

pub(super) struct Writer {
    file: SqliteFile,
    clock: Arc<dyn Clock>,
    ready: Arc<Notify>,
    /// Nothing after a failure, until the next request.
    connection: Option<Connection>,
    state: State,
    /// Held until the last group is done; the system releases it however the process ends.
    _lock: File,
}

/// Starts the writer on a thread of its own, which serves `requests`; returns when the file is open.
pub(super) async fn spawn(
    start: impl FnOnce() -> Result<Writer, QueueError> + Send + 'static,
    requests: mpsc::Receiver<Request>,
) -> Result<(), QueueError> {
    let failed = |error: io::Error| QueueError::Unavailable {
        operation: "start the thread of the event queue".to_owned(),
        cause: error.to_string(),
    };
    // Of its own, so that it outlives the caller's runtime until the queue is dropped.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let (done, opened) = oneshot::channel();
    let serve = move || match start() {
        Ok(writer) => {
            let _ = done.send(Ok(()));
            runtime.block_on(writer.run(requests));
        }
        Err(error) => drop(done.send(Err(error))),
    };
    thread::Builder::new().name("event-queue".to_owned()).spawn(serve).map_err(failed)?;
    opened.await.map_err(|_| QueueError::Closed)?
}

impl Writer {
    /// Ends the leases of earlier runs and looks at what is there.
    pub(super) fn start(
        file: SqliteFile,
        mut connection: Connection,
        clock: Arc<dyn Clock>,
        ready: Arc<Notify>,
        lock: File,
    ) -> Result<Self, QueueError> {
        let failed = |error| file.sql_failed("open", &error);
        sql::end_leases(&mut connection, millis(clock.wall())).map_err(failed)?;
        let state = State::load(&connection, Uuid::new_v4().as_fields().0).map_err(failed)?;
        Ok(Self { file, clock, ready, connection: Some(connection), state, _lock: lock })
    }

    /// Serves until asked to close, or until the queue is dropped.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(GROUP);
        let mut close = None;
        while close.is_none() {
            // A fixed step while anything sleeps: the clock need not be the host's.
            let tick = self.state.rotation.next_due().map(|_| tokio::time::sleep(TICK));
            tokio::select! {
                received = requests.recv_many(&mut batch, GROUP) => if received == 0 { break },
                () = async { match tick { Some(tick) => tick.await, None => std::future::pending().await } } => {}
            }
            let mut group = Vec::with_capacity(batch.len());
            for request in batch.drain(..) {
                match request {
                    // What comes after a close is dropped, and its sender sees the queue closed.
                    Request::Op { op, done } if close.is_none() => group.push((op, done)),
                    Request::Op { .. } => {}
                    Request::Close(done) => close = Some(done),
                }
            }
            let unclaimed = self.serve(group);
            if !unclaimed.is_empty() {
                self.give_back(unclaimed);
            }
            self.state.rotation.wake(millis(self.clock.wall()));
            if self.state.rotation.any_ready() {
                self.ready.notify_one();
            }
        }
        if let Some(Err((_, error))) = self.connection.take().map(Connection::close) {
            tracing::warn!(path = %self.file.path().display(), %error, "close event queue");
        }
        // First the lock: whoever sees the queue closed may open it again.
        drop(self);
        if let Some(done) = close {
            let _ = done.send(());
        }
    }

    /// Does the group and answers; returns the leases whose caller is gone.
    fn serve(&mut self, group: Vec<(Op, Done)>) -> Vec<LeaseId> {
        let now = millis(self.clock.wall());
        self.state.rotation.wake(now);
        // Polling an empty queue costs no transaction.
        let (idle, group): (Vec<_>, Vec<_>) = if self.state.rotation.any_ready() {
            (Vec::new(), group)
        } else if group.iter().all(|(op, _)| matches!(op, Op::Lease { .. })) {
            (group, Vec::new())
        } else {
            (Vec::new(), group)
        };
        for (_, done) in idle {
            let _ = done.send(Ok(Answer::default()));
        }
        if group.is_empty() {
            return Vec::new();
        }
        let (ops, waiting): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        match self.write(ops, now) {
            Ok(answers) => waiting
                .into_iter()
                .zip(answers)
                // A caller that gave up does not undo what it asked for, but nobody will work on its leases.
                .filter_map(|(done, answer)| done.send(Ok(answer)).err()?.ok())
                .flat_map(|answer| answer.leases.into_iter().map(|lease| lease.id))
                .collect(),
            Err(error) => {
                tracing::error!(path = %self.file.path().display(), %error, "write event queue");
                for done in waiting {
                    let _ = done.send(Err(self.file.sql_failed("write", &error).into()));
                }
                Vec::new()
            }
        }
    }

    /// Makes leased events ready again. If that fails, they are when their leases end.
    fn give_back(&mut self, leases: Vec<LeaseId>) {
        let give_back = |lease| Op::Release { lease, delay: Duration::ZERO, body: None };
        let ops = leases.into_iter().map(give_back).collect();
        if let Err(error) = self.write(ops, millis(self.clock.wall())) {
            tracing::warn!(path = %self.file.path().display(), %error, "give back leases whose caller is gone");
        }
    }

    fn write(&mut self, ops: Vec<Op>, now: i64) -> rusqlite::Result<Vec<Answer>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = self.file.reconnect()?;
                self.state = State::load(&connection, self.state.epoch)?;
                connection
            }
        };
        // On an error the connection is dropped, which rolls back, and the state is read anew.
        let answers = self.state.transaction(&mut connection, ops, now)?;
        self.connection = Some(connection);
        Ok(answers)
    }
}
