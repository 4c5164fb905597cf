//! The implementation for many processes: a schema of a PostgreSQL database.
//!
//! ```text
//!  commit ──► queue ──► writer: BEGIN, lock head, commit, commit, …, COMMIT ──► answers
//!  get, scan ──► pool of connections; never wait for a writer        │ NOTIFY, to every process
//!  changes ◄── feed: LISTEN, reads the log of commits ◄──────────────┘
//! ```
//!
//! - **Order.** Writers of all processes take turns by a row lock, so the order of revisions is that in which commits
//!   become visible, and the feed of every process has all of them, once, in that order.
//! - **Durable.** Answered commits are synced by the server, also where it says `synchronous_commit = off`; `fsync = off`, or a
//!   standby that takes over without having all, is the server's own doing. The feed notices the latter.
//! - **Away.** While the server cannot be reached, calls wait for 15 s, then fail; the feed goes on where it was.
//! - **Lost answers.** A commit whose connection broke before the answer is looked for in the log, and made if it was not.
//!   Only if the server stays away is it [`StoreError::Uncertain`].
//! - **Connections.** At most [`READERS`] that read, one that writes and one that listens; without calls, the latter alone.
//!   A pooler in between has to keep sessions, as `LISTEN` is one's.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row as _};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::api::{Changes, Op, Publisher, Record, Snapshot, Store, Subscriptions};
use crate::error::StoreError;

mod feed;
mod link;
mod migrate;
mod plan;
mod writer;

use feed::Feed;
use link::{ATTEMPT, Link, PATIENCE, Pauses, in_time, is_away};
use writer::{Request, Writer};

/// The schema that is used if none is named.
const SCHEMA: &str = "emberbox";
/// Connections that read.
const READERS: u32 = 3;
/// Those that were not used for so long are closed.
const IDLE: Duration = Duration::from_secs(60);
/// Commits that may wait for the writer before callers wait to enqueue.
const QUEUE: usize = 1024;

/// Metadata in a PostgreSQL database. Any number of processes may have it open.
#[derive(Debug)]
pub struct PostgresStore {
    link: Arc<Link>,
    readers: PgPool,
    commits: mpsc::Sender<Request>,
    subscriptions: Subscriptions,
    writer: Mutex<Option<JoinHandle<()>>>,
    feed: JoinHandle<()>,
}

