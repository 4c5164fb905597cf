//! The trait that every kind of sandbox implements.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use domain::SandboxId;
use tokio::sync::mpsc;

/// The address on which the worker's listeners appear inside every sandbox, as on AWS (recorded 2026-01).
pub const LINK_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 1);

/// A directory of the host that is seen, read-only, in the sandbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Directory on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox, e.g. `/var/task`; exists in the root.
    pub target: String,
}

/// What a sandbox is made from.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// Its name in cgroups, logs and errors.
    pub id: SandboxId,
    /// Root directory on the host, mounted read-only; has the mount points `/proc /dev /tmp /var/task /opt` and those of
    /// `mounts`.
    pub root: PathBuf,
    /// Further read-only directories.
    pub mounts: Vec<Mount>,
    /// Memory limit in MB, for all processes of the sandbox together.
    pub memory_mb: u32,
    /// CPU limit in vCPUs.
    pub vcpus: f64,
    /// Size of `/tmp` in MB.
    pub ephemeral_mb: u32,
    /// Lines for `/etc/hosts` besides localhost (`sandbox.localdomain` → [`LINK_ADDRESS`] is always there).
    pub hosts: Vec<(IpAddr, String)>,
    /// TCP ports of [`LINK_ADDRESS`] on which the worker wants to listen inside the sandbox's network.
    pub listen: Vec<u16>,
    /// What an engine may have started already.
    pub standby: Option<Standby>,
}

/// A process that can be started before it is known what the sandbox is for. Engines that keep some ready hand them to
/// the [`Sandbox::spawn`] with the same `argv`; others ignore this, and start the process then.
///
/// It finds the number of a descriptor in the variable `_EMBERBOX_STANDBY`, and reads from there, until the end: its
/// working directory, and its environment as `NAME=value`, each ended by a zero byte. It must then be as if it had been
/// started with these. Without the variable it is started in the ordinary way.
#[derive(Clone, Debug)]
pub struct Standby {
    /// How to start it.
    pub command: Command,
    /// How many of [`SandboxSpec::mounts`], from the first on, it finds. The others come before it hears its purpose.
    pub mounts: usize,
}

/// Makes sandboxes.
#[async_trait]
pub trait SandboxEngine: Send + Sync + 'static {
    /// Makes one. On error nothing is left of it.
    async fn create(&self, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError>;
    /// Whether sandboxes can be kept in snapshots: what must be the same, beside the [`SandboxSpec`], for one to be restored
    /// from such a snapshot later; or in words, why they cannot.
    fn keeps(&self) -> Result<String, String> {
        Err("Process sandboxes cannot be kept in snapshots; microVMs on Firecracker can.".to_owned())
    }
    /// Makes one that goes on where another was when [`Sandbox::keep`] was called on it, with fresh entropy, the time of now
    /// and a network of its own. The spec is as that one's was, but for the id. `running`: the processes that ran then. Whatever
    /// they had said to a listener and had no answer to, they say again. On error nothing is left of it.
    async fn restore(
        &self,
        spec: SandboxSpec,
        _snapshot: &Path,
        _running: &[ProcessId],
    ) -> Result<Restored, SandboxError> {
        Err(cannot_keep(spec.id))
    }
    /// What is and what is not enforced on this host, in words, for logs and `emberbox doctor`.
    fn describe(&self) -> Vec<String>;
    /// Removes every sandbox and all that belongs to the engine (helper process, cgroups, network).
    async fn stop(&self);
}

/// A sandbox that was restored.
pub struct Restored {
    /// Itself.
    pub sandbox: Box<dyn Sandbox>,
    /// The processes in it.
    pub running: Vec<Process>,
}

fn cannot_keep(id: SandboxId) -> SandboxError {
    SandboxError::Host {
        operation: format!("keep or restore sandbox {id}"),
        source: std::io::ErrorKind::Unsupported.into(),
    }
}

