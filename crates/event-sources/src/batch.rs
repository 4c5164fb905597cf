//! Gathering messages for one invocation.
//!
//! ```text
//!  empty ──first message──► gathering (deadline = now + window) ──full, too large, or deadline──► closed ──take──► …
//! ```

use std::time::Duration;

/// What an invocation's event may have at most (AWS Lambda quota, "Invocation payload": 6 MB).
pub(crate) const PAYLOAD_LIMIT: usize = 6 * 1024 * 1024;

/// What SQS gives in one call at most.
const RECEIVE_MAX: usize = 10;
/// SQS's longest wait for a message.
const LONG_POLL: Duration = Duration::from_secs(20);

const HEAD: &[u8] = br#"{"Records":["#;
const TAIL: &[u8] = b"]}";

/// A message that waits to be sent, in its final form.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Item {
    pub id: String,
    pub receipt: String,
    /// FIFO group.
    pub group: Option<String>,
    pub trace_header: Option<String>,
    /// JSON.
    pub record: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Batcher {
    size: usize,
    window: Duration,
    limit: usize,
    items: Vec<Item>,
    /// Bytes of the event with `items`.
    bytes: usize,
    /// When the first of `items` came.
    since: Duration,
    /// What came after the batch was too large for it, in order.
    rest: Vec<Item>,
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Ask for up to `max` messages, and wait for the first of them for up to `wait` (whole seconds).
    Receive { max: usize, wait: Duration },
    /// Invoke.
    Send,
}

/// Messages for one invocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    pub items: Vec<Item>,
    /// When the first of them was received.
    pub since: Duration,
}

impl Batcher {
    /// `limit`: bytes of an event.
    pub fn new(size: u32, window: Duration, limit: usize) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX).max(1);
        Self { size, window, limit, items: Vec::new(), bytes: 0, since: Duration::ZERO, rest: Vec::new() }
    }

    /// Adds a message, received `now`. More than [`Next::Receive`] asked for must not be added.
    pub fn push(&mut self, now: Duration, item: Item) {
        if self.items.is_empty() {
            self.since = now;
            self.bytes = HEAD.len() + TAIL.len();
        }
        let bytes = self.bytes + item.record.len() + 1;
        // One that is too large for any event is sent alone: the invocation will say so.
        if !self.rest.is_empty() || (bytes > self.limit && !self.items.is_empty()) {
            self.rest.push(item);
        } else {
            self.bytes = bytes;
            self.items.push(item);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What to do next. While it is [`Next::Send`], nothing more must be received.
    pub fn next(&self, now: Duration) -> Next {
        let left = self.size.saturating_sub(self.items.len());
        if self.items.is_empty() {
            return Next::Receive { max: left.min(RECEIVE_MAX), wait: LONG_POLL };
        }
        let deadline = self.since + self.window;
        if left == 0 || !self.rest.is_empty() || now >= deadline {
            return Next::Send;
        }
        // SQS takes whole seconds, and an answer is not to be waited for without the wait.
        let wait = Duration::from_secs((deadline - now).as_secs_f64().ceil() as u64);
        Next::Receive { max: left.min(RECEIVE_MAX), wait: wait.min(LONG_POLL) }
    }

    /// Takes the batch; what was too large for it is the start of the next one. `None` if there is nothing.
    pub fn take(&mut self) -> Option<Batch> {
        if self.items.is_empty() {
            return None;
        }
        let batch = Batch { items: std::mem::take(&mut self.items), since: self.since };
        for item in std::mem::take(&mut self.rest) {
            self.push(batch.since, item);
        }
        Some(batch)
    }
}

impl Batch {
    /// The event that the function gets.
    pub fn event(&self) -> Vec<u8> {
        let records: usize = self.items.iter().map(|item| item.record.len() + 1).sum();
        let mut event = Vec::with_capacity(HEAD.len() + records + TAIL.len());
        event.extend_from_slice(HEAD);
        for (i, item) in self.items.iter().enumerate() {
            if i > 0 {
                event.push(b',');
            }
            event.extend_from_slice(&item.record);
        }
        event.extend_from_slice(TAIL);
        event
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(id: usize, bytes: usize) -> Item {
        Item { id: id.to_string(), record: vec![b'1'; bytes.max(1)], ..Item::default() }
    }

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn without_a_window_it_takes_what_comes() {
        let mut batcher = Batcher::new(5, Duration::ZERO, PAYLOAD_LIMIT);
        assert_eq!(batcher.next(secs(0)), Next::Receive { max: 5, wait: secs(20) });
        batcher.push(secs(1), item(1, 5));
        assert_eq!(batcher.next(secs(1)), Next::Send);
        let batch = batcher.take().unwrap();
        assert_eq!(batch.event(), br#"{"Records":[11111]}"#);
        assert_eq!(batcher.take(), None);
    }

    #[test]
    fn the_window_starts_with_the_first_message() {
        let mut batcher = Batcher::new(25, secs(30), PAYLOAD_LIMIT);
        batcher.push(secs(100), item(1, 5));
        assert_eq!(batcher.next(secs(100)), Next::Receive { max: 10, wait: secs(20) });
        batcher.push(secs(120), item(2, 5));
        assert_eq!(batcher.next(secs(120)), Next::Receive { max: 10, wait: secs(10) });
        assert_eq!(batcher.next(Duration::from_millis(129_900)), Next::Receive { max: 10, wait: secs(1) });
        assert_eq!(batcher.next(secs(130)), Next::Send);
        for id in 3..=25 {
            batcher.push(secs(121), item(id, 5));
        }
        assert_eq!(batcher.next(secs(121)), Next::Send);
        assert_eq!(batcher.take().unwrap().items.len(), 25);
        assert_eq!(batcher.next(secs(200)), Next::Receive { max: 10, wait: secs(20) });
    }

    proptest! {
        /// Nothing is lost, doubled or put into another order, and no event is larger than allowed unless one message is.
        #[test]
        fn batches_hold_everything_in_order(
            sizes in prop::collection::vec(1..120usize, 0..80), size in 1..12u32, window in 0..3u64, limit in 60..200usize,
        ) {
            let mut batcher = Batcher::new(size, secs(window), limit);
            let (mut sent, mut now) = (Vec::new(), 0);
            let mut source = sizes.iter().enumerate().peekable();
            loop {
                match batcher.next(secs(now)) {
                    Next::Receive { max, wait } => {
                        prop_assert!((1..=10).contains(&max) && (secs(1)..=secs(20)).contains(&wait));
                        if source.peek().is_none() && batcher.items.is_empty() {
                            break;
                        }
                        for (id, bytes) in source.by_ref().take(max) {
                            batcher.push(secs(now), item(id, *bytes));
                        }
                        now += 1;
                    }
                    Next::Send => while let Some(batch) = batcher.take() {
                        let event = batch.event();
                        prop_assert!(event.len() <= limit || batch.items.len() == 1);
                        prop_assert!(batch.items.len() <= size as usize);
                        sent.extend(batch.items.into_iter().map(|item| item.id));
                    }
                }
            }
            prop_assert_eq!(sent, (0..sizes.len()).map(|id| id.to_string()).collect::<Vec<_>>());
        }
    }
}
