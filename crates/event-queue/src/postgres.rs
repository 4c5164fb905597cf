//! The engine on PostgreSQL, for several processes at once.
//!
//! - Enqueues of all callers that wait are one transaction, and so one flush to disk, as in [`crate::sqlite`]. It is synced
//!   before anybody gets an answer, also where the server or the role says `synchronous_commit = off`; `fsync = off` is the
//!   server's own doing.
//! - Leases take rows with `FOR UPDATE SKIP LOCKED`; a lease is over when its time has come or another has the event.
//! - Waiting calls wake by `NOTIFY`; besides, they look once a second, for delays and leases that end.
//! - Fairness: each lease call finds the queues that have something ready by skipping through the index, starts behind
//!   the one that this process has served last, and takes an even share of each: a turn each, as in a ring.
//! - Time is the server's, so that the processes' clocks need not agree, unless a clock is given.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::Clock;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use crate::api::{Content, Depth, Entry, EventQueue, Lease, LeaseId, QueueError, QueueName};
use crate::check_sizes;
use crate::time::{age, millis, span_millis, system_time};

mod insert;
mod migrate;

use insert::Insert;

const CHANNEL: &str = "emberbox_events";
const CONNECTIONS: u32 = 8;
/// Enqueues that may wait before callers wait to hand theirs in.
const WAITING: usize = 1024;
/// How long a call waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(5);
/// Waiting calls look this often even if nobody wakes them.
const LOOK: Duration = Duration::from_secs(1);
const PURGE_CHUNK: i64 = 1000;

/// Events in a PostgreSQL database.
#[derive(Debug)]
pub struct PgQueue {
    pool: PgPool,
    clock: Time,
    woken: Arc<Notify>,
    /// The queue that was served last.
    served: Mutex<String>,
    listener: JoinHandle<()>,
    inserts: mpsc::Sender<Insert>,
}

#[derive(Clone)]
struct Time(Option<Arc<dyn Clock>>);

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "given" } else { "server" })
    }
}

impl Time {
    async fn now(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        match &self.0 {
            Some(clock) => Ok(millis(clock.wall())),
            None => {
                sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT")
                    .fetch_one(connection)
                    .await
            }
        }
    }
}

