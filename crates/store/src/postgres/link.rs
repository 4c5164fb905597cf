//! How the server is reached, and what becomes of its errors.

use std::fmt;
use std::io;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, PgConnection, Row as _};
use tokio::time::{Instant, sleep, timeout};

use crate::error::StoreError;

/// A call goes on trying for so long while the server is away: a restart, or a failover that is quick, is only a delay.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// How long one attempt may wait for an answer. A server that has gone without a word is found dead then, which TCP takes
/// minutes for.
pub(super) const ATTEMPT: Duration = Duration::from_secs(6);
/// How long a new connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Pauses between attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// PostgreSQL cuts longer names off.
const SCHEMA_LENGTH: usize = 48;

/// What may stand in the URL. The client would pass over others with a warning: over a misspelt `sslmode`, for example.
const PARAMETERS: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];

/// The way to the server. Prints without the password.
#[derive(Clone)]
pub(super) struct Link {
    options: PgConnectOptions,
    pub schema: String,
    /// For messages.
    pub server: String,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.server).finish()
    }
}

impl Link {
    pub fn new(url: &str, schema: &str) -> Result<Self, StoreError> {
        let refused = |reason: String| StoreError::Refused {
            operation: "open",
            // The URL may have a password in it, and where is not known if it is malformed.
            server: "the given URL".to_owned(),
            reason,
            remedy: "it looks like postgres://ROLE:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full, \
                     with %40 for an @ in the password, and so on for all that is no letter or digit",
        };
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(refused("it is not a URL of PostgreSQL".to_owned()));
        }
        let query = url.split_once('?').map_or("", |(_, query)| query);
        if query.contains('@') {
            return Err(refused("there is an @ behind the ?".to_owned()));
        }
        for name in query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| !name.is_empty()) {
            // `options`, and `options[name]`, whose brackets may be escaped.
            if !PARAMETERS.contains(&name) && !name.starts_with("options") {
                return Err(refused(format!("PostgreSQL's client does not know its parameter {name}")));
            }
        }
        let valid = |c: char| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit();
        let starts = schema.starts_with(|c: char| c == '_' || c.is_ascii_lowercase());
        if !starts || schema.len() > SCHEMA_LENGTH || !schema.chars().all(valid) {
            return Err(StoreError::Refused {
                operation: "open",
                server: format!("schema {schema:?}"),
                reason: "this is no name for a schema".to_owned(),
                remedy: "take at most 48 of a-z, 0-9 and _, of which the first is no digit",
            });
        }
        let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| refused(reason(&error)))?;
        let options = options.disable_statement_logging();
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("emberbox"),
        };
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let database = options.get_database().unwrap_or_else(|| options.get_username());
        if database.contains('@') {
            return Err(refused("there is an @ in the database's name".to_owned()));
        }
        let server = format!("{host} (database {database}, schema {schema})");
        Ok(Self { options, schema: schema.to_owned(), server })
    }

    /// Where `NOTIFY` tells of commits. Channels belong to a database, so each schema has its own.
    pub fn channel(&self) -> String {
        format!("{}_commits", self.schema)
    }

    /// A connection that is set up for the store.
    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        in_time(CONNECT, async {
            let mut connection = self.options.connect().await?;
            set_up(&mut connection, &self.schema).await?;
            Ok(connection)
        })
        .await
    }

    /// Like [`connect`](Self::connect), of as many connections as there is need for. They are made when they are used.
    pub fn pool(&self, most: u32, idle: Option<Duration>) -> PgPool {
        let schema = self.schema.clone();
        PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(CONNECT)
            .idle_timeout(idle)
            .after_connect(move |connection, _| {
                let schema = schema.clone();
                Box::pin(async move { set_up(connection, &schema).await })
            })
            .connect_lazy_with(self.options.clone())
    }

    /// Why a pool has no connection: it does not say so itself.
    pub async fn why_none(&self) -> sqlx::Error {
        match self.connect().await {
            Ok(_) => sqlx::Error::Io(io::Error::other("all connections of this process are in use")),
            Err(error) => error,
        }
    }

    /// The store's error for one of the client.
    pub fn failed(&self, operation: &'static str, error: &sqlx::Error) -> StoreError {
        let server = self.server.clone();
        let reason = reason(error);
        if matches!(error, sqlx::Error::PoolClosed) {
            return StoreError::Closed;
        }
        if is_away(error) {
            return StoreError::Unavailable { operation, server, reason };
        }
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        let remedy = match &*code {
            "28P01" | "28000" => "check role and password, and the server's pg_hba.conf",
            "3D000" => "make the database, or name another one",
            "42501" => {
                "let an administrator make the schema for this role (CREATE SCHEMA … AUTHORIZATION …), or grant the role CREATE"
            }
            "42P07" | "42703" | "42P01" => {
                "the schema does not hold what Emberbox left in it, or is another program's: name another schema, or restore it from a backup"
            }
            _ if matches!(error, sqlx::Error::Tls(_) | sqlx::Error::Io(_)) => {
                "check sslmode and sslrootcert in the URL, and the server's certificate"
            }
            _ => "the server's log may say more",
        };
        StoreError::Refused { operation, server, reason, remedy }
    }
}