impl PostgresStore {
    /// Connects to the database and brings the schema `emberbox` up to date, or makes it.
    ///
    /// `url` is `postgres://ROLE:PASSWORD@HOST:PORT/DATABASE?PARAMETERS`, with PostgreSQL's usual parameters: `sslmode`
    /// (`verify-full` is the one that knows the server for certain), `sslrootcert`, `sslcert`, `sslkey`, `host` (also the
    /// directory of a Unix socket), `options`. What it does not say comes from libpq's environment variables, such as
    /// `PGPASSWORD`, and from `~/.pgpass`. The role needs the right to make a schema, or a schema of its own.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the server does not answer for 15 s; [`StoreError::Refused`], with what to do, if it
    /// does not let this role in, or has something else there; [`StoreError::Newer`] if the schema wants a newer Emberbox.
    /// None of them has the password.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_in(url, SCHEMA).await
    }

    /// Like [`open`](Self::open) in another schema, so that several fleets can share one database. `schema` is of
    /// lower-case letters, digits and `_`, at most 48, the first no digit.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub async fn open_in(url: &str, schema: &str) -> Result<Self, StoreError> {
        let link = Arc::new(Link::new(url, schema)?);
        let (connection, revision) = first_contact(&link).await?;
        let readers = link.pool(READERS, Some(IDLE));
        let publisher = Publisher::new();
        let made = Arc::new(Notify::new());
        let (commits, requests) = mpsc::channel(QUEUE);
        let writer = tokio::spawn(Writer::new(Arc::clone(&link), connection, Arc::clone(&made)).run(requests));
        let subscriptions = publisher.subscriptions();
        let feed = tokio::spawn(Feed::new(Arc::clone(&link), publisher, made, revision).run());
        Ok(Self { link, readers, commits, subscriptions, writer: Mutex::new(Some(writer)), feed })
    }

    /// Waits for the commits that are under way and closes all connections. Later calls fail with [`StoreError::Closed`],
    /// and subscribers are told.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        // Either the writer answers, or it is gone already.
        if self.commits.send(Request::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.await;
        }
        self.feed.abort();
        // A connection that is dead takes its time to notice.
        let _ = timeout(ATTEMPT, self.readers.close()).await;
    }

    /// Runs a query that only reads, again if the connection breaks.
    async fn read(
        &self,
        operation: &'static str,
        query: impl Fn() -> Query<'static, Postgres, PgArguments> + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        let mut pauses = Pauses::new(Some(Instant::now() + PATIENCE));
        loop {
            let error = match self.readers.acquire().await {
                Ok(mut connection) => match all(query(), &mut connection).await {
                    Ok(rows) => return Ok(rows),
                    Err(error) => {
                        // The pool would want to hear from it once more.
                        drop(connection.detach());
                        error
                    }
                },
                Err(sqlx::Error::PoolTimedOut) => self.link.why_none().await,
                Err(error) => error,
            };
            if !is_away(&error) || !pauses.pause().await {
                return Err(self.link.failed(operation, &error));
            }
        }
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        // The writer ends by itself, when it has done what it was asked for.
        self.feed.abort();
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Record>, StoreError> {
        let (kind, key) = (kind.to_owned(), key.to_owned());
        let query = || {
            sqlx::query("SELECT version, value FROM records WHERE kind = $1 AND key = $2")
                .bind(kind.clone())
                .bind(key.clone())
        };
        let rows = self.read("read", query).await?;
        let record = rows.first().map(|row| record(row, 0)).transpose();
        record.map_err(|error| self.link.failed("read", &error))
    }

    async fn scan(&self, kind: &str, prefix: &str) -> Result<Snapshot, StoreError> {
        let (kind, from, to) = (kind.to_owned(), prefix.to_owned(), format!("{prefix}{}", char::MAX));
        // One statement sees one state: the revision belongs to exactly these records.
        let query = || {
            sqlx::query(
                "SELECT h.revision, r.key, r.version, r.value FROM head h
                 LEFT JOIN records r ON r.kind = $1 AND r.key >= $2 AND r.key < $3 ORDER BY r.key",
            )
            .bind(kind.clone())
            .bind(from.clone())
            .bind(to.clone())
        };
        let rows = self.read("scan", query).await?;
        snapshot(&rows).map_err(|error| self.link.failed("scan", &error))
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<u64, StoreError> {
        let (done, result) = oneshot::channel();
        let request = Request::Commit { ops, since: Instant::now(), done };
        self.commits.send(request).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    fn changes(&self) -> Changes {
        self.subscriptions.subscribe()
    }
}

/// All rows, each in time: many take long.
async fn all(
    query: Query<'_, Postgres, PgArguments>,
    connection: &mut PgConnection,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut rows = query.fetch(connection);
    let mut all = Vec::new();
    while let Some(row) = in_time(ATTEMPT, rows.try_next()).await? {
        all.push(row);
    }
    Ok(all)
}

/// A connection to the database, whose schema is up to date, and the revision that it has.
async fn first_contact(link: &Link) -> Result<(PgConnection, u64), StoreError> {
    let mut pauses = Pauses::new(Some(Instant::now() + PATIENCE));
    let mut told = false;
    loop {
        let error = match open(link).await {
            Err(error @ StoreError::Unavailable { .. }) => error,
            result => return result,
        };
        if !told {
            tracing::warn!(%error, "trying again");
            told = true;
        }
        if !pauses.pause().await {
            return Err(error);
        }
    }
}

async fn open(link: &Link) -> Result<(PgConnection, u64), StoreError> {
    let failed = |error| link.failed("open", &error);
    let mut connection = link.connect().await.map_err(failed)?;
    migrate::migrate(&mut connection, link).await?;
    let revision: i64 =
        sqlx::query_scalar("SELECT revision FROM head").fetch_one(&mut connection).await.map_err(failed)?;
    Ok((connection, revision.cast_unsigned()))
}

fn snapshot(rows: &[PgRow]) -> Result<Snapshot, sqlx::Error> {
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        // One row without a record: there is none.
        if let Some(key) = row.try_get::<Option<String>, _>(1)? {
            records.push((key, record(row, 2)?));
        }
    }
    Ok(Snapshot { revision: first.try_get::<i64, _>(0)?.cast_unsigned(), records })
}

/// From the columns version and value, of which `first` is the index of the first.
fn record(row: &PgRow, first: usize) -> Result<Record, sqlx::Error> {
    let version: i64 = row.try_get(first)?;
    Ok(Record { version: version.cast_unsigned(), value: Bytes::from(row.try_get::<Vec<u8>, _>(first + 1)?) })
}
