//! The messages between the engine and PID 1.
//!
//! PID 1 answers requests in their order, one [`Message::Reply`] each; [`Message::Exited`] comes in between at any time.

use std::io;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// What PID 1 is told first, once its user ids are mapped and its link to the host is made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// Its own user and group inside.
    pub init_id: u32,
    /// The user of the function's processes inside.
    pub user: u32,
    /// The group of the function's processes inside.
    pub group: u32,
    /// Whether supplementary groups can be dropped (not in a user namespace made without privilege).
    pub drop_groups: bool,
    /// The address on the loopback device on which the worker's listeners appear.
    pub link_address: Ipv4Addr,
    /// The way out, if there is one.
    pub uplink: Option<Uplink>,
    /// Somebody outside is making one, which is there when there is a default route.
    pub await_route: bool,
}

/// A network device that leads out of the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Uplink {
    /// Its name inside.
    pub device: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix: u8,
    /// The host's end.
    pub gateway: Ipv4Addr,
}

/// What the engine asks of PID 1.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first. Answered by [`Reply::Done`].
    Prepare(Prepare),
    /// The second, once. Comes with these descriptors: root mount, `/tmp` mount, one mount for each target.
    /// Answered by [`Reply::Done`] with one descriptor for each listener.
    SetUp(SetUp),
    /// The third, after a [`SetUp`] with a standby (whose answer then had no listeners). Comes with one mount for each
    /// target. Answered by [`Reply::Done`] with one descriptor for each listener.
    Complete {
        /// Where the mounts go that were not there before.
        targets: Vec<String>,
    },
    /// Comes with the write end of the output pipe. Answered by [`Reply::Spawned`]; with the read end of another pipe
    /// when the standby became the process.
    Spawn(Spawn),
    /// Signal a process and its group. Answered by [`Reply::Done`], also when it is gone.
    Signal {
        /// As given by [`Reply::Spawned`].
        process: u32,
        /// The kernel's number.
        signal: i32,
    },
    /// Kill everything but PID 1. Answered by [`Reply::Done`] when all are gone.
    KillAll,
}

/// What makes a blank sandbox one for a purpose.
#[derive(Debug, Serialize, Deserialize)]
pub struct SetUp {
    /// Where the further mounts go, in the order of their descriptors.
    pub targets: Vec<String>,
    /// Contents of `/etc/hosts`.
    pub hosts: String,
    /// Contents of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Ports to listen on.
    pub listen: Vec<u16>,
    /// A process to start at once, which waits to hear what it is for. See [`crate::standby`].
    pub standby: Option<Spawn>,
}

/// A process to start.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
}

impl std::fmt::Debug for Spawn {
    /// Without the values of the environment, which are the customer's secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("Spawn").field("argv", &self.argv).field("env", &names).field("cwd", &self.cwd).finish()
    }
}

/// What PID 1 says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// To the oldest request that has none.
    Reply(Result<Reply, Failure>),
    /// A spawned process ended.
    Exited {
        /// As given by [`Reply::Spawned`].
        process: u32,
        /// How.
        status: Status,
    },
}

/// A good answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The process runs.
    Spawned {
        /// Its number: never reused, not the kernel's.
        process: u32,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// `exit(code)`.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// Why it could not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault.
    pub kind: FailureKind,
    /// What was being done, to what.
    pub operation: String,
    /// The kernel's error number.
    pub errno: i32,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The host's.
    Host,
    /// The working directory of the process to start.
    WorkingDirectory,
    /// The program to start.
    Program,
}

impl Failure {
    /// Of the host, while doing `operation`.
    pub fn host(operation: impl Into<String>, error: &io::Error) -> Self {
        Self::new(FailureKind::Host, operation, error)
    }

    /// Of `kind`. An error that is not the kernel's counts as EINVAL.
    pub fn new(kind: FailureKind, operation: impl Into<String>, error: &io::Error) -> Self {
        Self { kind, operation: operation.into(), errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
    }

    /// The kernel's part of it.
    pub fn source(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

/// Adds what was being done to an error of the kernel.
pub trait During<T> {
    /// Names the operation, and its subject.
    fn during(self, operation: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, operation: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::host(operation, &error.into()))
    }
}
