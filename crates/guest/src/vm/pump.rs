//! Carries bytes between sandbox and host: output of processes, and connections to the worker's listeners.
//!
//! What the function wrote before it says something to the Runtime API must be with the host before that is: the worker
//! counts a line to the invocation under way when it reads it. The vsock device keeps the order of all connections
//! together, so it is enough to send in that order ([`Carrier::say_all_before`]).

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::thread;

use rustix::event::{PollFd, PollFlags};

use super::protocol::{self, Word};
use super::{boot, link};
use crate::sys;

/// As the process sandbox has it: beyond, they wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// A pipe holds as much.
const BUFFER: usize = 64 << 10;
/// Bytes of a question that is kept until it is answered, to be asked again after a restore: what asks for the next event is
/// far smaller.
const QUESTION: usize = 16 << 10;
/// Enough for what these threads do; there may be hundreds.
const STACK: usize = 128 << 10;

/// What all pumps share.
pub struct Carrier {
    /// Held for reading while something is sent to the host, and for writing while the VM is being kept. Never taken twice by
    /// one thread.
    gate: RwLock<()>,
    control: Mutex<File>,
    /// In the order of their processes' start.
    outputs: Mutex<Vec<Arc<Output>>>,
    links: Mutex<Vec<Arc<Link>>>,
    peak: Option<File>,
    /// Peak of memory that the host was told.
    told: AtomicU64,
}

/// The output of one process and its children.
struct Output {
    /// As the host knows it; zero before it is started.
    process: AtomicU32,
    pipe: OwnedFd,
    stream: Mutex<File>,
}

impl Carrier {
    /// For this control connection.
    pub fn new(control: File) -> Self {
        let (outputs, links, told) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        let (gate, control) = (RwLock::default(), Mutex::new(control));
        Self { gate, control, outputs, links, peak: boot::memory_peak(), told }
    }

    /// Sends a word. Fails when the host is gone.
    pub fn say(&self, word: &Word) -> io::Result<()> {
        protocol::write(&mut *lock(&self.control), word)
    }

    /// Sends what processes have written and how much memory they took until now.
    pub fn say_all_before(&self) {
        for output in lock(&self.outputs).clone() {
            output.carry();
        }
        let mut text = [0; 24];
        let length = self.peak.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        let peak = str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        if self.told.swap(peak, Ordering::Relaxed) != peak {
            // A host that is gone is noticed by the agent's own reading.
            let _ = self.say(&Word::Used(boot::used()));
        }
    }

    /// Carries what comes out of `pipe` to `stream`, until its end, in a thread of its own.
    pub fn carry_output(self: &Arc<Self>, pipe: OwnedFd, stream: File) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let output = Arc::new(Output { process: AtomicU32::new(0), pipe, stream: Mutex::new(stream) });
        lock(&self.outputs).push(Arc::clone(&output));
        let carrier = Arc::clone(self);
        spawn(move || {
            loop {
                let mut ready = [PollFd::new(&output.pipe, PollFlags::IN)];
                let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, None));
                if polled.is_err() || !carrier.send(|| output.carry()) {
                    break;
                }
            }
            lock(&carrier.outputs).retain(|other| !Arc::ptr_eq(other, &output));
        })
    }

    /// Carries connections to `listener` to the host's `port`, for ever.
    pub fn carry_connections(self: &Arc<Self>, listener: TcpListener, port: u32) -> io::Result<()> {
        let carrier = Arc::clone(self);
        let room = Arc::new((Mutex::new(MAX_CONNECTIONS), Condvar::new()));
        spawn(move || {
            loop {
                {
                    let full = |room: &mut usize| *room == 0;
                    let mut places = room.1.wait_while(lock(&room.0), full).unwrap_or_else(PoisonError::into_inner);
                    *places -= 1;
                }
                let place = Place(Arc::clone(&room));
                // An error is of that connection.
                if let Ok((inside, _)) = listener.accept() {
                    let _ = carrier.carry_connection(inside, port, place);
                }
            }
        })
    }

    fn carry_connection(self: &Arc<Self>, inside: TcpStream, port: u32, place: Place) -> io::Result<()> {
        inside.set_nodelay(true)?;
        let outside = Mutex::new(self.send(|| connect(port))?);
        let link = Arc::new(Link { port, inside, outside, unanswered: Mutex::new(Some(Vec::new())) });
        lock(&self.links).push(Arc::clone(&link));
        let place = Arc::new(place);
        {
            let (carrier, link, place) = (Arc::clone(self), Arc::clone(&link), Arc::clone(&place));
            spawn(move || {
                let _ = link.carry_to_host(&carrier);
                drop(place);
            })?;
        }
        let carrier = Arc::clone(self);
        spawn(move || {
            let _ = link.carry_to_function(&carrier);
            // Who was cut off by the host need not say more to it.
            let _ = link.inside.shutdown(Shutdown::Both);
            let _ = rustix::net::shutdown(&*lock(&link.outside), rustix::net::Shutdown::Both);
            lock(&carrier.links).retain(|other| !Arc::ptr_eq(other, &link));
            drop(place);
        })
    }

    /// Does what sends something to the host. Waits while the VM is being kept.
    pub fn send<T>(&self, body: impl FnOnce() -> T) -> T {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        body()
    }

    /// Waits until nothing is on its way to the host, and keeps it so.
    pub fn hold(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process whose output was taken on last, and whose start was successful.
    pub fn name_output(&self, process: u32) {
        if let Some(output) = lock(&self.outputs).iter().rev().find(|it| it.process.load(Ordering::Relaxed) == 0) {
            output.process.store(process, Ordering::Relaxed);
        }
    }

    /// Connects all with a host that knows nothing of the former connections: control, the output of these processes, and
    /// what the function has open. To be called while it is held.
    pub fn resume(&self, control: File, running: &[u32]) -> io::Result<()> {
        *lock(&self.control) = control;
        // It knows nothing of this either.
        self.told.store(u64::MAX, Ordering::Relaxed);
        let outputs = lock(&self.outputs).clone();
        for process in running {
            let stream = File::from(sys::vsock_connect(protocol::HOST, protocol::OUTPUT_PORT)?);
            // One that has closed its output is connected for nothing.
            if let Some(output) = outputs.iter().find(|it| it.process.load(Ordering::Relaxed) == *process) {
                *lock(&output.stream) = stream;
            }
        }
        for link in lock(&self.links).iter() {
            // What cannot be connected again is over, as its thread will find.
            let _ = link.connect_again();
        }
        Ok(())
    }
}

