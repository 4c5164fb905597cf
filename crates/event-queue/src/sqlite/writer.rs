//! The one writer, on a thread of its own: SQLite blocks. Requests that arrive while a group is being synced to disk share
//! the next transaction and sync.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use domain::Clock;
use parking_lot::Mutex;
use rusqlite::Connection;
use sqlite_file::SqliteFile;
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use super::leases::Leases;
use super::state::{Lasting, State};
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
    /// Looks at what is there.
    pub(super) fn start(
        file: SqliteFile,
        connection: Connection,
        clock: Arc<dyn Clock>,
        ready: Arc<Notify>,
        leases: Arc<Mutex<Leases>>,
        lock: File,
    ) -> Result<Self, QueueError> {
        let failed = |error| file.sql_failed("open", &error);
        let lasting = Lasting::new(Uuid::new_v4().as_fields().0, leases);
        sql::forget_empty(&connection).map_err(failed)?;
        let state = State::load(&connection, lasting, millis(clock.wall())).map_err(failed)?;
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
        waiting
            .into_iter()
            .zip(self.write_apart(&ops, now))
            // A caller that gave up does not undo what it asked for, but nobody will work on its leases.
            .filter_map(|(done, answer)| done.send(answer).err()?.ok())
            .flat_map(|answer| answer.leases.into_iter().map(|lease| lease.id))
            .collect()
    }

    /// All in one transaction; where the file is damaged, in halves, so that only those fail that meet the damage. One
    /// answer per request, in their order.
    fn write_apart(&mut self, ops: &[Op], now: i64) -> Vec<Result<Answer, QueueError>> {
        match self.write(ops, now) {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) if ops.len() > 1 && damage(&error) => {
                let (first, second) = ops.split_at(ops.len() / 2);
                let mut answers = self.write_apart(first, now);
                answers.extend(self.write_apart(second, now));
                answers
            }
            Err(error) => {
                tracing::error!(path = %self.file.path().display(), %error, "write event queue");
                ops.iter().map(|_| Err(self.file.sql_failed("write", &error).into())).collect()
            }
        }
    }

    /// Makes leased events ready again. If that fails, they are when their leases end.
    fn give_back(&mut self, leases: Vec<LeaseId>) {
        let give_back = |lease| Op::Release { lease, delay: Duration::ZERO, body: None };
        let ops: Vec<_> = leases.into_iter().map(give_back).collect();
        if let Err(error) = self.write(&ops, millis(self.clock.wall())) {
            tracing::warn!(path = %self.file.path().display(), %error, "give back leases whose caller is gone");
        }
    }

    fn write(&mut self, ops: &[Op], now: i64) -> rusqlite::Result<Vec<Answer>> {
        loop {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => {
                    let connection = self.file.reconnect()?;
                    self.state = State::load(&connection, self.state.roll_back(), now)?;
                    connection
                }
            };
            match self.state.transaction(&mut connection, ops, now) {
                Ok(answers) => {
                    self.connection = Some(connection);
                    return Ok(answers);
                }
                // On an error the connection is dropped, which rolls back, and the state is read anew.
                Err(error) if damage(&error) && self.state.blame(now, &error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether it is the file that is wrong, in some place, and not the disk as a whole.
pub(super) fn damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::format::FORMAT;
    use domain::SystemClock;

    #[test]
    fn what_was_promised_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let file = SqliteFile::new(&FORMAT, dir.path().join("events.db"));
        let (lock, connection) = (file.lock().unwrap(), file.connect().unwrap());
        let mut writer =
            Writer::start(file, connection, Arc::new(SystemClock::default()), Arc::default(), Arc::default(), lock)
                .unwrap();
        let mut serve = |ops: Vec<Op>| {
            let (group, answers): (Vec<_>, Vec<_>) = ops
                .into_iter()
                .map(|op| {
                    let (done, answer) = oneshot::channel();
                    ((op, done), answer)
                })
                .unzip();
            assert_eq!(writer.serve(group), []);
            let leases = answers.into_iter().flat_map(|mut answer| answer.try_recv().unwrap().unwrap().leases);
            let leases: Vec<_> = leases.map(|lease| lease.id).collect();
            let connection = writer.connection.as_ref().unwrap();
            let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
            assert_eq!(mode, "wal");
            // 1: NORMAL, which syncs at checkpoints; 2: FULL, which syncs each commit.
            (connection.pragma_query_value(None, "synchronous", |row| row.get::<_, u8>(0)).unwrap(), leases)
        };
        let queue = || QueueName("a".into());
        let enqueue = || {
            Op::Enqueue(vec![Entry { queue: queue(), id: Uuid::new_v4(), body: Bytes::new(), delay: Duration::ZERO }])
        };
        let (but, lease) = (BTreeSet::new(), Duration::from_secs(60));
        assert_eq!(serve(vec![enqueue(), enqueue()]).0, 2);
        let (synced, leases) = serve(vec![Op::Lease { but: but.clone(), most: 2, lease }]);
        assert_eq!((synced, leases.len()), (1, 2));
        assert_eq!(serve(vec![Op::Extend { leases: leases.clone(), lease }, Op::Ack(vec![leases[0]])]).0, 1);
        assert_eq!(serve(vec![Op::Lease { but, most: 1, lease }, enqueue()]).0, 2, "with others");
        assert_eq!(serve(vec![Op::Ack(Vec::new())]).0, 1);
        assert_eq!(serve(vec![Op::Release { lease: leases[1], delay: lease, body: None }]).0, 2);
        assert_eq!(serve(vec![Op::Purge { queue: queue(), below: None }]).0, 2);
    }
}
