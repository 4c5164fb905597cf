//! The one writer, on a thread of its own: SQLite blocks. Requests that arrive while a group is being synced to disk share
//! the next transaction and sync.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use domain::Clock;
use rusqlite::Connection;
use sqlite_file::{FileError, SqliteFile};
use sqs_api::{ApiError, ErrorCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::format::FORMAT;
use super::state::{QueueKey, State};
use crate::message::Content;
use crate::queue::{Meta, Millis};
use crate::receipt::Receipt;

/// Requests that share one transaction and one fsync.
const GROUP: usize = 256;
/// Requests that may wait for the writer before callers wait to hand theirs in.
const WAITING: usize = 1024;
/// How often messages past their retention are looked for in queues that nobody uses.
const SWEEP: Duration = Duration::from_secs(60);

/// Answers a caller; called once the group is committed.
type Reply = Box<dyn FnOnce() + Send>;
type Apply = Box<dyn FnOnce(&mut State, &Connection, Millis) -> rusqlite::Result<Reply> + Send>;

enum Request {
    Apply { durable: bool, apply: Apply },
    Receive(Receive),
    Close(oneshot::Sender<()>),
}

/// A message that was handed out.
#[derive(Debug)]
pub(crate) struct Received {
    pub receipt: Receipt,
    pub meta: Meta,
    pub content: Content,
}

/// Somebody who waits for messages.
pub(crate) struct Receive {
    pub key: QueueKey,
    pub most: usize,
    /// Milliseconds; nothing for what the queue says.
    pub visibility: Option<Millis>,
    /// Nothing for what the queue says.
    pub wait: Option<Duration>,
    done: oneshot::Sender<Result<Vec<Received>, ApiError>>,
}

/// A receive that found nothing yet.
struct Parked {
    receive: Receive,
    since: Instant,
}

/// The way to the writer.
#[derive(Clone)]
pub(crate) struct Store {
    requests: mpsc::Sender<Request>,
}

impl Store {
    /// Opens the file, or makes it (and its folder) if there is none.
    pub(crate) async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, FileError> {
        let file = SqliteFile::new(&FORMAT, path);
        let failed = |error| file.io_failed("start the thread of", &error);
        let (requests, received) = mpsc::channel(WAITING);
        // Of its own, so that it outlives the caller's runtime until the store is dropped.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
        let (done, opened) = oneshot::channel();
        let owned = file.clone();
        let serve = move || match Writer::start(owned, clock) {
            Ok(writer) => {
                let _ = done.send(Ok(()));
                runtime.block_on(writer.run(received));
            }
            Err(error) => drop(done.send(Err(error))),
        };
        thread::Builder::new().name("sqs".to_owned()).spawn(serve).map_err(failed)?;
        opened.await.map_err(|_| FileError::Unavailable {
            operation: format!("open message store {}", path.display()),
            cause: "its thread ended; the log says why".to_owned(),
        })??;
        Ok(Self { requests })
    }

    /// Does something to the queues, all or nothing. With `durable` it is on disk when this returns; without, it survives
    /// `kill -9` but perhaps not a power failure.
    ///
    /// # Errors
    /// What `apply` answers, or InternalFailure if the file cannot be written (the log says why) or is closed.
    pub(crate) async fn apply<T: Send + 'static>(
        &self,
        durable: bool,
        apply: impl FnOnce(&mut State, &Connection, Millis) -> rusqlite::Result<Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (done, answer) = oneshot::channel();
        let apply = move |state: &mut State, connection: &Connection, now| {
            let result = apply(state, connection, now)?;
            // A caller that gave up does not undo what it asked for.
            let reply = move || drop(done.send(result));
            Ok(Box::new(reply) as Reply)
        };
        self.requests.send(Request::Apply { durable, apply: Box::new(apply) }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Hands out up to `most` messages; waits for the first, behind those who wait already.
    ///
    /// # Errors
    /// QueueDoesNotExist, also if the queue is deleted meanwhile; OverLimit; InternalFailure as of [`Store::apply`].
    pub(crate) async fn receive(
        &self,
        key: QueueKey,
        most: usize,
        visibility: Option<Millis>,
        wait: Option<Duration>,
    ) -> Result<Vec<Received>, ApiError> {
        let (done, answer) = oneshot::channel();
        let receive = Receive { key, most, visibility, wait, done };
        self.requests.send(Request::Receive(receive)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Closes the file; receives that wait end without messages.
    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        // Either the writer answers, or it is gone already.
        if self.requests.send(Request::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

fn gone() -> ApiError {
    ApiError::new(
        ErrorCode::InternalFailure,
        "The message store is closed or could not be written; Emberbox's log says why.",
    )
}

struct Writer {
    file: SqliteFile,
    clock: Arc<dyn Clock>,
    /// Nothing after a failure, until the next request.
    connection: Option<Connection>,
    state: State,
    /// Whether commits are synced at present.
    synced: bool,
    /// In the order in which they came.
    parked: Vec<Parked>,
    sweep_at: Instant,
    /// Held until the last group is done; the system releases it however the process ends.
    _lock: File,
}

/// What a group of requests leads to once it is committed.
#[derive(Default)]
struct Outcome {
    replies: Vec<Reply>,
    receives: Vec<(Receive, Result<Vec<Received>, ApiError>)>,
}

impl Writer {
    fn start(file: SqliteFile, clock: Arc<dyn Clock>) -> Result<Self, FileError> {
        let lock = file.lock()?;
        let connection = file.connect()?;
        let state = State::load(&connection).map_err(|error| file.sql_failed("read", &error))?;
        Ok(Self {
            file,
            clock,
            connection: Some(connection),
            state,
            synced: true,
            parked: Vec::new(),
            sweep_at: Instant::now(),
            _lock: lock,
        })
    }

    /// Serves until asked to close, or until the store is dropped.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(GROUP);
        let mut close = None;
        while close.is_none() {
            tokio::select! {
                received = requests.recv_many(&mut batch, GROUP) => if received == 0 { break },
                () = sleep_until(self.next_wake()) => {}
            }
            let mut group = Vec::with_capacity(batch.len());
            let mut durable = false;
            for request in batch.drain(..) {
                match request {
                    // What comes after a close is dropped, and its sender sees the store closed.
                    _ if close.is_some() => {}
                    Request::Apply { durable: needed, apply } => {
                        durable |= needed;
                        group.push(apply);
                    }
                    Request::Receive(receive) => self.parked.push(Parked { receive, since: Instant::now() }),
                    Request::Close(done) => close = Some(done),
                }
            }
            self.serve(group, durable);
        }
        for parked in self.parked.drain(..) {
            let _ = parked.receive.done.send(Ok(Vec::new()));
        }
        if let Some(Err((_, error))) = self.connection.take().map(Connection::close) {
            tracing::warn!(path = %self.file.path().display(), %error, "close message store");
        }
        // First the lock: whoever sees the store closed may open it again.
        drop(self);
        if let Some(done) = close {
            let _ = done.send(());
        }
    }

    fn now(&self) -> Millis {
        let since = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
    }

    /// When something happens without a request.
    fn next_wake(&self) -> Instant {
        let (now, start) = (self.now(), Instant::now());
        let mut wake = self.sweep_at;
        for parked in &self.parked {
            wake = wake.min(self.deadline(parked));
            if let Some(due) = self.state.next_due(&parked.receive.key) {
                wake = wake.min(start + Duration::from_millis(due.saturating_sub(now).max(1).unsigned_abs()));
            }
        }
        wake
    }

    fn deadline(&self, parked: &Parked) -> Instant {
        let of_queue = || self.state.get(&parked.receive.key).map_or(0, |entry| entry.attributes.wait_seconds());
        parked.since + parked.receive.wait.unwrap_or_else(|| Duration::from_secs(of_queue()))
    }

    /// Does the group, then what it lets receives find, and answers.
    fn serve(&mut self, group: Vec<Apply>, durable: bool) {
        let now = self.now();
        self.parked.retain(|parked| !parked.receive.done.is_closed());
        let mut unclaimed = Vec::new();
        match self.write(group, durable, now) {
            Ok(outcome) => {
                outcome.replies.into_iter().for_each(|reply| reply());
                for (receive, result) in outcome.receives {
                    if let Err(Ok(received)) = receive.done.send(result) {
                        unclaimed.push((receive.key, received));
                    }
                }
            }
            // Their senders are dropped, and the callers see that; of those who wait as well, or they would be tried forever.
            Err(error) => {
                tracing::error!(path = %self.file.path().display(), %error, "write message store");
                self.parked.clear();
            }
        }
        // Nobody will work on what a caller who is gone has received.
        unclaimed.retain(|(_, received)| !received.is_empty());
        if !unclaimed.is_empty() {
            let give_back: Apply = Box::new(move |state, connection, now| {
                for (key, received) in unclaimed {
                    for message in received {
                        // If it is gone already, so much the better.
                        let _ = state.change_visibility(connection, &key, &message.receipt, 0, now)?;
                    }
                }
                Ok(Box::new(|| ()))
            });
            self.serve(vec![give_back], false);
        }
    }

    fn write(&mut self, group: Vec<Apply>, durable: bool, now: Millis) -> rusqlite::Result<Outcome> {
        let sweep = self.sweep_at <= Instant::now();
        if sweep {
            self.sweep_at = Instant::now() + SWEEP;
        }
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = self.file.reconnect()?;
                self.state = State::load(&connection)?;
                self.synced = true;
                connection
            }
        };
        if self.synced != durable {
            connection.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })?;
            self.synced = durable;
        }
        // On an error the connection is dropped, which rolls back, and the state is read anew.
        let transaction = connection.unchecked_transaction()?;
        let mut outcome = Outcome::default();
        for apply in group {
            outcome.replies.push(apply(&mut self.state, &transaction, now)?);
        }
        if sweep {
            self.state.sweep(&transaction, now)?;
        }
        for parked in std::mem::take(&mut self.parked) {
            match self.attempt(&transaction, &parked, now)? {
                Some(result) => outcome.receives.push((parked.receive, result)),
                None => self.parked.push(parked),
            }
        }
        self.state.finish(&transaction)?;
        transaction.commit()?;
        self.connection = Some(connection);
        Ok(outcome)
    }

    /// What to answer to a receive; nothing if it goes on waiting.
    fn attempt(
        &mut self,
        connection: &Connection,
        parked: &Parked,
        now: Millis,
    ) -> rusqlite::Result<Option<Result<Vec<Received>, ApiError>>> {
        let receive = &parked.receive;
        if self.state.get(&receive.key).is_none() {
            return Ok(Some(Err(crate::service::no_such_queue())));
        }
        let received = self.state.receive(connection, &receive.key, (receive.most, receive.visibility), now)?;
        if received.is_empty() {
            let full = |entry: &super::Entry| entry.queue.is_over_limit() && !entry.attributes.fifo;
            if self.state.get(&receive.key).is_some_and(full) {
                let message = "Too many messages are in flight (120,000): delete some, or wait for their timeouts.";
                return Ok(Some(Err(ApiError::new(ErrorCode::OverLimit, message))));
            }
            return Ok((self.deadline(parked) <= Instant::now()).then(|| Ok(Vec::new())));
        }
        Ok(Some(Ok(received)))
    }
}
