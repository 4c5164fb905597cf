//! Opening: is it ours, is it whole, is its schema ours; if not, an error that says what to do.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;

/// `EMBS`, in SQLite's header field for the program that a file belongs to.
const APPLICATION_ID: i64 = 0x454d_4253;

/// The first bytes of every SQLite file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Bytes of a page, as SQLite makes them unless told otherwise.
const SMALLEST: u64 = 4096;

/// Schema changes, oldest first, each run once and only forward. A released one is never edited.
///
/// - `messages` is what decides, `contents` what is delivered: a receive does not rewrite the content.
/// - `messages.until`: of a delayed message the end of the delay, of one in flight the end of its visibility timeout,
///   otherwise null. `since`: when it was received; null unless in flight.
/// - `counters.next_seq`: numbers are not given twice, not even after the newest message is deleted.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE queues (
        number INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL, region TEXT NOT NULL, name TEXT NOT NULL,
        attributes TEXT NOT NULL, tags TEXT NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL,
        UNIQUE (account, region, name)
    ) STRICT;
    CREATE TABLE messages (
        seq INTEGER PRIMARY KEY, queue INTEGER NOT NULL, id BLOB NOT NULL, sent INTEGER NOT NULL, grp TEXT,
        until INTEGER, since INTEGER, receives INTEGER NOT NULL, earlier INTEGER NOT NULL, first_received INTEGER
    ) STRICT;
    CREATE INDEX messages_by_queue ON messages (queue);
    CREATE TABLE contents (seq INTEGER PRIMARY KEY, details TEXT NOT NULL, body TEXT NOT NULL) STRICT;
    CREATE TABLE originals (
        queue INTEGER NOT NULL, scope TEXT NOT NULL, dedup TEXT NOT NULL, id BLOB NOT NULL, seq INTEGER NOT NULL,
        until INTEGER NOT NULL, PRIMARY KEY (queue, scope, dedup)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX originals_by_until ON originals (until);
    CREATE TABLE counters (next_seq INTEGER NOT NULL) STRICT;
    INSERT INTO counters VALUES (1);
"];

/// Makes sure that no other process uses the file.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| io_failed("make the folder for", path, &e))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(|e| io_failed("open the lock file of", path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable {
            operation: format!("open message store {}", path.display()),
            cause: "another Emberbox process uses it; stop that one, or choose another data directory".to_owned(),
        }),
        Err(TryLockError::Error(e)) => Err(io_failed("lock", path, &e)),
    }
}

/// The connection, to a file that was checked and migrated.
pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    check_header(path)?;
    let failed = |error| sql_failed("open", path, &error);
    // Only looks, before anything (such as switching to WAL) could change a file that is not ours.
    let mut connection = open(path, OpenFlags::SQLITE_OPEN_CREATE).map_err(failed)?;
    let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed);
    let tables = count("SELECT count(*) FROM sqlite_schema")?;
    if tables > 0 && count("PRAGMA application_id")? != APPLICATION_ID {
        return Err(foreign(path, "an SQLite database of another program"));
    }
    prepare(&connection).map_err(failed)?;
    migrate(path, &mut connection)?;
    if tables > 0 {
        check_whole(path, &connection)?;
    }
    Ok(connection)
}

/// Again a connection to a file that [`connect`] has checked before.
pub(super) fn reconnect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open(path, OpenFlags::empty())?;
    prepare(&connection)?;
    Ok(connection)
}

fn open(path: &Path, create: OpenFlags) -> rusqlite::Result<Connection> {
    // The connection is used by one thread.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384;",
    )
}

fn check_header(path: &Path) -> Result<(), StoreError> {
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

/// Checks what decides which messages there are. Contents, which may be many gigabytes, are checked when they are read.
fn check_whole(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    for check in ["PRAGMA quick_check(queues)", "PRAGMA quick_check(messages)"] {
        let findings =
            || connection.prepare(check)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>();
        let findings = findings().map_err(|error| sql_failed("check", path, &error))?;
        if findings != ["ok"] {
            return Err(damaged(path, &findings[..findings.len().min(3)].join("; ")));
        }
    }
    Ok(())
}

fn migrate(path: &Path, connection: &mut Connection) -> Result<(), StoreError> {
    let failed = |error| sql_failed("migrate", path, &error);
    let transaction = connection.transaction().map_err(failed)?;
    transaction
        .execute_batch(
            "PRAGMA application_id = 0x454d4253;
             CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT;",
        )
        .map_err(failed)?;
    let done: i64 = transaction
        .query_row("SELECT coalesce(max(number), 0) FROM migrations", [], |row| row.get(0))
        .map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    if done > known {
        return Err(StoreError::Damaged(format!(
            "open message store {}: it has schema {done}, this Emberbox knows {known}; use the newer Emberbox that wrote it",
            path.display()
        )));
    }
    for (number, sql) in (1i64..).zip(MIGRATIONS).filter(|(number, _)| *number > done) {
        transaction.execute_batch(sql).map_err(failed)?;
        transaction.execute("INSERT INTO migrations VALUES (?, datetime('now'))", [number]).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

fn foreign(path: &Path, what: &str) -> StoreError {
    StoreError::Damaged(format!(
        "open message store {}: it is {what}; move the file away to start empty, or choose another data directory",
        path.display()
    ))
}

fn damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::Damaged(format!(
        "message store {} is damaged: {reason}; stop Emberbox, keep a copy of the file with its -wal file, then restore it \
         from a backup or save what is left with `sqlite3 FILE .recover`, or move all of them away to start empty",
        path.display()
    ))
}

pub(super) fn io_failed(operation: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable {
        operation: format!("{operation} message store {}", path.display()),
        cause: error.to_string(),
    }
}

/// Tells a damaged file from what may pass (a full disk, an IO error).
pub(super) fn sql_failed(operation: &str, path: &Path, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &error.to_string()),
        Some(_) => StoreError::Unavailable {
            operation: format!("{operation} message store {}", path.display()),
            cause: error.to_string(),
        },
        // A column that is not what the schema says.
        None => damaged(path, &error.to_string()),
    }
}
