//! Opening: is it ours, is it whole, is its schema ours; if not, an error that says what to do.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

use crate::error::StoreError;

/// `EMBX`, in SQLite's header field for the program that a file belongs to.
const APPLICATION_ID: i64 = 0x454d_4258;

/// The first bytes of every SQLite file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Schema changes, oldest first, each run once and only forward. A released one is never edited.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE records (
        kind TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE revision (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL) STRICT;
    INSERT INTO revision VALUES (1, 0);
"];

/// Makes sure that no other process uses the file: each has a copy in memory that the other would not update.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| StoreError::io("make the folder for", path, e))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(|e| StoreError::io("open the lock file of", path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(e)) => Err(StoreError::io("lock", path, e)),
    }
}

/// What all connections share. `FULL` makes every commit of the WAL an fsync.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::from_secs(10))
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
}

/// The writer's connection, to a file that was checked and migrated.
pub(super) async fn connect(path: &Path) -> Result<SqliteConnection, StoreError> {
    check_header(path)?;
    let failed = |error| StoreError::sql("open", path, error);
    // Only looks, before anything (such as switching to WAL) could change a file that is not ours.
    let mut connection = options(path).create_if_missing(true).connect().await.map_err(failed)?;
    let empty = is_empty(&mut connection).await.map_err(failed)?;
    if !empty {
        let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut connection).await.map_err(failed)?;
        if id != APPLICATION_ID {
            let reason = "it is an SQLite database of another program".to_owned();
            return Err(StoreError::Foreign { path: path.to_owned(), reason });
        }
        check_whole(path, &mut connection).await?;
    }
    connection.close().await.map_err(failed)?;
    let mut connection = options(path).journal_mode(SqliteJournalMode::Wal).connect().await.map_err(failed)?;
    migrate(path, &mut connection).await?;
    Ok(connection)
}

fn check_header(path: &Path) -> Result<(), StoreError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StoreError::io("open", path, e)),
    };
    let mut start = Vec::new();
    file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|e| StoreError::io("read", path, e))?;
    if start.is_empty() || start == MAGIC {
        return Ok(());
    }
    Err(StoreError::Foreign { path: path.to_owned(), reason: "it is not an SQLite database".to_owned() })
}

async fn is_empty(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(connection).await?;
    Ok(tables == 0)
}

async fn check_whole(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let findings: Vec<String> = sqlx::query_scalar("PRAGMA quick_check(3)")
        .fetch_all(connection)
        .await
        .map_err(|error| StoreError::sql("check", path, error))?;
    if findings == ["ok"] {
        return Ok(());
    }
    Err(StoreError::Damaged { path: path.to_owned(), reason: findings.join("; ") })
}

async fn migrate(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let failed = |error| StoreError::sql("migrate", path, error);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    transaction
        .execute(sqlx::raw_sql(
            "PRAGMA application_id = 0x454d4258;
             CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT;",
        ))
        .await
        .map_err(failed)?;
    let done: i64 = sqlx::query_scalar("SELECT coalesce(max(number), 0) FROM migrations")
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    if done > known {
        return Err(StoreError::Newer { place: path.display().to_string(), found: done, known });
    }
    for (number, sql) in (1i64..).zip(MIGRATIONS).filter(|(number, _)| *number > done) {
        transaction.execute(sqlx::raw_sql(*sql)).await.map_err(failed)?;
        sqlx::query("INSERT INTO migrations VALUES (?, datetime('now'))")
            .bind(number)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}
