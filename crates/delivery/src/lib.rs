//! The way out of the pollers: sends destination records and dead letters to SQS, SNS, EventBridge and S3, at AWS or
//! at any endpoint that speaks their protocols, and hands records for functions to the process itself.
//!
//! ```text
//!                         ┌─ message: text and attributes, entry, key ─┐
//! pollers ── Deliver ──►  Delivery ──► aws: clients per region ──► SQS, SNS, EventBridge, S3
//!                                 └──► EnqueueEvent ──► asynchronous invocation of a function
//! ```
//!
//! For the process that wires the parts: [`Delivery::new`]`(DeliveryConfig, Arc<dyn EnqueueEvent>)` is a
//! [`pollers::Deliver`]. One call is one try (and a second one at once, for a connection that went stale); later tries
//! are the pollers', by [`Failure::retryable`].
//!
//! `message` and `failure` decide without IO; `aws` does the calls.
#![forbid(unsafe_code)]

mod aws;
mod config;
mod failure;
mod message;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pollers::target::Service;
use pollers::{AsyncEvent, Deliver, DeliveryError, Message, Target};

pub use config::{Credentials, DeliveryConfig, Endpoint};
pub use failure::Failure;

/// Invokes a function asynchronously; the process that wires the parts implements it.
#[async_trait]
pub trait EnqueueEvent: Send + Sync + 'static {
    /// Returns when the invocation is durable. `function` is a target with [`Service::Lambda`]; `trace_header` has the
    /// lineage with the function counted that the record is about.
    async fn enqueue(&self, function: &Target, trace_header: Option<&str>, record: Bytes) -> Result<(), Failure>;
}

/// Sends records and dead letters. Share it by [`Arc`]: it holds connections.
pub struct Delivery {
    aws: aws::Aws,
    functions: Arc<dyn EnqueueEvent>,
}

impl Delivery {
    /// Connects to nothing yet. Where `config` has no credentials, those in the environment are read now.
    pub fn new(config: DeliveryConfig, functions: Arc<dyn EnqueueEvent>) -> Self {
        Self { aws: aws::Aws::new(config), functions }
    }

    async fn send(&self, target: &Target, event: &AsyncEvent, message: &Message) -> Result<(), Failure> {
        let trace = event.trace_header.as_deref().map(|header| pollers::lineage::hop(header, &event.function).0);
        let trace = trace.as_deref();
        match (&target.service, message) {
            (Service::Sqs(name) | Service::Sns(name), _) if name.ends_with(".fifo") => Err(Failure::refused(
                "Lambda sends to standard queues and topics only, and this one is FIFO; configure a standard one",
            )),
            (Service::Sqs(queue), _) => {
                let account = event.account().as_str();
                self.aws.send_message(account, target, queue, &message::text(message), trace).await
            }
            (Service::Sns(_), _) => self.aws.publish(target, &message::text(message), trace).await,
            (_, Message::DeadLetter { .. }) => Err(Failure::refused(
                "a dead letter goes to an SQS queue or SNS topic; correct DeadLetterConfig, or use OnFailure for this target",
            )),
            (Service::EventBridge(_), Message::Record { body, success }) => {
                self.aws.put_event(target, message::entry(target, event, body, *success, trace)).await
            }
            (Service::S3(bucket), Message::Record { body, .. }) => {
                let key = message::key(&event.function.name, time::OffsetDateTime::now_utc(), uuid::Uuid::new_v4());
                self.aws.put_object(bucket, &key, &event.function.region, event.account().as_str(), body).await
            }
            (Service::Lambda { .. }, Message::Record { body, .. }) => {
                self.functions.enqueue(target, trace, Bytes::copy_from_slice(body.as_bytes())).await
            }
        }
    }
}

#[async_trait]
impl Deliver for Delivery {
    async fn deliver(&self, target: &Target, event: &AsyncEvent, message: &Message) -> Result<(), DeliveryError> {
        self.send(target, event, message).await.map_err(|failure| DeliveryError {
            target: target.to_string(),
            cause: failure.cause,
            retryable: failure.retryable,
        })
    }
}
