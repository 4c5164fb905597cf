//! The SQL of one group, inside its transaction.

use std::time::Duration;

use bytes::Bytes;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::ticket::Ticket;
use crate::api::{Entry, Lease, QueueName};
use crate::rotation::Number;
use crate::time::{after, system_time};

/// Events that a purge drops in one transaction.
const PURGE_CHUNK: i64 = 1000;

/// The queue's number; it gets one if it has none.
pub(super) async fn number(connection: &mut SqliteConnection, name: &QueueName) -> Result<Number, sqlx::Error> {
    sqlx::query("INSERT OR IGNORE INTO queues (name) VALUES (?)").bind(&*name.0).execute(&mut *connection).await?;
    sqlx::query_scalar("SELECT number FROM queues WHERE name = ?").bind(&*name.0).fetch_one(connection).await
}

/// Adds to the count of a queue's events.
pub(super) async fn count(connection: &mut SqliteConnection, queue: Number, change: i64) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE queues SET events = events + ? WHERE number = ?")
        .bind(change)
        .bind(queue)
        .execute(connection)
        .await
        .map(drop)
}

/// Puts an event in, if its id is not there; when it is due.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    queue: Number,
    seq: i64,
    entry: &Entry,
    now: i64,
) -> Result<Option<i64>, sqlx::Error> {
    let due = after(now, entry.delay);
    let inserted =
        sqlx::query("INSERT OR IGNORE INTO events (queue, seq, id, enqueued_at, due) VALUES (?, ?, ?, ?, ?)")
            .bind(queue)
            .bind(seq)
            .bind(&entry.id.as_bytes()[..])
            .bind(now)
            .bind(due)
            .execute(&mut *connection)
            .await?;
    if inserted.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query("INSERT INTO bodies VALUES (?, ?)").bind(seq).bind(&*entry.body).execute(connection).await?;
    Ok(Some(due))
}

/// Leases up to `most` events that are due, the longest due first.
pub(super) async fn lease(
    connection: &mut SqliteConnection,
    epoch: u32,
    (number, name): (Number, &QueueName),
    most: usize,
    now: i64,
    lease: Duration,
) -> Result<Vec<Lease>, sqlx::Error> {
    let rows = sqlx::query(
        "UPDATE events SET due = ?3, deliveries = deliveries + 1, leased = 1
         WHERE queue = ?1 AND seq IN (SELECT seq FROM events WHERE queue = ?1 AND due <= ?2 ORDER BY due LIMIT ?4)
         RETURNING seq, id, enqueued_at, deliveries, (SELECT body FROM bodies WHERE bodies.seq = events.seq)",
    )
    .bind(number)
    .bind(now)
    // A lease that ends now would be handed out again by the same call.
    .bind(after(now, lease.max(Duration::from_millis(1))))
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let deliveries: u32 = row.try_get(3)?;
            let ticket = Ticket { queue: number, seq: row.try_get(0)?, deliveries: deliveries as u16 };
            Ok(Lease {
                id: ticket.id(epoch),
                queue: name.clone(),
                event: Uuid::from_slice(row.try_get(1)?).map_err(|error| sqlx::Error::Decode(error.into()))?,
                body: Bytes::from(row.try_get::<Vec<u8>, _>(4)?),
                enqueued_at: system_time(row.try_get(2)?),
                deliveries,
            })
        })
        .collect()
}

/// When the queue's next event is due or its next lease ends.
pub(super) async fn next_due(connection: &mut SqliteConnection, queue: Number) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("SELECT due FROM events WHERE queue = ? ORDER BY due LIMIT 1")
        .bind(queue)
        .fetch_optional(connection)
        .await
}

/// Sets when the event is due; whether the lease was still on.
pub(super) async fn set_due(
    connection: &mut SqliteConnection,
    ticket: Ticket,
    now: i64,
    due: i64,
    leased: bool,
) -> Result<bool, sqlx::Error> {
    let updated = sqlx::query(
        "UPDATE events SET due = ?, leased = ?
         WHERE queue = ? AND seq = ? AND deliveries & 65535 = ? AND leased = 1 AND due > ?",
    )
    .bind(due)
    .bind(leased)
    .bind(ticket.queue)
    .bind(ticket.seq)
    .bind(ticket.deliveries)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// Replaces an event's body.
pub(super) async fn set_body(connection: &mut SqliteConnection, seq: i64, body: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE bodies SET body = ? WHERE seq = ?").bind(body).bind(seq).execute(connection).await.map(drop)
}

/// Deletes a leased event; whether the lease was still on.
pub(super) async fn delete(connection: &mut SqliteConnection, ticket: Ticket, now: i64) -> Result<bool, sqlx::Error> {
    let deleted = sqlx::query(
        "DELETE FROM events WHERE queue = ? AND seq = ? AND deliveries & 65535 = ? AND leased = 1 AND due > ?",
    )
    .bind(ticket.queue)
    .bind(ticket.seq)
    .bind(ticket.deliveries)
    .bind(now)
    .execute(&mut *connection)
    .await?;
    if deleted.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("DELETE FROM bodies WHERE seq = ?").bind(ticket.seq).execute(connection).await?;
    Ok(true)
}

/// Deletes some events of a queue whose number is below `below`; how many, and whether there may be more.
pub(super) async fn purge(
    connection: &mut SqliteConnection,
    queue: Number,
    below: i64,
) -> Result<(u64, bool), sqlx::Error> {
    let seqs = "SELECT seq FROM events WHERE queue = ?1 AND seq < ?2 ORDER BY seq LIMIT ?3";
    let mut deleted = 0;
    for sql in [
        format!("DELETE FROM bodies WHERE seq IN ({seqs})"),
        format!("DELETE FROM events WHERE queue = ?1 AND seq IN ({seqs})"),
    ] {
        let done = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(queue)
            .bind(below)
            .bind(PURGE_CHUNK)
            .execute(&mut *connection)
            .await?;
        deleted = done.rows_affected();
    }
    Ok((deleted, deleted == PURGE_CHUNK.cast_unsigned()))
}
