//! The one writer of this process. Writers of all processes take turns by locking the row of `head`, which has the last
//! revision: so revisions are without gaps, and in the order in which commits become visible.
//!
//! ```text
//!  BEGIN ─► lock head ─► was a lost COMMIT made? ─► versions ─► plan (pure) ─► records, log, head, NOTIFY ─► COMMIT
//!    ▲                        │ yes: its answers                                                              │
//!    └── connection broke ────┴───────────────────────────── connection broke: lost ◄─────────────────────────┘
//! ```
//!
//! A COMMIT whose answer is lost may have been made, may still be under way, or may never have arrived. Whoever has the
//! lock knows that it is none of the second kind, and finds those of the first by their mark in the log. The others are
//! planned anew, with the preconditions of that time.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::link::{ATTEMPT, Link, PATIENCE, Pauses, in_time, is_away, reason};
use super::migrate;
use super::plan::{Plan, plan, watched};
use crate::api::{Commit, Op};
use crate::error::StoreError;

/// Commits that share one transaction and one flush to disk.
const GROUP: usize = 128;

/// An idle connection is closed after this time: firewalls and balancers forget it without a word, and a server has few.
const IDLE: Duration = Duration::from_secs(60);

/// What the writer is asked for.
pub(super) enum Request {
    /// Apply and answer with the revision.
    Commit { ops: Vec<Op>, since: Instant, done: oneshot::Sender<Result<u64, StoreError>> },
    /// Answer when all before it is answered, and end.
    Close(oneshot::Sender<()>),
}

/// What became of one commit of a group.
type Outcome = Result<Commit, StoreError>;

/// A transaction whose COMMIT was sent, and not answered.
struct Sent {
    /// Marks it in the log.
    attempt: [u8; 16],
    /// That of its last commit.
    revision: u64,
    outcomes: Vec<Outcome>,
}

/// Why an attempt has failed.
enum Failed {
    /// The server, or the way to it.
    Sql(sqlx::Error),
    /// Another try cannot help.
    Store(StoreError),
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

pub(super) struct Writer {
    link: Arc<Link>,
    connection: Option<PgConnection>,
    /// Told of every commit.
    made: Arc<Notify>,
}

impl Writer {
    pub(super) fn new(link: Arc<Link>, connection: PgConnection, made: Arc<Notify>) -> Self {
        Self { link, connection: Some(connection), made }
    }

