//! The schema: made and changed forward only, while other processes, also of other versions, are at work.
//!
//! Each migration is numbered, and is applied once, by whoever comes first with a program that has it. With it goes the
//! number of the *oldest* schema that a program may know and still work with what it makes. In a fleet that is upgraded
//! machine by machine, old programs run for a while on the schema of new ones. So:
//!
//! - A migration that only adds (tables, columns that may be absent) leaves `oldest` as it was: all statements of the
//!   store name their columns, and go on working.
//! - One that removes or changes something raises `oldest` to the first schema whose programs do not need it any more. It
//!   belongs into a later release than that program, so that no release is refused by its successor.
//!
//! A program that is older than `oldest` is refused at the start; one that runs already reads `oldest` with the row that
//! every writer locks, and writes nothing from then on.

use sqlx::{Acquire as _, Executor as _, PgConnection};

use super::link::Link;
use crate::error::StoreError;

/// What all processes lock while one migrates, together with the schema's name.
const LOCK: i32 = 0x454d_4253;

struct Migration {
    sql: &'static str,
    oldest: i64,
}

/// Oldest first. A released one is never edited.
const MIGRATIONS: &[Migration] = &[Migration {
    oldest: 1,
    // `C` orders by bytes, as SQLite does. The log has what each commit changed, beside the records that were its result.
    sql: "
    CREATE TABLE head (
        single BOOLEAN PRIMARY KEY DEFAULT true CHECK (single), revision BIGINT NOT NULL, oldest BIGINT NOT NULL
    );
    INSERT INTO head (revision, oldest) VALUES (0, 1);
    CREATE TABLE records (
        kind TEXT COLLATE \"C\" NOT NULL, key TEXT COLLATE \"C\" NOT NULL, version BIGINT NOT NULL,
        value BYTEA NOT NULL, PRIMARY KEY (kind, key)
    );
    CREATE TABLE commits (
        revision BIGINT PRIMARY KEY, attempt BYTEA NOT NULL, made TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
    );
    CREATE TABLE changes (
        revision BIGINT NOT NULL, number INTEGER NOT NULL, kind TEXT COLLATE \"C\" NOT NULL,
        key TEXT COLLATE \"C\" NOT NULL, value BYTEA, PRIMARY KEY (revision, number)
    );",
}];

/// The newest schema that this program knows.
pub(super) const KNOWN: i64 = MIGRATIONS.len() as i64;

/// Brings the schema up to date, or finds that it is, or that it is too new.
pub(super) async fn migrate(connection: &mut PgConnection, link: &Link) -> Result<(), StoreError> {
    let failed = |error| link.failed("migrate", &error);
    let encoding: String = sqlx::query_scalar("SELECT current_setting('server_encoding')")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    if encoding != "UTF8" {
        return Err(StoreError::Refused {
            operation: "open",
            server: link.server.clone(),
            reason: format!("the database's encoding is {encoding}"),
            remedy: "make one with ENCODING 'UTF8'",
        });
    }
    if found(connection, &link.schema).await.map_err(failed)? < KNOWN {
        let mut transaction = connection.begin().await.map_err(failed)?;
        apply(&mut transaction, &link.schema).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
    }
    let oldest = sqlx::query_scalar("SELECT oldest FROM head").fetch_one(&mut *connection).await.map_err(failed)?;
    check(link, oldest)
}

/// Whether this program works with a schema that wants one which knows at least `oldest`.
pub(super) fn check(link: &Link, oldest: i64) -> Result<(), StoreError> {
    if oldest <= KNOWN {
        return Ok(());
    }
    let place = format!("in PostgreSQL at {}", link.server);
    Err(StoreError::Newer { place, found: oldest, known: KNOWN })
}

/// The schema's number; 0 if there is none.
async fn found(connection: &mut PgConnection, schema: &str) -> Result<i64, sqlx::Error> {
    let made: bool = sqlx::query_scalar("SELECT to_regclass($1 || '.migrations') IS NOT NULL")
        .bind(schema)
        .fetch_one(&mut *connection)
        .await?;
    match made {
        true => sqlx::query_scalar("SELECT coalesce(max(number), 0) FROM migrations").fetch_one(connection).await,
        false => Ok(0),
    }
}

async fn apply(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    // Two that wait for each other's migrations are patient: theirs are many statements.
    connection.execute("SET LOCAL lock_timeout = '60s'").await?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1, hashtext($2))").bind(LOCK).bind(schema);
    lock.execute(&mut *connection).await?;
    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
        .bind(schema)
        .fetch_one(&mut *connection)
        .await?;
    // Also `IF NOT EXISTS` needs the right to make one.
    if !there {
        // The name was checked: it needs no quotes.
        let make = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"));
        connection.execute(make).await?;
    }
    let done = found(connection, schema).await?;
    if done == 0 {
        let table = "CREATE TABLE migrations (number BIGINT PRIMARY KEY, applied TIMESTAMPTZ NOT NULL DEFAULT now())";
        connection.execute(table).await?;
    } else {
        // First what writers lock first, so that none of them waits for us while we wait for it.
        connection.execute("SELECT FROM head FOR UPDATE").await?;
    }
    for (number, migration) in (1i64..).zip(MIGRATIONS).filter(|(number, _)| *number > done) {
        connection.execute(sqlx::raw_sql(migration.sql)).await?;
        sqlx::query("INSERT INTO migrations (number) VALUES ($1)").bind(number).execute(&mut *connection).await?;
        let oldest = sqlx::query("UPDATE head SET oldest = greatest(oldest, $1)").bind(migration.oldest);
        oldest.execute(&mut *connection).await?;
    }
    Ok(())
}
