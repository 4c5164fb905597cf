//! The operations on messages, one at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::Connection;
use sqs_api::types::*;
use sqs_api::{ApiError, ErrorCode};

use super::{Caller, SqsService, no_such_queue, within};
use crate::message::{self, Details, Digests, Draft, invalid_value};
use crate::queue::{Millis, Unusable};
use crate::receipt::Receipt;
use crate::store::{QueueKey, Received, Sent, State};

impl SqsService {
    pub(super) async fn send_message(
        &self,
        caller: &Caller,
        input: SendMessageRequest,
    ) -> Result<SendMessageResult, ApiError> {
        let key = caller.key(&input.queue_url)?;
        let (draft, sender) = (Draft::from(input), caller.clone());
        let (sent, digests, fifo) = self
            .store
            .apply(true, move |state, connection, now| send(state, connection, &key, draft, &sender, now))
            .await?;
        Ok(SendMessageResult {
            md5_of_message_body: Some(digests.body),
            md5_of_message_attributes: digests.attributes,
            md5_of_message_system_attributes: digests.system,
            message_id: Some(sent.id.to_string()),
            sequence_number: fifo.then(|| sequence_number(sent.seq)),
        })
    }

    pub(super) async fn receive_message(
        &self,
        caller: &Caller,
        input: ReceiveMessageRequest,
    ) -> Result<ReceiveMessageResult, ApiError> {
        let key = caller.key(&input.queue_url)?;
        within(input.max_number_of_messages, "MaxNumberOfMessages", 1..=10, "Must be between 1 and 10, if provided.")?;
        within(input.wait_time_seconds, "WaitTimeSeconds", 0..=20, "Must be >= 0 and <= 20, if provided.")?;
        within(input.visibility_timeout, "VisibilityTimeout", VISIBILITY, "Must be between 0 and 43200, if provided.")?;
        if let Some(attempt) = &input.receive_request_attempt_id {
            message::check_token("ReceiveRequestAttemptId", attempt)?;
        }
        let system = SystemAttributes::wanted(&input)?;
        let wanted = input.message_attribute_names.unwrap_or_default();
        let most = input.max_number_of_messages.and_then(|most| usize::try_from(most).ok()).unwrap_or(1);
        let visibility = input.visibility_timeout.map(seconds);
        let wait = input.wait_time_seconds.map(|wait| Duration::from_secs(wait.unsigned_abs().into()));
        let fifo = key.name.ends_with(crate::store::FIFO_SUFFIX);
        let received = self.store.receive(key, most, visibility, wait).await?;
        let messages: Vec<Message> =
            received.into_iter().map(|received| deliver(received, fifo, &system, &wanted)).collect();
        Ok(ReceiveMessageResult { messages: (!messages.is_empty()).then_some(messages) })
    }

    pub(super) async fn delete_message(
        &self,
        caller: &Caller,
        input: DeleteMessageRequest,
    ) -> Result<DeleteMessageResponse, ApiError> {
        let key = caller.key(&input.queue_url)?;
        self.store
            .apply(true, move |state, connection, now| delete(state, connection, &key, &input.receipt_handle, now))
            .await?;
        Ok(DeleteMessageResponse)
    }

    pub(super) async fn change_message_visibility(
        &self,
        caller: &Caller,
        input: ChangeMessageVisibilityRequest,
    ) -> Result<ChangeMessageVisibilityResponse, ApiError> {
        let key = caller.key(&input.queue_url)?;
        self.store
            .apply(false, move |state, connection, now| {
                change(state, connection, &key, &input.receipt_handle, Some(input.visibility_timeout), now)
            })
            .await?;
        Ok(ChangeMessageVisibilityResponse)
    }
}

/// The timeouts that a message may be given, in seconds.
const VISIBILITY: std::ops::RangeInclusive<i32> = 0..=43_200;

fn seconds(seconds: i32) -> Millis {
    Millis::from(seconds) * 1000
}

/// What sending came to: the message, its digests, and whether the queue is a FIFO queue.
type SendOutcome = rusqlite::Result<Result<(Sent, Digests, bool), ApiError>>;

/// Sends one message.
pub(super) fn send(
    state: &mut State,
    connection: &Connection,
    key: &QueueKey,
    draft: Draft,
    sender: &Caller,
    now: Millis,
) -> SendOutcome {
    let Some(entry) = state.get(key) else { return Ok(Err(no_such_queue())) };
    let fifo = entry.attributes.fifo;
    let mut checked = match draft.check(&entry.attributes, &sender.account) {
        Ok(checked) => checked,
        Err(error) => return Ok(Err(error)),
    };
    let trace = &mut checked.content.details.trace_header;
    *trace = trace.take().or_else(|| sender.trace_header.clone());
    let digests = checked.digests.clone();
    let sent = state.send(connection, key, checked, now)?;
    Ok(sent.map(|sent| (sent, digests, fifo)).ok_or_else(no_such_queue))
}

/// Deletes one message.
pub(super) fn delete(
    state: &mut State,
    connection: &Connection,
    key: &QueueKey,
    handle: &str,
    now: Millis,
) -> rusqlite::Result<Result<(), ApiError>> {
    let receipt = match receipt(state, key, handle) {
        Ok(receipt) => receipt,
        Err(error) => return Ok(Err(error)),
    };
    let deleted = state.delete_message(connection, key, &receipt, now)?;
    Ok(deleted.map_err(|_| invalid_value(handle, "ReceiptHandle", "The receipt handle has expired.")))
}

