//! The registry in PostgreSQL.
//!
//! - Each process has one connection for its calls, made anew after a failure, and one that listens for notifications.
//! - A beat is one statement on the member's own row. It is not waited for on the disk: a crash of the server is an outage, after
//!   which all leases begin anew.
//! - A change of membership is a transaction that first takes the one row of `fleet`, so that changes come one after
//!   the other, and is synced as the server is set to do (`off` counts as `on`). A process that stops in the middle of one loses its connection
//!   ([`Options::limit`]).
//! - The rules are those of `ledger.rs`, in SQL; time is `fleet_now()`, the server's.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgRow};
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::ledger::{GAP, SWEEPS, millis};
use crate::member::{Member, MemberId, MemberState};
use crate::registry::{Hold, Lease, Registry, RegistryError, check};
use crate::view::View;

mod migrate;
mod session;

use session::Session;

/// The schema that is used if none is named: the store has another, so that neither waits for the other at the first start.
const SCHEMA: &str = "emberbox_fleet";
const CHANNEL: &str = "emberbox_fleet";
/// Before listening is tried again.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);

/// Where the registry is, and how it is used.
#[derive(Clone)]
pub struct Options {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with PostgreSQL's usual parameters, such as `sslmode`.
    pub url: String,
    /// The schema that has the tables, made if it is not there: `emberbox_fleet` by default. Fleets that share a database have
    /// one each. Of lower-case letters, digits and `_`, at most 63, the first no digit.
    pub schema: String,
    /// Whether to hear of changes at once, which takes a second connection; otherwise within a quarter of the time to live.
    pub listen: bool,
    /// After this time PostgreSQL ends a statement of ours, and a transaction in which nothing happens: a process that stops in the
    /// middle of a change must not hold up the others for longer. 2 s by default.
    pub limit: Duration,
}

impl Options {
    /// With the defaults.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), schema: SCHEMA.to_owned(), listen: true, limit: Duration::from_secs(2) }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may have a password.
        let Self { url: _, schema, listen, limit } = self;
        let mut all = f.debug_struct("Options");
        all.field("schema", schema).field("listen", listen).field("limit", limit).finish_non_exhaustive()
    }
}

/// Members in a PostgreSQL database.
#[derive(Debug)]
pub struct PostgresRegistry {
    sessions: session::Sessions,
    /// Calls of one process come one after the other. Nothing while one is under way: one that fails, or is given up, takes the connection
    /// with it.
    session: Mutex<Option<Session>>,
    heard: watch::Sender<u64>,
    listener: Option<JoinHandle<()>>,
}

impl Drop for PostgresRegistry {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

impl PostgresRegistry {
    /// Connects, and brings the tables up to date.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] for an URL or a schema's name that cannot be used, [`RegistryError::Unavailable`] if the server does
    /// not take us, [`RegistryError::Newer`] if the tables are.
    pub async fn connect(options: Options) -> Result<Self, RegistryError> {
        let (sessions, connect) = session::Sessions::new(&options)?;
        let mut first = sessions.probe().await?;
        migrate::run(&mut first, &sessions).await?;
        let heard = watch::Sender::new(0);
        let listener = options.listen.then(|| tokio::spawn(listen(connect, options.schema, heard.clone())));
        Ok(Self { sessions, session: Mutex::new(Some(first)), heard, listener })
    }

    /// Makes a call on the connection.
    async fn with<T>(
        &self,
        operation: impl FnOnce() -> String,
        call: impl AsyncFnOnce(&mut Session) -> Result<T, sqlx::Error>,
    ) -> Result<T, RegistryError> {
        let mut place = self.session.lock().await;
        let outcome = async {
            let mut session = match place.take() {
                Some(session) => session,
                None => self.sessions.open().await?,
            };
            let answer = call(&mut session).await?;
            *place = Some(session);
            Ok(answer)
        };
        outcome.await.map_err(|error| self.sessions.unavailable(operation(), &error))
    }
}

#[async_trait]
impl Registry for PostgresRegistry {
    async fn join(&self, member: &Member, instance: Uuid, ttl: Duration) -> Result<Lease, RegistryError> {
        check(member, ttl)?;
        let epoch = self.with(
            || format!("join the fleet as member {}", member.id),
            async |session| {
                let sync = session.sync.clone();
                let mut transaction = session.connection.begin().await?;
                let epoch = grow(&mut transaction, &sync).await?;
                sqlx::query(
                    "INSERT INTO members (id, instance, epoch, roles, address, version, state, labels, ttl, beat)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, fleet_now())
                     ON CONFLICT (id) DO UPDATE SET instance = excluded.instance, epoch = excluded.epoch,
                         roles = excluded.roles, address = excluded.address, version = excluded.version,
                         state = excluded.state, labels = excluded.labels, ttl = excluded.ttl, beat = excluded.beat",
                )
                .bind(member.id.as_str())
                .bind(instance.to_string())
                .bind(epoch)
                .bind(member.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>())
                .bind(&member.address)
                .bind(&member.version)
                .bind(member.state.as_str())
                .bind(serde_json::to_string(&member.labels).map_err(|error| sqlx::Error::Encode(error.into()))?)
                .bind(i64::try_from(millis(ttl)).unwrap_or(i64::MAX))
                .execute(&mut *transaction)
                .await?;
                transaction.commit().await?;
                Ok(epoch)
            },
        );
        Ok(Lease { member: member.id.clone(), instance, epoch: epoch.await?.cast_unsigned() })
    }

