//! The one writer, on a thread of its own: SQLite blocks. Requests that arrive while a group is being synced to disk share
//! the next transaction and sync (see `syncer`).

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

use super::checkpoints::{self, Checkpoints};
use super::present::Present;
use super::state::{Lasting, State};
use super::statements as sql;
use super::syncer::{self, Syncer};
use crate::api::{Entry, Lease, LeaseId, QueueError, QueueName};
use crate::time::millis;

/// Requests that share one transaction and one fsync.
const GROUP: usize = 256;
/// How often a group that waits for the one before to be synced looks for more requests. A look costs a change of thread.
const LOOK: Duration = Duration::from_micros(100);
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

/// Requests of one transaction, in their order.
#[derive(Default)]
struct Group {
    ops: Vec<Op>,
    waiting: Vec<Done>,
}

/// Where requests come from.
struct Inbox {
    requests: mpsc::Receiver<Request>,
    batch: Vec<Request>,
    /// Whoever asked to close. What comes after is dropped, and its sender sees the queue closed.
    close: Option<oneshot::Sender<()>>,
}

impl Inbox {
    /// Waits for requests; whether there can be any.
    async fn wait(&mut self) -> bool {
        self.requests.recv_many(&mut self.batch, GROUP).await > 0
    }

    /// Adds what is there to a group.
    fn take(&mut self, ops: &mut Vec<Op>, waiting: &mut Vec<Done>) {
        while self.batch.len() + ops.len() < GROUP
            && let Ok(request) = self.requests.try_recv()
        {
            self.batch.push(request);
        }
        for request in self.batch.drain(..) {
            match request {
                Request::Op { op, done } if self.close.is_none() => {
                    ops.push(op);
                    waiting.push(done);
                }
                Request::Op { .. } => {}
                Request::Close(done) => self.close = Some(done),
            }
        }
    }
}

