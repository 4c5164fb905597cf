//! What a process writes to stdout and stderr, cut into lines, or into the messages that a runtime client frames.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::Instant;

/// CloudWatch Logs' limit of one event; longer lines are cut into several.
const MAX_LINE: usize = 256 << 10;
/// What a line costs beside its bytes, in bytes.
const LINE_COST: usize = 64;
/// Read at most so much at once between two other things that the sandbox does.
const PUMP_COST: usize = 256 << 10;
/// Read at most so much when an invocation ends: a full pipe of the shortest lines.
const DRAIN_COST: usize = 4 << 20;
/// So much may be read in each period; a process that writes more has to wait, or the worker would be busy for it alone.
const PERIOD_COST: usize = 2 << 20;
const PERIOD: Duration = Duration::from_millis(100);

/// The read end of a process's output.
pub(crate) struct Output {
    source: Source,
    lines: Mutex<Splitter>,
    /// Cost of what was read in this period.
    spent: AtomicUsize,
}

/// Where it comes from.
enum Source {
    Pipe(pipe::Receiver),
    /// Carried from a virtual machine.
    Stream(UnixStream),
}

impl Source {
    fn new(fd: OwnedFd) -> std::io::Result<Self> {
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        Ok(match kind {
            rustix::fs::FileType::Socket => Self::Stream(UnixStream::from_std(StdUnixStream::from(fd))?),
            _ => Self::Pipe(pipe::Receiver::from_owned_fd(fd)?),
        })
    }

    async fn readable(&self) -> std::io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Stream(stream) => stream.readable().await,
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Stream(stream) => stream.try_read(buffer),
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe(pipe) => pipe.as_fd(),
            Self::Stream(stream) => stream.as_fd(),
        }
    }
}

/// What a read found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Drained {
    /// Nothing more for now.
    Empty,
    /// Perhaps more.
    More,
    /// Every writer is gone.
    End,
}

impl Output {
    pub(crate) fn new(fd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { source: Source::new(fd)?, lines: Mutex::default(), spent: AtomicUsize::new(0) })
    }

    /// Reads what is in the pipe now, without waiting. Nothing at all happens if the reactor has heard of nothing, which
    /// is what most invocations write. It hears of things in their order: of a line before of the request that the same
    /// process sent after it.
    pub(crate) fn drain(&self, line: impl FnMut(String)) -> Drained {
        match self.source.try_read(&mut []) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Drained::Empty,
            _ => self.drain_unheard(line),
        }
    }

    /// As [`Output::drain`], whatever the reactor has heard: for what is not told by the process itself, such as its end.
    pub(crate) fn drain_unheard(&self, line: impl FnMut(String)) -> Drained {
        self.read_all(DRAIN_COST, line, |buffer| Ok(rustix::io::read(&self.source, buffer)?))
    }

    /// As [`Output::drain`], after [`Output::pump`] was woken.
    pub(crate) fn drain_ready(&self, line: impl FnMut(String)) -> Drained {
        self.read_all(PUMP_COST, line, |buffer| self.source.try_read(buffer))
    }

    fn read_all(
        &self,
        limit: usize,
        mut line: impl FnMut(String),
        read: impl Fn(&mut [u8]) -> std::io::Result<usize>,
    ) -> Drained {
        let mut splitter = self.lines.lock();
        let mut buffer = [0u8; 16 << 10];
        let mut cost = 0;
        let drained = loop {
            if cost >= limit {
                break Drained::More;
            }
            match read(&mut buffer) {
                Ok(0) => {
                    splitter.end(&mut line);
                    break Drained::End;
                }
                Ok(n) => {
                    let mut count = |text| {
                        cost += LINE_COST;
                        line(text);
                    };
                    splitter.push(&buffer[..n], &mut count);
                    cost += n;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Drained::Empty,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break Drained::End,
            }
        };
        self.spent.fetch_add(cost, Ordering::Relaxed);
        drained
    }

    /// Gives out a line that has no newline yet: the invocation that wrote it is over.
    pub(crate) fn finish_line(&self, mut line: impl FnMut(String)) {
        self.lines.lock().finish(&mut line);
    }

    /// Calls `drain`, which must use [`Output::drain_ready`], whenever there is something, until the end; not more often
    /// than a period's worth.
    pub(crate) async fn pump(&self, mut drain: impl FnMut() -> Drained) {
        let mut period = Instant::now();
        while self.source.readable().await.is_ok() {
            if period.elapsed() >= PERIOD {
                period = Instant::now();
                self.spent.store(0, Ordering::Relaxed);
            }
            match drain() {
                Drained::Empty => {}
                Drained::More => tokio::task::yield_now().await,
                Drained::End => return,
            }
            if self.spent.load(Ordering::Relaxed) >= PERIOD_COST {
                tokio::time::sleep_until(period + PERIOD).await;
            }
        }
    }
}

