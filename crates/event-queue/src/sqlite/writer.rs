//! The one writer. Requests that arrive while a group is being synced to disk share the next transaction and sync.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::Clock;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Row as _};
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use super::open;
use super::statements as sql;
use super::ticket::Ticket;
use crate::api::{Entry, Lease, LeaseId, QueueError, QueueName};
use crate::rotation::{Number, Rotation};
use crate::time::{after, millis};

/// Requests that share one transaction and one fsync.
const GROUP: usize = 256;
/// How often the clock is looked at while something is delayed or leased.
const TICK: Duration = Duration::from_millis(20);

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Op {
    Enqueue(Vec<Entry>),
    Lease {
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
    fn durable(&self) -> bool {
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
    path: PathBuf,
    clock: Arc<dyn Clock>,
    ready: Arc<Notify>,
    /// Nothing after a failure, until the next request.
    connection: Option<SqliteConnection>,
    state: State,
    /// Held until the last group is done; the system releases it however the process ends.
    _lock: File,
}

/// What the writer knows without asking the file. After a failed group it is read anew.
struct State {
    /// Makes this run's lease ids differ from those of earlier runs.
    epoch: u32,
    rotation: Rotation,
    numbers: HashMap<QueueName, Number>,
    names: HashMap<Number, QueueName>,
    next_seq: i64,
    /// Whether commits are synced at present.
    synced: bool,
    /// What this group has added to the queues' counts.
    counts: BTreeMap<Number, i64>,
}

impl Writer {
    /// Ends the leases of earlier runs and looks at what is there.
    pub(super) async fn start(
        path: PathBuf,
        mut connection: SqliteConnection,
        clock: Arc<dyn Clock>,
        ready: Arc<Notify>,
        lock: File,
    ) -> Result<Self, QueueError> {
        let now = millis(clock.wall());
        let failed = |error| open::sql_failed("open", &path, &error);
        sqlx::query("UPDATE events SET due = ?, leased = 0 WHERE leased = 1")
            .bind(now)
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        sqlx::query("DELETE FROM queues WHERE events = 0").execute(&mut connection).await.map_err(failed)?;
        let state = State::load(&mut connection, Uuid::new_v4().as_fields().0).await.map_err(failed)?;
        Ok(Self { path, clock, ready, connection: Some(connection), state, _lock: lock })
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
            let unclaimed = self.serve(group).await;
            if !unclaimed.is_empty() {
                self.give_back(unclaimed).await;
            }
            self.state.rotation.wake(millis(self.clock.wall()));
            if self.state.rotation.any_ready() {
                self.ready.notify_one();
            }
        }
        if let Some(connection) = self.connection
            && let Err(error) = connection.close().await
        {
            tracing::warn!(path = %self.path.display(), %error, "close event queue");
        }
        if let Some(done) = close {
            let _ = done.send(());
        }
    }

    /// Does the group and answers; returns the leases whose caller is gone.
    async fn serve(&mut self, group: Vec<(Op, Done)>) -> Vec<LeaseId> {
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
        match self.write(ops, now).await {
            Ok(answers) => waiting
                .into_iter()
                .zip(answers)
                // A caller that gave up does not undo what it asked for, but nobody will work on its leases.
                .filter_map(|(done, answer)| done.send(Ok(answer)).err()?.ok())
                .flat_map(|answer| answer.leases.into_iter().map(|lease| lease.id))
                .collect(),
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "write event queue");
                for done in waiting {
                    let _ = done.send(Err(open::sql_failed("write", &self.path, &error)));
                }
                Vec::new()
            }
        }
    }

    /// Makes leased events ready again. If that fails, they are when their leases end.
    async fn give_back(&mut self, leases: Vec<LeaseId>) {
        let give_back = |lease| Op::Release { lease, delay: Duration::ZERO, body: None };
        let ops = leases.into_iter().map(give_back).collect();
        if let Err(error) = self.write(ops, millis(self.clock.wall())).await {
            tracing::warn!(path = %self.path.display(), %error, "give back leases whose caller is gone");
        }
    }

    async fn write(&mut self, ops: Vec<Op>, now: i64) -> Result<Vec<Answer>, sqlx::Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.reconnect().await?,
        };
        // On an error the connection is dropped, which rolls back, and the state is read anew.
        let answers = self.state.transaction(&mut connection, ops, now).await?;
        self.connection = Some(connection);
        Ok(answers)
    }

    async fn reconnect(&mut self) -> Result<SqliteConnection, sqlx::Error> {
        let mut connection = open::reconnect(&self.path).await?;
        self.state = State::load(&mut connection, self.state.epoch).await?;
        Ok(connection)
    }
}

