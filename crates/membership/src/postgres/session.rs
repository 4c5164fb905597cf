//! Connections, and what their failures say.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Executor as _, PgConnection, Row as _};
use tokio::time::timeout;

use super::Options;
use crate::registry::RegistryError;

/// How long the first connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: PgConnection,
    /// The `synchronous_commit` of transactions that change the membership.
    pub(super) sync: String,
    /// The schema that the tables are in.
    pub(super) schema: String,
}

/// Makes connections.
#[derive(Debug)]
pub(super) struct Sessions {
    options: PgConnectOptions,
    schema: Option<String>,
    limit: String,
    place: String,
}

impl Sessions {
    pub(super) fn new(options: &Options) -> Result<(Self, PgConnectOptions), RegistryError> {
        let invalid = |reason: String| RegistryError::Invalid {
            operation: "connect to the fleet's registry in PostgreSQL".to_owned(),
            reason,
        };
        // The URL itself is not shown: it may have a password.
        let connect: PgConnectOptions = options.url.parse().map_err(|error| {
            invalid(format!(
                "its URL cannot be read ({error}); it should be postgres://USER:PASSWORD@HOST:PORT/DATABASE"
            ))
        })?;
        let connect = connect.application_name("emberbox");
        if let Some(schema) = &options.schema {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            // 63 bytes are PostgreSQL's limit of a name.
            if schema.is_empty() || schema.len() > 63 || !schema.chars().all(plain) {
                let wanted = "a schema's name has 1 to 63 lower-case letters, digits and underscores";
                return Err(invalid(format!("{wanted}, and {schema:?} has not")));
            }
        }
        let database = connect.get_database().unwrap_or_else(|| connect.get_username());
        let server = match connect.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", connect.get_host(), connect.get_port()),
        };
        let place = format!("PostgreSQL at {server}, database {database}");
        let limit = options.limit.as_millis().clamp(1, 1 << 30).to_string();
        Ok((Self { options: connect.clone(), schema: options.schema.clone(), limit, place }, connect))
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The first connection, which says what is wrong with the configuration.
    pub(super) async fn probe(&self) -> Result<Session, RegistryError> {
        let failed = |cause| RegistryError::Unavailable {
            operation: "connect".to_owned(),
            place: self.place.clone(),
            cause,
            advice: "look whether PostgreSQL runs there, and takes this host and role with this password",
        };
        match timeout(CONNECT, self.open()).await {
            Ok(opened) => opened.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {CONNECT:?}"))),
        }
    }

    pub(super) async fn open(&self) -> Result<Session, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        if let Some(schema) = &self.schema {
            let sql = "SELECT set_config('search_path', $1, false)";
            sqlx::query(sql).bind(format!("\"{schema}\"")).execute(&mut connection).await?;
        }
        let row = sqlx::query("SELECT current_setting('synchronous_commit'), coalesce(current_schema(), '')")
            .fetch_one(&mut connection)
            .await?;
        let (sync, schema): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let sync = if sync == "off" { "on".to_owned() } else { sync };
        // Of the beats; a change of membership has `sync`.
        connection.execute("SET synchronous_commit = off").await?;
        let limits = "SELECT set_config(name, $1, false)
            FROM unnest(ARRAY['statement_timeout', 'idle_in_transaction_session_timeout']) name";
        sqlx::query(limits).bind(&self.limit).execute(&mut connection).await?;
        Ok(Session { connection, sync, schema })
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
