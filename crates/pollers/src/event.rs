//! The body of a queue entry.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use domain::{AccountId, FunctionArn, RequestId};
use event_queue::{Content, QueueName};
use serde::{Deserialize, Serialize};

use crate::pending::{Pending, PendingHead};

/// The first byte of an encoded event, whose prefix is text as all that follows is where the payload is text: an engine
/// that carries text need not make an event longer.
const VERSION: u8 = b'2';
/// The first byte of an event as it was encoded before: checksum and length are binary.
const BINARY: u8 = 1;

/// More than any head takes, in bytes.
pub(crate) const HEAD_ROOM: usize = 16 * 1024;

/// An event that was accepted and is not yet done with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AsyncEvent {
    /// The function, without qualifier.
    pub function: FunctionArn,
    /// As the caller gave it. Resolved to a version only when the event is taken from the queue: what waits runs on
    /// new code.
    pub qualifier: Option<String>,
    /// The same over all attempts.
    pub request_id: RequestId,
    /// JSON, at most 1 MB.
    pub payload: Bytes,
    /// `X-Amzn-Trace-Id` with its lineage. In the queue as the event came with it; the [`crate::Invoker`] gets it with
    /// this invocation counted.
    pub trace_header: Option<String>,
    /// When the Frontend accepted it; to the millisecond.
    pub accepted_at: SystemTime,
    /// Attempts that ended in a function error.
    pub attempts: u32,
    /// Throttles and system errors so far; they set the back-off only.
    pub throttle_attempts: u32,
    /// When its last attempt ended, since when it has waited for the next one; to the millisecond.
    pub retried_at: Option<SystemTime>,
    /// When it was taken from the queue for this attempt. Not kept in the queue.
    pub leased_at: Option<SystemTime>,
    /// The function is done with it, and this is still to be delivered.
    pub pending: Option<Pending>,
}

/// Most heads are shorter, in bytes.
const USUAL_HEAD: usize = 384;
/// Bytes before the head: the version, then checksum and length in eight hexadecimal digits each.
const PREFIX: usize = 17;
/// The same of [`BINARY`], whose numbers have four bytes, big endian.
const BINARY_PREFIX: usize = 9;

/// What stands before the payload.
#[derive(Serialize, Deserialize)]
struct Head<'a> {
    function: Cow<'a, FunctionArn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    qualifier: Option<Cow<'a, str>>,
    request_id: RequestId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace_header: Option<Cow<'a, str>>,
    accepted_ms: u64,
    #[serde(default)]
    attempts: u32,
    #[serde(default)]
    throttle_attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retried_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<PendingHead>,
}

/// The body of a queue entry could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer Emberbox.
    #[error(
        "queue entry has encoding {0}, this Emberbox reads {BINARY} and {VERSION}: run the newer one to drain the queue"
    )]
    Version(u8),
    /// Too short, or the head is no JSON of ours.
    #[error("queue entry is damaged: {0}")]
    Damaged(String),
}

impl AsyncEvent {
    /// An event that was just accepted.
    pub fn new(function: FunctionArn, request_id: RequestId, payload: Bytes, accepted_at: SystemTime) -> Self {
        Self {
            function,
            qualifier: None,
            request_id,
            payload,
            trace_header: None,
            accepted_at,
            attempts: 0,
            throttle_attempts: 0,
            retried_at: None,
            leased_at: None,
            pending: None,
        }
    }

    /// Which attempt this is, from 1; throttles and system errors count.
    pub fn attempt(&self) -> u32 {
        self.attempts.saturating_add(self.throttle_attempts).saturating_add(1)
    }

    /// From its acceptance until it was taken from the queue for this attempt.
    pub fn waited(&self) -> Option<Duration> {
        Some(self.leased_at?.duration_since(self.accepted_at).unwrap_or_default())
    }

    /// The function's own queue, so that its backlog holds up no other function.
    pub fn queue(&self) -> QueueName {
        QueueName(self.function.text().into())
    }

