//! What the Frontend needs from other parts, in its own terms. In one process the parts implement it directly; in a
//! cluster a client of theirs does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::trace::Origin;
use domain::{AccountId, ConcurrencyLimits, FunctionArn, FunctionVersion, RequestId};
use http::{HeaderMap, Response};
use lambda_api::{ApiError, Routed};
use serde::Serialize;

use crate::auth::Identity;

/// Functions: the management of them, and the lookup that every invocation begins with.
#[async_trait]
pub trait Functions: Send + Sync + 'static {
    /// Name and qualifier to the version that serves this invocation. Answered from memory. `random`, in `0..1`,
    /// decides between the versions of a weighted alias.
    fn resolve(&self, caller: &Identity, name: &str, qualifier: Option<&str>, random: f64) -> Result<Target, ApiError>;

    /// Carries out any operation but Invoke; `None` if it is not implemented.
    async fn manage(&self, call: Call<'_>) -> Option<Result<Response<Bytes>, ApiError>>;

    /// How many functions this frontend knows only as they were, since it cannot read what is stored of them. `None`: it learns of
    /// no change any more, so that another frontend should be asked.
    fn unreadable(&self) -> Option<usize> {
        Some(0)
    }
}

/// What an invocation goes to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The exact version.
    pub version: Arc<FunctionVersion>,
    /// ARN as invoked: with the qualifier only if the caller gave one.
    pub invoked_arn: String,
    /// How many may run at once.
    pub limits: ConcurrencyLimits,
    /// Whether it may be part of a loop: `RecursiveLoop` is `Allow`.
    pub recursion_allowed: bool,
}

impl Target {
    /// The qualifier that the caller gave.
    pub fn qualifier(&self) -> Option<&str> {
        self.version.arn.qualifier_of(&self.invoked_arn)
    }
}

/// Events of asynchronous invocations.
#[async_trait]
pub trait Events: Send + Sync + 'static {
    /// Keeps an event, which then runs as often as its settings say; durable when this returns.
    async fn accept(&self, event: Event) -> Result<(), NotAccepted>;
    /// How the events of a function are doing.
    async fn stats(&self, function: &FunctionArn) -> Result<EventStats, String>;
    /// What happened so far to an event that was accepted with [`Event::timeline`]: as JSON, as that of a synchronous
    /// invocation. `None` if it is not known, or not any more.
    fn timeline(&self, function: &FunctionArn, request_id: RequestId) -> Option<EventTimeline>;
}

/// An event was not taken, and does not run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotAccepted {
    /// Its payload has more than so many bytes, the most that the queue can take of such content.
    TooLarge(usize),
    /// The cause, in words.
    Failed(String),
}

/// An event to accept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The function, without qualifier.
    pub function: FunctionArn,
    /// Version or alias, if the caller named one.
    pub qualifier: Option<String>,
    /// The same over all attempts.
    pub request_id: RequestId,
    /// JSON.
    pub payload: Bytes,
    /// For `Lambda-Runtime-Trace-Id`, with the caller's lineage.
    pub trace_id: String,
    /// When the request was read (monotonic).
    pub received: Duration,
    /// Whether the timeline is wanted.
    pub timeline: bool,
    /// Where it belongs in a trace that is sampled.
    pub origin: Option<Box<Origin>>,
}

/// How the events of one function are doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventStats {
    /// Events in the queue: all that follow.
    pub depth: u64,
    /// Ready for an attempt.
    pub waiting: u64,
    /// Running.
    pub in_flight: u64,
    /// Waiting for the time of their next attempt or delivery.
    pub retrying: u64,
    /// Age of the oldest one.
    pub oldest_age_ms: Option<u64>,
    /// Since the server started: accepted.
    pub received: u64,
    /// Since the server started: the function succeeded.
    pub succeeded: u64,
    /// Since the server started: given up.
    pub dropped: u64,
    /// Since the server started: messages about given up events that a dead-letter queue or destination took.
    pub dead_lettered: u64,
    /// Since the server started: failed tries to deliver to a dead-letter queue or destination.
    pub delivery_errors: u64,
    /// Since the server started: messages that could not be delivered at all.
    pub undelivered: u64,
}

