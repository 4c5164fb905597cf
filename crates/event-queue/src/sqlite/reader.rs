//! Looking at the file beside the writer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};
use sqlite_file::SqliteFile;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::api::{QueueError, QueueName};
use crate::rotation::Number;
use crate::time::age;

/// Reads one after the other; opens its connection when it is needed.
pub(super) struct Reader {
    file: SqliteFile,
    state: Arc<Mutex<State>>,
}

enum State {
    Idle,
    Open(Connection),
    Closed,
}

impl Reader {
    pub(super) fn new(file: SqliteFile) -> Self {
        Self { file, state: Arc::new(Mutex::new(State::Idle)) }
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) async fn close(&self) {
        *self.state.lock().await = State::Closed;
    }

    /// Runs `query` on a thread that may block.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, QueueError> {
        let file = self.file.clone();
        let mut state = Arc::clone(&self.state).lock_owned().await;
        let reading = spawn_blocking(move || {
            let failed = |error| file.sql_failed("read", &error);
            let connection = match std::mem::replace(&mut *state, State::Idle) {
                State::Idle => file.reader().map_err(failed)?,
                State::Open(connection) => connection,
                State::Closed => {
                    *state = State::Closed;
                    return Err(QueueError::Closed);
                }
            };
            let answer = query(&connection).map_err(failed)?;
            *state = State::Open(connection);
            Ok(answer)
        });
        reading.await.map_err(|_| QueueError::Closed)?
    }
}

/// A queue's number, how many of its events are not due yet, and the age of the oldest of all. Counts only those that are
/// not due, in an index; a backlog that is ready costs nothing.
pub(super) type Count = (Number, u64, Option<Duration>);

/// See [`Count`]; nothing if there is no such queue.
pub(super) fn count(connection: &Connection, queue: &QueueName, now: i64) -> rusqlite::Result<Option<Count>> {
    let mut statement = connection.prepare_cached(
        "SELECT q.number,
             (SELECT count(*) FROM events e WHERE e.queue = q.number AND e.due > ?2),
             (SELECT enqueued_at FROM events e WHERE e.queue = q.number ORDER BY e.seq LIMIT 1)
         FROM queues q WHERE q.name = ?1",
    )?;
    let count = statement.query_row(params![&*queue.0, now], |row| {
        let oldest = row.get::<_, Option<i64>>(2)?.map(|enqueued_at| age(now, enqueued_at));
        Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned(), oldest))
    });
    count.optional()
}

/// Those that have events, by name.
pub(super) fn queues(connection: &Connection) -> rusqlite::Result<Vec<QueueName>> {
    let mut statement = connection.prepare_cached(
        "SELECT name FROM queues WHERE EXISTS (SELECT 1 FROM events WHERE queue = number) ORDER BY name",
    )?;
    let names = statement.query_map([], |row| Ok(QueueName(row.get::<_, String>(0)?.into())))?;
    names.collect()
}
