//! What a lease id is made of, so that neither file nor memory has to keep it.

use uuid::Uuid;

use crate::api::LeaseId;
use crate::rotation::Number;

/// Bits of [`Ticket::seq`].
const SEQ_BITS: u32 = 48;

/// Where a leased event stands, and which of its leases this is. The id has all of it in 128 bits; the count of
/// deliveries is cut to 16 bits, which is enough to tell a late lease from the present one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    pub queue: Number,
    pub seq: i64,
    /// At the time of the lease, the last 16 bits.
    pub deliveries: u16,
}

impl Ticket {
    /// The id. `epoch` differs each time the file is opened.
    pub fn id(self, epoch: u32) -> LeaseId {
        let bits = u128::from(epoch) << 96
            | u128::from(self.queue) << 64
            | u128::from(self.seq.cast_unsigned()) << 16
            | u128::from(self.deliveries);
        LeaseId(Uuid::from_u128(bits))
    }

    /// The inverse; nothing if the lease is from before the file was opened.
    pub fn read(id: LeaseId, epoch: u32) -> Option<Self> {
        let bits = id.0.as_u128();
        let seq = (bits >> 16) & ((1 << SEQ_BITS) - 1);
        (bits >> 96 == u128::from(epoch)).then_some(Self {
            queue: (bits >> 64) as u32,
            seq: i64::try_from(seq).ok()?,
            deliveries: bits as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn survives_the_round_trip(queue: u32, seq in 0i64..1 << SEQ_BITS, deliveries: u16, epoch: u32) {
            let ticket = Ticket { queue, seq, deliveries };
            prop_assert_eq!(Ticket::read(ticket.id(epoch), epoch), Some(ticket));
            prop_assert_eq!(Ticket::read(ticket.id(epoch), epoch.wrapping_add(1)), None);
        }
    }
}
