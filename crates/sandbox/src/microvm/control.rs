//! The conversation with a VM's agent, which may be anything that a hostile guest makes of it.
//!
//! It is believed in what concerns its own sandbox, as long as it keeps to the protocol: frames of bounded size, one
//! answer to one order, ends of processes that were started. The first thing that is not so ends the conversation, and
//! with it the VM. What it says is never kept without bound: there is room for one frame, one answer, one account of
//! memory; and each process ends once.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use guest::protocol::{Failure, Reply, Status};
use guest::vm::protocol::{LONGEST_WORD, Order, Used, Word, body_length, frame};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::api::{ExitStatus, ProcessId, SandboxEvent};

/// Read at most so much at once between two other things.
const READ: usize = LONGEST_WORD + 4;

/// One conversation.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    /// Held while an order is under way.
    order: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    events: mpsc::UnboundedSender<SandboxEvent>,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    waiting: Option<oneshot::Sender<Result<Reply, Failure>>>,
    running: HashSet<u32>,
    used: Used,
    /// The killer's strikes that were told already.
    told: u64,
    over: bool,
}

impl Control {
    /// Waits for the first word.
    pub async fn greet(
        mut stream: UnixStream,
        version: u32,
        events: mpsc::UnboundedSender<SandboxEvent>,
    ) -> io::Result<Self> {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        let mut body = vec![0; body_length(head, LONGEST_WORD)?];
        stream.read_exact(&mut body).await?;
        match serde_json::from_slice(&body)? {
            Word::Hello { version: its } if its == version => {}
            _ => return Err(broken("it is not the agent of this build")),
        }
        let (order, state) = (tokio::sync::Mutex::default(), Mutex::default());
        Ok(Self { stream, order, state, events })
    }

    /// Of a sandbox that was restored: these processes run in it already.
    pub fn expect(&self, running: impl IntoIterator<Item = u32>) {
        self.state.lock().running.extend(running);
    }

