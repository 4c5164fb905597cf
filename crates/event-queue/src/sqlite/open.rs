//! Opening: is it ours, is it whole, is its schema ours; if not, an error that says what to do.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::statements::begin;
use crate::api::QueueError;

/// `EMBQ`, in SQLite's header field for the program that a file belongs to.
const APPLICATION_ID: i64 = 0x454d_4251;

/// The first bytes of every SQLite file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Bytes of a page, as SQLite makes them unless told otherwise.
const SMALLEST: u64 = 4096;

/// Schema changes, oldest first, each run once and only forward. A released one is never edited.
///
/// - `due`: not handed out before; for a leased event the end of its lease. An event whose lease has ended is thereby
///   ready without anybody writing.
/// - Bodies stand apart, so that a lease does not rewrite them.
/// - `queues.events` counts a queue's events, so that nobody has to.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE queues (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, events INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE events (
        queue INTEGER NOT NULL, seq INTEGER NOT NULL, id BLOB NOT NULL, enqueued_at INTEGER NOT NULL,
        due INTEGER NOT NULL, deliveries INTEGER NOT NULL DEFAULT 0, leased INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (queue, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX events_by_id ON events (queue, id);
    CREATE INDEX events_by_due ON events (queue, due, leased);
    CREATE TABLE bodies (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
"];

/// Makes sure that no other process uses the file: leases belong to the process that gave them.
pub(super) fn lock(path: &Path) -> Result<File, QueueError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| io_failed("make the folder for", path, &e))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(|e| io_failed("open the lock file of", path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(QueueError::Unavailable {
            operation: format!("open event queue {}", path.display()),
            cause: "another Emberbox process uses it; stop that one, or choose another data directory".to_owned(),
        }),
        Err(TryLockError::Error(e)) => Err(io_failed("lock", path, &e)),
    }
}

/// The writer's connection, to a file that was checked and migrated.
pub(super) fn connect(path: &Path) -> Result<Connection, QueueError> {
    check_header(path)?;
    let failed = |error| sql_failed("open", path, &error);
    // Only looks, before anything (such as switching to WAL) could change a file that is not ours.
    let mut connection =
        open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).map_err(failed)?;
    let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed);
    let tables = count("SELECT count(*) FROM sqlite_schema")?;
    if tables > 0 && count("PRAGMA application_id")? != APPLICATION_ID {
        return Err(foreign(path, "an SQLite database of another program"));
    }
    prepare_to_write(&connection).map_err(failed)?;
    migrate(path, &mut connection)?;
    if tables > 0 {
        check_whole(path, &connection)?;
    }
    Ok(connection)
}

/// Again a connection to a file that [`connect`] has checked before.
pub(super) fn reconnect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    prepare_to_write(&connection)?;
    Ok(connection)
}

/// A connection that sees what was committed last and changes nothing.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    // Each connection is used by one thread at a time.
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn prepare_to_write(connection: &Connection) -> rusqlite::Result<()> {
    // A longer log (pages of 4 KiB) lets a checkpoint write each page of the index by id once for many events. The
    // cache (in KiB, negative) holds that index for a backlog of about 200,000; more is read from the file again.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384;",
    )
}

fn check_header(path: &Path) -> Result<(), QueueError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_failed("open", path, &e)),
    };
    let mut start = Vec::new();
    file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|e| io_failed("read", path, &e))?;
    if start.is_empty() {
        return Ok(());
    }
    if start != MAGIC {
        return Err(foreign(path, "no SQLite database"));
    }
    // SQLite takes less than a page for nothing at all, and would begin anew.
    let length = file.metadata().map_err(|e| io_failed("look at", path, &e))?.len();
    if length < SMALLEST { Err(damaged(path, "it ends within its first page")) } else { Ok(()) }
}

/// Checks what decides which events there are. Bodies, which may be many gigabytes, are checked when they are read.
fn check_whole(path: &Path, connection: &Connection) -> Result<(), QueueError> {
    for check in ["PRAGMA quick_check(queues)", "PRAGMA quick_check(events)"] {
        let findings =
            || connection.prepare(check)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>();
        let findings = findings().map_err(|error| sql_failed("check", path, &error))?;
        if findings != ["ok"] {
            return Err(damaged(path, &findings[..findings.len().min(3)].join("; ")));
        }
    }
    Ok(())
}

fn migrate(path: &Path, connection: &mut Connection) -> Result<(), QueueError> {
    let failed = |error| sql_failed("migrate", path, &error);
    let transaction = begin(connection).map_err(failed)?;
    transaction
        .execute_batch(
            "PRAGMA application_id = 0x454d4251;
             CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT;",
        )
        .map_err(failed)?;
    let done: i64 = transaction
        .query_row("SELECT coalesce(max(number), 0) FROM migrations", [], |row| row.get(0))
        .map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    if done > known {
        return Err(QueueError::Damaged(format!(
            "open event queue {}: it has schema {done}, this Emberbox knows {known}; use the newer Emberbox that wrote it",
            path.display()
        )));
    }
    for (number, sql) in (1i64..).zip(MIGRATIONS).filter(|(number, _)| *number > done) {
        transaction.execute_batch(sql).map_err(failed)?;
        transaction.execute("INSERT INTO migrations VALUES (?, datetime('now'))", [number]).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

fn foreign(path: &Path, what: &str) -> QueueError {
    QueueError::Damaged(format!(
        "open event queue {}: it is {what}; move the file away to start empty, or choose another data directory",
        path.display()
    ))
}

pub(super) fn damaged(path: &Path, reason: &str) -> QueueError {
    QueueError::Damaged(format!(
        "event queue {} is damaged: {reason}; stop Emberbox, keep a copy of the file with its -wal file, then restore it \
         from a backup or save what is left with `sqlite3 FILE .recover`, or move all of them away to start empty",
        path.display()
    ))
}

fn io_failed(operation: &str, path: &Path, error: &io::Error) -> QueueError {
    QueueError::Unavailable {
        operation: format!("{operation} event queue {}", path.display()),
        cause: error.to_string(),
    }
}

/// Tells a damaged file from what may pass (a full disk, an IO error).
pub(super) fn sql_failed(operation: &str, path: &Path, error: &rusqlite::Error) -> QueueError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &error.to_string()),
        Some(_) => QueueError::Unavailable {
            operation: format!("{operation} event queue {}", path.display()),
            cause: error.to_string(),
        },
        // A column that is not what the schema says.
        None => damaged(path, &error.to_string()),
    }
}
