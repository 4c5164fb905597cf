//! What is in the file.

use sqlite_file::{FileError, Format};

use crate::api::QueueError;

/// The file's tables:
///
/// - `seq` grows over all queues: what comes in is written at the end of few pages.
/// - `due`: not handed out before; nothing if it may be at once, as nearly all may. Only the others stand in the index.
/// - Who has leased an event, and how many there are, is not written (see `present`).
/// - Bodies stand apart, so that what is checked and searched stays small.
pub(super) static FORMAT: Format = Format {
    what: "event queue",
    // `EMBQ`.
    application_id: 0x454d_4251,
    migrations: &[
        "
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
",
        "
    DROP INDEX events_by_id;
    DROP INDEX events_by_due;
    ALTER TABLE events RENAME TO old_events;
    CREATE TABLE events (
        queue INTEGER NOT NULL, seq INTEGER NOT NULL, id BLOB NOT NULL, enqueued_at INTEGER NOT NULL,
        due INTEGER, deliveries INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (queue, seq)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO events SELECT queue, seq, id, enqueued_at, iif(leased, enqueued_at, due), deliveries FROM old_events;
    DROP TABLE old_events;
    ALTER TABLE queues DROP COLUMN events;
    CREATE INDEX events_later ON events (queue, due) WHERE due IS NOT NULL;
",
    ],
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
