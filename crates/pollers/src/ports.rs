//! The ways out of the pollers; the process that wires the parts implements them.

use async_trait::async_trait;
use bytes::Bytes;

use crate::event::AsyncEvent;
use crate::rules::{Outcome, Settings};
use crate::target::Target;

/// How one attempt ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// For the rules.
    pub outcome: Outcome,
    /// `responseContext.statusCode`: 200 when the function ran, else 429 or 5xx.
    pub status: u16,
    /// `responseContext.executedVersion`; `None` when no version ran.
    pub executed_version: Option<String>,
    /// `responseContext.functionError`, e.g. `Unhandled`.
    pub function_error: Option<String>,
    /// The answer, or the error object; empty when there is none (a function that returns nothing answers `null`).
    pub payload: Bytes,
}

/// Runs one event through the synchronous path: resolve, assign, invoke.
#[async_trait]
pub trait Invoker: Send + Sync + 'static {
    /// Never waits longer than the function's time limit and the time of its `Init`; never panics for a function's
    /// sake. Dropped unfinished only if it outlasts a [`crate::Service::stop`]. For the timeline the event says when it was accepted and when it was taken from the queue
    /// ([`AsyncEvent::waited`]) and which attempt this is ([`AsyncEvent::attempt`]). Its trace header has this
    /// invocation counted in its lineage already and is to be passed on as it is.
    async fn invoke(&self, event: &AsyncEvent) -> Attempt;

    /// For the timeline: what became of an event, after an attempt or in the place of one. Must not block.
    fn settled(&self, event: &AsyncEvent, how: &str);
}

/// What is configured for an event's function and qualifier, asked anew for every attempt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventConfig {
    /// Retries, age, reserved concurrency.
    pub settings: Settings,
    /// `DestinationConfig.OnSuccess`.
    pub on_success: Option<Target>,
    /// `DestinationConfig.OnFailure`.
    pub on_failure: Option<Target>,
    /// `DeadLetterConfig.TargetArn`.
    pub dead_letter: Option<Target>,
    /// `RecursiveLoop` is `Allow`.
    pub recursion_allowed: bool,
    /// Concurrency of the account for functions without reserved concurrency, if there is a limit.
    pub unreserved_concurrency: Option<u32>,
}

/// Looks the settings up in the metadata.
#[async_trait]
pub trait SettingsSource: Send + Sync + 'static {
    /// `None`: the function is gone.
    async fn event_config(&self, event: &AsyncEvent) -> Option<EventConfig>;
}

/// What is sent to a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// A destination's record ([`crate::record::record`]).
    Record {
        /// JSON.
        body: String,
        /// For EventBridge's detail type and for S3's key.
        success: bool,
    },
    /// A dead letter: the event as it came, with its three attributes.
    DeadLetter {
        /// The original payload.
        body: Bytes,
        /// `RequestID`, `ErrorCode`, `ErrorMessage`.
        attributes: crate::record::DeadLetterAttributes,
    },
}

/// Sends records and dead letters away.
#[async_trait]
pub trait Deliver: Send + Sync + 'static {
    /// Returns when the target has it. `event` is what the message is about; its trace header is as it came, so what
    /// passes it on counts this hop ([`crate::lineage::hop`]). A call that takes longer than
    /// [`crate::Config::delivery_timeout`] is dropped and counts as a failure.
    async fn deliver(&self, target: &Target, event: &AsyncEvent, message: &Message) -> Result<(), DeliveryError>;
}

/// A target did not take a message.
#[derive(Debug, thiserror::Error)]
#[error("deliver to {target}: {cause}")]
pub struct DeliveryError {
    /// ARN of the target.
    pub target: String,
    /// What happened.
    pub cause: String,
    /// Whether the same message may be taken later: no for a target that does not exist or refuses us.
    pub retryable: bool,
}
