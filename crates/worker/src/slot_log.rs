//! The log of one sandbox: its lines on their way to the log store, and the tail that `LogType: Tail` asks for.
//!
//! Between two invocations of a busy function there is no time to measure memory, render lines and hand them on: that
//! would delay the next one. So lines first go to a [`LogQueue`], as facts; the slot's driver writes them a little
//! later and many at once. Only a tail is written at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::logs::{LogEvent, LogStore, StreamId};
use crate::machine::Line;

/// `X-Amz-Log-Result` is the last 4 KB.
const TAIL: usize = 4 << 10;
/// How long lines may wait to be written.
const WRITE_AFTER: Duration = Duration::from_millis(40);
/// How many may wait; a queue that is fuller is written by whoever filled it.
pub(crate) const QUEUE: usize = 1024;

/// A line before it is rendered.
pub(crate) enum Entry {
    /// Of a process.
    Text(String),
    /// Of the platform.
    System(Line),
    /// The end of an invocation, and when it was answered after it was handed over.
    End { line: Line, answered: Option<Duration> },
}

/// Lines that wait to be written, with their times.
#[derive(Default)]
pub(crate) struct LogQueue {
    entries: Vec<(SystemTime, Entry)>,
    due: Option<Duration>,
}

impl LogQueue {
    pub(crate) fn push(&mut self, now: Duration, wall: SystemTime, entry: Entry) {
        self.entries.push((wall, entry));
        self.due.get_or_insert(now + WRITE_AFTER);
    }

    /// When the entries should be written.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.due
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn take(&mut self) -> Vec<(SystemTime, Entry)> {
        self.due = None;
        std::mem::take(&mut self.entries)
    }
}

/// The written end of the log.
pub(crate) struct SlotLog {
    store: LogStore,
    stream: Arc<StreamId>,
    pending: Vec<LogEvent>,
    tail: Option<VecDeque<u8>>,
}

impl SlotLog {
    pub(crate) fn new(store: LogStore, stream: StreamId) -> Self {
        Self { store, stream: Arc::new(stream), pending: Vec::new(), tail: None }
    }

    /// Begins to keep the tail.
    pub(crate) fn begin_tail(&mut self) {
        self.tail = Some(VecDeque::new());
    }

    pub(crate) fn line(&mut self, at: SystemTime, message: String) {
        if let Some(tail) = &mut self.tail {
            tail.extend(message.as_bytes());
            tail.push_back(b'\n');
            let excess = tail.len().saturating_sub(TAIL);
            tail.drain(..excess);
        }
        let timestamp = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis());
        self.pending.push(LogEvent { timestamp: u64::try_from(timestamp).unwrap_or(u64::MAX), message });
    }

    /// Hands the lines so far to the store.
    pub(crate) fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.store.append(&self.stream, std::mem::take(&mut self.pending));
        }
    }

    /// The tail so far, if it was kept.
    pub(crate) fn take_tail(&mut self) -> Option<Bytes> {
        self.tail.take().map(|tail| Vec::from(tail).into())
    }
}
