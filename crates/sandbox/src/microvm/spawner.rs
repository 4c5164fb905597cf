//! Starting the processes that a VM is made of, by the launcher, so that they die with the server and can do little.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;

use guest::wire::Channel;
use parking_lot::Mutex;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::launcher::{Launch, Order, Report};
use super::tree::Tree;
use crate::SandboxError;
use crate::process::{LAUNCHER, MARKER, error_of};

/// What is kept of a console, in bytes.
const CONSOLE: usize = 16 << 10;

/// A program to start.
#[derive(Debug)]
pub struct Program {
    /// What, where, as whom.
    pub launch: Launch,
    /// Descriptors that it keeps, from [`FIRST_KEPT`](super::confine::FIRST_KEPT) on.
    pub keep: Vec<OwnedFd>,
}

/// Its number, a descriptor that refers to it, and what it says.
type Started = Result<(i32, OwnedFd, PipeReader), SandboxError>;

/// Has processes started. They live no longer than the value: the kernel kills them with the thread that started the
/// launcher.
#[derive(Debug)]
pub struct Spawner(mpsc::Sender<(Program, oneshot::Sender<Started>)>);

impl Spawner {
    /// Starts thread and launcher. `helper`: the program that begins with [`maybe_run_helper`](crate::process::maybe_run_helper);
    /// `None`: this one. `trees`: what programs see, see [`Order::Start`].
    pub fn start(helper: Option<PathBuf>, trees: Vec<(PathBuf, Tree)>) -> Result<Self, SandboxError> {
        let host = |source| SandboxError::Host { operation: "start the launcher of microVMs".to_owned(), source };
        let (sender, orders) = mpsc::channel::<(Program, oneshot::Sender<Started>)>();
        let (ready, started) = mpsc::channel();
        let serve = move || {
            let (mut child, launcher) = match start_launcher(helper, trees) {
                Ok(launcher) => launcher,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            for (program, answer) in orders {
                if let Err(Ok((_, orphan, _))) = answer.send(spawn(&launcher, program)) {
                    // Whoever asked has given up.
                    let _ = rustix::process::pidfd_send_signal(&orphan, Signal::KILL);
                    reap(&orphan);
                }
            }
            // By this it ends.
            drop(launcher);
            let _ = child.wait();
        };
        std::thread::Builder::new().name("microvm-spawner".to_owned()).spawn(serve).map_err(host)?;
        started.recv().map_err(|_| host(io::Error::other("its thread ended")))??;
        Ok(Self(sender))
    }

    /// Starts a program. Within a tokio runtime.
    pub async fn spawn(&self, program: Program) -> Result<Running, SandboxError> {
        let (answer, started) = oneshot::channel();
        self.0.send((program, answer)).map_err(|_| gone())?;
        let (pid, pidfd, output) = started.await.map_err(|_| gone())??;
        Running::new(pid, pidfd, output)
            .map_err(|source| SandboxError::Host { operation: "watch a process of a microVM".to_owned(), source })
    }
}

fn gone() -> SandboxError {
    let source = io::Error::other("it is gone");
    SandboxError::Host { operation: "ask the launcher of microVMs for a process".to_owned(), source }
}

fn start_launcher(helper: Option<PathBuf>, trees: Vec<(PathBuf, Tree)>) -> Result<(Child, Channel), SandboxError> {
    let program = helper.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let operation = format!("start the launcher of microVMs, {}", program.display());
    let host = |source| SandboxError::Host { operation: operation.clone(), source };
    let (ours, theirs) = Channel::pair().map_err(host)?;
    let child = Command::new(&program)
        .arg0("emberbox-microvm-launcher")
        .env_clear()
        .env(MARKER, LAUNCHER)
        .current_dir("/")
        .stdin(Stdio::from(theirs.into_socket()))
        .stdout(Stdio::null())
        .spawn()
        .map_err(host)?;
    ours.send(&Order::Start { trees }, &[]).map_err(host)?;
    match ours.receive().map_err(host)? {
        Some((Report::Started(Ok(())), _)) => Ok((child, ours)),
        Some((Report::Started(Err(failure)), _)) => Err(error_of(failure)),
        _ => Err(host(io::Error::other("it exited (does its main() begin with maybe_run_helper()?)"))),
    }
}

/// Waits for the end of a killed process.
fn reap(process: &OwnedFd) {
    let _ = rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
}

fn spawn(launcher: &Channel, program: Program) -> Started {
    let (reader, writer) = io::pipe()
        .map_err(|source| SandboxError::Host { operation: "make the pipe of a process".to_owned(), source })?;
    let descriptors: Vec<BorrowedFd<'_>> =
        std::iter::once(writer.as_fd()).chain(program.keep.iter().map(AsFd::as_fd)).collect();
    launcher.send(&Order::Launch(program.launch), &descriptors).map_err(|_| gone())?;
    match launcher.receive().map_err(|_| gone())? {
        Some((Report::Launched(Ok(pid)), descriptors)) => {
            let pidfd = descriptors.into_iter().next().ok_or_else(gone)?;
            Ok((pid, pidfd, reader))
        }
        Some((Report::Launched(Err(failure)), dying)) => {
            dying.iter().for_each(reap);
            Err(error_of(failure))
        }
        _ => Err(gone()),
    }
}

/// A started program. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    /// Readable when it has ended.
    pidfd: AsyncFd<OwnedFd>,
    console: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    fn new(pid: i32, pidfd: OwnedFd, output: PipeReader) -> io::Result<Self> {
        // SAFETY: an owned descriptor stays the same, and open, for as long as the AsyncFd has it.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        let running = Self { pid: pid.unsigned_abs(), pidfd, console: Arc::default() };
        rustix::io::ioctl_fionbio(&output, true)?;
        // Ends with the program, which holds the other end.
        tokio::spawn(listen(pipe::Receiver::from_owned_fd(output.into())?, Arc::clone(&running.console)));
        Ok(running)
    }

    fn reap(&self) {
        // An error: it was done before.
        let _ = rustix::process::waitid(
            WaitId::PidFd(self.pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }

    /// Its number. It stays its own until [`Running::ended`] has returned.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal. No error if it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns when it has ended, and is reaped.
    pub async fn ended(&self) {
        // An error would be the runtime's end.
        let _ = self.pidfd.readable().await;
        self.reap();
    }

    /// The end of what it said.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.console.lock()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
        self.reap();
    }
}

async fn listen(output: pipe::Receiver, console: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    while output.readable().await.is_ok() {
        match output.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                tracing::trace!(text = %String::from_utf8_lossy(&buffer[..n]), "console");
                let mut console = console.lock();
                console.extend(&buffer[..n]);
                let excess = console.len().saturating_sub(CONSOLE);
                console.drain(..excess);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
