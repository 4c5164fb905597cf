//! The embedded implementation: one SQLite file in WAL mode.
//!
//! ```text
//!  commit ──► queue ──► writer task: BEGIN, commit, commit, …, COMMIT (one fsync) ──► answers, then the feed
//!  get, scan ──► pool of read-only connections; never wait for the writer
//! ```

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{Connection as _, Row as _};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::api::{Changes, Op, Publisher, Record, Snapshot, Store};
use crate::error::StoreError;

mod open;
mod writer;

use writer::{Request, Writer};

/// Connections that read.
const READERS: u32 = 4;
/// Commits that may wait for the writer before callers wait to enqueue.
const QUEUE: usize = 1024;

/// Metadata in an SQLite file. One process at a time may have it open.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    readers: SqlitePool,
    commits: mpsc::Sender<Request>,
    publisher: Publisher,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens the file, or makes it (and its folder) if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// Says which file, what is wrong with it and what to do when it is in use, damaged, not Emberbox's, or written by a
    /// newer version.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let lock = open::lock(&path)?;
        let connection = open::connect(&path).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_lazy_with(open::options(&path).create_if_missing(false).read_only(true));
        let publisher = Publisher::new();
        let (commits, requests) = mpsc::channel(QUEUE);
        let writer = Writer::new(path.clone(), connection, publisher.clone(), lock);
        let writer = tokio::spawn(writer.run(requests));
        Ok(Self { path, readers, commits, publisher, writer: Mutex::new(Some(writer)) })
    }

    /// Waits for the commits that are under way and closes the file, which then may be opened again. Later calls fail
    /// with [`StoreError::Closed`].
    pub async fn close(&self) {
        self.readers.close().await;
        let (done, closed) = oneshot::channel();
        // Either the writer answers, or it is gone already.
        if self.commits.send(Request::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.await;
        }
    }

    fn failed(&self, operation: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
        let path = self.path.clone();
        move |error| StoreError::sql(operation, &path, error)
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Record>, StoreError> {
        let row = sqlx::query("SELECT version, value FROM records WHERE kind = ? AND key = ?")
            .bind(kind)
            .bind(key)
            .fetch_optional(&self.readers)
            .await
            .map_err(self.failed("read"))?;
        row.as_ref().map(record).transpose().map_err(self.failed("read"))
    }

    async fn scan(&self, kind: &str, prefix: &str) -> Result<Snapshot, StoreError> {
        self.scan_rows(kind, prefix).await.map_err(self.failed("scan"))
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<u64, StoreError> {
        let (done, result) = oneshot::channel();
        self.commits.send(Request::Commit { ops, done }).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    fn changes(&self) -> Changes {
        self.publisher.subscribe()
    }
}

impl SqliteStore {
    async fn scan_rows(&self, kind: &str, prefix: &str) -> Result<Snapshot, sqlx::Error> {
        let mut connection = self.readers.acquire().await?;
        // One read transaction: the revision belongs to exactly these records.
        let mut view = connection.begin().await?;
        let revision: i64 = sqlx::query_scalar("SELECT value FROM revision").fetch_one(&mut *view).await?;
        let rows =
            sqlx::query("SELECT version, value, key FROM records WHERE kind = ? AND key >= ? AND key < ? ORDER BY key")
                .bind(kind)
                .bind(prefix)
                .bind(format!("{prefix}{}", char::MAX))
                .fetch_all(&mut *view)
                .await?;
        view.rollback().await?;
        let records = rows.iter().map(|row| Ok((row.try_get(2)?, record(row)?))).collect::<Result<_, sqlx::Error>>()?;
        Ok(Snapshot { revision: revision.cast_unsigned(), records })
    }
}

fn record(row: &SqliteRow) -> Result<Record, sqlx::Error> {
    let version: i64 = row.try_get(0)?;
    Ok(Record { version: version.cast_unsigned(), value: Bytes::from(row.try_get::<Vec<u8>, _>(1)?) })
}