/// One sandbox. Dropping it destroys it in the background; [`Sandbox::destroy`] waits for that.
#[async_trait]
pub trait Sandbox: Send + Sync + 'static {
    /// Its id.
    fn id(&self) -> SandboxId;
    /// Whether it was made of one that was kept ready, and so came sooner; for the operator to know.
    fn is_from_pool(&self) -> bool {
        false
    }
    /// Takes the listener for a port of [`SandboxSpec::listen`], non-blocking; `None` when taken before or not asked for.
    fn take_listener(&self, port: u16) -> Option<Listener>;
    /// Takes the stream of events; `None` when taken before.
    fn take_events(&self) -> Option<mpsc::UnboundedReceiver<SandboxEvent>>;
    /// Starts a process as the sandbox's unprivileged user, or makes one of the [`Standby`].
    async fn spawn(&self, command: Command) -> Result<Process, SandboxError>;
    /// Sends a signal to a process and its process group. No error if it is gone.
    async fn signal(&self, process: ProcessId, signal: Signal) -> Result<(), SandboxError>;
    /// Kills every process but the sandbox's own PID 1 and returns when they are gone. `/tmp` stays.
    async fn kill_all(&self) -> Result<(), SandboxError>;
    /// Stops all processes from running. Quick, may be called from the invoke path.
    fn freeze(&self) -> Result<(), SandboxError>;
    /// Lets them run again. Quick, may be called from the invoke path. No error if it is not frozen.
    fn thaw(&self) -> Result<(), SandboxError>;
    /// Writes all that is in it, `/tmp` as well, into an empty directory: of the engine's file system, and closed to all but
    /// root. It may be destroyed afterwards, and is of no other use.
    async fn keep(&self, _directory: &Path) -> Result<(), SandboxError> {
        Err(cannot_keep(self.id()))
    }
    /// Memory and CPU so far.
    fn usage(&self) -> Usage;
    /// [`Usage::memory_peak`] alone: asked after every invocation.
    fn memory_peak(&self) -> u64 {
        self.usage().memory_peak
    }
    /// Destroys it: returns when all processes are dead, mounts and cgroups gone.
    async fn destroy(&self);
}

pub use guest::vm::link::Decoder as LinkDecoder;

/// Where connections to a port of [`LINK_ADDRESS`] arrive. Non-blocking.
#[derive(Debug)]
pub enum Listener {
    /// In the sandbox's network.
    Tcp(std::net::TcpListener),
    /// On the host: connections from a virtual machine are carried there. What comes is in frames, for [`LinkDecoder`];
    /// what goes is as it is.
    Unix(std::os::unix::net::UnixListener),
}

/// A process to start.
#[derive(Clone, Default)]
pub struct Command {
    /// Program and arguments. A program without a slash is looked for in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory in the sandbox.
    pub cwd: PathBuf,
}

impl std::fmt::Debug for Command {
    /// Without the values of the environment, which are the customer's secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("Command").field("argv", &self.argv).field("env", &names).field("cwd", &self.cwd).finish()
    }
}

/// A process of a sandbox, never reused within it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProcessId(pub u32);

/// A started process.
#[derive(Debug)]
pub struct Process {
    /// For [`Sandbox::signal`] and [`SandboxEvent::Exited`].
    pub id: ProcessId,
    /// Read end of the pipe that is its stdout and stderr, or a stream socket to which that is carried; non-blocking.
    pub output: OwnedFd,
}

/// What a process can be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitStatus {
    /// `exit(code)`.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// What happens in a sandbox by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SandboxEvent {
    /// A process started with [`Sandbox::spawn`] ended.
    Exited {
        /// Which.
        process: ProcessId,
        /// How.
        status: ExitStatus,
        /// The memory limit's killer struck in this sandbox since the last event.
        oom: bool,
    },
    /// The sandbox itself died (its PID 1 or its engine): nothing in it runs any more.
    Gone,
}

/// Resources used so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Peak memory of all its processes together, in bytes; 0 where it is not measured.
    pub memory_peak: u64,
    /// Memory now, in bytes; 0 where it is not measured.
    pub memory_now: u64,
    /// How often the memory limit's killer struck.
    pub oom_kills: u64,
    /// CPU time.
    pub cpu: Duration,
}

/// Why a sandbox could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The program to start does not exist or cannot be executed: the user's mistake (`Runtime.InvalidEntrypoint`).
    #[error("cannot execute {program}: {source}")]
    Exec {
        /// As given.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The working directory does not exist or is none: the user's mistake (`Runtime.InvalidWorkingDir`).
    #[error("cannot start in {directory}: {source}")]
    WorkingDirectory {
        /// As given.
        directory: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The host refused something; the operator's problem.
    #[error("{operation}: {source}")]
    Host {
        /// What was being done, to what.
        operation: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The sandbox is gone.
    #[error("sandbox {0} is gone")]
    Gone(SandboxId),
}

/// Address of a listener inside the sandbox.
pub fn link_socket(port: u16) -> SocketAddr {
    SocketAddr::from((LINK_ADDRESS, port))
}