/// How a runtime client begins a message that may have several lines: this, its level and format (1 byte), its length
/// (4, big-endian) and its time (8). AWS's clients do so when `_LAMBDA_TELEMETRY_LOG_FD` is set.
const FRAME_MAGIC: [u8; 3] = [0xa5, 0x5a, 0x00];
const FRAME_HEADER: usize = 16;

/// Cuts bytes into messages of bounded length: lines, and framed messages between them.
#[derive(Default)]
struct Splitter {
    partial: Vec<u8>,
    frame: Frame,
}

#[derive(Default)]
enum Frame {
    /// Plain text.
    #[default]
    Outside,
    /// What may become a header.
    Header(Vec<u8>),
    /// So many bytes of the message are still to come.
    Message(usize),
}

impl Splitter {
    fn push(&mut self, mut bytes: &[u8], line: &mut impl FnMut(String)) {
        while let Some(first) = bytes.first() {
            match &mut self.frame {
                Frame::Outside => {
                    let end = bytes.iter().position(|b| *b == b'\n' || *b == FRAME_MAGIC[0]).unwrap_or(bytes.len());
                    self.take(&bytes[..end], line);
                    match bytes.get(end) {
                        Some(b'\n') => self.emit(line),
                        Some(_) => self.frame = Frame::Header(vec![FRAME_MAGIC[0]]),
                        None => return,
                    }
                    bytes = &bytes[end + 1..];
                }
                Frame::Header(header) if FRAME_MAGIC.get(header.len()).is_some_and(|magic| magic != first) => {
                    let text = std::mem::take(header);
                    self.frame = Frame::Outside;
                    self.take(&text, line);
                }
                Frame::Header(header) => {
                    header.push(*first);
                    bytes = &bytes[1..];
                    if let [_, _, _, _, l1, l2, l3, l4, ..] = header[..]
                        && header.len() == FRAME_HEADER
                    {
                        let length = u32::from_be_bytes([l1, l2, l3, l4]);
                        self.frame = Frame::Message(length as usize);
                        // Text without a newline came before.
                        self.flush(line);
                    }
                }
                Frame::Message(left) => {
                    let n = (*left).min(bytes.len());
                    *left -= n;
                    let done = *left == 0;
                    self.take(&bytes[..n], line);
                    bytes = &bytes[n..];
                    if done {
                        self.frame = Frame::Outside;
                        if self.partial.last() == Some(&b'\n') {
                            self.partial.pop();
                        }
                        self.emit(line);
                    }
                }
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8], line: &mut impl FnMut(String)) {
        while self.partial.len() + bytes.len() > MAX_LINE {
            let room = MAX_LINE - self.partial.len();
            self.partial.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            self.emit(line);
        }
        self.partial.extend_from_slice(bytes);
    }

    fn emit(&mut self, line: &mut impl FnMut(String)) {
        line(String::from_utf8_lossy(&self.partial).into_owned());
        self.partial.clear();
        self.partial.shrink_to(4 << 10);
    }

    fn flush(&mut self, line: &mut impl FnMut(String)) {
        if !self.partial.is_empty() {
            self.emit(line);
        }
    }

    /// Nothing more comes for now: a line without an end is over, a message in the midst of being written is not.
    fn finish(&mut self, line: &mut impl FnMut(String)) {
        if matches!(self.frame, Frame::Outside) {
            self.flush(line);
        }
    }

    /// Nothing more comes at all.
    fn end(&mut self, line: &mut impl FnMut(String)) {
        if let Frame::Header(header) = std::mem::take(&mut self.frame) {
            self.take(&header, line);
        }
        self.flush(line);
    }
}

/// Whatever a process writes: must be cut the same way however it arrives, into pieces of bounded size, with nothing lost
/// and nothing added. For the fuzzer, and for the tests, which do it with less patience.
#[cfg(any(test, fuzzing))]
pub fn split_anything(written: &[u8], piece: usize) {
    let split = |piece: usize| {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        for piece in written.chunks(piece.max(1)) {
            splitter.push(piece, &mut |line| lines.push(line));
            assert!(splitter.partial.len() <= MAX_LINE);
        }
        splitter.end(&mut |line| lines.push(line));
        lines
    };
    let lines = split(piece);
    // What is no UTF-8 takes three bytes for one.
    assert!(lines.iter().all(|line| line.len() <= 3 * MAX_LINE));
    assert!(lines.iter().map(String::len).sum::<usize>() <= 3 * written.len());
    assert_eq!(lines, split(usize::MAX));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_written_is_cut_the_same_way_however_it_arrives(
            parts in prop::collection::vec(prop_oneof![
                "[a-z\n]{0,20}".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..20),
                (any::<u8>(), 0u32..40).prop_map(|(level, length)| {
                    [&[0xa5, 0x5a, 0x00, level][..], &length.to_be_bytes(), &[0; 8]].concat()
                }),
            ], 0..8),
            piece in 1usize..64,
        ) {
            split_anything(&parts.concat(), piece);
        }
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(text in "[a-c\n]{0,80}", cut in 0usize..80) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let mut lines = Vec::new();
            let mut splitter = Splitter::default();
            splitter.push(&bytes[..cut], &mut |l| lines.push(l));
            splitter.push(&bytes[cut..], &mut |l| lines.push(l));
            splitter.finish(&mut |l| lines.push(l));
            prop_assert_eq!(lines, text.lines().map(str::to_owned).collect::<Vec<_>>());
        }
    }

    fn frame(message: &str) -> Vec<u8> {
        let mut bytes = vec![0xa5, 0x5a, 0x00, 0x17];
        bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(message.as_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn framed_messages_stay_whole_however_they_arrive(cuts in prop::collection::vec(1usize..20, 0..40)) {
            let mut bytes = b"plain\nno end".to_vec();
            bytes.extend(frame("[ERROR] one\ntwo\n"));
            bytes.extend(b"\xa5\x5a\x01 text\n");
            bytes.extend(frame(""));
            bytes.extend(b"tail\xa5");
            let mut lines = Vec::new();
            let mut splitter = Splitter::default();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                splitter.push(now, &mut |l| lines.push(l));
                rest = later;
            }
            splitter.push(rest, &mut |l| lines.push(l));
            splitter.end(&mut |l| lines.push(l));
            let expected = ["plain", "no end", "[ERROR] one\ntwo", "\u{fffd}Z\u{1} text", "", "tail\u{fffd}"];
            prop_assert_eq!(lines, expected);
        }
    }

    #[test]
    fn a_message_in_the_midst_is_not_cut_by_the_end_of_an_invocation() {
        let bytes = frame("one\ntwo");
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        splitter.push(&bytes[..20], &mut |l| lines.push(l));
        splitter.finish(&mut |l| lines.push(l));
        splitter.push(&bytes[20..], &mut |l| lines.push(l));
        assert_eq!(lines, ["one\ntwo"]);
    }

    #[tokio::test]
    async fn a_flood_is_slowed_down_and_nothing_is_lost() {
        let (read, mut write) = std::io::pipe().unwrap();
        let read = OwnedFd::from(read);
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        let output = Output::new(read).unwrap();
        let lines = 3 * PERIOD_COST / (LINE_COST + 2);
        let writer = std::thread::spawn(move || {
            use std::io::Write as _;
            for _ in 0..lines {
                write.write_all(b"y\n").unwrap();
            }
        });
        let began = Instant::now();
        let mut seen = 0;
        output.pump(|| output.drain_ready(|_| seen += 1)).await;
        assert_eq!(seen, lines);
        assert!(began.elapsed() >= PERIOD * 2, "{:?}", began.elapsed());
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn last_words_are_read_before_the_reactor_hears_of_them() {
        let (read, mut write) = std::io::pipe().unwrap();
        let read = OwnedFd::from(read);
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        let output = Output::new(read).unwrap();
        // The reactor of this runtime hears of nothing as long as this does not wait.
        std::io::Write::write_all(&mut write, b"going\n").unwrap();
        drop(write);
        let mut lines = Vec::new();
        assert_eq!((output.drain(|line| lines.push(line)), lines.len()), (Drained::Empty, 0));
        assert_eq!(output.drain_unheard(|line| lines.push(line)), Drained::End);
        assert_eq!(lines, ["going"]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        splitter.push(&vec![0xff; MAX_LINE * 2 + 5], &mut |l| lines.push(l));
        assert_eq!(lines.len(), 2);
        assert!(splitter.partial.len() == 5);
    }
}
