//! How many events there are, and which are handed out: known to the one process that uses the file, and to nobody else.
//! When that ends, all of them are ready again, which is how a lease that is not written ends.

use std::collections::{BTreeSet, HashMap};

use super::ticket::Ticket;
use crate::rotation::Number;

/// An event that is handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub queue: Number,
    /// This one included.
    pub deliveries: u32,
    /// When the lease ends (milliseconds since 1970).
    pub end: i64,
}

/// What is known of the events without looking into the file.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// How many each queue has.
    pub events: HashMap<Number, u64>,
    /// Those that are handed out.
    pub leases: Leases,
}

impl Present {
    /// Adds to the count of a queue's events.
    pub fn count(&mut self, queue: Number, change: i64) {
        let events = self.events.entry(queue).or_default();
        *events = events.saturating_add_signed(change);
    }
}

/// All of them, by the number of the event. What a group of requests changes is undone if it fails.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: HashMap<i64, Held>,
    ends: BTreeSet<(i64, i64)>,
    /// What was there before, in the order of the changes.
    undo: Vec<(i64, Option<Held>)>,
}

impl Leases {
    /// Hands an event out, prolongs its lease, or with nothing ends it.
    pub fn set(&mut self, seq: i64, held: Option<Held>) {
        let before = self.put(seq, held);
        self.undo.push((seq, before));
    }

    fn put(&mut self, seq: i64, held: Option<Held>) -> Option<Held> {
        let before = match held {
            Some(held) => {
                self.ends.insert((held.end, seq));
                self.held.insert(seq, held)
            }
            None => self.held.remove(&seq),
        };
        if let Some(before) = before
            && held.is_none_or(|held| held.end != before.end)
        {
            self.ends.remove(&(before.end, seq));
        }
        before
    }

    /// What was changed stays.
    pub fn commit(&mut self) {
        self.undo.clear();
    }

    /// All is as it was at the last [`Leases::commit`].
    pub fn roll_back(&mut self) {
        while let Some((seq, before)) = self.undo.pop() {
            self.put(seq, before);
        }
    }

    /// Whether the event is handed out, even if its lease is over and nobody has noted that.
    pub fn has(&self, seq: i64) -> bool {
        self.held.contains_key(&seq)
    }

    /// The lease, if it is this one and not over.
    pub fn get(&self, ticket: Ticket, now: i64) -> Option<Held> {
        self.held.get(&ticket.seq).copied().filter(|held| held.end > now && ticket.deliveries == held.deliveries as u16)
    }

    /// Whether nothing is handed out.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The lease that is over the longest.
    pub fn over(&self, now: i64) -> Option<(i64, Held)> {
        let (end, seq) = *self.ends.first()?;
        (end <= now).then(|| (seq, self.held[&seq]))
    }

    /// How many events of a queue are handed out.
    pub fn in_flight(&self, queue: Number, now: i64) -> u64 {
        self.held.values().filter(|held| held.queue == queue && held.end > now).count() as u64
    }

    /// Those of a queue.
    pub fn of(&self, queue: Number) -> Vec<i64> {
        self.held.iter().filter(|(_, held)| held.queue == queue).map(|(seq, _)| *seq).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_failed_group_has_changed_nothing(
            kept in prop::collection::vec((0..9i64, prop::option::of(0..9i64)), 0..20),
            undone in prop::collection::vec((0..9i64, prop::option::of(0..9i64)), 0..20),
        ) {
            let held = |end: i64| Held { queue: 1, deliveries: 1, end };
            let mut leases = Leases::default();
            for (seq, end) in kept {
                leases.set(seq, end.map(held));
            }
            leases.commit();
            let (before, ends) = (leases.held.clone(), leases.ends.clone());
            for (seq, end) in undone {
                leases.set(seq, end.map(held));
            }
            prop_assert_eq!(leases.ends.len(), leases.held.len());
            leases.roll_back();
            prop_assert_eq!((&leases.held, &leases.ends), (&before, &ends));
            prop_assert!(ends.iter().all(|(end, seq)| before[seq].end == *end));
        }
    }
}