    /// Serves until asked to close, or until the store is dropped.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(GROUP);
        loop {
            match timeout(IDLE, requests.recv_many(&mut batch, GROUP)).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => {
                    self.disconnect().await;
                    continue;
                }
            }
            let (mut group, mut waiting, mut oldest) = (Vec::new(), Vec::new(), Instant::now());
            let mut close = None;
            for request in batch.drain(..) {
                match request {
                    // What comes after a close is dropped, and its sender sees the store closed.
                    Request::Commit { ops, since, done } if close.is_none() => {
                        group.push(ops);
                        waiting.push(done);
                        oldest = oldest.min(since);
                    }
                    Request::Commit { .. } => {}
                    Request::Close(done) => close = Some(done),
                }
            }
            self.serve(&group, waiting, oldest + PATIENCE).await;
            if let Some(done) = close {
                self.disconnect().await;
                let _ = done.send(());
                return;
            }
        }
        self.disconnect().await;
    }

    async fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            // It is about to be forgotten: whether the server hears of it in good form does not matter.
            let _ = in_time(ATTEMPT, connection.close()).await;
        }
    }

    async fn serve(
        &mut self,
        group: &[Vec<Op>],
        waiting: Vec<oneshot::Sender<Result<u64, StoreError>>>,
        until: Instant,
    ) {
        if group.is_empty() {
            return;
        }
        let mut outcomes = self.write(group, until).await;
        // The server has refused something, such as a key that it cannot store: each by itself, so that only the one
        // fails whose fault it is.
        if group.len() > 1 && outcomes.iter().all(|outcome| matches!(outcome, Err(StoreError::Refused { .. }))) {
            outcomes.clear();
            for commit in group.chunks(1) {
                outcomes.append(&mut self.write(commit, until).await);
            }
        }
        for (outcome, done) in outcomes.into_iter().zip(waiting) {
            // A caller that gave up does not undo its commit.
            let _ = done.send(outcome.map(|commit| commit.revision));
        }
    }

    /// Tries until there is an answer, or no time left. At least once.
    async fn write(&mut self, group: &[Vec<Op>], until: Instant) -> Vec<Outcome> {
        let mut pauses = Pauses::new(Some(until));
        let mut sent = None;
        loop {
            let failed = match timeout(ATTEMPT, self.attempt(group, &mut sent)).await {
                Ok(Ok(outcomes)) => {
                    self.made.notify_one();
                    return outcomes;
                }
                Ok(Err(failed)) => failed,
                Err(_) => {
                    let late = format!("no answer within {} s", ATTEMPT.as_secs());
                    Failed::Sql(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, late)))
                }
            };
            // In the middle of something: only a new one is in a known state.
            self.connection = None;
            let error = match failed {
                Failed::Store(error) => return vec![Err(error); group.len()],
                Failed::Sql(error) => error,
            };
            // The transaction was rolled back, or never began, unless its COMMIT was sent.
            let certain = sent.is_none();
            if certain && !is_away(&error) {
                return vec![Err(self.link.failed("write", &error)); group.len()];
            }
            if !pauses.pause().await {
                let (server, reason) = (self.link.server.clone(), reason(&error));
                let error = match certain {
                    true => StoreError::Unavailable { operation: "write", server, reason },
                    false => StoreError::Uncertain { server, reason },
                };
                tracing::warn!(%error, "metadata");
                return vec![Err(error); group.len()];
            }
        }
    }

    /// One transaction. `sent` is what an earlier one has left, and has what this one leaves, if it breaks off.
    async fn attempt(&mut self, group: &[Vec<Op>], sent: &mut Option<Sent>) -> Result<Vec<Outcome>, Failed> {
        if self.connection.is_none() {
            // Whatever keeps us from connecting once we were connected may pass.
            let away = |error: sqlx::Error| match is_away(&error) {
                true => error,
                false => sqlx::Error::Io(std::io::Error::other(reason(&error))),
            };
            self.connection = Some(self.link.connect().await.map_err(away)?);
        }
        let connection = self.connection.as_mut().expect("made above");
        // Each statement sees what was committed before it: those after the lock see all earlier writers.
        let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await?;
        let head = sqlx::query("SELECT revision, oldest FROM head FOR UPDATE").fetch_one(&mut *transaction).await?;
        let before = head.try_get::<i64, _>(0)?.cast_unsigned();
        // It stays there until this is done with it: the attempt may be broken off at any of its waits.
        if let Some(lost) = sent.as_ref() {
            match what_became_of(&mut transaction, lost, before).await? {
                Lost::Made => {
                    let _ = transaction.rollback().await;
                    return Ok(sent.take().expect("seen above").outcomes);
                }
                Lost::NotMade => *sent = None,
                Lost::Forgotten => {
                    let reason = "and the log of that time was deleted since".to_owned();
                    return Err(Failed::Store(StoreError::Uncertain { server: self.link.server.clone(), reason }));
                }
            }
        }
        migrate::check(&self.link, head.try_get(1)?).map_err(Failed::Store)?;
        let versions = versions(&mut transaction, group).await?;
        let versions = versions.iter().map(|(kind, key, version)| ((&**kind, &**key), *version)).collect();
        let plan = plan(group, before, &versions);
        if plan.revision == before {
            transaction.rollback().await?;
            return Ok(plan.outcomes);
        }
        let attempt = Uuid::new_v4().into_bytes();
        apply(&mut transaction, &plan, attempt, &self.link.channel()).await?;
        *sent = Some(Sent { attempt, revision: plan.revision, outcomes: plan.outcomes });
        transaction.commit().await?;
        Ok(sent.take().expect("set above").outcomes)
    }
}

/// What became of a COMMIT without an answer.
enum Lost {
    Made,
    NotMade,
    /// There is no log any more that would tell.
    Forgotten,
}

