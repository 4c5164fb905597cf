//! An SQLite file of Emberbox's own, used by one process at a time: is it ours, is it whole, is its schema ours; if
//! not, an error that says what to do.
#![forbid(unsafe_code)]

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

/// The first bytes of every SQLite file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Bytes of a page, as SQLite makes them unless told otherwise.
const SMALLEST: u64 = 4096;

/// Bytes of the header of a write-ahead log.
const LOG_HEADER: usize = 32;

/// What is in a file.
#[derive(Debug)]
pub struct Format {
    /// What errors call it, e.g. `event queue`.
    pub what: &'static str,
    /// In SQLite's header field for the program that a file belongs to; four letters that begin with `EMB`.
    pub application_id: u32,
    /// Schema changes, oldest first, each run once and only forward. A released one is never edited.
    pub migrations: &'static [&'static str],
    /// The tables that are checked whenever a file is opened: those that say what there is. Contents, which may be many
    /// gigabytes, are checked when they are read.
    pub checked: &'static [&'static str],
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The disk is full, another process has the file: try again when that is over.
    #[error("{operation}: {cause}")]
    Unavailable {
        /// What was being done, to what.
        operation: String,
        /// Why it failed, and what to do.
        cause: String,
    },
    /// The file is damaged, not Emberbox's, or of a newer one; says what to do.
    #[error("{0}")]
    Damaged(String),
}

/// A file by its path; it need not be there yet.
#[derive(Clone, Debug)]
pub struct SqliteFile {
    format: &'static Format,
    path: PathBuf,
}

