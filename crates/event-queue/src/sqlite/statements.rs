//! The SQL of one group, inside its transaction. Statements are prepared once and kept with the connection.

use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::ticket::Ticket;
use crate::api::{Entry, Lease, QueueName};
use crate::rotation::Number;
use crate::time::{after, system_time};

/// Events that a purge drops in one transaction.
const PURGE_CHUNK: i64 = 1000;
/// What is damaged is looked at again after this: the file may have been mended.
pub(super) const DAMAGED: Duration = Duration::from_secs(60 * 60);

/// Begins to write.
pub(super) fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// Ends the leases of earlier runs, and forgets queues without events.
pub(super) fn end_leases(connection: &mut Connection, now: i64) -> rusqlite::Result<()> {
    let transaction = begin(connection)?;
    transaction.execute("UPDATE events SET due = ?, leased = 0 WHERE leased = 1", [now])?;
    transaction.execute("DELETE FROM queues WHERE events = 0", [])?;
    transaction.commit()
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

/// Adds to the count of a queue's events.
pub(super) fn count(connection: &Connection, queue: Number, change: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE queues SET events = events + ? WHERE number = ?")?
        .execute(params![change, queue])
        .map(drop)
}

/// Puts an event in, if its id is not there; when it is due.
pub(super) fn insert(
    connection: &Connection,
    queue: Number,
    seq: i64,
    entry: &Entry,
    now: i64,
) -> rusqlite::Result<Option<i64>> {
    let due = after(now, entry.delay);
    let inserted = connection
        .prepare_cached("INSERT OR IGNORE INTO events (queue, seq, id, enqueued_at, due) VALUES (?, ?, ?, ?, ?)")?
        .execute(params![queue, seq, &entry.id.as_bytes()[..], now, due])?;
    if inserted == 0 {
        return Ok(None);
    }
    connection.prepare_cached("INSERT INTO bodies VALUES (?, ?)")?.execute(params![seq, &*entry.body])?;
    Ok(Some(due))
}

/// Leases up to `most` events that are due, the longest due first. One that cannot be read is kept aside, not dropped, and
/// keeps no other from being handed out.
pub(super) fn lease(
    connection: &Connection,
    epoch: u32,
    (number, name): (Number, &QueueName),
    most: usize,
    now: i64,
    lease: Duration,
) -> rusqlite::Result<Vec<Lease>> {
    let mut statement = connection.prepare_cached(
        "UPDATE events SET due = ?3, deliveries = deliveries + 1, leased = 1
         WHERE queue = ?1 AND seq IN (SELECT seq FROM events WHERE queue = ?1 AND due <= ?2 ORDER BY due LIMIT ?4)
         RETURNING seq, id, enqueued_at, deliveries, (SELECT body FROM bodies WHERE bodies.seq = events.seq)",
    )?;
    // A lease that ends now would be handed out again by the same call.
    let due = after(now, lease.max(Duration::from_millis(1)));
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![number, now, due, most], |row| {
        let seq: i64 = row.get(0)?;
        let read = || {
            let deliveries: u32 = row.get(3)?;
            let ticket = Ticket { queue: number, seq, deliveries: deliveries as u16 };
            let event = Uuid::from_slice(row.get_ref(1)?.as_blob()?)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, Type::Blob, error.into()))?;
            Ok::<_, rusqlite::Error>(Lease {
                id: ticket.id(epoch),
                queue: name.clone(),
                event,
                body: Bytes::copy_from_slice(row.get_ref(4)?.as_blob()?),
                enqueued_at: system_time(row.get(2)?),
                deliveries,
            })
        };
        Ok(read().map_err(|error| (seq, error)))
    })?;
    let (mut leases, mut damaged) = (Vec::new(), Vec::new());
    for row in rows {
        match row? {
            Ok(lease) => leases.push(lease),
            Err(row) => damaged.push(row),
        }
    }
    for (seq, error) in damaged {
        tracing::error!(
            queue = %name, seq, %error,
            "an event's row in the queue's file is damaged: it is kept and looked at again in an hour. Restore the file from \
             a backup, or purge the queue"
        );
        connection
            .prepare_cached("UPDATE events SET due = ?, leased = 0 WHERE queue = ? AND seq = ?")?
            .execute(params![after(now, DAMAGED), number, seq])?;
    }
    Ok(leases)
}

/// When the queue's next event is due or its next lease ends.
pub(super) fn next_due(connection: &Connection, queue: Number) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT due FROM events WHERE queue = ? ORDER BY due LIMIT 1")?
        .query_row([queue], |row| row.get(0))
        .optional()
}

/// Sets when the event is due; whether the lease was still on.
pub(super) fn set_due(
    connection: &Connection,
    ticket: Ticket,
    now: i64,
    due: i64,
    leased: bool,
) -> rusqlite::Result<bool> {
    let updated = connection
        .prepare_cached(
            "UPDATE events SET due = ?, leased = ?
             WHERE queue = ? AND seq = ? AND deliveries & 65535 = ? AND leased = 1 AND due > ?",
        )?
        .execute(params![due, leased, ticket.queue, ticket.seq, ticket.deliveries, now])?;
    Ok(updated == 1)
}

/// Replaces an event's body.
pub(super) fn set_body(connection: &Connection, seq: i64, body: &[u8]) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE bodies SET body = ? WHERE seq = ?")?.execute(params![body, seq]).map(drop)
}

/// Deletes a leased event; whether the lease was still on.
pub(super) fn delete(connection: &Connection, ticket: Ticket, now: i64) -> rusqlite::Result<bool> {
    let deleted = connection
        .prepare_cached(
            "DELETE FROM events WHERE queue = ? AND seq = ? AND deliveries & 65535 = ? AND leased = 1 AND due > ?",
        )?
        .execute(params![ticket.queue, ticket.seq, ticket.deliveries, now])?;
    if deleted == 1 {
        connection.prepare_cached("DELETE FROM bodies WHERE seq = ?")?.execute([ticket.seq])?;
    }
    Ok(deleted == 1)
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