/// The timeline of an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventTimeline {
    /// `[{"step":"received","us":0},…]`.
    pub json: String,
    /// Attempts that ended.
    pub attempts: u32,
    /// The last attempt has its outcome in the timeline, or the event was settled without one.
    pub settled: bool,
}

/// A request for an operation, authenticated and read.
pub struct Call<'a> {
    /// Who asks.
    pub caller: &'a Identity,
    /// For what.
    pub routed: &'a Routed,
    /// Query string without `?`.
    pub query: Option<&'a str>,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Makes the download address of a package from its SHA-256 in base64.
    pub code_url: &'a (dyn Fn(&str) -> Option<String> + Send + Sync),
}

/// Amazon SQS, for those who have no other. Speaks the AWS JSON protocol.
#[async_trait]
pub trait Sqs: Send + Sync + 'static {
    /// Name of the operation in an `X-Amz-Target`, for metrics; one word for all that are unknown.
    fn label(&self, target: &str) -> &'static str;
    /// Answers a request whose signature was checked. `endpoint` is this server as the client addressed it, e.g.
    /// `http://127.0.0.1:4566`, `trace` the trace that the request is part of. May take as long as a client polls; what was begun for a client that left is undone.
    async fn answer(
        &self,
        caller: &Identity,
        endpoint: &str,
        target: &str,
        trace: Option<&str>,
        body: Bytes,
    ) -> Response<Bytes>;
}

/// Code packages, for downloads.
#[async_trait]
pub trait Code: Send + Sync + 'static {
    /// The zip file with this SHA-256 (base64); `None` if it is not in storage.
    async fn zip(&self, sha256_base64: &str) -> Result<Option<Bytes>, String>;
}

/// The logs of functions. Calls may read files.
#[async_trait]
pub trait Logs: Send + Sync + 'static {
    /// Names of all log groups of an account and region, sorted.
    async fn groups(&self, account: &AccountId, region: &str) -> Result<Vec<String>, LogsError>;
    /// Streams of a group by name; none for a group that does not exist.
    async fn streams(&self, group: &LogGroup) -> Result<Vec<LogStream>, LogsError>;
    /// Events of a group in the order of arrival, where one worker has it; those of several are put in order by their times.
    async fn events(&self, group: &LogGroup, query: LogQuery) -> Result<LogPage, LogsError>;
}

/// Names a log group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogGroup {
    /// Owner.
    pub account: AccountId,
    /// e.g. `us-east-1`.
    pub region: String,
    /// e.g. `/aws/lambda/hello`.
    pub name: String,
}

/// A log stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogStream {
    /// Its name.
    pub name: String,
    /// Time of the first event that is still there, in milliseconds since 1970.
    pub first: u64,
    /// Time of the last event.
    pub last: u64,
    /// Bytes of its messages.
    pub bytes: u64,
}

/// Which events are wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogQuery {
    /// Only of these streams; empty: of all.
    pub streams: Vec<String>,
    /// Only of streams whose name begins so.
    pub stream_prefix: Option<String>,
    /// Not before this time, in milliseconds since 1970.
    pub start: Option<u64>,
    /// Before this time.
    pub end: Option<u64>,
    /// CloudWatch Logs' filter pattern.
    pub pattern: Option<String>,
    /// At most so many.
    pub limit: usize,
    /// Where an earlier page ended: its `next`. Or the id of an event of the only stream that is wanted.
    pub from: Option<String>,
    /// Only what is before this place, which is said as in `from`.
    pub until: Option<String>,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEvent {
    /// Names it, and its place in the group.
    pub id: String,
    /// Its stream.
    pub stream: String,
    /// Milliseconds since 1970.
    pub timestamp: u64,
    /// Without a trailing newline.
    pub message: String,
}

/// Some events, and where to read on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogPage {
    /// In the order of arrival.
    pub events: Vec<LogEvent>,
    /// Where the next page begins; at the end of the log: where later events will be.
    pub next: String,
    /// Whether there may be more now.
    pub more: bool,
}

/// Why logs cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogsError {
    /// [`LogQuery::from`] or [`LogQuery::until`] is not a place in a log.
    #[error("the token is not valid")]
    Token,
    /// They cannot be read.
    #[error("read logs: {0}")]
    Failed(String),
}
