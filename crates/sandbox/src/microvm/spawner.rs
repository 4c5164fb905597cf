//! Starting the processes that a VM is made of, so that they die with the server and can do little.

use std::io::{self, PipeReader};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;

use parking_lot::Mutex;
use rustix::process::{Gid, Pid, PidfdFlags, Resource, Rlimit, Signal, Uid};
use rustix::thread::UnshareFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// What is kept of a console, in bytes.
const CONSOLE: usize = 16 << 10;

/// A program to start.
#[derive(Debug)]
pub struct Program {
    /// With arguments and working directory.
    pub command: Command,
    /// Descriptors that it keeps, with their numbers.
    pub keep: Vec<OwnedFd>,
    /// What it runs as; `None`: as the server.
    pub user: Option<(u32, u32)>,
    /// A further group of that user.
    pub extra_group: Option<u32>,
}

type Started = io::Result<(Child, PipeReader)>;

/// Starts processes from one thread, which lives as long as the value. The kernel sends the parent-death signal when the
/// *thread* that forked ends; those of the runtime come and go.
#[derive(Debug)]
pub struct Spawner(mpsc::Sender<(Program, oneshot::Sender<Started>)>);

impl Spawner {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (sender, orders) = mpsc::channel::<(Program, oneshot::Sender<Started>)>();
        std::thread::Builder::new().name("microvm-spawner".to_owned()).spawn(move || {
            for (program, answer) in orders {
                if let Err(Ok((mut orphan, _))) = answer.send(spawn(program)) {
                    // Whoever asked has given up.
                    let _ = orphan.kill();
                    let _ = orphan.wait();
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Starts a program. Within a tokio runtime.
    pub async fn spawn(&self, program: Program) -> io::Result<Running> {
        let gone = || io::Error::other("the thread that starts processes is gone");
        let (answer, started) = oneshot::channel();
        self.0.send((program, answer)).map_err(|_| gone())?;
        let (child, output) = started.await.map_err(|_| gone())??;
        Running::new(child, output)
    }
}

fn spawn(mut program: Program) -> Started {
    let keep: Vec<RawFd> = program.keep.iter().map(AsRawFd::as_raw_fd).collect();
    let (output, theirs) = io::pipe()?;
    program.command.stdin(Stdio::null()).stderr(theirs.try_clone()?).stdout(theirs);
    let server = rustix::process::getpid();
    let confine = Confine { keep, user: program.user, extra_group: program.extra_group, server };
    // SAFETY: between fork and exec of a process with threads only what takes no lock is allowed. `apply` makes system
    // calls on numbers that were copied before, by wrappers that neither allocate nor lock.
    unsafe { program.command.pre_exec(move || confine.apply()) };
    let child = program.command.spawn()?;
    // Only now: the child had to inherit them.
    drop(program.keep);
    Ok((child, output))
}

/// What a child does to itself before it becomes the program.
struct Confine {
    keep: Vec<RawFd>,
    user: Option<(u32, u32)>,
    extra_group: Option<u32>,
    server: Pid,
}

impl Confine {
    fn apply(&self) -> io::Result<()> {
        rustix::process::setsid()?;
        if let Some((user, group)) = self.user {
            // It talks by sockets with names, and files that it was given. No network at all.
            // SAFETY: nothing of this process refers to what the namespaces replace; it has one thread.
            unsafe {
                rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
            }
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            match self.extra_group {
                Some(extra) => rustix::thread::set_thread_groups(&[Gid::from_raw(extra)])?,
                None => rustix::thread::set_thread_groups(&[])?,
            }
            rustix::thread::set_thread_res_gid(group, group, group)?;
            rustix::thread::set_thread_res_uid(user, user, user)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        // After the change of user, which would cancel it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(self.server) {
            return Err(io::ErrorKind::Interrupted.into()); // it died before
        }
        for &fd in &self.keep {
            // SAFETY: takes no pointers; fails harmlessly for what is no descriptor.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// A started program. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    /// Readable when it has ended.
    pidfd: AsyncFd<OwnedFd>,
    child: Mutex<Child>,
    console: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    fn new(mut child: Child, output: PipeReader) -> io::Result<Self> {
        let watch = || -> io::Result<_> {
            let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::NONBLOCK)?;
            // SAFETY: an owned descriptor stays the same, and open, for as long as the AsyncFd has it.
            let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
            rustix::io::ioctl_fionbio(&output, true)?;
            Ok((pidfd, pipe::Receiver::from_owned_fd(output.into())?))
        };
        match watch() {
            Ok((pidfd, output)) => {
                let console = Arc::new(Mutex::new(Vec::new()));
                // Ends with the program, which holds the other end.
                tokio::spawn(listen(output, Arc::clone(&console)));
                Ok(Self { pid: child.id(), pidfd, child: Mutex::new(child), console })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
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
        let _ = self.child.lock().try_wait();
    }

    /// The end of what it said.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.console.lock()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
        let _ = self.child.lock().try_wait();
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
