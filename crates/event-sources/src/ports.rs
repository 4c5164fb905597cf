//! The ways out of this part.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{EventSourceMapping, FunctionArn, QueueArn};
use tokio::sync::watch;

use crate::message::Message;

/// Which mappings there are; the control plane knows.
pub trait Mappings: Send + Sync + 'static {
    /// Those that are to be served now: enabled, with a function that is there.
    fn served(&self) -> Vec<EventSourceMapping>;
    /// Changes whenever [`Self::served`] may.
    fn changes(&self) -> watch::Receiver<u64>;
    /// What keeps a mapping from working, for its `LastProcessingResult`; `None`: nothing any more.
    fn report(&self, uuid: &str, problem: Option<String>);
}

/// One invocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invocation {
    /// What is invoked.
    pub function: FunctionArn,
    /// Version or alias.
    pub qualifier: Option<String>,
    /// The event: JSON, up to 6 MB.
    pub payload: Bytes,
    /// `AWSTraceHeader` of the first message that has one: carries the lineage for recursion detection.
    pub trace_header: Option<String>,
}

/// Invokes functions by the synchronous path.
#[async_trait]
pub trait Invoker: Send + Sync + 'static {
    /// Returns the answer of a function that did not fail.
    async fn invoke(&self, invocation: Invocation) -> Result<Bytes, InvokeError>;
}

/// Why an invocation has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvokeError {
    /// The function ran and failed; the error object.
    #[error("function error: {}", String::from_utf8_lossy(.0))]
    Function(Bytes),
    /// Not now: concurrency is used up, or the platform is not ready. The same batch is tried again.
    #[error("{0}")]
    Throttled(String),
    /// Not at all: the function is gone, or the event is refused.
    #[error("{0}")]
    Refused(String),
}

/// An SQS-compatible queue service.
#[async_trait]
pub trait QueueSource: Send + Sync + 'static {
    /// How long a received message stays hidden.
    async fn visibility_timeout(&self, queue: &QueueArn) -> Result<Duration, SourceError>;
    /// Up to `max` (1 to 10) messages with all attributes; waits up to `wait` (whole seconds, up to 20) for the first.
    async fn receive(&self, queue: &QueueArn, max: usize, wait: Duration) -> Result<Vec<Message>, SourceError>;
    /// Deletes up to 10 messages by their receipts; returns the receipts of those that could not be deleted.
    async fn delete(&self, queue: &QueueArn, receipts: &[String]) -> Result<Vec<String>, SourceError>;
    /// Makes up to 10 messages visible after `timeout`. Those whose receipts are no longer valid are left out.
    async fn change_visibility(
        &self,
        queue: &QueueArn,
        receipts: &[String],
        timeout: Duration,
    ) -> Result<(), SourceError>;
}

/// A queue service did not do what it was asked. The text is what AWS shows for it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct SourceError {
    /// e.g. `ReceiveMessage`.
    pub operation: &'static str,
    /// ARN.
    pub queue: String,
    /// e.g. `AWS.SimpleQueueService.NonExistentQueue`; `None` if the service did not answer.
    pub code: Option<String>,
    /// What it said, or why there is no answer.
    pub message: String,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, queue, code, message } = self;
        match code {
            Some(code) => {
                write!(f, "Error occurred while {operation}. SQS Error Code: {code}. SQS Error Message: {message}")
            }
            None => write!(f, "Error occurred while {operation} from {queue}. There is no answer: {message}"),
        }
    }
}