/// A connection of the function's.
struct Link {
    port: u32,
    inside: TcpStream,
    outside: Mutex<Arc<File>>,
    /// What the function has said, in frames, since the host last said something: its question, that is. `None`: too much.
    unanswered: Mutex<Option<Vec<u8>>>,
}

impl Link {
    /// Carries what the function says, in frames, and an empty one at the end: nothing more comes, but there may still be an
    /// answer.
    fn carry_to_host(&self, carrier: &Carrier) -> io::Result<()> {
        let mut buffer = vec![0; link::HEAD + BUFFER];
        loop {
            match (&self.inside).read(&mut buffer[link::HEAD..]) {
                Ok(n) => {
                    buffer[..link::HEAD].copy_from_slice(&link::head(n));
                    carrier.send(|| {
                        carrier.say_all_before();
                        self.say(&buffer[..link::HEAD + n])
                    })?;
                    if n == 0 {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn say(&self, frame: &[u8]) -> io::Result<()> {
        {
            let mut unanswered = lock(&self.unanswered);
            match &mut *unanswered {
                Some(question) if question.len() + frame.len() <= QUESTION => question.extend_from_slice(frame),
                _ => *unanswered = None,
            }
        }
        let outside = Arc::clone(&lock(&self.outside));
        (&*outside).write_all(frame)
    }

    /// Carries what the host says, as it is.
    fn carry_to_function(&self, carrier: &Carrier) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let outside = Arc::clone(&lock(&self.outside));
            match (&*outside).read(&mut buffer) {
                Ok(n) if n > 0 => {
                    *lock(&self.unanswered) = Some(Vec::new());
                    (&self.inside).write_all(&buffer[..n])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                ended => {
                    // By the host, unless it comes of a restore, which brings another.
                    carrier.send(|| ());
                    if Arc::ptr_eq(&outside, &lock(&self.outside)) {
                        return ended.map(drop);
                    }
                }
            }
        }
    }

    /// Asks a host anew what the one before was asked.
    fn connect_again(&self) -> io::Result<()> {
        let unanswered = lock(&self.unanswered);
        let Some(question) = &*unanswered else { return Err(io::ErrorKind::FileTooLarge.into()) };
        let outside = connect(self.port)?;
        (&*outside).write_all(question)?;
        *lock(&self.outside) = outside;
        Ok(())
    }
}

fn connect(port: u32) -> io::Result<Arc<File>> {
    Ok(Arc::new(File::from(sys::vsock_connect(protocol::HOST, port)?)))
}

impl Output {
    /// Carries what is in the pipe now; `false` at its end.
    fn carry(&self) -> bool {
        // Before reading, so that nobody can come in between with what was written later.
        let mut stream = lock(&self.stream);
        let mut buffer = vec![0; BUFFER];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut buffer[..])) {
            Ok(0) => false,
            Ok(n) => stream.write_all(&buffer[..n]).is_ok(),
            Err(error) => error == rustix::io::Errno::AGAIN,
        }
    }
}

/// A connection's place among the few that there are.
struct Place(Arc<(Mutex<usize>, Condvar)>);

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0.0) += 1;
        self.0.1.notify_one();
    }
}

/// A thread, which ends by itself.
pub fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(body).map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a thread that panicked left is still whole: bytes are carried, or not.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