    /// Gives an order and waits for the answer, no longer than `patience`. After an error, or if it is dropped before it is
    /// done, the conversation is of no more use: an answer may still be on its way.
    pub async fn ask(&self, order: &Order, patience: Duration) -> io::Result<Result<Reply, Failure>> {
        let asked = async {
            let _order = self.order.lock().await;
            let (sender, answer) = oneshot::channel();
            {
                let mut state = self.state.lock();
                if state.over {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                state.waiting = Some(sender);
            }
            self.send(&frame(order)?).await?;
            answer.await.map_err(|_| io::ErrorKind::UnexpectedEof.into())
        };
        tokio::time::timeout(patience, asked).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = || self.stream.try_write(bytes);
            match self.stream.async_io(Interest::WRITABLE, write).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    /// Reads until the end of the conversation, which is never a good one: the VM's.
    pub async fn listen(&self) -> io::Error {
        let error = loop {
            if let Err(error) = self.stream.readable().await.and_then(|()| self.hear()) {
                break error;
            }
            // A guest that talks without end is heard between other things.
            tokio::task::yield_now().await;
        };
        self.over();
        error
    }

    /// Nobody will answer any more.
    pub fn over(&self) {
        let mut state = self.state.lock();
        state.over = true;
        state.waiting = None;
    }

    /// What the sandbox has used, by all that the agent has said until now, heard or not.
    pub fn used(&self) -> Used {
        // An error is found again by who listens.
        let _ = self.hear();
        self.state.lock().used
    }

    /// Takes what has arrived, if anything.
    fn hear(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let start = state.buffer.len();
        state.buffer.resize(start + READ, 0);
        let read = self.stream.try_read(&mut state.buffer[start..]);
        state.buffer.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        state.understand(&self.events)
    }
}

impl State {
    /// Takes the frames that have arrived. Less than one stays, so the buffer never holds more than two.
    fn understand(&mut self, events: &mpsc::UnboundedSender<SandboxEvent>) -> io::Result<()> {
        while let Some((head, rest)) = self.buffer.split_first_chunk::<4>() {
            let length = body_length(*head, LONGEST_WORD)?;
            let Some(body) = rest.get(..length) else { break };
            let word = serde_json::from_slice(body)?;
            self.buffer.drain(..4 + length);
            self.take(word, events)?;
        }
        Ok(())
    }

    fn take(&mut self, word: Word, events: &mpsc::UnboundedSender<SandboxEvent>) -> io::Result<()> {
        match word {
            Word::Hello { .. } => Err(broken("a second greeting")),
            Word::Used(used) => {
                self.used = used;
                Ok(())
            }
            Word::Reply(reply) => {
                let waiting = self.waiting.take().ok_or_else(|| broken("an answer without a question"))?;
                if let Ok(Reply::Spawned { process }) = reply {
                    self.running.insert(process);
                }
                // Whoever asked may have given up.
                let _ = waiting.send(reply);
                Ok(())
            }
            Word::Exited { process, status, used } => {
                if !self.running.remove(&process) {
                    return Err(broken("the end of a process that does not run"));
                }
                self.used = used;
                let before = std::mem::replace(&mut self.told, used.oom_kills);
                let status = match status {
                    Status::Code(code) => ExitStatus::Code(code),
                    Status::Signal(signal) => ExitStatus::Signal(signal),
                };
                let oom = used.oom_kills > before;
                let _ = events.send(SandboxEvent::Exited { process: ProcessId(process), status, oom });
                Ok(())
            }
        }
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Whatever a guest says, from when it was given an order: must not depend on how it arrives, nor take more memory than
/// there is room for. For the fuzzer, and for the tests, which do it with less patience.
#[cfg(any(test, fuzzing))]
pub fn hear_anything(said: &[u8], piece: usize) {
    let hear = |piece: usize| {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let (answer, mut answered) = oneshot::channel();
        let mut state = State { waiting: Some(answer), ..State::default() };
        let mut end = None;
        for piece in said.chunks(piece.clamp(1, READ)) {
            state.buffer.extend_from_slice(piece);
            let heard = state.understand(&sender);
            assert!(state.buffer.len() < 2 * READ && state.running.len() <= 1);
            if let Err(error) = heard {
                end = Some(error.to_string());
                break;
            }
        }
        let mut events = Vec::new();
        while let Ok(event) = receiver.try_recv() {
            events.push(event);
        }
        assert!(events.len() <= 1, "one process was started at most");
        let answer = answered.try_recv().ok().map(|answer| format!("{answer:?}"));
        (end, events, answer, state.running, state.used, state.told)
    };
    assert_eq!(hear(piece), hear(READ));
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn words() -> impl Strategy<Value = Vec<u8>> {
        let said = |word: Word| frame(&word).unwrap();
        let used = || {
            let numbers = (any::<u64>(), any::<u64>());
            numbers.prop_map(|(memory_peak, oom_kills)| Used { memory_peak, oom_kills, ..Used::default() })
        };
        let exited = move |(process, code, used)| said(Word::Exited { process, status: Status::Code(code), used });
        prop_oneof![
            1 => (0..3u32).prop_map(move |version| said(Word::Hello { version })),
            2 => used().prop_map(move |used| said(Word::Used(used))),
            4 => (0..3u32).prop_map(move |process| said(Word::Reply(Ok(Reply::Spawned { process })))),
            1 => (0..1u8).prop_map(move |_| said(Word::Reply(Ok(Reply::Done)))),
            4 => (0..3u32, any::<i32>(), used()).prop_map(exited),
            1 => prop::collection::vec(any::<u8>(), 0..40),
            1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(|body| frame(&body).unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_understood_the_same_way_however_it_arrives(
            said in prop::collection::vec(words(), 0..8), changed in any::<(usize, u8)>(), piece in 1usize..400,
        ) {
            let mut said = said.concat();
            hear_anything(&said, piece);
            let length = said.len().max(1);
            if let Some(byte) = said.get_mut(changed.0 % length) {
                *byte = changed.1;
            }
            hear_anything(&said, piece);
        }
    }

    async fn greeted(words: &[u8]) -> (io::Result<Control>, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (&theirs).write_all(words).unwrap();
        let (events, _) = mpsc::unbounded_channel();
        (Control::greet(UnixStream::from_std(ours).unwrap(), 1, events).await, theirs)
    }

    async fn end_after(words: &[Vec<u8>]) -> io::ErrorKind {
        let hello = frame(&Word::Hello { version: 1 }).unwrap();
        let (control, theirs) = greeted(&[hello, words.concat()].concat()).await;
        drop(theirs);
        control.unwrap().listen().await.kind()
    }

    #[tokio::test]
    async fn what_is_no_greeting_is_refused() {
        for words in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{}", b"GET / HTTP/1.1\r\n\r\n"] {
            assert!(greeted(words).await.0.is_err());
        }
        assert!(greeted(&frame(&Word::Hello { version: 2 }).unwrap()).await.0.is_err(), "another build");
    }

    #[tokio::test]
    async fn what_breaks_the_protocol_ends_the_conversation() {
        let word = |word: Word| frame(&word).unwrap();
        let exited = || word(Word::Exited { process: 1, status: Status::Code(0), used: Used::default() });
        let invalid = io::ErrorKind::InvalidData;
        assert_eq!(end_after(&[word(Word::Hello { version: 1 })]).await, invalid);
        assert_eq!(end_after(&[word(Word::Reply(Ok(Reply::Done)))]).await, invalid, "nobody asked");
        assert_eq!(end_after(&[exited()]).await, invalid, "no such process");
        assert_eq!(end_after(&[b"\0\0\xff\xff".to_vec(), vec![b'x'; 0xffff]]).await, invalid, "no JSON");
        assert_eq!(end_after(&[b"\x7f\0\0\0".to_vec()]).await, invalid, "too long");
        assert_eq!(end_after(&[b"\0\0\0\x09{".to_vec()]).await, io::ErrorKind::UnexpectedEof, "cut short");
        assert_eq!(
            end_after(&[word(Word::Used(Used::default()))]).await,
            io::ErrorKind::UnexpectedEof,
            "nothing wrong"
        );
    }

    #[tokio::test]
    async fn a_flood_takes_no_memory() {
        let used = Used { memory_peak: 7, ..Used::default() };
        let flood = frame(&Word::Used(used)).unwrap().repeat(2000);
        let (control, theirs) = greeted(&frame(&Word::Hello { version: 1 }).unwrap()).await;
        let control = control.unwrap();
        let writer = std::thread::spawn(move || (&theirs).write_all(&flood).is_ok());
        assert_eq!(control.listen().await.kind(), io::ErrorKind::UnexpectedEof);
        assert!(writer.join().unwrap());
        assert_eq!(control.used().memory_peak, 7);
        assert!(control.state.lock().buffer.capacity() < 4 * READ);
    }
}