impl PgQueue {
    /// Connects and brings the schema up to date. `clock` replaces the server's time (for tests: all processes need
    /// the same one).
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] if the server does not answer, [`QueueError::Damaged`] if the schema is for newer programs only.
    pub async fn connect(url: &str, clock: Option<Arc<dyn Clock>>) -> Result<Self, QueueError> {
        let operation = "connect to the event queue";
        let options: PgConnectOptions = url.parse().map_err(failed(operation))?;
        // A pool would try again until it has no time left, and not say why.
        let unavailable = |cause: String| {
            let operation = format!("{operation} in PostgreSQL at {}:{}", options.get_host(), options.get_port());
            QueueError::Unavailable { operation, cause }
        };
        match timeout(ACQUIRE, options.connect()).await {
            Ok(Ok(probe)) => drop(probe.close().await),
            Ok(Err(error)) => return Err(unavailable(error.to_string())),
            Err(_) => return Err(unavailable(format!("no answer within {} s", ACQUIRE.as_secs()))),
        }
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE);
        // `local` and `remote_write` sync here as well.
        let durable =
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";
        let pool = pool
            .after_connect(move |connection, _| Box::pin(async move { connection.execute(durable).await.map(drop) }));
        let pool = pool.connect_with(options).await.map_err(failed(operation))?;
        migrate::run(&pool).await?;
        let woken = Arc::new(Notify::new());
        let listener = tokio::spawn(listen(pool.clone(), Arc::clone(&woken)));
        let clock = Time(clock);
        let (inserts, received) = mpsc::channel(WAITING);
        tokio::spawn(insert::run(pool.clone(), clock.clone(), received));
        Ok(Self { pool, clock, woken, served: Mutex::default(), listener, inserts })
    }

    fn served(&self) -> MutexGuard<'_, String> {
        // A string is whole even if somebody panicked while it was locked.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&self, but: &BTreeSet<QueueName>, most: usize, lease: Duration) -> Result<Vec<Lease>, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let now = self.clock.now(&mut connection).await?;
        let served = self.served().clone();
        let ready: Vec<String> = sqlx::query_scalar(
            "WITH RECURSIVE names AS (
                 (SELECT queue FROM emberbox_events ORDER BY queue LIMIT 1)
                 UNION ALL
                 SELECT (SELECT e.queue FROM emberbox_events e WHERE e.queue > names.queue ORDER BY e.queue LIMIT 1)
                 FROM names WHERE names.queue IS NOT NULL
             )
             SELECT queue FROM names WHERE queue IS NOT NULL AND queue <> ALL($3)
                 AND (SELECT min(due) FROM emberbox_events e WHERE e.queue = names.queue) <= $1
             ORDER BY queue <= $2 COLLATE \"C\", queue",
        )
        .bind(now)
        .bind(served)
        .bind(but.iter().map(|queue| &*queue.0).collect::<Vec<_>>())
        .fetch_all(&mut *connection)
        .await?;
        let mut leases = Vec::new();
        // First an even share of each, then whatever there is.
        for share in [(most / ready.len().max(1)).max(1), most] {
            for queue in &ready {
                let wanted = share.min(most - leases.len());
                if wanted > 0 {
                    leases.extend(take_from(&mut connection, queue, wanted, now, lease).await?);
                    self.served().clone_from(queue);
                }
            }
        }
        Ok(leases)
    }

    async fn change(&self, sql: &'static str, leases: &[LeaseId], due: Duration) -> Result<Vec<LeaseId>, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let now = self.clock.now(&mut connection).await?;
        let (seqs, marks): (Vec<i64>, Vec<i64>) = leases.iter().map(|id| parts(*id)).unzip();
        let rows = sqlx::query(sql)
            .bind(seqs)
            .bind(marks)
            .bind(now)
            .bind(now.saturating_add(span_millis(due)))
            .fetch_all(&mut *connection)
            .await?;
        rows.iter().map(|row| Ok(lease_id(row.try_get(0)?, row.try_get(1)?))).collect()
    }

    async fn give_back(&self, lease: LeaseId, delay: Duration, body: Option<Bytes>) -> Result<(), sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let now = self.clock.now(&mut connection).await?;
        let (seq, mark) = parts(lease);
        sqlx::query(
            "UPDATE emberbox_events SET due = $4, lease = NULL, body = coalesce($5, body)
             WHERE seq = $1 AND lease = $2 AND due > $3",
        )
        .bind(seq)
        .bind(mark)
        .bind(now)
        .bind(now.saturating_add(span_millis(delay)))
        .bind(body.as_deref())
        .execute(&mut *connection)
        .await?;
        sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&mut *connection).await.map(drop)
    }

    async fn count(&self, queue: &QueueName) -> Result<Depth, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let now = self.clock.now(&mut connection).await?;
        let row = sqlx::query(
            "SELECT count(*) FILTER (WHERE due <= $2), count(*) FILTER (WHERE due > $2 AND lease IS NOT NULL),
                 count(*) FILTER (WHERE due > $2 AND lease IS NULL), min(enqueued_at)
             FROM emberbox_events WHERE queue = $1",
        )
        .bind(&*queue.0)
        .bind(now)
        .fetch_one(&mut *connection)
        .await?;
        let count = |column: usize| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
        let oldest = row.try_get::<Option<i64>, _>(3)?.map(|then| age(now, then));
        Ok(Depth { ready: count(0)?, in_flight: count(1)?, delayed: count(2)?, oldest })
    }

    async fn drop_all(&self, queue: &QueueName) -> Result<u64, sqlx::Error> {
        let last: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM emberbox_events WHERE queue = $1")
            .bind(&*queue.0)
            .fetch_one(&self.pool)
            .await?;
        let mut dropped = 0;
        loop {
            let done = sqlx::query(
                "DELETE FROM emberbox_events WHERE seq IN
                     (SELECT seq FROM emberbox_events WHERE queue = $1 AND seq <= $2 LIMIT $3)",
            )
            .bind(&*queue.0)
            .bind(last)
            .bind(PURGE_CHUNK)
            .execute(&self.pool)
            .await?;
            dropped += done.rows_affected();
            if done.rows_affected() == 0 {
                return Ok(dropped);
            }
        }
    }
}

async fn take_from(
    connection: &mut PgConnection,
    queue: &str,
    most: usize,
    now: i64,
    lease: Duration,
) -> Result<Vec<Lease>, sqlx::Error> {
    let mark = Uuid::new_v4().as_u64_pair().0.cast_signed();
    let rows = sqlx::query(
        "UPDATE emberbox_events SET due = $3, deliveries = deliveries + 1, lease = $5
         WHERE seq = ANY(ARRAY(SELECT seq FROM emberbox_events WHERE queue = $1 AND due <= $2 ORDER BY due LIMIT $4
             FOR UPDATE SKIP LOCKED))
         RETURNING seq, id, enqueued_at, deliveries, body",
    )
    .bind(queue)
    .bind(now)
    .bind(now.saturating_add(span_millis(lease).max(1)))
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .bind(mark)
    .fetch_all(connection)
    .await?;
    let name = QueueName(queue.into());
    rows.iter()
        .map(|row| {
            Ok(Lease {
                id: lease_id(row.try_get(0)?, mark),
                queue: name.clone(),
                event: Uuid::from_slice(row.try_get(1)?).map_err(|error| sqlx::Error::Decode(error.into()))?,
                body: Bytes::from(row.try_get::<Vec<u8>, _>(4)?),
                enqueued_at: system_time(row.try_get(2)?),
                deliveries: row.try_get::<i32, _>(3)?.cast_unsigned(),
            })
        })
        .collect()
}

