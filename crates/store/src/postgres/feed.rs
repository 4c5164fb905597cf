//! The change feed of this process: one task that reads the log behind the last commit that it has published.
//!
//! ```text
//!  connect ─► LISTEN ─► read the log up to head ─► wait: NOTIFY, own writer, or a second ─┐
//!     ▲                       ▲                                                          │
//!     └── connection broke    └──────────────────────────────────────────────────────────┘
//! ```
//!
//! Nothing depends on a notification: it only ends a wait. What the log no longer has, or has otherwise (a server that was
//! restored, or a failover that lost commits), subscribers have missed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::{PgListener, PgRow};
use sqlx::{Connection as _, Row as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::link::{ATTEMPT, Link, Pauses, in_time, reason};
use super::migrate;
use crate::api::{Change, Commit, Publisher, Record};

/// How often the log is looked at if nobody tells of a commit: a notification can be lost with its connection.
const LOOK: Duration = Duration::from_secs(1);
/// Commits that are read at once.
const CHUNK: u64 = 256;
/// How often old commits are deleted from the log.
const TRIM: Duration = Duration::from_secs(60);
/// Younger ones stay. Whoever was away for longer scans again.
const KEEP: &str = "1 hour";
/// The last ones stay in any case.
const KEEP_LAST: i64 = 1000;
/// As many are deleted at once.
const TRIM_CHUNK: i64 = 1000;

pub(super) struct Feed {
    link: Arc<Link>,
    publisher: Publisher,
    /// Told by the writer of this process.
    made: Arc<Notify>,
    /// The revision that was published last.
    last: u64,
    /// Which transaction made it, if that is known.
    mark: Option<Vec<u8>>,
    trim: Instant,
}

impl Feed {
    /// Publishes what comes after the revision `last`.
    pub(super) fn new(link: Arc<Link>, publisher: Publisher, made: Arc<Notify>, last: u64) -> Self {
        Self { link, publisher, made, last, mark: None, trim: Instant::now() }
    }

    /// Never ends by itself.
    pub(super) async fn run(mut self) {
        let mut pauses = Pauses::new(None);
        // Once for each time that the server is away.
        let mut told = false;
        loop {
            let failed = match self.listen().await {
                Ok(mut listener) => {
                    if told {
                        tracing::info!(server = %self.link.server, "following the metadata's changes again");
                    }
                    told = false;
                    pauses.reset();
                    let Err(failed) = self.publish_from(&mut listener).await;
                    failed
                }
                Err(error) => reason(&error),
            };
            if !told {
                let server = &self.link.server;
                tracing::warn!(%server, reason = failed, "lost the metadata's changes; connecting again");
                told = true;
            }
            pauses.pause().await;
        }
    }

    async fn listen(&self) -> Result<PgListener, sqlx::Error> {
        // A listener takes its connection from a pool, which would not say why it has none. Its own each time: a dead
        // connection keeps its place for as long as TCP hopes.
        let _ = in_time(ATTEMPT, self.link.connect().await?.close()).await;
        in_time(ATTEMPT, async {
            let mut listener = PgListener::connect_with(&self.link.pool(1, None)).await?;
            listener.eager_reconnect(false);
            listener.listen(&self.link.channel()).await?;
            Ok(listener)
        })
        .await
    }

    async fn publish_from(&mut self, listener: &mut PgListener) -> Result<Infallible, String> {
        loop {
            in_time(ATTEMPT, self.catch_up(listener)).await.map_err(|error| reason(&error))??;
            if self.trim <= Instant::now() {
                in_time(ATTEMPT, trim(listener)).await.map_err(|error| reason(&error))?;
                self.trim = Instant::now() + TRIM;
            }
            tokio::select! {
                () = self.made.notified() => {}
                () = sleep(LOOK) => {}
                error = self.told(listener) => error?,
            }
        }
    }

    /// Waits until a commit is told of that was not published yet.
    async fn told(&self, listener: &mut PgListener) -> Result<(), String> {
        loop {
            match listener.try_recv().await {
                Ok(Some(told)) if told.payload().parse().is_ok_and(|revision: u64| revision <= self.last) => {}
                Ok(Some(_)) => return Ok(()),
                Ok(None) => return Err("the connection broke".to_owned()),
                Err(error) => return Err(reason(&error)),
            }
        }
    }

    /// Publishes all that the log has behind the last one. The inner error: this program is too old.
    async fn catch_up(&mut self, listener: &mut PgListener) -> Result<Result<(), String>, sqlx::Error> {
        loop {
            let head =
                sqlx::query("SELECT revision, oldest, (SELECT attempt FROM commits WHERE revision = $1) FROM head")
                    .bind(self.last.cast_signed())
                    .fetch_one(&mut *listener)
                    .await?;
            let newest = head.try_get::<i64, _>(0)?.cast_unsigned();
            if let Err(error) = migrate::check(&self.link, head.try_get(1)?) {
                return Ok(Err(error.to_string()));
            }
            let found: Option<Vec<u8>> = head.try_get(2)?;
            let other = self.mark.is_some() && found.is_some() && self.mark != found;
            if newest < self.last || other {
                tracing::warn!(server = %self.link.server, seen = self.last, newest,
                    "the metadata have lost commits: was the server restored, or did a standby take over?");
                self.missed(newest);
                continue;
            }
            if found.is_some() {
                self.mark = found;
            }
            if newest == self.last {
                return Ok(Ok(()));
            }
            let upto = newest.min(self.last + CHUNK);
            match read(listener, self.last, upto).await? {
                Some((commits, mark)) => {
                    commits.into_iter().for_each(|commit| self.publisher.publish(commit));
                    self.last = upto;
                    self.mark = Some(mark);
                }
                None => self.missed(newest),
            }
        }
    }

    fn missed(&mut self, newest: u64) {
        self.last = newest;
        self.mark = None;
        self.publisher.missed();
    }
}

/// The commits behind `last` up to `upto`, and which transaction made the last of them. `None` if some are gone.
async fn read(listener: &mut PgListener, last: u64, upto: u64) -> Result<Option<(Vec<Commit>, Vec<u8>)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT c.revision, c.attempt, g.kind, g.key, g.value FROM commits c
         LEFT JOIN changes g ON g.revision = c.revision
         WHERE c.revision > $1 AND c.revision <= $2 ORDER BY c.revision, g.number",
    )
    .bind(last.cast_signed())
    .bind(upto.cast_signed())
    .fetch_all(listener)
    .await?;
    let mut commits: Vec<Commit> = Vec::new();
    for row in &rows {
        let revision = row.try_get::<i64, _>(0)?.cast_unsigned();
        if commits.last().is_none_or(|commit| commit.revision != revision) {
            commits.push(Commit { revision, changes: Vec::new() });
        }
        if let (Some(change), Some(commit)) = (change(row, revision)?, commits.last_mut()) {
            commit.changes.push(change);
        }
    }
    match rows.last() {
        // Revisions are without gaps.
        Some(row) if commits.len() as u64 == upto - last => Ok(Some((commits, row.try_get(1)?))),
        _ => Ok(None),
    }
}

