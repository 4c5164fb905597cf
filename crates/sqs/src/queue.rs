//! What a queue decides, without IO, clock or randomness: which message is handed out next, until when it is invisible,
//! what a duplicate is, and when a message is dead.
//!
//! ```text
//!          send                 receive
//!  delayed ────► visible ─────────────────► in flight ── delete ──► gone
//!     │ delay over  ▲  │ received too often     │
//!     └─────────────┤  └──► dead letters        │
//!                   └───── its timeout ends ────┘          (retention over, from any state: gone)
//! ```
//!
//! Of a FIFO queue's message group, messages are handed out in the order of their numbers, and none while another of the
//! group is in flight. A standard queue hands out by number as well, which AWS promises nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

use crate::receipt::Receipt;

/// A message's number: larger than those of all messages sent before it, to any queue.
pub(crate) type Seq = i64;
/// Wall-clock time, milliseconds since 1970.
pub(crate) type Millis = i64;

/// How long a FIFO queue remembers a deduplication id.
pub(crate) const DEDUPLICATION: Millis = 5 * 60 * 1000;
/// How long a message may be invisible in all after one receive.
const MAX_INVISIBLE: Millis = 43_200_000;
/// Messages that may be in flight.
const MAX_IN_FLIGHT: usize = 120_000;

/// What is known of a message, its content aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub id: Uuid,
    /// When it was sent: its age counts from here.
    pub sent: Millis,
    pub group: Option<Arc<str>>,
    pub state: State,
    /// Times that it was received from this queue.
    pub receives: u32,
    /// Times that it was received from queues that it was in before.
    pub earlier: u32,
    pub first_received: Option<Millis>,
}

impl Meta {
    /// Times that it was received, from whichever queue. Also tells one receive from another.
    pub(crate) fn all_receives(&self) -> u32 {
        self.earlier + self.receives
    }
}

/// What may happen to a message next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Visible,
    Delayed { until: Millis },
    InFlight { since: Millis, until: Millis },
}

impl State {
    fn until(self) -> Option<Millis> {
        match self {
            Self::Visible => None,
            Self::Delayed { until } | Self::InFlight { until, .. } => Some(until),
        }
    }
}

/// Names what may be sent only once in five minutes: a deduplication id, within a message group or within the queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct DedupKey {
    /// The group, or nothing for the whole queue.
    pub scope: String,
    pub id: String,
}

/// The message that others are duplicates of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Original {
    pub id: Uuid,
    pub seq: Seq,
    pub until: Millis,
}

/// What a receive took out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Now in flight, in the order of delivery.
    pub received: Vec<Seq>,
    /// Received too often: no longer in this queue.
    pub dead: Vec<(Seq, Meta)>,
}

/// Why a receipt handle is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// The message is gone, or was received again since.
    Stale,
    /// The message is visible again.
    NotInFlight,
    /// It would be invisible for more than twelve hours.
    TooLong,
}

/// How many messages there are, by what may happen to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub visible: usize,
    pub in_flight: usize,
    pub delayed: usize,
}

/// The messages of one queue.
#[derive(Debug)]
pub(crate) struct Queue {
    messages: BTreeMap<Seq, Meta>,
    /// By age, the oldest first.
    ages: BTreeSet<(Millis, Seq)>,
    /// Those that are delayed or in flight, by when that ends.
    waiting: BTreeSet<(Millis, Seq)>,
    in_flight: usize,
    order: Order,
    originals: HashMap<DedupKey, Original>,
    /// Their keys, by when they are forgotten.
    forgetting: VecDeque<(Millis, DedupKey)>,
}

#[derive(Debug)]
enum Order {
    /// The visible messages.
    Standard(BTreeSet<Seq>),
    Fifo {
        groups: HashMap<Arc<str>, Group>,
        /// The first message of each group that may be handed out.
        open: BTreeMap<Seq, Arc<str>>,
    },
}

/// A message group with at least one message.
#[derive(Debug, Default)]
struct Group {
    /// Those not in flight.
    idle: BTreeSet<Seq>,
    in_flight: usize,
    /// Its entry in `open`.
    open: Option<Seq>,
}

