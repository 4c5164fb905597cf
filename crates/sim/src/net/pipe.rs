//! One direction of a connection.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;

use super::{HostId, State};

/// What may be on its way, in bytes; then the writer waits.
const WINDOW: usize = 1 << 20;

/// One life of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    pub host: HostId,
    pub life: u64,
}

/// What is on its way.
#[derive(Clone, Debug)]
pub(super) enum Segment {
    Bytes(Bytes),
    /// The writer has said all.
    End,
    /// The connection broke.
    Reset,
}

pub(super) struct Pipe {
    pub from: End,
    pub to: End,
    pub segments: VecDeque<(Duration, Segment)>,
    /// On their way.
    bytes: usize,
    pub reader: Option<Waker>,
    writer: Option<Waker>,
    /// The last segment's arrival: no later one comes before.
    last: Duration,
    /// Nothing more is said.
    pub ended: bool,
    /// Nobody reads any more; who writes learns so by what comes back.
    pub unread: bool,
}

impl Pipe {
    pub fn new(from: End, to: End) -> Self {
        let (segments, last) = (VecDeque::new(), Duration::ZERO);
        Self { from, to, segments, bytes: 0, reader: None, writer: None, last, ended: false, unread: false }
    }

    /// Whether the writer has to wait; it is woken then.
    pub fn is_full(&mut self, waker: &Waker) -> bool {
        let full = self.bytes >= WINDOW;
        if full {
            self.writer = Some(waker.clone());
        }
        full
    }

    pub fn push(&mut self, at: Duration, segment: Segment) {
        if self.ended || self.unread {
            return;
        }
        match &segment {
            Segment::Bytes(bytes) => self.bytes += bytes.len(),
            Segment::End | Segment::Reset => self.ended = true,
        }
        self.last = self.last.max(at);
        self.segments.push_back((self.last, segment));
        self.wake_reader();
    }

    /// So much was read.
    pub fn took(&mut self, bytes: usize) {
        self.bytes -= bytes;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// What should have come by now comes later.
    pub fn late(&mut self, now: Duration, mut delay: impl FnMut() -> Duration) {
        let Some((at, _)) = self.segments.front() else { return };
        if *at > now {
            return;
        }
        let earliest = now + delay();
        for (at, _) in &mut self.segments {
            *at = (*at).max(earliest);
        }
        self.last = self.last.max(earliest);
        self.wake_reader();
    }

    /// Nobody reads any more.
    pub fn abandon(&mut self) {
        self.unread = true;
        self.segments.clear();
        self.took(self.bytes);
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl State {
    /// What a host had connected breaks, and the others learn so.
    pub(super) fn reset_all_of(&mut self, host: HostId) {
        let of_host: Vec<_> =
            self.pipes.iter().filter(|(_, pipe)| pipe.from.host == host).map(|(key, _)| *key).collect();
        for key in of_host {
            self.send(key, Segment::Reset);
        }
    }

    /// A segment goes on its way.
    pub(super) fn send(&mut self, key: (u64, bool), segment: Segment) {
        let Some(pipe) = self.pipes.get(&key) else { return };
        let (from, to) = (pipe.from.host, pipe.to.host);
        let at = crate::clock::now() + self.latency(from, to);
        if let Some(pipe) = self.pipes.get_mut(&key) {
            pipe.push(at, segment);
        }
    }
}
