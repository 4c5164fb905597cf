//! Events are put in by one task, which takes all that wait at once: they share a transaction and its flush to disk.

use std::time::Duration;

use sqlx::postgres::PgPool;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{mpsc, oneshot};

use super::{CHANNEL, Time};
use crate::api::Entry;
use crate::time::span_millis;

/// Calls that share a transaction.
const GROUP: usize = 256;
/// Bytes of bodies in one statement, unless a single one has more.
const STATEMENT: usize = 8 << 20;

/// How long the server may take for a group.
const LIMIT: Duration = Duration::from_secs(30);

/// One call's events: all or none.
pub(super) struct Insert {
    pub entries: Vec<Entry>,
    pub done: oneshot::Sender<Result<(), sqlx::Error>>,
}

/// Serves until the queue is dropped.
pub(super) async fn run(pool: PgPool, clock: Time, mut received: mpsc::Receiver<Insert>) {
    let mut group = Vec::with_capacity(GROUP);
    while received.recv_many(&mut group, GROUP).await > 0 {
        let error = match in_time(&pool, &clock, &group).await {
            Ok(()) => {
                group.drain(..).for_each(|call| drop(call.done.send(Ok(()))));
                continue;
            }
            Err(error) => error,
        };
        // The server has refused something: each by itself, so that only the one fails whose fault it is. A server that
        // is away is not asked again for each.
        let apart = group.len() > 1 && matches!(error, sqlx::Error::Database(_));
        let text = error.to_string();
        for call in group.drain(..) {
            let answer = match apart {
                true => in_time(&pool, &clock, std::slice::from_ref(&call)).await,
                false if matches!(error, sqlx::Error::PoolClosed) => Err(sqlx::Error::PoolClosed),
                false => Err(sqlx::Error::Io(std::io::Error::other(text.clone()))),
            };
            let _ = call.done.send(answer);
        }
    }
}

/// A connection that has gone dead without a word would otherwise hold up everybody for as long as TCP hopes. What was
/// committed all the same is found by its id when it is put in again.
async fn in_time(pool: &PgPool, clock: &Time, group: &[Insert]) -> Result<(), sqlx::Error> {
    let late = |_| {
        let reason = format!("no answer within {} s", LIMIT.as_secs());
        Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, reason)))
    };
    tokio::time::timeout(LIMIT, insert(pool, clock, group)).await.unwrap_or_else(late)
}

async fn insert(pool: &PgPool, clock: &Time, group: &[Insert]) -> Result<(), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    let now = clock.now(&mut transaction).await?;
    let mut entries: Vec<_> = group.iter().flat_map(|call| &call.entries).collect();
    // In one order everywhere, so that two processes with the same ids do not wait for each other.
    entries.sort_by(|a, b| (&a.queue, a.id).cmp(&(&b.queue, b.id)));
    let (mut rest, mut size) = (&entries[..], 0);
    while !rest.is_empty() {
        let fits = rest.iter().take_while(|entry| {
            size += entry.body.len();
            size <= STATEMENT
        });
        let (rows, later) = rest.split_at(fits.count().max(1));
        put(&mut transaction, rows, now).await?;
        (rest, size) = (later, 0);
    }
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&mut *transaction).await?;
    transaction.commit().await
}

async fn put(connection: &mut PgConnection, rows: &[&Entry], now: i64) -> Result<(), sqlx::Error> {
    let due = rows.iter().map(|entry| now.saturating_add(span_millis(entry.delay)));
    sqlx::query(
        "INSERT INTO emberbox_events (queue, id, enqueued_at, due, body)
         SELECT queue, id, $1, due, body FROM unnest($2::TEXT[], $3::BYTEA[], $4::BIGINT[], $5::BYTEA[])
             AS rows(queue, id, due, body)
         ON CONFLICT (queue, id) DO NOTHING",
    )
    .bind(now)
    .bind(rows.iter().map(|entry| &*entry.queue.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|entry| &entry.id.as_bytes()[..]).collect::<Vec<_>>())
    .bind(due.collect::<Vec<_>>())
    .bind(rows.iter().map(|entry| &*entry.body).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
}