/// `None` for a commit that changed nothing.
fn change(row: &PgRow, version: u64) -> Result<Option<Change>, sqlx::Error> {
    let Some(kind) = row.try_get::<Option<String>, _>(2)? else { return Ok(None) };
    let value: Option<Vec<u8>> = row.try_get(4)?;
    let record = value.map(|value| Record { version, value: Bytes::from(value) });
    Ok(Some(Change { kind: kind.into(), key: row.try_get(3)?, record }))
}

/// Deletes old commits from the log. All processes do, each others than those that another is at.
async fn trim(listener: &mut PgListener) -> Result<(), sqlx::Error> {
    loop {
        let done = sqlx::query(
            "WITH oldest AS (
                 SELECT revision, made FROM commits WHERE revision <= (SELECT revision - $2 FROM head)
                 ORDER BY revision LIMIT $3 FOR UPDATE SKIP LOCKED
             ), trimmed AS (
                 DELETE FROM commits c USING oldest o WHERE c.revision = o.revision AND o.made < now() - $1::INTERVAL
                 RETURNING c.revision
             )
             DELETE FROM changes g USING trimmed t WHERE g.revision = t.revision RETURNING g.revision",
        )
        .bind(KEEP)
        .bind(KEEP_LAST)
        .bind(TRIM_CHUNK)
        .fetch_all(&mut *listener)
        .await?;
        if done.is_empty() {
            return Ok(());
        }
    }
}