    async fn beat(&self, lease: &Lease) -> Result<Hold, RegistryError> {
        let operation = || format!("give a sign of life as member {}", lease.member);
        let call = async |session: &mut Session| {
            let row = sqlx::query(
                "WITH own AS (
                     UPDATE members SET beat = fleet_now() WHERE id = $1 AND instance = $2
                     RETURNING epoch, ttl
                 )
                 SELECT own.epoch, fleet.epoch, fleet_now() - fleet.seen NOT BETWEEN 0 AND own.ttl / $3 - 1,
                     EXISTS (SELECT FROM members WHERE id = $1 AND instance <> $2)
                 FROM fleet LEFT JOIN own ON true",
            )
            .bind(lease.member.as_str())
            .bind(lease.instance.to_string())
            .bind(SWEEPS.cast_signed())
            .fetch_one(&mut session.connection)
            .await?;
            let Some(joined) = row.try_get::<Option<i64>, _>(0)? else {
                return Ok(if row.try_get(3)? { Hold::Replaced } else { Hold::Expired });
            };
            let mut epoch: i64 = row.try_get(1)?;
            if row.try_get(2)? {
                epoch = epoch.max(sweep(session).await?.unwrap_or(0));
            }
            Ok(Hold::Held { joined: joined.cast_unsigned(), epoch: epoch.cast_unsigned() })
        };
        self.with(operation, call).await
    }

    async fn set_state(&self, lease: &Lease, state: MemberState) -> Result<Hold, RegistryError> {
        let operation = || format!("change the state to {state} as member {}", lease.member);
        let call = async |session: &mut Session| {
            let sync = session.sync.clone();
            let mut transaction = session.connection.begin().await?;
            let mut epoch = take(&mut transaction).await?;
            let row = sqlx::query("SELECT instance, epoch, state FROM members WHERE id = $1")
                .bind(lease.member.as_str())
                .fetch_optional(&mut *transaction)
                .await?;
            let hold = match row {
                None => Hold::Expired,
                Some(row) if row.try_get::<&str, _>(0)? != lease.instance.to_string() => Hold::Replaced,
                Some(row) => {
                    sqlx::query("UPDATE members SET state = $2, beat = fleet_now() WHERE id = $1")
                        .bind(lease.member.as_str())
                        .bind(state.as_str())
                        .execute(&mut *transaction)
                        .await?;
                    if row.try_get::<&str, _>(2)? != state.as_str() {
                        epoch = grow(&mut transaction, &sync).await?;
                    }
                    let joined: i64 = row.try_get(1)?;
                    Hold::Held { joined: joined.cast_unsigned(), epoch: epoch.cast_unsigned() }
                }
            };
            transaction.commit().await?;
            Ok(hold)
        };
        self.with(operation, call).await
    }

    async fn leave(&self, lease: &Lease) -> Result<(), RegistryError> {
        let operation = || format!("leave the fleet as member {}", lease.member);
        let call = async |session: &mut Session| {
            let sync = session.sync.clone();
            let mut transaction = session.connection.begin().await?;
            take(&mut transaction).await?;
            let gone = sqlx::query("DELETE FROM members WHERE id = $1 AND instance = $2")
                .bind(lease.member.as_str())
                .bind(lease.instance.to_string())
                .execute(&mut *transaction)
                .await?;
            if gone.rows_affected() > 0 {
                grow(&mut transaction, &sync).await?;
            }
            transaction.commit().await
        };
        self.with(operation, call).await
    }

