//! The SQL, one function per statement.

use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::message::Content;
use crate::queue::{DedupKey, Meta, Millis, Original, Seq, State};

/// A row of `queues`.
pub(super) struct QueueRow {
    pub number: u32,
    pub account: String,
    pub region: String,
    pub name: String,
    pub attributes: std::collections::BTreeMap<String, String>,
    pub tags: std::collections::BTreeMap<String, String>,
    pub created: Millis,
    pub modified: Millis,
}

pub(super) fn queues(connection: &Connection) -> rusqlite::Result<Vec<QueueRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT number, account, region, name, attributes, tags, created, modified FROM queues ORDER BY number",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(QueueRow {
            number: row.get(0)?,
            account: row.get(1)?,
            region: row.get(2)?,
            name: row.get(3)?,
            attributes: json(row, 4)?,
            tags: json(row, 5)?,
            created: row.get(6)?,
            modified: row.get(7)?,
        })
    })?;
    rows.collect()
}

/// Adds a queue; its number.
pub(super) fn insert_queue(
    connection: &Connection,
    (account, region, name): (&str, &str, &str),
    now: Millis,
) -> rusqlite::Result<u32> {
    connection
        .prepare_cached(
            "INSERT INTO queues (account, region, name, attributes, tags, created, modified)
             VALUES (?, ?, ?, '{}', '{}', ?, ?) RETURNING number",
        )?
        .query_row(params![account, region, name, now, now], |row| row.get(0))
}

pub(super) fn update_queue(
    connection: &Connection,
    number: u32,
    attributes: &str,
    tags: &str,
    modified: Millis,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE queues SET attributes = ?, tags = ?, modified = ? WHERE number = ?")?
        .execute(params![attributes, tags, modified, number])
        .map(drop)
}

pub(super) fn delete_queue(connection: &Connection, number: u32) -> rusqlite::Result<()> {
    purge(connection, number)?;
    connection.prepare_cached("DELETE FROM originals WHERE queue = ?")?.execute([number])?;
    connection.prepare_cached("DELETE FROM queues WHERE number = ?")?.execute([number]).map(drop)
}

/// Deletes all messages of a queue.
pub(super) fn purge(connection: &Connection, number: u32) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM contents WHERE seq IN (SELECT seq FROM messages WHERE queue = ?)")?
        .execute([number])?;
    connection.prepare_cached("DELETE FROM messages WHERE queue = ?")?.execute([number]).map(drop)
}

pub(super) fn next_seq(connection: &Connection) -> rusqlite::Result<Seq> {
    connection.query_row("SELECT next_seq FROM counters", [], |row| row.get(0))
}

pub(super) fn set_next_seq(connection: &Connection, seq: Seq) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE counters SET next_seq = ?")?.execute([seq]).map(drop)
}

/// Calls `each` with every message.
pub(super) fn messages(connection: &Connection, mut each: impl FnMut(u32, Seq, Meta)) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(
        "SELECT seq, queue, id, sent, grp, until, since, receives, earlier, first_received FROM messages ORDER BY seq",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let state = match (row.get(5)?, row.get(6)?) {
            (None, _) => State::Visible,
            (Some(until), None) => State::Delayed { until },
            (Some(until), Some(since)) => State::InFlight { since, until },
        };
        let meta = Meta {
            id: uuid(row, 2)?,
            sent: row.get(3)?,
            group: row.get::<_, Option<String>>(4)?.map(Into::into),
            state,
            receives: row.get(7)?,
            earlier: row.get(8)?,
            first_received: row.get(9)?,
        };
        each(row.get(1)?, row.get(0)?, meta);
    }
    Ok(())
}

/// Writes what is known of a message, new or not.
pub(super) fn put(connection: &Connection, queue: u32, seq: Seq, meta: &Meta) -> rusqlite::Result<()> {
    let (until, since) = match meta.state {
        State::Visible => (None, None),
        State::Delayed { until } => (Some(until), None),
        State::InFlight { since, until } => (Some(until), Some(since)),
    };
    connection
        .prepare_cached(
            "INSERT INTO messages (seq, queue, id, sent, grp, until, since, receives, earlier, first_received)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (seq) DO UPDATE SET until = ?6, since = ?7, receives = ?8, first_received = ?10",
        )?
        .execute(params![
            seq,
            queue,
            meta.id.as_bytes(),
            meta.sent,
            meta.group.as_deref(),
            until,
            since,
            meta.receives,
            meta.earlier,
            meta.first_received
        ])
        .map(drop)
}

pub(super) fn delete(connection: &Connection, seq: Seq) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM messages WHERE seq = ?")?.execute([seq])?;
    connection.prepare_cached("DELETE FROM contents WHERE seq = ?")?.execute([seq]).map(drop)
}

pub(super) fn insert_content(connection: &Connection, seq: Seq, content: &Content) -> rusqlite::Result<()> {
    let details = serde_json::to_string(&content.details).expect("details always become JSON");
    connection
        .prepare_cached("INSERT INTO contents (seq, details, body) VALUES (?, ?, ?)")?
        .execute(params![seq, details, content.body])
        .map(drop)
}

pub(super) fn content(connection: &Connection, seq: Seq) -> rusqlite::Result<Content> {
    connection
        .prepare_cached("SELECT details, body FROM contents WHERE seq = ?")?
        .query_row([seq], |row| Ok(Content { details: json(row, 0)?, body: row.get(1)? }))
}

/// Remembers what later messages are duplicates of, and forgets what was remembered long enough.
pub(super) fn remember(
    connection: &Connection,
    queue: u32,
    key: &DedupKey,
    original: &Original,
    now: Millis,
) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM originals WHERE until <= ?")?.execute([now])?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO originals (queue, scope, dedup, id, seq, until) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![queue, key.scope, key.id, original.id.as_bytes(), original.seq, original.until])
        .map(drop)
}

/// Calls `each` with everything remembered, by when it is forgotten.
pub(super) fn originals(
    connection: &Connection,
    mut each: impl FnMut(u32, DedupKey, Original),
) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare("SELECT queue, scope, dedup, id, seq, until FROM originals ORDER BY until")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let original = Original { id: uuid(row, 3)?, seq: row.get(4)?, until: row.get(5)? };
        each(row.get(0)?, DedupKey { scope: row.get(1)?, id: row.get(2)? }, original);
    }
    Ok(())
}

fn uuid(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    Uuid::from_slice(row.get_ref(column)?.as_blob()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, error.into()))
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
}