    /// The ARN as invoked: with the qualifier only if the caller gave one.
    pub fn invoked_arn(&self) -> String {
        match &self.qualifier {
            Some(qualifier) => self.function.qualified(qualifier),
            None => self.function.text(),
        }
    }

    /// Owner of the function.
    pub fn account(&self) -> &AccountId {
        &self.function.account
    }

    /// How long ago it was accepted; zero if the clock went back.
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.accepted_at).unwrap_or_default()
    }

    /// Version, CRC-32 of all that follows, length of the head, head as JSON, payload as it is, and the response of what is
    /// pending, unless that were larger than `largest`, which the queue says ([`event_queue::EventQueue::largest_body`]).
    pub fn encode(&self, largest: impl Fn(Content) -> usize) -> Bytes {
        let response = self
            .pending
            .as_ref()
            .and_then(Pending::response)
            .filter(|response| room(&[&self.payload, response], largest).is_ok());
        let head = Head {
            function: Cow::Borrowed(&self.function),
            qualifier: self.qualifier.as_deref().map(Cow::Borrowed),
            request_id: self.request_id,
            trace_header: self.trace_header.as_deref().map(Cow::Borrowed),
            accepted_ms: millis(self.accepted_at),
            attempts: self.attempts,
            throttle_attempts: self.throttle_attempts,
            retried_ms: self.retried_at.map(millis),
            pending: self.pending.as_ref().map(|pending| pending.head(response.map(Bytes::len))),
        };
        let room = PREFIX + USUAL_HEAD + self.payload.len() + response.map_or(0, Bytes::len);
        let mut body = BytesMut::with_capacity(room);
        body.put_u8(VERSION);
        body.put_slice(&[b'0'; PREFIX - 1]);
        serde_json::to_writer((&mut body).writer(), &head).expect("strings and numbers become JSON");
        let length = u32::try_from(body.len() - PREFIX).expect("a head is a few hundred bytes");
        body[9..PREFIX].copy_from_slice(&digits(length));
        body.put_slice(&self.payload);
        body.put_slice(response.map_or(&[], |response| response));
        let checksum = crc32fast::hash(&body[9..]);
        body[1..9].copy_from_slice(&digits(checksum));
        body.freeze()
    }

    /// Shares the payload with `body`.
    pub fn decode(body: &Bytes) -> Result<Self, DecodeError> {
        let damaged = |what: &str| DecodeError::Damaged(what.to_owned());
        let start = match body.first() {
            Some(&VERSION) => PREFIX,
            Some(&BINARY) => BINARY_PREFIX,
            Some(&other) => return Err(DecodeError::Version(other)),
            None => return Err(damaged("it is empty")),
        };
        let prefix = body.get(1..start).ok_or_else(|| damaged("it ends before its head"))?;
        let (checksum, length) = prefix.split_at(prefix.len() / 2);
        let number = |bytes: &[u8]| number(bytes).ok_or_else(|| damaged("its checksum or length is no number"));
        let (checksum, length) = (number(checksum)?, number(length)? as usize);
        let rest = body.slice(start..);
        // A payload that the disk has changed must not reach the function.
        if crc32fast::hash(&body[1 + prefix.len() / 2..]) != checksum {
            return Err(damaged("its checksum is wrong"));
        }
        if rest.len() < length {
            return Err(damaged("it ends within its head"));
        }
        let head: Head<'_> =
            serde_json::from_slice(&rest[..length]).map_err(|e| DecodeError::Damaged(e.to_string()))?;
        let accepted_at = system_time(head.accepted_ms).ok_or_else(|| damaged("its time is out of range"))?;
        let mut payload = rest.slice(length..);
        let pending = match head.pending {
            Some(pending) => {
                let split = payload.len().checked_sub(pending.response_length());
                let response = payload.split_off(split.ok_or_else(|| damaged("it ends within a response"))?);
                Some(Pending::from_head(pending, response).map_err(|what| damaged(&what))?)
            }
            None => None,
        };
        Ok(Self {
            function: head.function.into_owned(),
            qualifier: head.qualifier.map(Cow::into_owned),
            request_id: head.request_id,
            payload,
            trace_header: head.trace_header.map(Cow::into_owned),
            accepted_at,
            attempts: head.attempts,
            throttle_attempts: head.throttle_attempts,
            retried_at: head.retried_ms.and_then(system_time),
            leased_at: None,
            pending,
        })
    }
}

