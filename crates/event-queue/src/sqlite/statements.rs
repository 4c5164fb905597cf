//! The SQL of one group, inside its transaction. Statements are prepared once and kept with the connection.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use crate::api::{Entry, QueueName};
use crate::rotation::Number;
use crate::time::after;

/// Events that a purge drops in one transaction.
const PURGE_CHUNK: i64 = 1000;
/// What is damaged is looked at again after this: the file may have been mended.
pub(super) const DAMAGED: Duration = Duration::from_secs(60 * 60);

/// Begins to write.
pub(super) fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// Forgets queues without events.
pub(super) fn forget_empty(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM queues WHERE NOT EXISTS (SELECT 1 FROM events WHERE queue = number)", []).map(drop)
}

/// How many events each queue has: looks at all of them.
pub(super) fn count(connection: &Connection) -> rusqlite::Result<Vec<(Number, u64)>> {
    let mut statement = connection.prepare("SELECT queue, count(*) FROM events GROUP BY queue")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?;
    rows.collect()
}

/// All queues.
pub(super) fn queues(connection: &Connection) -> rusqlite::Result<Vec<(Number, QueueName)>> {
    let mut statement = connection.prepare_cached("SELECT number, name FROM queues")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, QueueName(row.get::<_, String>(1)?.into()))))?;
    rows.collect()
}

/// The number of the next event; higher than all that are there.
pub(super) fn next_seq(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT coalesce(max(seq), 0) + 1 FROM bodies", [], |row| row.get(0))
}

/// The queue's number; it gets one if it has none.
pub(super) fn number(connection: &Connection, name: &QueueName) -> rusqlite::Result<Number> {
    connection.prepare_cached("INSERT OR IGNORE INTO queues (name) VALUES (?)")?.execute([&*name.0])?;
    connection.prepare_cached("SELECT number FROM queues WHERE name = ?")?.query_row([&*name.0], |row| row.get(0))
}

/// Puts an event in. `due`: nothing if it may be handed out at once.
pub(super) fn insert(
    connection: &Connection,
    queue: Number,
    seq: i64,
    entry: &Entry,
    now: i64,
    due: Option<i64>,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO events (queue, seq, id, enqueued_at, due) VALUES (?, ?, ?, ?, ?)")?
        .execute(params![queue, seq, &entry.id.as_bytes()[..], now, due])?;
    connection.prepare_cached("INSERT INTO bodies VALUES (?, ?)")?.execute(params![seq, &*entry.body]).map(drop)
}

/// An event that may be handed out.
pub(super) struct Ready {
    pub seq: i64,
    /// Whether it did not have to wait for a time.
    pub at_once: bool,
    pub event: Uuid,
    pub enqueued_at: i64,
    /// So far.
    pub deliveries: u32,
    pub body: Bytes,
}

/// Finds up to `most` events that are ready and of which `taken` does not say that they are handed out, and whether there
/// are more: first those whose time has come, the longest due first, then those that may be handed out at once and whose
/// number is above the start of `seqs`, in the order in which they came. Of those above its end, none. One that cannot be read is kept aside, not dropped, and keeps
/// no other from being found.
pub(super) fn ready(
    connection: &Connection,
    queue: Number,
    seqs: Range<i64>,
    most: usize,
    now: i64,
    taken: impl Fn(i64) -> bool,
) -> rusqlite::Result<(Vec<Ready>, bool)> {
    let (mut events, mut damaged, mut more) = (Vec::new(), Vec::new(), false);
    for (which, bound) in [("due <= ?2 ORDER BY due", now), ("due IS NULL AND seq > ?2 ORDER BY seq", seqs.start)] {
        let sql = format!(
            "SELECT seq, id, enqueued_at, deliveries, due IS NULL FROM events WHERE queue = ?1 AND seq <= ?3 AND {which}"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query([i64::from(queue), bound, seqs.end])?;
        while let Some(row) = rows.next()? {
            let seq = row.get(0)?;
            if taken(seq) {
                continue;
            }
            if events.len() == most {
                more = true;
                break;
            }
            match read(connection, seq, row) {
                Ok(event) => events.push(event),
                Err(error) if error.sqlite_error_code().is_some() => return Err(error),
                Err(error) => damaged.push((seq, error)),
            }
        }
    }
    for (seq, error) in damaged {
        tracing::error!(
            queue, seq, %error,
            "an event's row in the queue's file is damaged: it is kept and looked at again in an hour. Restore the file from \
             a backup, or purge the queue"
        );
        set_due(connection, queue, seq, after(now, DAMAGED))?;
    }
    Ok((events, more))
}

fn read(connection: &Connection, seq: i64, row: &Row<'_>) -> rusqlite::Result<Ready> {
    let event = Uuid::from_slice(row.get_ref(1)?.as_blob()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, Type::Blob, error.into()))?;
    let body = connection
        .prepare_cached("SELECT body FROM bodies WHERE seq = ?")?
        .query_row([seq], |row| Ok(Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?)))?;
    Ok(Ready { seq, at_once: row.get(4)?, event, enqueued_at: row.get(2)?, deliveries: row.get(3)?, body })
}

/// Whether the queue has events that may be handed out at once, or are already.
pub(super) fn any_at_once(connection: &Connection, queue: Number) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM events WHERE queue = ? AND due IS NULL LIMIT 1")?.exists([queue])
}

/// When the next event is due of those that wait for a time after `after`.
pub(super) fn next_due(connection: &Connection, queue: Number, after: i64) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT due FROM events WHERE queue = ? AND due > ? ORDER BY due LIMIT 1")?
        .query_row(params![queue, after], |row| row.get(0))
        .optional()
}

/// Sets when an event is due.
pub(super) fn set_due(connection: &Connection, queue: Number, seq: i64, due: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE events SET due = ? WHERE queue = ? AND seq = ?")?
        .execute(params![due, queue, seq])
        .map(drop)
}

/// Notes how often an event was handed out, and when it is due again.
pub(super) fn give_back(
    connection: &Connection,
    queue: Number,
    seq: i64,
    deliveries: u32,
    due: i64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE events SET deliveries = ?, due = ? WHERE queue = ? AND seq = ?")?
        .execute(params![deliveries, due, queue, seq])
        .map(drop)
}

/// Replaces an event's body.
pub(super) fn set_body(connection: &Connection, seq: i64, body: &[u8]) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE bodies SET body = ? WHERE seq = ?")?.execute(params![body, seq]).map(drop)
}

/// Deletes an event.
pub(super) fn delete(connection: &Connection, queue: Number, seq: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM events WHERE queue = ? AND seq = ?")?.execute(params![queue, seq])?;
    connection.prepare_cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq]).map(drop)
}

/// Deletes some events of a queue whose number is below `below`; how many, and whether there may be more.
pub(super) fn purge(connection: &Connection, queue: Number, below: i64) -> rusqlite::Result<(u64, bool)> {
    let seqs = "SELECT seq FROM events WHERE queue = ?1 AND seq < ?2 ORDER BY seq LIMIT ?3";
    let mut deleted = 0;
    for sql in [
        format!("DELETE FROM bodies WHERE seq IN ({seqs})"),
        format!("DELETE FROM events WHERE queue = ?1 AND seq IN ({seqs})"),
    ] {
        deleted = connection.prepare_cached(&sql)?.execute(params![queue, below, PURGE_CHUNK])? as u64;
    }
    Ok((deleted, deleted == PURGE_CHUNK.cast_unsigned()))
}
