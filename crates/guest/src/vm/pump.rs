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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags};

use super::protocol::{self, Word};
use super::{boot, link};
use crate::sys;

/// As the process sandbox has it: beyond, they wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// A pipe holds as much.
const BUFFER: usize = 64 << 10;
/// Enough for what these threads do; there may be hundreds.
const STACK: usize = 128 << 10;

/// What all pumps share.
pub struct Carrier {
    control: Mutex<File>,
    outputs: Mutex<Vec<Arc<Output>>>,
    peak: Option<File>,
    /// Peak of memory that the host was told.
    told: AtomicU64,
}

/// The output of one process and its children.
struct Output {
    pipe: OwnedFd,
    stream: Mutex<File>,
}

impl Carrier {
    /// For this control connection.
    pub fn new(control: File) -> Self {
        let (outputs, told) = (Mutex::default(), AtomicU64::new(0));
        Self { control: Mutex::new(control), outputs, peak: boot::memory_peak(), told }
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
        let output = Arc::new(Output { pipe, stream: Mutex::new(stream) });
        lock(&self.outputs).push(Arc::clone(&output));
        let carrier = Arc::clone(self);
        spawn(move || {
            loop {
                let mut ready = [PollFd::new(&output.pipe, PollFlags::IN)];
                let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, None));
                if polled.is_err() || !output.carry() {
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
        let outside = File::from(sys::vsock_connect(protocol::HOST, port)?);
        let (from_host, to_function) = (outside.try_clone()?, inside.try_clone()?);
        let carrier = Arc::clone(self);
        let place = Arc::new(place);
        let other = Arc::clone(&place);
        spawn(move || {
            let _ = copy_framed(&inside, &outside, || carrier.say_all_before());
            drop(place);
        })?;
        spawn(move || {
            let _ = copy(&from_host, &to_function);
            // Who was cut off by the host need not say more to it.
            let _ = to_function.shutdown(Shutdown::Both);
            let _ = rustix::net::shutdown(&from_host, rustix::net::Shutdown::Both);
            drop(other);
        })
    }
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

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The same in frames, and an empty one at the end: nothing more comes, but there may still be an answer.
fn copy_framed(mut from: impl Read, mut to: impl Write, before: impl Fn()) -> io::Result<()> {
    let mut buffer = vec![0; link::HEAD + BUFFER];
    loop {
        match from.read(&mut buffer[link::HEAD..]) {
            Ok(n) => {
                before();
                buffer[..link::HEAD].copy_from_slice(&link::head(n));
                to.write_all(&buffer[..link::HEAD + n])?;
                if n == 0 {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
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
