//! What is in the file.

use sqlite_file::{FileError, Format};

use crate::api::QueueError;

/// The file's tables:
///
/// - `due`: not handed out before; for a leased event the end of its lease. An event whose lease has ended is thereby
///   ready without anybody writing.
/// - Bodies stand apart, so that a lease does not rewrite them.
/// - `queues.events` counts a queue's events, so that nobody has to.
pub(super) static FORMAT: Format = Format {
    what: "event queue",
    // `EMBQ`.
    application_id: 0x454d_4251,
    migrations: &["
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
"],
    checked: &["queues", "events"],
};

impl From<FileError> for QueueError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Unavailable { operation, cause } => Self::Unavailable { operation, cause },
            FileError::Damaged(text) => Self::Damaged(text),
        }
    }
}