/// To be called with the lock of `head`, which the lost transaction has no more: it has ended. `now` is the last revision.
async fn what_became_of(connection: &mut PgConnection, lost: &Sent, now: u64) -> Result<Lost, sqlx::Error> {
    if now < lost.revision {
        return Ok(Lost::NotMade);
    }
    let found: Option<Vec<u8>> = sqlx::query_scalar("SELECT attempt FROM commits WHERE revision = $1")
        .bind(lost.revision.cast_signed())
        .fetch_optional(connection)
        .await?;
    Ok(match found {
        Some(attempt) if attempt == lost.attempt => Lost::Made,
        Some(_) => Lost::NotMade,
        None => Lost::Forgotten,
    })
}

/// Kind, key and version of the records which `group` has preconditions for.
async fn versions(connection: &mut PgConnection, group: &[Vec<Op>]) -> Result<Vec<(String, String, u64)>, sqlx::Error> {
    let (kinds, keys): (Vec<_>, Vec<_>) = watched(group).into_iter().unzip();
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT r.kind, r.key, r.version FROM unnest($1::TEXT[], $2::TEXT[]) AS w (kind, key)
         JOIN records r ON r.kind = w.kind COLLATE \"C\" AND r.key = w.key COLLATE \"C\"",
    )
    .bind(kinds)
    .bind(keys)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get::<i64, _>(2)?.cast_unsigned()))).collect()
}

/// Writes records and log in one statement, which needs one round trip.
async fn apply(
    connection: &mut PgConnection,
    plan: &Plan<'_>,
    attempt: [u8; 16],
    channel: &str,
) -> Result<(), sqlx::Error> {
    let (mut kinds, mut keys, mut versions, mut values) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut gone_kinds, mut gone_keys) = (Vec::new(), Vec::new());
    for ((kind, key), record) in &plan.records {
        match record {
            Some((version, value)) => {
                kinds.push(*kind);
                keys.push(*key);
                versions.push(version.cast_signed());
                values.push(&***value);
            }
            None => {
                gone_kinds.push(*kind);
                gone_keys.push(*key);
            }
        }
    }
    let mut revisions = Vec::new();
    let (mut of, mut numbers, mut log_kinds, mut log_keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut log_values = Vec::new();
    for commit in plan.outcomes.iter().flatten() {
        revisions.push(commit.revision.cast_signed());
        for (number, change) in (0i32..).zip(&commit.changes) {
            of.push(commit.revision.cast_signed());
            numbers.push(number);
            log_kinds.push(&*change.kind);
            log_keys.push(&*change.key);
            log_values.push(change.record.as_ref().map(|record| &*record.value));
        }
    }
    sqlx::query(
        "WITH put AS (
             INSERT INTO records (kind, key, version, value)
             SELECT * FROM unnest($1::TEXT[], $2::TEXT[], $3::BIGINT[], $4::BYTEA[])
             ON CONFLICT (kind, key) DO UPDATE SET version = excluded.version, value = excluded.value
         ), gone AS (
             DELETE FROM records r USING unnest($5::TEXT[], $6::TEXT[]) AS g (kind, key)
             WHERE r.kind = g.kind COLLATE \"C\" AND r.key = g.key COLLATE \"C\"
         ), made AS (
             INSERT INTO commits (revision, attempt) SELECT revision, $8 FROM unnest($7::BIGINT[]) AS m (revision)
         ), changed AS (
             INSERT INTO changes (revision, number, kind, key, value)
             SELECT * FROM unnest($9::BIGINT[], $10::INTEGER[], $11::TEXT[], $12::TEXT[], $13::BYTEA[])
         ), moved AS (
             UPDATE head SET revision = $14
         )
         SELECT pg_notify($15, $14::BIGINT::TEXT)",
    )
    .bind(kinds)
    .bind(keys)
    .bind(versions)
    .bind(values)
    .bind(gone_kinds)
    .bind(gone_keys)
    .bind(revisions)
    .bind(attempt.as_slice())
    .bind(of)
    .bind(numbers)
    .bind(log_kinds)
    .bind(log_keys)
    .bind(log_values)
    .bind(plan.revision.cast_signed())
    .bind(channel)
    .execute(connection)
    .await
    .map(drop)
}
