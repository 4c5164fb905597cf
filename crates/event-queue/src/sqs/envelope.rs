//! What a message's body is: one line of JSON, and the event's body behind it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::{Content, QueueName};

/// What SQS does not keep for us.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub queue: QueueName,
    pub event: Uuid,
    /// Milliseconds since 1970.
    pub enqueued_at: i64,
    /// Not handed out before; SQS delays 15 minutes at most. Milliseconds since 1970.
    pub due: i64,
    /// Of the messages that this one has replaced; to SQS's own count of this one.
    pub deliveries: u32,
    /// Whether the body stands in Base64, as SQS takes only characters that XML has. [`write`] sees to it.
    pub base64: bool,
}

impl Head {
    pub fn new(queue: QueueName, event: Uuid, enqueued_at: i64, due: i64) -> Self {
        Self { queue, event, enqueued_at, due, deliveries: 0, base64: false }
    }
}

/// The message. Text goes as it is, so that a payload of JSON grows by the head only; the rest grows by a third.
pub(super) fn write(head: &Head, body: &[u8]) -> String {
    let text = std::str::from_utf8(body).ok().filter(|_| Content::of(body) == Content::Text);
    let head = Head { base64: text.is_none(), ..head.clone() };
    let head = serde_json::to_string(&head).expect("strings, numbers and an id");
    match text {
        Some(text) => format!("{head}\n{text}"),
        None => format!("{head}\n{}", STANDARD.encode(body)),
    }
}

/// The inverse; what is wrong with a message that is none of ours.
pub(super) fn read(message: &str) -> Result<(Head, Bytes), String> {
    let (head, body) = message.split_once('\n').ok_or("it has no head")?;
    let head: Head = serde_json::from_str(head).map_err(|error| format!("its head: {error}"))?;
    let body = match head.base64 {
        true => STANDARD.decode(body).map_err(|error| format!("its body: {error}"))?.into(),
        false => Bytes::copy_from_slice(body.as_bytes()),
    };
    Ok((head, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn survives_the_round_trip(
            name: String, event: u128, times: (i64, i64), deliveries: u32,
            body in prop_oneof![any::<Vec<u8>>(), any::<String>().prop_map(String::into_bytes)],
        ) {
            let head = Head::new(QueueName(name.into()), Uuid::from_u128(event), times.0, times.1);
            let head = Head { deliveries, ..head };
            let (read_head, read_body) = read(&write(&head, &body)).unwrap();
            prop_assert_eq!(&read_body[..], &body[..]);
            prop_assert_eq!(Head { base64: false, ..read_head }, head);
        }

        #[test]
        fn strange_messages_are_refused(message: String) {
            prop_assert!(read(&message).is_err());
        }
    }

    #[test]
    fn text_goes_as_it_is() {
        let head = Head::new(QueueName("f".into()), Uuid::nil(), 1, 2);
        assert!(write(&head, "{\"a\": \"ä\"}".as_bytes()).ends_with("\n{\"a\": \"ä\"}"));
        assert!(write(&head, "\u{10ffff}\t\n".as_bytes()).ends_with("\u{10ffff}\t\n"));
        for (body, sent) in
            [(&b"\x01"[..], "AQ=="), (b"\r", "DQ=="), (b"\xff", "/w=="), ("\u{ffff}".as_bytes(), "77+/")]
        {
            assert!(write(&head, body).ends_with(&format!("\n{sent}")), "{body:?}");
        }
    }
}