/// A lease id is the event's number and what the lease call has marked it with.
fn lease_id(seq: i64, mark: i64) -> LeaseId {
    LeaseId(Uuid::from_u64_pair(mark.cast_unsigned(), seq.cast_unsigned()))
}

fn parts(id: LeaseId) -> (i64, i64) {
    let (mark, seq) = id.0.as_u64_pair();
    (seq.cast_signed(), mark.cast_signed())
}

/// Wakes the waiting calls at each notification, until the pool is closed.
async fn listen(pool: PgPool, woken: Arc<Notify>) {
    while !pool.is_closed() {
        if let Ok(mut listener) = PgListener::connect_with(&pool).await
            && listener.listen(CHANNEL).await.is_ok()
        {
            while listener.recv().await.is_ok() {
                woken.notify_waiters();
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn failed(operation: &'static str) -> impl Fn(sqlx::Error) -> QueueError {
    move |error| match error {
        sqlx::Error::PoolClosed => QueueError::Closed,
        error => QueueError::Unavailable { operation: operation.to_owned(), cause: error.to_string() },
    }
}

#[async_trait]
impl EventQueue for PgQueue {
    async fn enqueue(&self, entries: Vec<Entry>) -> Result<(), QueueError> {
        check_sizes(&entries)?;
        let (done, answer) = oneshot::channel();
        self.inserts.send(Insert { entries, done }).await.map_err(|_| QueueError::Closed)?;
        answer.await.map_err(|_| QueueError::Closed)?.map_err(|error| failed("put events into the event queue")(error))
    }

    async fn lease(&self, most: usize, lease: Duration, wait: Duration) -> Result<Vec<Lease>, QueueError> {
        let until = Instant::now() + wait;
        loop {
            let mut woken = std::pin::pin!(self.woken.notified());
            // From here on no notification is missed.
            woken.as_mut().enable();
            let leases = self.lease_but(&BTreeSet::new(), most, lease).await?;
            if !leases.is_empty() || most == 0 || Instant::now() >= until {
                return Ok(leases);
            }
            let _ = timeout_at(until.min(Instant::now() + LOOK), woken).await;
        }
    }

    async fn lease_but(
        &self,
        but: &BTreeSet<QueueName>,
        most: usize,
        lease: Duration,
    ) -> Result<Vec<Lease>, QueueError> {
        self.take(but, most, lease).await.map_err(failed("lease events"))
    }

    async fn extend(&self, leases: &[LeaseId], lease: Duration) -> Result<Vec<LeaseId>, QueueError> {
        let sql = "UPDATE emberbox_events e SET due = $4 FROM unnest($1::BIGINT[], $2::BIGINT[]) l(seq, lease)
             WHERE e.seq = l.seq AND e.lease = l.lease AND e.due > $3 RETURNING e.seq, e.lease";
        self.change(sql, leases, lease).await.map_err(failed("extend leases"))
    }

    async fn ack(&self, leases: &[LeaseId]) -> Result<(), QueueError> {
        let sql = "DELETE FROM emberbox_events e USING unnest($1::BIGINT[], $2::BIGINT[]) l(seq, lease)
             WHERE e.seq = l.seq AND e.lease = l.lease AND e.due > $3 AND $4::BIGINT IS NOT NULL
             RETURNING e.seq, e.lease";
        self.change(sql, leases, Duration::ZERO).await.map(drop).map_err(failed("acknowledge events"))
    }

    async fn release(&self, lease: LeaseId, delay: Duration, body: Option<Bytes>) -> Result<(), QueueError> {
        if let Some(body) = &body {
            crate::check_size(body.len())?;
        }
        self.give_back(lease, delay, body).await.map_err(failed("give an event back"))
    }

    fn largest_body(&self, _: Content) -> usize {
        crate::MAX_BODY
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        self.count(queue).await.map_err(failed("count events"))
    }

    async fn queues(&self) -> Result<Vec<QueueName>, QueueError> {
        let names: Vec<String> = sqlx::query_scalar("SELECT DISTINCT queue FROM emberbox_events ORDER BY queue")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list event queues"))?;
        Ok(names.into_iter().map(|name| QueueName(name.into())).collect())
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, QueueError> {
        self.drop_all(queue).await.map_err(failed("purge an event queue"))
    }

    async fn close(&self) {
        self.listener.abort();
        self.pool.close().await;
        self.woken.notify_waiters();
    }
}
