//! What a process writes to stdout and stderr, cut into lines.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};

use parking_lot::Mutex;
use tokio::net::unix::pipe;

/// CloudWatch Logs' limit of one event; longer lines are cut into several.
const MAX_LINE: usize = 256 << 10;
/// Read at most so much before other work of the sandbox gets its turn.
const MAX_DRAIN: usize = 1 << 20;

/// The read end of a process's output.
pub(crate) struct Output {
    pipe: pipe::Receiver,
    lines: Mutex<Splitter>,
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
        Ok(Self { pipe: pipe::Receiver::from_owned_fd(fd)?, lines: Mutex::default() })
    }

    /// Reads what is in the pipe now, without waiting, whether the reactor has heard of it or not.
    pub(crate) fn drain(&self, line: impl FnMut(String)) -> Drained {
        self.read_all(line, |buffer| Ok(rustix::io::read(self.pipe.as_fd(), buffer)?))
    }

    /// As [`Output::drain`], after [`Output::pump`] was woken.
    pub(crate) fn drain_ready(&self, line: impl FnMut(String)) -> Drained {
        self.read_all(line, |buffer| self.pipe.try_read(buffer))
    }

    fn read_all(&self, mut line: impl FnMut(String), read: impl Fn(&mut [u8]) -> std::io::Result<usize>) -> Drained {
        let mut splitter = self.lines.lock();
        let mut buffer = [0u8; 16 << 10];
        let mut total = 0;
        while total < MAX_DRAIN {
            match read(&mut buffer) {
                Ok(0) => {
                    splitter.finish(&mut line);
                    return Drained::End;
                }
                Ok(n) => {
                    total += n;
                    splitter.push(&buffer[..n], &mut line);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Drained::Empty,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Drained::End,
            }
        }
        Drained::More
    }

    /// Gives out a line that has no newline yet: the invocation that wrote it is over.
    pub(crate) fn finish_line(&self, mut line: impl FnMut(String)) {
        self.lines.lock().finish(&mut line);
    }

    /// Calls `drain`, which must use [`Output::drain_ready`], whenever there is something, until the end.
    pub(crate) async fn pump(&self, mut drain: impl FnMut() -> Drained) {
        while self.pipe.readable().await.is_ok() {
            match drain() {
                Drained::Empty => {}
                Drained::More => tokio::task::yield_now().await,
                Drained::End => return,
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

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        splitter.push(&vec![0xff; MAX_LINE * 2 + 5], &mut |l| lines.push(l));
        assert_eq!(lines.len(), 2);
        assert!(splitter.partial.len() == 5);
    }
}
