//! What is in the file.

use sqlite_file::Format;

/// The file's tables:
///
/// - `messages` is what decides, `contents` what is delivered: a receive does not rewrite the content.
/// - `messages.until`: of a delayed message the end of the delay, of one in flight the end of its visibility timeout,
///   otherwise null. `since`: when it was received; null unless in flight.
/// - `counters.next_seq`: numbers are not given twice, not even after the newest message is deleted.
pub(super) static FORMAT: Format = Format {
    what: "message store",
    // `EMBS`.
    application_id: 0x454d_4253,
    migrations: &["
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
"],
    checked: &["queues", "messages"],
};