    async fn view(&self) -> Result<View, RegistryError> {
        let operation = || "read who is in the fleet".to_owned();
        let call = async |session: &mut Session| {
            // One statement sees one moment: the members and their epoch.
            let rows = sqlx::query(
                "SELECT fleet.epoch, m.id, m.epoch, m.roles, m.address, m.version, m.state, m.labels
                 FROM fleet LEFT JOIN members m ON true",
            )
            .fetch_all(&mut session.connection)
            .await?;
            let epoch = rows.first().map_or(Ok(0), |row| row.try_get::<i64, _>(0))?;
            let members: Result<Vec<_>, _> = rows.iter().filter_map(|row| member(row).transpose()).collect();
            Ok(View::new(epoch.cast_unsigned(), members?))
        };
        self.with(operation, call).await
    }

    fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    fn place(&self) -> String {
        self.sessions.place().to_owned()
    }

    async fn close(&self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
        if let Some(session) = self.session.lock().await.take() {
            let _ = session.connection.close().await;
        }
    }
}

// Every transaction ends by a commit, also of nothing, or by an error, which ends the connection: one that is only dropped would
// keep the fleet's row until the connection's next use.

/// Takes the fleet's row until the transaction ends, before any member's: the epoch.
async fn take(transaction: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT epoch FROM fleet FOR UPDATE").fetch_one(transaction).await
}

/// Takes the fleet's row, has the epoch grow, and says so to all who listen once the transaction is done.
async fn grow(transaction: &mut PgConnection, sync: &str) -> Result<i64, sqlx::Error> {
    let sql = "WITH grown AS (
             UPDATE fleet SET epoch = greatest(epoch + 1, fleet_now()) RETURNING epoch
         )
         SELECT epoch, set_config('synchronous_commit', $1, true), pg_notify($2, epoch || ' ' || current_schema())
         FROM grown";
    sqlx::query(sql).bind(sync).bind(CHANNEL).fetch_one(transaction).await?.try_get(0)
}

/// Finds the dead, as `Ledger::sweep` does; the epoch if it has grown.
async fn sweep(session: &mut Session) -> Result<Option<i64>, sqlx::Error> {
    let sync = session.sync.clone();
    let mut transaction = session.connection.begin().await?;
    // Somebody who changes something holds the row, or sweeps: then the next beat is soon enough.
    let row = sqlx::query(
        "SELECT now, now - seen, (SELECT coalesce(max(ttl), 0) FROM members)
         FROM (SELECT seen, fleet_now() AS now FROM fleet FOR UPDATE SKIP LOCKED) taken",
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else { return transaction.commit().await.map(|()| None) };
    let (now, unseen, ttl): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    sqlx::query("UPDATE fleet SET seen = $1").bind(now).execute(&mut *transaction).await?;
    let (of, in_all) = (GAP.0.cast_signed(), GAP.1.cast_signed());
    let mut grown = None;
    if unseen < 0 || unseen > ttl.saturating_mul(of) / in_all {
        sqlx::query("UPDATE members SET beat = $1").bind(now).execute(&mut *transaction).await?;
    } else {
        // A row that beats at this moment is waited for, and looked at again.
        let dead: Vec<String> = sqlx::query_scalar("DELETE FROM members WHERE beat + $2 < $1 RETURNING id")
            .bind(now)
            .bind(ttl)
            .fetch_all(&mut *transaction)
            .await?;
        if !dead.is_empty() {
            grown = Some(grow(&mut transaction, &sync).await?);
            tracing::warn!(?dead, epoch = grown, "gave no sign of life, and are out of the fleet");
        }
    }
    transaction.commit().await?;
    Ok(grown)
}

/// `None` is the row of a fleet without members.
fn member(row: &PgRow) -> Result<Option<Member>, sqlx::Error> {
    let Some(id) = row.try_get::<Option<String>, _>(1)? else { return Ok(None) };
    Ok(Some(Member {
        id: MemberId::new(id),
        epoch: row.try_get::<i64, _>(2)?.cast_unsigned(),
        // Those that a newer Emberbox has and this one does not know are nothing that this one could use.
        roles: row.try_get::<Vec<String>, _>(3)?.iter().filter_map(|role| role.parse().ok()).collect(),
        address: row.try_get(4)?,
        version: row.try_get(5)?,
        state: MemberState::read(row.try_get(6)?),
        labels: serde_json::from_str(row.try_get(7)?).map_err(|error| sqlx::Error::Decode(error.into()))?,
    }))
}

/// Hears of new epochs, as long as it is let.
async fn listen(options: PgConnectOptions, schema: String, heard: watch::Sender<u64>) {
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    loop {
        if let Ok(mut listener) = PgListener::connect_with(&pool).await
            && listener.listen(CHANNEL).await.is_ok()
        {
            while let Ok(notification) = listener.recv().await {
                // Schemas of one database share the channel.
                if let Some((epoch, of)) = notification.payload().split_once(' ')
                    && of == schema
                    && let Ok(epoch) = epoch.parse()
                {
                    heard.send_replace(epoch);
                }
            }
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}