impl Queue {
    pub(crate) fn new(fifo: bool) -> Self {
        let order = if fifo {
            Order::Fifo { groups: HashMap::new(), open: BTreeMap::new() }
        } else {
            Order::Standard(BTreeSet::new())
        };
        Self {
            messages: BTreeMap::new(),
            ages: BTreeSet::new(),
            waiting: BTreeSet::new(),
            in_flight: 0,
            order,
            originals: HashMap::new(),
            forgetting: VecDeque::new(),
        }
    }

    /// What is known of a message.
    pub(crate) fn get(&self, seq: Seq) -> Option<&Meta> {
        self.messages.get(&seq)
    }

    /// Puts a message in: a new one, one from another queue, or one that was kept.
    pub(crate) fn insert(&mut self, seq: Seq, meta: Meta) {
        self.ages.insert((meta.sent, seq));
        self.messages.insert(seq, meta);
        self.enter(seq);
    }

    /// The message that one with this key would be a duplicate of.
    pub(crate) fn original(&mut self, key: &DedupKey, now: Millis) -> Option<Original> {
        while self.forgetting.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, key)) = self.forgetting.pop_front()
                && self.originals.get(&key).is_some_and(|original| original.until <= now)
            {
                self.originals.remove(&key);
            }
        }
        self.originals.get(key).copied().filter(|original| original.until > now)
    }

    /// Remembers what later messages with this key are duplicates of.
    pub(crate) fn remember(&mut self, key: DedupKey, original: Original) {
        self.forgetting.push_back((original.until, key.clone()));
        self.originals.insert(key, original);
    }

    /// Hands out up to `most` messages, invisible for `visibility` milliseconds. Those already received `dead_after` times are
    /// dead instead.
    pub(crate) fn receive(&mut self, now: Millis, most: usize, visibility: Millis, dead_after: Option<u32>) -> Taken {
        self.wake(now);
        let mut taken = Taken::default();
        while taken.received.len() < most
            && self.in_flight < MAX_IN_FLIGHT
            && let Some(first) = self.first()
        {
            // The rest of a group comes along: it would be closed to the next receive.
            let mut candidates = vec![first];
            if let Order::Fifo { groups, open } = &self.order
                && let Some(group) = open.get(&first).and_then(|name| groups.get(name))
            {
                let visible = |seq: &&Seq| self.messages.get(seq).is_some_and(|meta| meta.state == State::Visible);
                candidates = group.idle.iter().take_while(visible).take(most - taken.received.len()).copied().collect();
            }
            for seq in candidates {
                if dead_after.is_some_and(|most| self.messages.get(&seq).is_some_and(|meta| meta.receives >= most)) {
                    taken.dead.extend(self.remove(seq).map(|meta| (seq, meta)));
                } else {
                    self.hand_out(seq, now, visibility);
                    taken.received.push(seq);
                }
            }
        }
        taken
    }

    /// Whether so many messages are in flight that none is handed out.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.in_flight >= MAX_IN_FLIGHT
    }

    /// The message of a receipt, if this was its last receive. Whether it is still in flight makes no difference.
    pub(crate) fn holder(&self, receipt: &Receipt) -> Option<(Seq, &Meta)> {
        let meta = self.messages.get(&receipt.seq)?;
        (meta.id == receipt.id && meta.all_receives() == receipt.receive).then_some((receipt.seq, meta))
    }

    /// Whether a message is there, whichever receive the receipt is of.
    pub(crate) fn contains(&self, receipt: &Receipt) -> bool {
        self.messages.get(&receipt.seq).is_some_and(|meta| meta.id == receipt.id)
    }

    /// Makes a message in flight visible after `visibility` milliseconds from now.
    pub(crate) fn change_visibility(
        &mut self,
        receipt: &Receipt,
        now: Millis,
        visibility: Millis,
    ) -> Result<Seq, Unusable> {
        self.wake(now);
        let (seq, meta) = self.holder(receipt).ok_or(Unusable::Stale)?;
        let State::InFlight { since, .. } = meta.state else { return Err(Unusable::NotInFlight) };
        let until = now + visibility;
        if until - since > MAX_INVISIBLE {
            return Err(Unusable::TooLong);
        }
        self.set_state(seq, State::InFlight { since, until });
        self.wake(now);
        Ok(seq)
    }

    /// Takes a message out, for good or for another queue.
    pub(crate) fn remove(&mut self, seq: Seq) -> Option<Meta> {
        self.leave(seq);
        let meta = self.messages.remove(&seq)?;
        self.ages.remove(&(meta.sent, seq));
        Some(meta)
    }

    /// Takes out what was sent at `before` or earlier.
    pub(crate) fn expire(&mut self, before: Millis) -> Vec<Seq> {
        let mut expired = Vec::new();
        while let Some((sent, seq)) = self.ages.first().copied().filter(|(sent, _)| *sent <= before) {
            if self.remove(seq).is_none() {
                self.ages.remove(&(sent, seq));
            }
            expired.push(seq);
        }
        expired
    }

    /// Takes everything out. What was sent is still remembered for deduplication.
    pub(crate) fn purge(&mut self) {
        let fifo = matches!(self.order, Order::Fifo { .. });
        let (originals, forgetting) = (std::mem::take(&mut self.originals), std::mem::take(&mut self.forgetting));
        *self = Self { originals, forgetting, ..Self::new(fifo) };
    }

    pub(crate) fn counts(&mut self, now: Millis) -> Counts {
        self.wake(now);
        let delayed = self.waiting.len() - self.in_flight;
        Counts { visible: self.messages.len() - self.waiting.len(), in_flight: self.in_flight, delayed }
    }

    /// When the next message becomes visible by itself.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Makes visible what is due.
    fn wake(&mut self, now: Millis) {
        while let Some((_, seq)) = self.waiting.first().copied().filter(|(until, _)| *until <= now) {
            self.set_state(seq, State::Visible);
        }
    }

    /// The message that is handed out next.
    fn first(&self) -> Option<Seq> {
        match &self.order {
            Order::Standard(visible) => visible.first().copied(),
            Order::Fifo { open, .. } => open.keys().next().copied(),
        }
    }

    fn hand_out(&mut self, seq: Seq, now: Millis, visibility: Millis) {
        self.set_state(seq, State::InFlight { since: now, until: now + visibility });
        if let Some(meta) = self.messages.get_mut(&seq) {
            meta.receives += 1;
            meta.first_received.get_or_insert(now);
        }
    }

    fn set_state(&mut self, seq: Seq, state: State) {
        self.leave(seq);
        if let Some(meta) = self.messages.get_mut(&seq) {
            meta.state = state;
        }
        self.enter(seq);
    }

    /// Adds a message to the indexes that its state belongs in.
    fn enter(&mut self, seq: Seq) {
        self.index(seq, true);
    }

    /// Takes a message out of the indexes.
    fn leave(&mut self, seq: Seq) {
        self.index(seq, false);
    }

    fn index(&mut self, seq: Seq, present: bool) {
        let Some(meta) = self.messages.get(&seq) else { return };
        let set = |set: &mut BTreeSet<Seq>| if present { set.insert(seq) } else { set.remove(&seq) };
        let count = |count: &mut usize| *count = if present { *count + 1 } else { count.saturating_sub(1) };
        if let Some(until) = meta.state.until() {
            if present {
                self.waiting.insert((until, seq));
            } else {
                self.waiting.remove(&(until, seq));
            }
        }
        let flying = matches!(meta.state, State::InFlight { .. });
        if flying {
            count(&mut self.in_flight);
        }
        match &mut self.order {
            Order::Standard(visible) if meta.state == State::Visible => drop(set(visible)),
            Order::Standard(_) => {}
            Order::Fifo { groups, open } => {
                let name = meta.group.clone().unwrap_or_default();
                let group = groups.entry(Arc::clone(&name)).or_default();
                if flying {
                    count(&mut group.in_flight);
                } else {
                    set(&mut group.idle);
                }
                let head = group.idle.first().copied().filter(|head| {
                    group.in_flight == 0 && self.messages.get(head).is_some_and(|meta| meta.state == State::Visible)
                });
                if let Some(old) = std::mem::replace(&mut group.open, head) {
                    open.remove(&old);
                }
                if let Some(head) = head {
                    open.insert(head, Arc::clone(&name));
                }
                if group.idle.is_empty() && group.in_flight == 0 {
                    groups.remove(&name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