/// Whether an event of these parts (payload, response) has room in the queue, with what is noted in it later; if not, how
/// many bytes they may have together.
pub(crate) fn room(parts: &[&[u8]], largest: impl Fn(Content) -> usize) -> Result<(), usize> {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    let limit = |content| largest(content).saturating_sub(HEAD_ROOM);
    // Most events have room as anything: then their content is not looked at.
    if size <= limit(Content::Binary) {
        return Ok(());
    }
    let text = parts.iter().all(|part| Content::of(part) == Content::Text);
    let limit = limit(if text { Content::Text } else { Content::Binary });
    if size <= limit { Ok(()) } else { Err(limit) }
}

/// A number of a prefix.
fn digits(number: u32) -> [u8; 8] {
    let mut digits = [0; 8];
    let nibbles = (0..8).rev().map(|place| (number >> (4 * place)) as u8 & 0xf);
    digits.iter_mut().zip(nibbles).for_each(|(digit, nibble)| *digit = b"0123456789abcdef"[usize::from(nibble)]);
    digits
}

/// The inverse, in either encoding.
fn number(bytes: &[u8]) -> Option<u32> {
    if let Ok(binary) = bytes.try_into() {
        return Some(u32::from_be_bytes(binary));
    }
    // Only what `digits` writes: `from_str_radix` takes signs and capitals as well.
    let own = bytes.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let text = std::str::from_utf8(bytes).ok().filter(|_| own)?;
    u32::from_str_radix(text, 16).ok()
}

