//! The one writer. Commits that arrive while another is being synced to disk share the next sync.

use std::fs::File;
use std::path::PathBuf;

use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};

use crate::api::{Change, Commit, Op, Precondition, Publisher, Record};
use crate::error::StoreError;

/// Commits that share one transaction and one fsync.
const GROUP: usize = 128;

/// What the writer is asked for.
pub(super) enum Request {
    /// Apply and answer with the revision.
    Commit { ops: Vec<Op>, done: oneshot::Sender<Result<u64, StoreError>> },
    /// Close the file, answer, and end.
    Close(oneshot::Sender<()>),
}

/// What became of one commit of a group.
type Outcome = Result<Commit, StoreError>;

pub(super) struct Writer {
    path: PathBuf,
    connection: SqliteConnection,
    publisher: Publisher,
    /// Held until the last commit is done; the system releases it however the process ends.
    _lock: File,
}

impl Writer {
    pub(super) fn new(path: PathBuf, connection: SqliteConnection, publisher: Publisher, lock: File) -> Self {
        Self { path, connection, publisher, _lock: lock }
    }

    /// Serves until asked to close, or until the store is dropped.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(GROUP);
        let mut close = None;
        while close.is_none() && requests.recv_many(&mut batch, GROUP).await > 0 {
            let mut group = Vec::with_capacity(batch.len());
            let mut waiting = Vec::with_capacity(batch.len());
            for request in batch.drain(..) {
                match request {
                    // What comes after a close is dropped, and its sender sees the store closed.
                    Request::Commit { ops, done } if close.is_none() => {
                        group.push(ops);
                        waiting.push(done);
                    }
                    Request::Commit { .. } => {}
                    Request::Close(done) => close = Some(done),
                }
            }
            self.serve(group, waiting).await;
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(path = %self.path.display(), %error, "close metadata");
        }
        if let Some(done) = close {
            let _ = done.send(());
        }
    }

    async fn serve(&mut self, group: Vec<Vec<Op>>, waiting: Vec<oneshot::Sender<Result<u64, StoreError>>>) {
        if group.is_empty() {
            return;
        }
        let outcomes = match self.write(&group).await {
            Ok(outcomes) => outcomes,
            // Nothing of the group is on disk: the transaction rolled back.
            Err(error) => vec![Err(StoreError::sql("write", &self.path, error)); waiting.len()],
        };
        for (outcome, done) in outcomes.into_iter().zip(waiting) {
            let answer = outcome.map(|commit| {
                let revision = commit.revision;
                self.publisher.publish(commit);
                revision
            });
            // A caller that gave up does not undo its commit.
            let _ = done.send(answer);
        }
    }

    async fn write(&mut self, group: &[Vec<Op>]) -> Result<Vec<Outcome>, sqlx::Error> {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let before: i64 = sqlx::query_scalar("SELECT value FROM revision").fetch_one(&mut *transaction).await?;
        let mut revision = before.cast_unsigned();
        let mut outcomes = Vec::with_capacity(group.len());
        for ops in group {
            if let Some(op) = first_conflict(&mut transaction, ops).await? {
                outcomes.push(Err(StoreError::conflict(op)));
                continue;
            }
            revision += 1;
            outcomes.push(Ok(apply(&mut transaction, ops, revision).await?));
        }
        sqlx::query("UPDATE revision SET value = ?").bind(revision.cast_signed()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(outcomes)
    }
}

async fn first_conflict<'a>(connection: &mut SqliteConnection, ops: &'a [Op]) -> Result<Option<&'a Op>, sqlx::Error> {
    for op in ops {
        if op.precondition == Precondition::None {
            continue;
        }
        let version: Option<i64> = sqlx::query_scalar("SELECT version FROM records WHERE kind = ? AND key = ?")
            .bind(&*op.kind)
            .bind(&op.key)
            .fetch_optional(&mut *connection)
            .await?;
        if !op.precondition.holds(version.map(i64::cast_unsigned)) {
            return Ok(Some(op));
        }
    }
    Ok(None)
}

async fn apply(connection: &mut SqliteConnection, ops: &[Op], revision: u64) -> Result<Commit, sqlx::Error> {
    let mut changes = Vec::with_capacity(ops.len());
    for op in ops {
        let record = op.value.clone().map(|value| Record { version: revision, value });
        match &record {
            Some(record) => {
                sqlx::query("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)")
                    .bind(&*op.kind)
                    .bind(&op.key)
                    .bind(revision.cast_signed())
                    .bind(&*record.value)
                    .execute(&mut *connection)
                    .await?;
            }
            None => {
                sqlx::query("DELETE FROM records WHERE kind = ? AND key = ?")
                    .bind(&*op.kind)
                    .bind(&op.key)
                    .execute(&mut *connection)
                    .await?;
            }
        }
        changes.push(Change { kind: op.kind.clone(), key: op.key.clone(), record });
    }
    Ok(Commit { revision, changes })
}
