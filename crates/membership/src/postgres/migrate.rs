//! The tables, and how they come about.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::{Instant, sleep};

use super::session::{Session, Sessions};
use crate::registry::RegistryError;

/// A change of the schema.
struct Migration {
    sql: &'static str,
    /// The oldest program that works with the result, by the number of migrations that it knows.
    oldest: i64,
}

/// Changes of the schema, oldest first, each run once and only forward. A released one is never edited.
///
/// Members beat in the room that their pages have left (no index has `beat`), which costs little and leaves no garbage.
/// `fleet_now` is the one door to the time of day; tests put a clock of their own behind it.
const MIGRATIONS: &[Migration] = &[Migration {
    oldest: 1,
    sql: "
    CREATE TABLE fleet (
        one BOOLEAN PRIMARY KEY DEFAULT true CHECK (one), epoch BIGINT NOT NULL, seen BIGINT NOT NULL
    );
    INSERT INTO fleet (epoch, seen) VALUES (0, 0);
    CREATE TABLE members (
        id TEXT COLLATE \"C\" PRIMARY KEY, instance TEXT NOT NULL, epoch BIGINT NOT NULL, roles TEXT[] NOT NULL,
        address TEXT NOT NULL, version TEXT NOT NULL, state TEXT NOT NULL, labels TEXT NOT NULL,
        ttl BIGINT NOT NULL, beat BIGINT NOT NULL
    ) WITH (fillfactor = 50);
    CREATE FUNCTION fleet_now() RETURNS BIGINT LANGUAGE sql VOLATILE
        AS 'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT';
",
}];
const KNOWN: i64 = MIGRATIONS.len() as i64;

/// How long a process whose role may make no tables waits for another one to make them, and how often it looks.
const OTHERS: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(250);

/// What all processes lock while one migrates.
const LOCK: i32 = 0x454d_4246;

/// Brings the tables up to date. Those of a newer Emberbox are used as they are, unless they say that this one cannot.
pub(super) async fn run(session: &mut Session, sessions: &Sessions) -> Result<(), RegistryError> {
    let failed = |error: sqlx::Error| RegistryError::Unavailable {
        operation: "bring the tables up to date".to_owned(),
        place: sessions.place().to_owned(),
        cause: error.to_string(),
        advice: "look whether the role may make a schema there, or have the database's owner make it for the role",
    };
    let connection = &mut session.connection;
    let until = Instant::now() + OTHERS;
    while found(connection).await.map_err(failed)?.0 < KNOWN {
        if may_make(connection, sessions.schema()).await.map_err(failed)? {
            apply(connection, sessions.schema()).await.map_err(failed)?;
            break;
        }
        if Instant::now() >= until {
            return Err(RegistryError::Unavailable {
                operation: "find the tables".to_owned(),
                place: sessions.place().to_owned(),
                cause: format!(
                    "they are not there, or of an older version, and this role may not make them; waited {OTHERS:?}"
                ),
                advice: "start a member first whose role may: a frontend, a manager or a poller (deploy/postgres/roles.sql)",
            });
        }
        sleep(AGAIN).await;
    }
    match found(connection).await.map_err(failed)? {
        (_, oldest) if oldest <= KNOWN => Ok(()),
        (_, oldest) => Err(RegistryError::Newer { place: sessions.place().to_owned(), found: oldest, known: KNOWN }),
    }
}

/// Whether this role could bring the tables about. That of workers may only use them.
async fn may_make(connection: &mut PgConnection, schema: &str) -> Result<bool, sqlx::Error> {
    let sql = "SELECT coalesce(
        (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1),
        has_database_privilege(current_database(), 'CREATE'))";
    sqlx::query_scalar(sql).bind(schema).fetch_one(connection).await
}

async fn apply(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    // Many processes start at once, and wait for the first, which may take its time.
    let patient = "SET LOCAL statement_timeout = '60s'; SET LOCAL idle_in_transaction_session_timeout = '60s';
        SET LOCAL synchronous_commit = on";
    transaction.execute(patient).await?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1, hashtext($2))").bind(LOCK).bind(schema);
    lock.execute(&mut *transaction).await?;
    // `IF NOT EXISTS` would ask for the right to make schemas even where it is there.
    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
        .bind(schema)
        .fetch_one(&mut *transaction)
        .await?;
    if !there {
        // Its name was checked when the configuration was read.
        transaction.execute(AssertSqlSafe(format!("CREATE SCHEMA \"{schema}\""))).await?;
    }
    let (done, _) = found(&mut transaction).await?;
    if done == 0 {
        transaction.execute("CREATE TABLE migrations (number BIGINT PRIMARY KEY, oldest BIGINT NOT NULL)").await?;
        keep(&mut transaction).await?;
    }
    for (number, migration) in (1i64..).zip(MIGRATIONS).filter(|(number, _)| *number > done) {
        transaction.execute(sqlx::raw_sql(migration.sql)).await?;
        let note = sqlx::query("INSERT INTO migrations VALUES ($1, $2)").bind(number).bind(migration.oldest);
        note.execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Takes the right to write down what the schema is from those that the schema's default privileges gave it to, as they are workers:
/// one could have no program start any more.
async fn keep(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "SELECT DISTINCT format('REVOKE INSERT, UPDATE, DELETE ON migrations FROM %I', pg_get_userbyid(grantee))
        FROM pg_class, aclexplode(relacl) WHERE oid = 'migrations'::REGCLASS AND grantee NOT IN (0, relowner)";
    for revoke in sqlx::query_scalar(sql).fetch_all(&mut *connection).await? {
        // The names in it are quoted by the database.
        connection.execute(AssertSqlSafe::<String>(revoke)).await?;
    }
    Ok(())
}

/// The number of the schema that is there (0 if there is none), and the oldest program that it lets in.
async fn found(connection: &mut PgConnection) -> Result<(i64, i64), sqlx::Error> {
    // Of the search path, which has our schema only.
    let made: bool =
        sqlx::query_scalar("SELECT to_regclass('migrations') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !made {
        return Ok((0, 0));
    }
    let sql = "SELECT coalesce(max(number), 0), coalesce(max(oldest), 0) FROM migrations";
    sqlx::query_as(sql).fetch_one(connection).await
}
