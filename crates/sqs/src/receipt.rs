//! What a receipt handle is made of, so that nothing has to be kept for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use crate::queue::Seq;

/// Names one receive of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub queue: u32,
    pub seq: Seq,
    /// Which of the message's receives.
    pub receive: u32,
    /// The message's id: nobody who has not received the message can make its handle.
    pub id: Uuid,
}

const LENGTH: usize = 4 + 8 + 4 + 16;

impl Receipt {
    /// The handle that clients see.
    pub(crate) fn handle(&self) -> String {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend(self.queue.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.receive.to_be_bytes());
        bytes.extend(self.id.as_bytes());
        STANDARD.encode(bytes)
    }

    /// The inverse; nothing if it is no handle of ours.
    pub(crate) fn read(handle: &str) -> Option<Self> {
        let bytes: [u8; LENGTH] = STANDARD.decode(handle).ok()?.try_into().ok()?;
        Some(Self {
            queue: u32::from_be_bytes(bytes[..4].try_into().ok()?),
            seq: Seq::from_be_bytes(bytes[4..12].try_into().ok()?),
            receive: u32::from_be_bytes(bytes[12..16].try_into().ok()?),
            id: Uuid::from_slice(&bytes[16..]).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn survives_the_round_trip(queue: u32, seq: i64, receive: u32, id: u128) {
            let receipt = Receipt { queue, seq, receive, id: Uuid::from_u128(id) };
            prop_assert_eq!(Receipt::read(&receipt.handle()), Some(receipt));
        }

        #[test]
        fn other_text_is_none(text in ".{0,60}") {
            Receipt::read(&text);
        }
    }
}