impl State {
    async fn load(connection: &mut SqliteConnection, epoch: u32) -> Result<Self, sqlx::Error> {
        let mut state = Self {
            epoch,
            rotation: Rotation::default(),
            numbers: HashMap::new(),
            names: HashMap::new(),
            next_seq: sqlx::query_scalar("SELECT coalesce(max(seq), 0) + 1 FROM bodies")
                .fetch_one(&mut *connection)
                .await?,
            synced: true,
            counts: BTreeMap::new(),
        };
        for row in sqlx::query("SELECT number, name FROM queues").fetch_all(&mut *connection).await? {
            let (number, name): (Number, String) = (row.try_get(0)?, row.try_get(1)?);
            state.remember(number, QueueName(name.into()));
            if let Some(due) = sql::next_due(&mut *connection, number).await? {
                state.rotation.note(number, due);
            }
        }
        Ok(state)
    }

    fn remember(&mut self, number: Number, name: QueueName) {
        self.numbers.insert(name.clone(), number);
        self.names.insert(number, name);
    }

    async fn transaction(
        &mut self,
        connection: &mut SqliteConnection,
        ops: Vec<Op>,
        now: i64,
    ) -> Result<Vec<Answer>, sqlx::Error> {
        let synced = ops.iter().any(Op::durable);
        if self.synced != synced {
            let level = if synced { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            sqlx::query(level).execute(&mut *connection).await?;
            self.synced = synced;
        }
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
        let mut answers = Vec::with_capacity(ops.len());
        for op in ops {
            answers.push(self.apply(connection, op, now).await?);
        }
        for (queue, change) in std::mem::take(&mut self.counts) {
            sql::count(connection, queue, change).await?;
        }
        sqlx::query("COMMIT").execute(connection).await?;
        Ok(answers)
    }

    async fn apply(&mut self, connection: &mut SqliteConnection, op: Op, now: i64) -> Result<Answer, sqlx::Error> {
        let mut answer = Answer::default();
        match op {
            Op::Enqueue(entries) => {
                for entry in &entries {
                    self.insert(connection, entry, now).await?;
                }
            }
            Op::Lease { most, lease } => answer.leases = self.lease(connection, most, lease, now).await?,
            Op::Extend { leases, lease } => {
                let due = after(now, lease);
                for id in leases {
                    if let Some(ticket) = Ticket::read(id, self.epoch)
                        && sql::set_due(connection, ticket, now, due, true).await?
                    {
                        self.rotation.note(ticket.queue, due);
                        answer.extended.push(id);
                    }
                }
            }
            Op::Ack(leases) => {
                for ticket in leases.into_iter().filter_map(|id| Ticket::read(id, self.epoch)) {
                    if sql::delete(connection, ticket, now).await? {
                        *self.counts.entry(ticket.queue).or_default() -= 1;
                    }
                }
            }
            Op::Release { lease, delay, body } => {
                let due = after(now, delay);
                if let Some(ticket) = Ticket::read(lease, self.epoch)
                    && sql::set_due(connection, ticket, now, due, false).await?
                {
                    self.rotation.note(ticket.queue, due);
                    if let Some(body) = body {
                        sql::set_body(connection, ticket.seq, &body).await?;
                    }
                }
            }
            Op::Purge { queue, below } => {
                if let Some(number) = self.numbers.get(&queue).copied() {
                    let below = below.unwrap_or(self.next_seq);
                    let (purged, more) = sql::purge(connection, number, below).await?;
                    *self.counts.entry(number).or_default() -= purged.cast_signed();
                    answer.purged = purged;
                    answer.purge_on = more.then_some(below);
                }
            }
        }
        Ok(answer)
    }

    async fn insert(&mut self, connection: &mut SqliteConnection, entry: &Entry, now: i64) -> Result<(), sqlx::Error> {
        let number = match self.numbers.get(&entry.queue).copied() {
            Some(number) => number,
            None => {
                let number = sql::number(connection, &entry.queue).await?;
                self.remember(number, entry.queue.clone());
                number
            }
        };
        if let Some(due) = sql::insert(connection, number, self.next_seq, entry, now).await? {
            self.next_seq += 1;
            self.rotation.note(number, due);
            *self.counts.entry(number).or_default() += 1;
        }
        Ok(())
    }

    async fn lease(
        &mut self,
        connection: &mut SqliteConnection,
        most: usize,
        lease: Duration,
        now: i64,
    ) -> Result<Vec<Lease>, sqlx::Error> {
        let mut leases = Vec::new();
        self.rotation.wake(now);
        while let Some((number, share)) = self.rotation.turn(most - leases.len()) {
            let name = self.names[&number].clone();
            let taken = sql::lease(connection, self.epoch, (number, &name), share, now, lease).await?;
            leases.extend(taken);
            if let Some(due) = sql::next_due(connection, number).await? {
                self.rotation.note(number, due);
                self.rotation.wake(now);
            }
        }
        Ok(leases)
    }
}
