//! The log of one sandbox: its lines on their way to the log store, and the tail that `LogType: Tail` asks for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::logs::{LogEvent, LogStore, StreamId};

/// `X-Amz-Log-Result` is the last 4 KB.
const TAIL: usize = 4 << 10;

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

    /// Begins to keep the tail, or not.
    pub(crate) fn begin(&mut self, tail: bool) {
        self.tail = tail.then(VecDeque::new);
    }

    pub(crate) fn line(&mut self, now: SystemTime, message: String) {
        if let Some(tail) = &mut self.tail {
            tail.extend(message.as_bytes());
            tail.push_back(b'\n');
            let excess = tail.len().saturating_sub(TAIL);
            tail.drain(..excess);
        }
        let timestamp = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis());
        self.pending.push(LogEvent { timestamp: u64::try_from(timestamp).unwrap_or(u64::MAX), message });
    }

    /// Hands the lines so far to the store.
    pub(crate) fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.store.append(&self.stream, std::mem::take(&mut self.pending));
        }
    }

    /// The tail so far, if it is kept.
    pub(crate) fn tail(&mut self) -> Option<Bytes> {
        self.tail.take().map(|tail| Vec::from(tail).into())
    }
}
