//! The body of a queue entry.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use domain::{AccountId, FunctionArn, RequestId};
use event_queue::QueueName;
use serde::{Deserialize, Serialize};

/// The first byte of an encoded event.
const VERSION: u8 = 1;

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
    /// `X-Amzn-Trace-Id` with its lineage.
    pub trace_header: Option<String>,
    /// When the Frontend accepted it; to the millisecond.
    pub accepted_at: SystemTime,
    /// Attempts that ended in a function error.
    pub attempts: u32,
    /// Throttles and system errors so far; they set the back-off only.
    pub throttle_attempts: u32,
}

/// What stands before the payload.
#[derive(Serialize, Deserialize)]
struct Head {
    function: FunctionArn,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    qualifier: Option<String>,
    request_id: RequestId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace_header: Option<String>,
    accepted_ms: u64,
    #[serde(default)]
    attempts: u32,
    #[serde(default)]
    throttle_attempts: u32,
}

/// The body of a queue entry could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer Emberbox.
    #[error("queue entry has encoding {0}, this Emberbox reads {VERSION}: run the newer one to drain the queue")]
    Version(u8),
    /// Too short, or the head is no JSON of ours.
    #[error("queue entry is damaged: {0}")]
    Damaged(String),
}

impl AsyncEvent {
    /// The function's own queue, so that its backlog holds up no other function.
    pub fn queue(&self) -> QueueName {
        QueueName(self.function.to_string().into())
    }

    /// The ARN as invoked: with the qualifier only if the caller gave one.
    pub fn invoked_arn(&self) -> String {
        match &self.qualifier {
            Some(qualifier) => self.function.qualified(qualifier),
            None => self.function.to_string(),
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

    /// Version byte, length of the head (four bytes, big endian), head as JSON, payload as it is.
    pub fn encode(&self) -> Bytes {
        let since = self.accepted_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let head = serde_json::to_vec(&Head {
            function: self.function.clone(),
            qualifier: self.qualifier.clone(),
            request_id: self.request_id,
            trace_header: self.trace_header.clone(),
            accepted_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            attempts: self.attempts,
            throttle_attempts: self.throttle_attempts,
        })
        .expect("strings and numbers become JSON");
        let mut body = BytesMut::with_capacity(5 + head.len() + self.payload.len());
        body.put_u8(VERSION);
        body.put_u32(u32::try_from(head.len()).expect("a head is a few hundred bytes"));
        body.put_slice(&head);
        body.put_slice(&self.payload);
        body.freeze()
    }

    /// Shares the payload with `body`.
    pub fn decode(body: &Bytes) -> Result<Self, DecodeError> {
        let damaged = |what: &str| DecodeError::Damaged(what.to_owned());
        match body.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(DecodeError::Version(other)),
            None => return Err(damaged("it is empty")),
        }
        let length = body.get(1..5).ok_or_else(|| damaged("it ends before its head"))?;
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        let rest = body.slice(5..);
        if rest.len() < length {
            return Err(damaged("it ends within its head"));
        }
        let head: Head = serde_json::from_slice(&rest[..length]).map_err(|e| DecodeError::Damaged(e.to_string()))?;
        let accepted_at = UNIX_EPOCH
            .checked_add(Duration::from_millis(head.accepted_ms))
            .ok_or_else(|| damaged("its time is out of range"))?;
        Ok(Self {
            function: head.function,
            qualifier: head.qualifier,
            request_id: head.request_id,
            payload: rest.slice(length..),
            trace_header: head.trace_header,
            accepted_at,
            attempts: head.attempts,
            throttle_attempts: head.throttle_attempts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(payload: Vec<u8>) -> AsyncEvent {
        AsyncEvent {
            function: FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() },
            qualifier: Some("live".into()),
            request_id: RequestId(uuid::Uuid::nil()),
            payload: payload.into(),
            trace_header: Some("Root=1-0-0;Lineage=1:ab:0".into()),
            accepted_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            attempts: 1,
            throttle_attempts: 4,
        }
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(payload: Vec<u8>) {
            let event = event(payload);
            prop_assert_eq!(AsyncEvent::decode(&event.encode()).expect("own encoding"), event);
        }

        #[test]
        fn damage_never_panics(body: Vec<u8>, cut in 0usize..400) {
            let _ = AsyncEvent::decode(&body.into());
            let good = event(b"{}".to_vec()).encode();
            let _ = AsyncEvent::decode(&good.slice(..cut.min(good.len())));
        }
    }

    #[test]
    fn a_newer_encoding_is_named() {
        let error = AsyncEvent::decode(&Bytes::from_static(&[9, 0])).expect_err("unknown version");
        assert!(matches!(error, DecodeError::Version(9)), "{error}");
    }
}