impl SqliteFile {
    /// Does nothing yet.
    pub fn new(format: &'static Format, path: impl Into<PathBuf>) -> Self {
        Self { format, path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that no other process uses the file, as long as the answer is kept. Makes its folder if there is none.
    ///
    /// # Errors
    /// [`FileError::Unavailable`] if another process uses it, or the disk does not let us.
    pub fn lock(&self) -> Result<File, FileError> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(|e| self.io_failed("make the folder for", &e))?;
        }
        let mut name = self.path.as_os_str().to_owned();
        name.push(".lock");
        let file = File::options().create(true).truncate(false).write(true).open(&name);
        let file = file.map_err(|e| self.io_failed("open the lock file of", &e))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(FileError::Unavailable {
                operation: self.doing("open"),
                cause: "another Emberbox process uses it; stop that one, or choose another data directory".to_owned(),
            }),
            Err(TryLockError::Error(e)) => Err(self.io_failed("lock", &e)),
        }
    }

    /// A connection for one thread at a time that may write, to a file that was checked and migrated; makes the file if
    /// there is none.
    ///
    /// # Errors
    /// [`FileError::Damaged`] if it is damaged, not ours, or of a newer Emberbox; such a file is not changed.
    pub fn connect(&self) -> Result<Connection, FileError> {
        self.check_header()?;
        let failed = |error| self.sql_failed("open", &error);
        // Only looks, before anything (such as switching to WAL) could change a file that is not ours.
        let mut connection =
            self.open(OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).map_err(failed)?;
        let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed);
        let tables = count("SELECT count(*) FROM sqlite_schema")?;
        if tables > 0 && count("PRAGMA application_id")? != i64::from(self.format.application_id) {
            return Err(self.foreign("an SQLite database of another program"));
        }
        prepare_to_write(&connection).map_err(failed)?;
        self.migrate(&mut connection)?;
        if tables > 0 {
            self.check_whole(&connection)?;
        }
        Ok(connection)
    }

    /// Again a connection to a file that [`SqliteFile::connect`] has checked before.
    ///
    /// # Errors
    /// SQLite's.
    pub fn reconnect(&self) -> rusqlite::Result<Connection> {
        let connection = self.open(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        prepare_to_write(&connection)?;
        Ok(connection)
    }

    /// A connection that sees what was committed last and changes nothing.
    ///
    /// # Errors
    /// SQLite's.
    pub fn reader(&self) -> rusqlite::Result<Connection> {
        self.open(OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    /// Tells a damaged file from what may pass (a full disk, an IO error).
    pub fn sql_failed(&self, operation: &str, error: &rusqlite::Error) -> FileError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => self.damaged(&error.to_string()),
            Some(_) => FileError::Unavailable { operation: self.doing(operation), cause: error.to_string() },
            // A column that is not what the schema says.
            None => self.damaged(&error.to_string()),
        }
    }

    /// An error of the operating system.
    pub fn io_failed(&self, operation: &str, error: &io::Error) -> FileError {
        FileError::Unavailable { operation: self.doing(operation), cause: error.to_string() }
    }

    fn open(&self, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(&self.path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(connection)
    }

    fn check_header(&self) -> Result<(), FileError> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.io_failed("open", &e)),
        };
        let mut start = Vec::new();
        file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|e| self.io_failed("read", &e))?;
        if start.is_empty() {
            return Ok(());
        }
        if start != MAGIC {
            return Err(self.foreign("no SQLite database"));
        }
        // SQLite takes less than a page for nothing at all, and would begin anew.
        let length = file.metadata().map_err(|e| self.io_failed("look at", &e))?.len();
        if length < SMALLEST { Err(self.damaged("it ends within its first page")) } else { self.check_log() }
    }

    /// Where its write-ahead log is.
    pub fn log(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push("-wal");
        name.into()
    }

    /// SQLite takes a write-ahead log with a damaged header for an old one, and drops all that was committed to it.
    fn check_log(&self) -> Result<(), FileError> {
        let mut header = [0; LOG_HEADER];
        let read = File::open(self.log()).and_then(|mut file| file.read_exact(&mut header));
        match read {
            Ok(()) if whole(&header) => Ok(()),
            // Written and synced before the first frame: nothing was committed yet.
            Ok(()) if header == [0; LOG_HEADER] => Ok(()),
            Ok(()) => Err(self.damaged("the header of its -wal file is not what SQLite has written")),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(()),
            Err(e) => Err(self.io_failed("read the -wal file of", &e)),
        }
    }

    fn check_whole(&self, connection: &Connection) -> Result<(), FileError> {
        for table in self.format.checked {
            let check = || {
                let mut statement = connection.prepare(&format!("PRAGMA quick_check({table})"))?;
                statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
            };
            let findings = check().map_err(|error| self.sql_failed("check", &error))?;
            if findings != ["ok"] {
                return Err(self.damaged(&findings[..findings.len().min(3)].join("; ")));
            }
        }
        Ok(())
    }

    fn migrate(&self, connection: &mut Connection) -> Result<(), FileError> {
        let failed = |error| self.sql_failed("migrate", &error);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        transaction.pragma_update(None, "application_id", self.format.application_id).map_err(failed)?;
        let table = "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT";
        transaction.execute(table, []).map_err(failed)?;
        let done: i64 = transaction
            .query_row("SELECT coalesce(max(number), 0) FROM migrations", [], |row| row.get(0))
            .map_err(failed)?;
        let known = self.format.migrations.len() as i64;
        if done > known {
            return Err(FileError::Damaged(format!(
                "{}: it has schema {done}, this Emberbox knows {known}; use the newer Emberbox that wrote it",
                self.doing("open")
            )));
        }
        for (number, sql) in (1i64..).zip(self.format.migrations).filter(|(number, _)| *number > done) {
            transaction.execute_batch(sql).map_err(failed)?;
            transaction.execute("INSERT INTO migrations VALUES (?, datetime('now'))", [number]).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    fn doing(&self, operation: &str) -> String {
        format!("{operation} {} {}", self.format.what, self.path.display())
    }

    fn foreign(&self, found: &str) -> FileError {
        FileError::Damaged(format!(
            "{}: it is {found}; move the file away to start empty, or choose another data directory",
            self.doing("open")
        ))
    }

    fn damaged(&self, reason: &str) -> FileError {
        FileError::Damaged(format!(
            "{} {} is damaged: {reason}; stop Emberbox, keep a copy of the file with its -wal file, then restore it \
             from a backup or save what is left with `sqlite3 FILE .recover`, or move all of them away to start empty",
            self.format.what,
            self.path.display()
        ))
    }
}

/// Whether the header of a write-ahead log is one: its magic number and its checksum (file format of SQLite, 4.1, 4.2).
fn whole(header: &[u8; LOG_HEADER]) -> bool {
    let words = || header.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
    let numbers: Vec<u32> = words().map(u32::from_be_bytes).collect();
    // The last bit says in which order the checksum takes the bytes.
    if numbers[0] & !1 != 0x377f_0682 {
        return false;
    }
    let order = if numbers[0] & 1 == 1 { u32::from_be_bytes } else { u32::from_le_bytes };
    let summed: Vec<u32> = words().take(6).map(order).collect();
    let (mut first, mut second) = (0u32, 0u32);
    for pair in summed.chunks_exact(2) {
        first = first.wrapping_add(pair[0]).wrapping_add(second);
        second = second.wrapping_add(pair[1]).wrapping_add(first);
    }
    numbers[6..] == [first, second]
}

fn prepare_to_write(connection: &Connection) -> rusqlite::Result<()> {
    // A longer log (pages of 4 KiB) lets a checkpoint write each page of an index once for many rows. The cache (in KiB,
    // negative) holds, for example, the event queue's index by id for about 200,000 events; more is read from the file
    // again.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384;",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    static FIRST: Format = Format {
        what: "test file",
        application_id: 0x454d_4254,
        migrations: &["CREATE TABLE rows (number INTEGER PRIMARY KEY) STRICT"],
        checked: &["rows"],
    };
    static SECOND: Format = Format {
        what: "test file",
        application_id: 0x454d_4254,
        migrations: &[FIRST.migrations[0], "ALTER TABLE rows ADD COLUMN text TEXT"],
        checked: &["rows"],
    };
    static OTHER: Format = Format { application_id: 1, ..FIRST };

    fn message(result: Result<impl Sized, FileError>) -> String {
        result.map(|_| ()).expect_err("refused").to_string()
    }

    #[test]
    fn migrates_forward_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/file.db");
        let first = SqliteFile::new(&FIRST, &path);
        let lock = first.lock().unwrap();
        assert!(message(first.lock()).contains("another Emberbox process uses it"));
        drop(lock);
        first.connect().unwrap().execute("INSERT INTO rows VALUES (1)", []).unwrap();
        let second = SqliteFile::new(&SECOND, &path);
        for _ in 0..2 {
            second.connect().unwrap().execute("UPDATE rows SET text = 'x'", []).unwrap();
        }
        assert!(message(first.connect()).contains("it has schema 2, this Emberbox knows 1"));
        assert!(second.reader().unwrap().execute("DELETE FROM rows", []).is_err());
    }

    #[test]
    fn leaves_alone_what_is_not_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.db");
        let ours = SqliteFile::new(&FIRST, &path);
        std::fs::write(&path, "a letter, and not a short one").unwrap();
        assert!(message(ours.connect()).contains("no SQLite database"));
        std::fs::write(&path, MAGIC).unwrap();
        assert!(message(ours.connect()).contains("ends within its first page"));
        std::fs::remove_file(&path).unwrap();
        SqliteFile::new(&OTHER, &path).connect().unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(message(ours.connect()).contains("another program"));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