pub(super) struct Writer {
    file: SqliteFile,
    clock: Arc<dyn Clock>,
    ready: Arc<Notify>,
    /// Nothing after a failure, until the next request.
    connection: Option<Connection>,
    /// The log that was written to last; nothing before the first commit of a connection.
    log: Option<Arc<File>>,
    syncer: Syncer,
    checkpoints: Checkpoints,
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
        present: Arc<Mutex<Present>>,
        lock: File,
    ) -> Result<Self, QueueError> {
        let failed = |error| file.sql_failed("open", &error);
        prepare(&connection).map_err(failed)?;
        present.lock().events = sql::count(&connection).map_err(failed)?.into_iter().collect();
        let lasting = Lasting::new(Uuid::new_v4().as_fields().0, present);
        sql::forget_empty(&connection).map_err(failed)?;
        let state = State::load(&connection, lasting, millis(clock.wall())).map_err(failed)?;
        let threads = |error| file.io_failed("start a thread for", &error);
        let syncer = Syncer::start().map_err(threads)?;
        let beside = file.reconnect().map_err(failed)?;
        let checkpoints = Checkpoints::start(file.clone(), beside).map_err(threads)?;
        Ok(Self {
            file,
            clock,
            ready,
            connection: Some(connection),
            log: None,
            syncer,
            checkpoints,
            state,
            _lock: lock,
        })
    }

    /// Serves until asked to close, or until the queue is dropped.
    pub(super) async fn run(mut self, requests: mpsc::Receiver<Request>) {
        let mut inbox = Inbox { requests, batch: Vec::with_capacity(GROUP), close: None };
        while inbox.close.is_none() {
            // A fixed step while anything sleeps: the clock need not be the host's.
            let tick = self.state.awaits().then(|| tokio::time::sleep(TICK));
            tokio::select! {
                received = inbox.wait() => if !received { break },
                () = self.syncer.news() => {}
                () = async { match tick { Some(tick) => tick.await, None => std::future::pending().await } } => {}
            }
            let mut group = Group::default();
            inbox.take(&mut group.ops, &mut group.waiting);
            // Only now: whoever was answered and asks for what it put in shall find it.
            self.state.show(self.syncer.last_seq(), millis(self.clock.wall()));
            let unclaimed = self.serve(group, &mut inbox);
            if !unclaimed.is_empty() {
                self.give_back(unclaimed);
            }
            self.state.rotation.wake(millis(self.clock.wall()));
            if self.state.rotation.any_ready() {
                self.ready.notify_one();
            }
        }
        // What was committed is synced and answered before the file is closed.
        drop(self.syncer);
        // The last connection to be closed takes the log with it.
        drop(self.checkpoints);
        if let Some(Err((_, error))) = self.connection.take().map(Connection::close) {
            tracing::warn!(path = %self.file.path().display(), %error, "close event queue");
        }
        // First the lock: whoever sees the queue closed may open it again.
        drop(self._lock);
        if let Some(done) = inbox.close {
            let _ = done.send(());
        }
    }

    /// Does the group, with what arrives before it is committed, and answers; returns the leases whose caller is gone.
    fn serve(&mut self, mut group: Group, inbox: &mut Inbox) -> Vec<LeaseId> {
        let now = millis(self.clock.wall());
        self.state.rotation.wake(now);
        // Polling an empty queue costs no transaction.
        let ready = self.state.rotation.any_ready() || self.state.any_over(now);
        if !ready && group.ops.iter().all(|op| matches!(op, Op::Lease { .. })) {
            for done in group.waiting {
                let _ = done.send(Ok(Answer::default()));
            }
            return Vec::new();
        }
        if let Some(cause) = self.syncer.failure() {
            for done in group.waiting {
                let _ = done.send(Err(syncer::failed(cause.clone())));
            }
            return Vec::new();
        }
        let answers = self.write_apart(&mut group, Some(inbox), now);
        let (mut synced, mut unclaimed) = (Vec::new(), Vec::new());
        for ((done, op), answer) in group.waiting.into_iter().zip(&group.ops).zip(answers) {
            match answer {
                Ok(answer) if op.durable() => synced.push((done, answer)),
                // A caller that gave up does not undo what it asked for, but nobody will work on its leases.
                answer => {
                    if let Err(Ok(answer)) = done.send(answer) {
                        unclaimed.extend(answer.leases.into_iter().map(|lease| lease.id));
                    }
                }
            }
        }
        self.sync(synced);
        if let Some(connection) = &self.connection {
            self.checkpoints.committed(&self.file, connection);
        }
        unclaimed
    }

    /// Answers when the log is on disk.
    fn sync(&mut self, answers: Vec<(Done, Answer)>) {
        if answers.is_empty() {
            return;
        }
        let last_seq = self.state.last_seq();
        match self.log.clone() {
            Some(log) => self.syncer.sync(syncer::Group { last_seq, log, answers }),
            None => {
                for (done, _) in answers {
                    let _ = done.send(Err(syncer::failed("the log could not be opened".to_owned())));
                }
            }
        }
    }

    /// All in one transaction; where the file is damaged, in halves, so that only those fail that meet the damage. One
    /// answer per request, in their order.
    fn write_apart(
        &mut self,
        group: &mut Group,
        inbox: Option<&mut Inbox>,
        now: i64,
    ) -> Vec<Result<Answer, QueueError>> {
        match self.write(group, inbox, now) {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) if group.ops.len() > 1 && damage(&error) => {
                let half = group.ops.len() / 2;
                let mut second = Group { ops: group.ops.split_off(half), waiting: Vec::new() };
                let mut answers = self.write_apart(group, None, now);
                answers.extend(self.write_apart(&mut second, None, now));
                group.ops.append(&mut second.ops);
                answers
            }
            Err(error) => {
                tracing::error!(path = %self.file.path().display(), %error, "write event queue");
                group.ops.iter().map(|_| Err(self.file.sql_failed("write", &error).into())).collect()
            }
        }
    }

    /// Makes leased events ready again. If that fails, they are when their leases end.
    fn give_back(&mut self, leases: Vec<LeaseId>) {
        let give_back = |lease| Op::Release { lease, delay: Duration::ZERO, body: None };
        let mut group = Group { ops: leases.into_iter().map(give_back).collect(), waiting: Vec::new() };
        if let Err(error) = self.write(&mut group, None, millis(self.clock.wall())) {
            tracing::warn!(path = %self.file.path().display(), %error, "give back leases whose caller is gone");
        }
    }

    fn write(&mut self, group: &mut Group, mut inbox: Option<&mut Inbox>, now: i64) -> rusqlite::Result<Vec<Answer>> {
        loop {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => {
                    self.log = None;
                    let connection = self.file.reconnect()?;
                    prepare(&connection)?;
                    self.state = State::load(&connection, self.state.roll_back(), now)?;
                    connection
                }
            };
            let (syncer, waiting) = (&self.syncer, &mut group.waiting);
            // As long as the group before is not on disk, this one need not be committed: it takes in what arrives.
            let mut idle = false;
            let mut more = |ops: &mut Vec<Op>| {
                let inbox = inbox.as_deref_mut().filter(|_| !idle && ops.iter().any(Op::durable));
                let inbox = inbox?;
                idle = syncer.wait(LOOK);
                inbox.take(ops, waiting);
                Some(syncer.last_seq())
            };
            match self.state.transaction(&mut connection, &mut group.ops, now, &mut more) {
                Ok(answers) => {
                    self.connection = Some(connection);
                    if self.log.is_none() {
                        // There is one as soon as something was committed. It stays the right one when the connection is
                        // dropped: another keeps it.
                        let log = File::open(self.file.log());
                        let log = log.inspect_err(|error| tracing::error!(%error, "open the log of the event queue"));
                        self.log = log.ok().map(Arc::new);
                    }
                    return Ok(answers);
                }
                // On an error the connection is dropped, which rolls back, and the state is read anew.
                Err(error) if damage(&error) && self.state.blame(now, &error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Only what is promised is synced, and not by SQLite; nor does a commit wait for a checkpoint.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    checkpoints::leave_to_us(connection);
    connection.pragma_update(None, "synchronous", "NORMAL")
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
        let (_sender, requests) = mpsc::channel(1);
        let mut inbox = Inbox { requests, batch: Vec::new(), close: None };
        let mut serve = |ops: Vec<Op>| {
            let (waiting, answers): (Vec<_>, Vec<_>) = ops.iter().map(|_| oneshot::channel()).unzip();
            let before = writer.syncer.synced();
            writer.state.show(writer.syncer.last_seq(), millis(SystemClock::default().wall()));
            assert_eq!(writer.serve(Group { ops, waiting }, &mut inbox), []);
            let leases = answers.into_iter().flat_map(|answer| answer.blocking_recv().unwrap().unwrap().leases);
            let leases: Vec<_> = leases.map(|lease| lease.id).collect();
            // What SQLite itself does: WAL, and a sync before each checkpoint (1: NORMAL).
            let connection = writer.connection.as_ref().unwrap();
            let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
            assert_eq!(mode, "wal");
            let synchronous: u8 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
            assert_eq!(synchronous, 1);
            (writer.syncer.synced() - before, leases)
        };
        let queue = || QueueName("a".into());
        let enqueue = || {
            Op::Enqueue(vec![Entry { queue: queue(), id: Uuid::new_v4(), body: Bytes::new(), delay: Duration::ZERO }])
        };
        let (but, lease) = (BTreeSet::new(), Duration::from_secs(60));
        assert_eq!(serve(vec![enqueue(), enqueue()]).0, 1, "one sync for both");
        let (synced, leases) = serve(vec![Op::Lease { but: but.clone(), most: 2, lease }]);
        assert_eq!((synced, leases.len()), (0, 2));
        assert_eq!(serve(vec![Op::Extend { leases: leases.clone(), lease }, Op::Ack(vec![leases[0]])]).0, 0);
        assert_eq!(serve(vec![Op::Lease { but, most: 1, lease }, enqueue()]).0, 1, "with others");
        assert_eq!(serve(vec![Op::Ack(Vec::new())]).0, 0);
        assert_eq!(serve(vec![Op::Release { lease: leases[1], delay: lease, body: None }]).0, 1);
        assert_eq!(serve(vec![Op::Purge { queue: queue(), below: None }]).0, 1);
    }
}