/// Runs `attempt`, with an error of the network's if it takes too long.
pub(super) async fn in_time<T>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let late = |_| {
        let reason = format!("no answer within {} s", limit.as_secs());
        Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, reason)))
    };
    timeout(limit, attempt).await.unwrap_or_else(late)
}

/// Whether another attempt can succeed without anybody doing something: no connection, a server that stops or starts, a
/// standby, a lock that another process holds for long. See PostgreSQL's list of error codes.
pub(super) fn is_away(error: &sqlx::Error) -> bool {
    match error {
        // A certificate that is not the right one.
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => false,
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Connection, resources, rolled back for another's sake.
            ["08", "53", "40"].iter().any(|class| code.starts_with(class))
                // Stopped by an administrator or a crash, starting; cancelled by a timeout; a lock; a standby; idle.
                || ["57P01", "57P02", "57P03", "57P05", "57014", "55P03", "25006", "25P03"].contains(&&*code)
        }),
        _ => false,
    }
}

/// Without the prefixes by which the client says which part of it noticed.
pub(super) fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Configuration(error) => error.to_string(),
        sqlx::Error::Protocol(error) => format!("the connection ended, or this is no PostgreSQL: {error}"),
        error => error.to_string(),
    }
}

/// What each connection needs, and needs not be told in the URL.
async fn set_up(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    // A writer that vanishes holds the row that all writers lock until the server notices: by these limits within
    // seconds, and not hours. `local` and `remote_write` sync here as well, so only `off` is changed.
    let row = sqlx::query(
        "SELECT pg_is_in_recovery(), set_config('search_path', $1, false),
             set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                 ELSE current_setting('synchronous_commit') END, false),
             set_config('idle_in_transaction_session_timeout', '3s', false), set_config('lock_timeout', '5s', false),
             set_config('statement_timeout', '5min', false), set_config('tcp_keepalives_idle', '10', false),
             set_config('tcp_keepalives_interval', '5', false), set_config('tcp_keepalives_count', '3', false),
             set_config('tcp_user_timeout', '15s', false)",
    )
    .bind(schema)
    .fetch_one(connection)
    .await?;
    if row.try_get(0)? {
        // After a failover the same address may lead to the primary.
        return Err(sqlx::Error::Io(io::Error::other("the server is a standby, which only reads")));
    }
    Ok(())
}

/// Growing pauses up to a deadline.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
    until: Option<Instant>,
}

impl Pauses {
    /// `until`: when to give up; never without.
    pub fn new(until: Option<Instant>) -> Self {
        Self { next: PAUSES.0, until }
    }

    /// Begins again with the shortest.
    pub fn reset(&mut self) {
        self.next = PAUSES.0;
    }

    /// Waits; `false`, at once, if the time is up.
    pub async fn pause(&mut self) -> bool {
        if self.until.is_some_and(|until| Instant::now() + self.next > until) {
            return false;
        }
        sleep(self.next).await;
        self.next = (self.next * 2).min(PAUSES.1);
        true
    }
}
