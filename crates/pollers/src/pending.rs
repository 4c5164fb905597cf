//! What is still to be delivered of an event whose function is done with: kept in the queue in the event's body when a
//! target does not take it at once, so that the function does not run again for it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::event::{AsyncEvent, millis, system_time};
use crate::ports::{Attempt, EventConfig, Message};
use crate::record::{dead_letter, record};
use crate::rules::{Condition, Outcome, backoff};
use crate::target::Target;

/// How long a delivery is tried. AWS documents none; this is as long as an event is tried by default.
pub(crate) const DELIVERY_AGE: Duration = Duration::from_secs(6 * 3600);

/// A target that has not got its message yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Addressee {
    /// The destination for success or failure.
    Destination(Target),
    /// The dead letter queue or topic.
    DeadLetter(Target),
}

/// How an event ended, and who is still to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Why it failed; `None` for success.
    pub condition: Option<Condition>,
    /// `approximateInvokeCount`.
    pub invoke_count: u32,
    /// The last attempt; `None` when there was none.
    pub attempt: Option<Attempt>,
    /// When it was done with; the record's time, to the millisecond.
    pub ended_at: SystemTime,
    /// Not empty.
    pub targets: Vec<Addressee>,
    /// Deliveries that failed or were put off; they set the back-off.
    pub tries: u32,
}

/// [`Pending`] in the head of a queue entry; the response stands behind the payload.
#[derive(Serialize, Deserialize)]
pub(crate) struct PendingHead {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    condition: Option<Condition>,
    invoke_count: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<AttemptHead>,
    ended_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead_letter: Option<String>,
    #[serde(default)]
    tries: u32,
}

#[derive(Serialize, Deserialize)]
struct AttemptHead {
    outcome: Outcome,
    status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    executed_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    function_error: Option<String>,
    /// Length of the response; `None` if it was too large to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    response: Option<usize>,
}

impl Pending {
    /// Whom an event's end is told to; `None` if there is nobody.
    pub fn new(
        config: &EventConfig,
        condition: Option<Condition>,
        invoke_count: u32,
        attempt: Option<Attempt>,
        ended_at: SystemTime,
    ) -> Option<Self> {
        let (destination, dead_letter) = match condition {
            None => (&config.on_success, &None),
            Some(_) => (&config.on_failure, &config.dead_letter),
        };
        let targets: Vec<Addressee> = destination
            .clone()
            .map(Addressee::Destination)
            .into_iter()
            .chain(dead_letter.clone().map(Addressee::DeadLetter))
            .collect();
        let pending = Self { condition, invoke_count, attempt, ended_at, targets, tries: 0 };
        (!pending.targets.is_empty()).then_some(pending)
    }

    /// What a target is told.
    pub fn message(&self, event: &AsyncEvent, addressee: &Addressee) -> Message {
        match addressee {
            Addressee::Destination(_) => Message::Record {
                body: record(event, self.condition, self.invoke_count, self.attempt.as_ref(), self.ended_at),
                success: self.condition.is_none(),
            },
            Addressee::DeadLetter(_) => Message::DeadLetter {
                body: event.payload.clone(),
                attributes: dead_letter(event, self.attempt.as_ref(), self.reason()),
            },
        }
    }

    /// Pause before the next try.
    pub(crate) fn delay(&self) -> Duration {
        backoff(self.tries)
    }

    /// For a dead letter whose last attempt left no error object.
    fn reason(&self) -> &'static str {
        match self.condition {
            Some(Condition::EventAgeExceeded) => "The event was not run within its maximum age.",
            Some(Condition::ZeroReservedConcurrency) => "The function's reserved concurrency is 0.",
            Some(Condition::RecursiveInvocation) => "The event is part of a recursive loop.",
            Some(Condition::RetriesExhausted) | None => "The function failed.",
        }
    }

    /// The last attempt's response, if there is one and it could be kept.
    pub(crate) fn response(&self) -> Option<&Bytes> {
        self.attempt.as_ref().map(|attempt| &attempt.payload).filter(|response| !response.is_empty())
    }

    /// `response` is the length of what stands behind the payload.
    pub(crate) fn head(&self, response: Option<usize>) -> PendingHead {
        let arn =
            |wanted: fn(&Addressee) -> Option<&Target>| self.targets.iter().find_map(wanted).map(Target::to_string);
        PendingHead {
            condition: self.condition,
            invoke_count: self.invoke_count,
            attempt: self.attempt.as_ref().map(|attempt| AttemptHead {
                outcome: attempt.outcome,
                status: attempt.status,
                executed_version: attempt.executed_version.clone(),
                function_error: attempt.function_error.clone(),
                response,
            }),
            ended_ms: millis(self.ended_at),
            destination: arn(|target| match target {
                Addressee::Destination(target) => Some(target),
                Addressee::DeadLetter(_) => None,
            }),
            dead_letter: arn(|target| match target {
                Addressee::DeadLetter(target) => Some(target),
                Addressee::Destination(_) => None,
            }),
            tries: self.tries,
        }
    }

    /// The inverse of [`Pending::head`]; the error says what is wrong.
    pub(crate) fn from_head(head: PendingHead, response: Bytes) -> Result<Self, String> {
        let target = |arn: Option<String>| arn.map(|arn| Target::parse(&arn)).transpose().map_err(|e| e.to_string());
        let destination = target(head.destination)?.map(Addressee::Destination);
        let dead_letter = target(head.dead_letter)?.map(Addressee::DeadLetter);
        Ok(Self {
            condition: head.condition,
            invoke_count: head.invoke_count,
            attempt: head.attempt.map(|attempt| Attempt {
                outcome: attempt.outcome,
                status: attempt.status,
                executed_version: attempt.executed_version,
                function_error: attempt.function_error,
                payload: response,
            }),
            ended_at: system_time(head.ended_ms).ok_or("its time is out of range")?,
            targets: destination.into_iter().chain(dead_letter).collect(),
            tries: head.tries,
        })
    }
}

impl PendingHead {
    /// Length of the response that stands behind the payload.
    pub(crate) fn response_length(&self) -> usize {
        self.attempt.as_ref().and_then(|attempt| attempt.response).unwrap_or(0)
    }
}
