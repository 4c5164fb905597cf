//! Connections, and what their failures say.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Executor as _, PgConnection};
use tokio::time::{Instant, sleep, timeout_at};

use super::Options;
use crate::registry::RegistryError;

/// How long the first connection is tried: a server that starts at the same time is only a delay.
const CONNECT: Duration = Duration::from_secs(15);
/// Before it is tried again.
const PAUSE: Duration = Duration::from_millis(250);

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: PgConnection,
    /// The `synchronous_commit` of transactions that change the membership.
    pub(super) sync: String,
}

/// Makes connections.
#[derive(Debug)]
pub(super) struct Sessions {
    options: PgConnectOptions,
    schema: String,
    limit: String,
    place: String,
}

impl Sessions {
    pub(super) fn new(options: &Options) -> Result<(Self, PgConnectOptions), RegistryError> {
        let invalid = |reason: String| RegistryError::Invalid {
            operation: "connect to the fleet's registry in PostgreSQL".to_owned(),
            reason,
        };
        // The URL itself is never shown: it may have a password, and where is not known if it is malformed.
        let wanted = "it should be postgres://ROLE:PASSWORD@HOST:PORT/DATABASE, with %40 for an @ in the password, and so on \
                      for all that is no letter or digit";
        let connect: PgConnectOptions =
            options.url.parse().map_err(|error| invalid(format!("its URL cannot be read ({error}); {wanted}")))?;
        let connect = connect.application_name("emberbox").disable_statement_logging();
        let database = connect.get_database().unwrap_or_else(|| connect.get_username());
        let after_host = options.url.split_once('?').map_or("", |(_, query)| query);
        if database.contains('@') || after_host.contains('@') || options.url.contains('#') {
            return Err(invalid(format!("its URL has a # or an @ where none can be; {wanted}")));
        }
        let schema = &options.schema;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        // 63 bytes are PostgreSQL's limit of a name.
        if schema.len() > 63 || !schema.chars().all(plain) || !schema.starts_with(|c: char| !c.is_ascii_digit()) {
            let wanted = "a schema's name has 1 to 63 lower-case letters, digits and underscores, and no digit first";
            return Err(invalid(format!("{wanted}; {schema:?} is none")));
        }
        let server = match connect.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", connect.get_host(), connect.get_port()),
        };
        let place = format!("PostgreSQL at {server}, database {database}, schema {schema}");
        let limit = options.limit.as_millis().clamp(1, 1 << 30).to_string();
        Ok((Self { options: connect.clone(), schema: schema.clone(), limit, place }, connect))
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// The first connection, which says what is wrong with the configuration.
    pub(super) async fn probe(&self) -> Result<Session, RegistryError> {
        let until = Instant::now() + CONNECT;
        let mut last = None;
        loop {
            let cause = match timeout_at(until, self.open()).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) if starts(&error) && Instant::now() + PAUSE < until => {
                    last = Some(error.to_string());
                    sleep(PAUSE).await;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => last.unwrap_or_else(|| format!("no answer within {CONNECT:?}")),
            };
            return Err(RegistryError::Unavailable {
                operation: "connect".to_owned(),
                place: self.place.clone(),
                cause,
                advice: "look whether PostgreSQL runs there, and takes this host and role with this password",
            });
        }
    }

    pub(super) async fn open(&self) -> Result<Session, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let setting = sqlx::query_scalar("SELECT current_setting('synchronous_commit')");
        let sync: String = setting.fetch_one(&mut connection).await?;
        let sync = if sync == "off" { "on".to_owned() } else { sync };
        // Of the beats; a change of membership has `sync`.
        connection.execute("SET synchronous_commit = off").await?;
        let settings = "SELECT set_config('search_path', $1, false), set_config('statement_timeout', $2, false),
            set_config('idle_in_transaction_session_timeout', $2, false)";
        sqlx::query(settings).bind(format!("\"{}\"", self.schema)).bind(&self.limit).execute(&mut connection).await?;
        Ok(Session { connection, sync })
    }

    pub(super) fn unavailable(&self, operation: String, error: &sqlx::Error) -> RegistryError {
        RegistryError::Unavailable {
            operation,
            place: self.place.clone(),
            cause: error.to_string(),
            advice: "look whether PostgreSQL runs there and can be reached; this is tried again",
        }
    }
}

/// Whether the server may be there in a moment: nobody listens yet, it is starting (57P03), or it has as many connections as it can (53300).
fn starts(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => matches!(error.code().as_deref(), Some("57P03" | "53300")),
        _ => false,
    }
}
