//! What a process writes to stdout and stderr, cut into lines.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
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
    pipe: pipe::Receiver,
    lines: Mutex<Splitter>,
    /// Cost of what was read in this period.
    spent: AtomicUsize,
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
        Ok(Self { pipe: pipe::Receiver::from_owned_fd(fd)?, lines: Mutex::default(), spent: AtomicUsize::new(0) })
    }

    /// Reads what is in the pipe now, without waiting, whether the reactor has heard of it or not.
    pub(crate) fn drain(&self, line: impl FnMut(String)) -> Drained {
        self.read_all(DRAIN_COST, line, |buffer| Ok(rustix::io::read(self.pipe.as_fd(), buffer)?))
    }

    /// As [`Output::drain`], after [`Output::pump`] was woken.
    pub(crate) fn drain_ready(&self, line: impl FnMut(String)) -> Drained {
        self.read_all(PUMP_COST, line, |buffer| self.pipe.try_read(buffer))
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
                    splitter.finish(&mut line);
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
        while self.pipe.readable().await.is_ok() {
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

/// Cuts bytes into lines of bounded length.
#[derive(Default)]
struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    fn push(&mut self, mut bytes: &[u8], line: &mut impl FnMut(String)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.take(&bytes[..end], line);
            self.emit(line);
            bytes = &bytes[end + 1..];
        }
        self.take(bytes, line);
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

    fn finish(&mut self, line: &mut impl FnMut(String)) {
        if !self.partial.is_empty() {
            self.emit(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        splitter.push(&vec![0xff; MAX_LINE * 2 + 5], &mut |l| lines.push(l));
        assert_eq!(lines.len(), 2);
        assert!(splitter.partial.len() == 5);
    }
}