/// Changes the visibility timeout of one message.
pub(super) fn change(
    state: &mut State,
    connection: &Connection,
    key: &QueueKey,
    handle: &str,
    visibility: Option<i32>,
    now: Millis,
) -> rusqlite::Result<Result<(), ApiError>> {
    let checked = receipt(state, key, handle).and_then(|receipt| {
        within(
            visibility,
            "VisibilityTimeout",
            VISIBILITY,
            "VisibilityTimeout must be an integer between 0 and 43200.",
        )?;
        Ok((receipt, visibility.ok_or_else(|| ApiError::missing("VisibilityTimeout"))?))
    });
    let (receipt, visibility) = match checked {
        Ok(checked) => checked,
        Err(error) => return Ok(Err(error)),
    };
    let changed = state.change_visibility(connection, key, &receipt, seconds(visibility), now)?;
    Ok(changed.map_err(|unusable| match unusable {
        Unusable::Stale => invalid_value(
            handle,
            "ReceiptHandle",
            "Message does not exist or is not available for visibility timeout change.",
        ),
        Unusable::NotInFlight => ApiError::new(ErrorCode::MessageNotInflight, "The specified message isn't in flight."),
        Unusable::TooLong => invalid_value(
            &visibility.to_string(),
            "VisibilityTimeout",
            "Total VisibilityTimeout for the message is beyond the limit [43200 seconds].",
        ),
    }))
}

/// The receipt of a handle that is of this queue.
fn receipt(state: &State, key: &QueueKey, handle: &str) -> Result<Receipt, ApiError> {
    let entry = state.get(key).ok_or_else(no_such_queue)?;
    Receipt::read(handle).filter(|receipt| receipt.queue == entry.number).ok_or_else(|| {
        let message = format!("The input receipt handle \"{handle}\" is not a valid receipt handle.");
        ApiError::new(ErrorCode::ReceiptHandleIsInvalid, message)
    })
}

/// Twenty digits, of which AWS promises only that later messages have larger ones.
pub(super) fn sequence_number(seq: i64) -> String {
    format!("1{seq:019}")
}

/// The system attributes that a receiver asks for.
struct SystemAttributes {
    all: bool,
    names: Vec<String>,
}

impl SystemAttributes {
    fn wanted(input: &ReceiveMessageRequest) -> Result<Self, ApiError> {
        let new = input.message_system_attribute_names.iter().flatten().map(MessageSystemAttributeName::as_str);
        let old = input.attribute_names.iter().flatten().map(QueueAttributeName::as_str);
        let names: Vec<String> = new.chain(old).map(str::to_owned).collect();
        match names.iter().find(|name| !MessageSystemAttributeName::VALUES.contains(&name.as_str())) {
            Some(name) => Err(crate::attributes::unknown(name)),
            None => Ok(Self { all: names.iter().any(|name| name == "All"), names }),
        }
    }

    fn of(&self, received: &Received, fifo: bool) -> Option<BTreeMap<String, String>> {
        let (meta, details) = (&received.meta, &received.content.details);
        let text = |text: &Option<String>| text.clone();
        let every = [
            ("ApproximateFirstReceiveTimestamp", meta.first_received.map(|at| at.to_string())),
            ("ApproximateReceiveCount", Some(meta.all_receives().to_string())),
            ("AWSTraceHeader", text(&details.trace_header)),
            ("DeadLetterQueueSourceArn", text(&details.dead_of)),
            ("MessageDeduplicationId", text(&details.dedup_id)),
            ("MessageGroupId", meta.group.as_deref().map(str::to_owned)),
            ("SenderId", Some(details.sender.clone())),
            ("SentTimestamp", Some(meta.sent.to_string())),
            ("SequenceNumber", fifo.then(|| sequence_number(received.receipt.seq))),
        ];
        let asked = |name: &str| self.all || self.names.iter().any(|asked| asked == name);
        let given: BTreeMap<_, _> = every
            .into_iter()
            .filter(|(name, _)| asked(name))
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        (!given.is_empty()).then_some(given)
    }
}

/// A message as its receiver sees it.
fn deliver(received: Received, fifo: bool, system: &SystemAttributes, wanted: &[String]) -> Message {
    let attributes = system.of(&received, fifo);
    let Details { attributes: mut user, .. } = received.content.details;
    user.retain(|name, _| wanted.iter().any(|pattern| matches(pattern, name)));
    Message {
        message_id: Some(received.meta.id.to_string()),
        receipt_handle: Some(received.receipt.handle()),
        md5_of_body: Some(message::md5_hex(received.content.body.as_bytes())),
        body: Some(received.content.body),
        attributes,
        md5_of_message_attributes: message::md5_of_attributes(&user),
        message_attributes: (!user.is_empty()).then_some(user),
    }
}

/// `All` or `.*` is every attribute, `name.*` those that begin with `name`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern {
        "All" | ".*" => true,
        pattern => pattern == name || pattern.strip_suffix(".*").is_some_and(|prefix| name.starts_with(prefix)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_asked_for_by_name_or_prefix() {
        for (pattern, name, expected) in [
            ("All", "a", true),
            (".*", "a", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a.*", "a.b", true),
            ("a.*", "ab", true),
            ("b.*", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn sequence_numbers_have_twenty_digits() {
        assert_eq!(sequence_number(7), "10000000000000000007");
    }
}