/// Milliseconds since 1970; times before are 0.
pub(crate) fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The inverse of [`millis`]; `None` if the platform cannot say it.
pub(crate) fn system_time(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{Attempt, EventConfig};
    use crate::rules::{Condition, Outcome};
    use crate::target::Target;
    use event_queue::MAX_BODY;
    use proptest::prelude::*;

    fn event(payload: Vec<u8>) -> AsyncEvent {
        let function = FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() };
        let accepted_at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        AsyncEvent {
            qualifier: Some("live".into()),
            trace_header: Some("Root=1-0-0;Lineage=1:ab:0".into()),
            attempts: 1,
            throttle_attempts: 4,
            retried_at: Some(accepted_at + Duration::from_secs(60)),
            ..AsyncEvent::new(function, RequestId(uuid::Uuid::nil()), payload.into(), accepted_at)
        }
    }

    fn pending(response: Vec<u8>) -> Pending {
        let target = |arn| Some(Target::parse(arn).expect(arn));
        let config = EventConfig {
            on_failure: target("arn:aws:sns:us-east-1:000000000000:t"),
            dead_letter: target("arn:aws:sqs:us-east-1:000000000000:q"),
            ..EventConfig::default()
        };
        let attempt = Attempt {
            outcome: Outcome::FunctionError,
            status: 200,
            executed_version: Some("3".into()),
            function_error: Some("Unhandled".into()),
            payload: response.into(),
        };
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_111_456);
        Pending::new(&config, Some(Condition::RetriesExhausted), 3, Some(attempt), now).expect("two targets")
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(payload: Vec<u8>, response: Option<Vec<u8>>) {
            let event = AsyncEvent { pending: response.map(pending), ..event(payload) };
            prop_assert_eq!(AsyncEvent::decode(&event.encode(|_| MAX_BODY)).expect("own encoding"), event);
        }

        #[test]
        fn damage_never_panics(body: Vec<u8>, cut in 0usize..900, response: Option<Vec<u8>>) {
            let _ = AsyncEvent::decode(&body.into());
            let good = AsyncEvent { pending: response.map(pending), ..event(b"{}".to_vec()) }.encode(|_| MAX_BODY);
            let _ = AsyncEvent::decode(&good.slice(..cut.min(good.len())));
        }

        #[test]
        fn no_change_goes_unnoticed(payload: Vec<u8>, at: prop::sample::Index, change in 1u8..) {
            let mut body = event(payload).encode(|_| MAX_BODY).to_vec();
            let at = at.index(body.len());
            body[at] ^= change;
            prop_assert!(AsyncEvent::decode(&body.into()).is_err());
        }
    }

    #[test]
    fn a_response_that_a_queue_does_not_take_is_left_out() {
        let event = AsyncEvent { pending: Some(pending(vec![b'1'; MAX_BODY])), ..event(vec![b'2'; 1 << 20]) };
        let body = event.encode(|_| MAX_BODY);
        assert!(body.len() < MAX_BODY);
        let decoded = AsyncEvent::decode(&body).expect("own encoding");
        assert_eq!(decoded.payload, event.payload);
        assert_eq!(decoded.pending.expect("kept").response(), None);
    }

    #[test]
    fn an_event_of_text_is_text() {
        let text = event("{\"ä\": [1, \"\u{10ffff}\"]}\n".as_bytes().to_vec());
        assert_eq!(Content::of(&text.encode(|_| MAX_BODY)), Content::Text);
        let told = AsyncEvent { pending: Some(pending(b"{\"a\": 1}".to_vec())), ..text };
        assert_eq!(Content::of(&told.encode(|_| MAX_BODY)), Content::Text);
        assert_eq!(Content::of(&event(b"[1,\r\n2]".to_vec()).encode(|_| MAX_BODY)), Content::Binary);
    }

    #[test]
    fn text_has_the_room_of_text() {
        let largest = |content| HEAD_ROOM + if content == Content::Text { 100 } else { 75 };
        let (text, binary) = ([b'1'; 101], [b'\r'; 101]);
        assert_eq!((room(&[&text[..100]], largest), room(&[&text], largest)), (Ok(()), Err(100)));
        assert_eq!((room(&[&binary[..75]], largest), room(&[&binary[..76]], largest)), (Ok(()), Err(75)));
        assert_eq!(room(&[&text[..99], &binary[..1]], largest), Err(75));
    }

    #[test]
    fn events_of_before_are_read() {
        // As they were written while prefixes were binary.
        let head = br#"{"function":{"region":"us-east-1","account":"000000000000","name":"f"},"request_id":"00000000-0000-0000-0000-000000000000","accepted_ms":1700000000123}"#;
        let mut body = vec![1, 0, 0, 0, 0];
        body.extend(u32::try_from(head.len()).unwrap().to_be_bytes());
        body.extend(head);
        body.extend(b"[1]");
        let checksum = crc32fast::hash(&body[5..]);
        body[1..5].copy_from_slice(&checksum.to_be_bytes());
        let read = AsyncEvent::decode(&body.clone().into()).expect("of before");
        let expected = event(b"[1]".to_vec());
        let expected = AsyncEvent {
            qualifier: None,
            trace_header: None,
            attempts: 0,
            throttle_attempts: 0,
            retried_at: None,
            ..expected
        };
        assert_eq!(read, expected);
        *body.last_mut().unwrap() ^= 1;
        assert!(AsyncEvent::decode(&body.into()).is_err());
    }

    #[test]
    fn a_newer_encoding_is_named() {
        let error = AsyncEvent::decode(&Bytes::from_static(&[9, 0])).expect_err("unknown version");
        assert!(matches!(error, DecodeError::Version(9)), "{error}");
    }
}
