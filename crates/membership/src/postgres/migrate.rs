//! The tables, and how they come about.

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use super::session::{Session, Sessions};
use crate::registry::RegistryError;

/// Changes of the schema, oldest first, each run once and only forward. A released one is never edited.
///
/// Members beat in the room that their pages have left (no index has `beat`), which costs little and leaves no garbage.
/// `emberbox_fleet_now` is the one door to the time of day; tests put a clock of their own behind it.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE emberbox_fleet (
        one BOOLEAN PRIMARY KEY DEFAULT true CHECK (one), epoch BIGINT NOT NULL, seen BIGINT NOT NULL
    );
    INSERT INTO emberbox_fleet (epoch, seen) VALUES (0, 0);
    CREATE TABLE emberbox_members (
        id TEXT COLLATE \"C\" PRIMARY KEY, instance TEXT NOT NULL, epoch BIGINT NOT NULL, roles TEXT[] NOT NULL,
        address TEXT NOT NULL, version TEXT NOT NULL, state TEXT NOT NULL, labels TEXT NOT NULL,
        ttl BIGINT NOT NULL, beat BIGINT NOT NULL
    ) WITH (fillfactor = 50);
    CREATE FUNCTION emberbox_fleet_now() RETURNS BIGINT LANGUAGE sql VOLATILE
        AS 'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT';
"];

/// What all processes lock while one migrates.
const LOCK: i64 = 0x454d_4246;

/// Brings the tables up to date, and says in `session` which schema has them.
pub(super) async fn run(session: &mut Session, sessions: &Sessions) -> Result<(), RegistryError> {
    let failed = |error: sqlx::Error| RegistryError::Unavailable {
        operation: "bring the tables up to date".to_owned(),
        place: sessions.place().to_owned(),
        cause: error.to_string(),
        advice: "look whether the role may make tables there, or have its owner make the schema for it",
    };
    let newer = apply(session, sessions.schema()).await.map_err(failed)?;
    newer.map_or(Ok(()), |found| {
        Err(RegistryError::Newer { place: sessions.place().to_owned(), found, known: MIGRATIONS.len() as i64 })
    })
}

async fn apply(session: &mut Session, schema: Option<&str>) -> Result<Option<i64>, sqlx::Error> {
    let mut transaction = session.connection.begin().await?;
    // Many processes start at once, and a migration may take its time.
    transaction.execute("SET LOCAL statement_timeout = 0; SET LOCAL synchronous_commit = on").await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    if let Some(schema) = schema {
        // `IF NOT EXISTS` would ask for the right to make schemas even where it is there.
        let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
            .bind(schema)
            .fetch_one(&mut *transaction)
            .await?;
        if !there {
            // Its name was checked when the configuration was read.
            transaction.execute(AssertSqlSafe(format!("CREATE SCHEMA \"{schema}\""))).await?;
        }
    }
    let newer = migrate(&mut transaction).await?;
    let row = transaction.fetch_one("SELECT coalesce(current_schema(), '')").await?;
    session.schema = row.try_get(0)?;
    transaction.commit().await?;
    Ok(newer)
}

/// The schema's number if it is one that this Emberbox does not know.
async fn migrate(transaction: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    transaction.execute("CREATE TABLE IF NOT EXISTS emberbox_fleet_migrations (number BIGINT PRIMARY KEY)").await?;
    let done: i64 = sqlx::query_scalar("SELECT coalesce(max(number), 0) FROM emberbox_fleet_migrations")
        .fetch_one(&mut *transaction)
        .await?;
    if done > MIGRATIONS.len() as i64 {
        return Ok(Some(done));
    }
    for (number, sql) in (1i64..).zip(MIGRATIONS).filter(|(number, _)| *number > done) {
        transaction.execute(sqlx::raw_sql(*sql)).await?;
        sqlx::query("INSERT INTO emberbox_fleet_migrations VALUES ($1)")
            .bind(number)
            .execute(&mut *transaction)
            .await?;
    }
    Ok(None)
}
