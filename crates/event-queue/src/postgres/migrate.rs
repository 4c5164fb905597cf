//! The schema: made and changed forward only, while other processes, also of other versions, are at work.
//!
//! As for the metadata: with each migration goes the number of the *oldest* schema that a program may know and still work with what it
//! makes. One that only adds leaves that as it was, since all statements name their columns; one that removes or changes something comes
//! a release later than the first program that does without.

use sqlx::postgres::PgPool;
use sqlx::{Executor as _, PgConnection};

use super::failed;
use crate::api::QueueError;

struct Migration {
    sql: &'static str,
    oldest: i64,
}

/// Oldest first, each run once. A released one is never edited.
const MIGRATIONS: &[Migration] = &[Migration {
    oldest: 1,
    sql: "
    CREATE TABLE emberbox_events (
        seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue TEXT COLLATE \"C\" NOT NULL, id BYTEA NOT NULL,
        enqueued_at BIGINT NOT NULL, due BIGINT NOT NULL, deliveries INTEGER NOT NULL DEFAULT 0, lease BIGINT,
        body BYTEA NOT NULL, UNIQUE (queue, id)
    );
    CREATE INDEX emberbox_events_by_due ON emberbox_events (queue, due);
    CREATE INDEX emberbox_events_by_age ON emberbox_events (queue, enqueued_at);
",
}];
const KNOWN: i64 = MIGRATIONS.len() as i64;
/// What all processes lock while one migrates.
const LOCK: i64 = 0x454d_4251;

/// Brings the schema up to date, or finds that it is, or that it is for newer programs only.
pub(super) async fn run(pool: &PgPool) -> Result<(), QueueError> {
    let failed = failed("migrate the event queue");
    let mut transaction = pool.begin().await.map_err(&failed)?;
    let oldest = apply(&mut transaction).await.map_err(&failed)?;
    if oldest > KNOWN {
        return Err(QueueError::Damaged(format!(
            "open the event queue: the database's schema is for programs that know schema {oldest}, this Emberbox knows {KNOWN}; use the \
             newer Emberbox"
        )));
    }
    transaction.commit().await.map_err(&failed)
}

/// The oldest program that works with the result.
async fn apply(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    // Two that wait for each other's migrations are patient, but not for whoever holds the lock and does nothing.
    connection.execute("SET LOCAL lock_timeout = '60s'").await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *connection).await?;
    let table =
        "CREATE TABLE IF NOT EXISTS emberbox_migrations (number BIGINT PRIMARY KEY, oldest BIGINT NOT NULL DEFAULT 1)";
    connection.execute(table).await?;
    let has_oldest: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_attribute
                        WHERE attrelid = 'emberbox_migrations'::REGCLASS AND attname = 'oldest' AND NOT attisdropped)",
    )
    .fetch_one(&mut *connection)
    .await?;
    // Not always: that would need the right to, and wait for whoever reads it.
    if !has_oldest {
        connection.execute("ALTER TABLE emberbox_migrations ADD COLUMN oldest BIGINT NOT NULL DEFAULT 1").await?;
    }
    let done: i64 = sqlx::query_scalar("SELECT coalesce(max(number), 0) FROM emberbox_migrations")
        .fetch_one(&mut *connection)
        .await?;
    for (number, migration) in (1i64..).zip(MIGRATIONS).filter(|(number, _)| *number > done) {
        connection.execute(sqlx::raw_sql(migration.sql)).await?;
        let note = sqlx::query("INSERT INTO emberbox_migrations (number, oldest) VALUES ($1, $2)");
        note.bind(number).bind(migration.oldest).execute(&mut *connection).await?;
    }
    sqlx::query_scalar("SELECT max(oldest) FROM emberbox_migrations").fetch_one(connection).await
}
