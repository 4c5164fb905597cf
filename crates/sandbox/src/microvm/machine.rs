//! What a virtual machine monitor must do for us.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use domain::SandboxId;

use super::network::Tap;
use crate::SandboxError;
use crate::process::cgroup::Group;

/// Name, in [`Vm::directory`], of the socket for connections by vsock. A guest's connection to port N of the host arrives
/// at the socket of this name, `_` and N.
pub const VSOCK: &str = "vsock";

/// What a machine is made of.
#[derive(Debug)]
pub struct Vm {
    /// Its name in errors.
    pub id: SandboxId,
    /// Its working directory, owned by `user`.
    pub directory: PathBuf,
    /// User and group that its processes run as; `None`: the server's own.
    pub user: Option<(u32, u32)>,
    /// Where its processes go.
    pub group: Option<Group>,
    /// Memory in MB.
    pub memory_mb: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// What its network card leads to, if it has one.
    pub tap: Option<Tap>,
    /// Its disks. The guest finds each by the name that [`Engine::drive`] gives it.
    pub drives: Vec<Drive>,
    /// Its drives are for [`Machine::exchange`].
    pub blank: bool,
}

/// A disk.
#[derive(Debug)]
pub struct Drive {
    /// Its contents.
    pub file: File,
    /// Whether the guest may write.
    pub writable: bool,
}

impl Drive {
    /// The same once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, writable: self.writable })
    }
}

/// Starts machines.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Starts one; it boots when this returns. On error nothing is left of it but its directory.
    async fn boot(&self, vm: Vm) -> Result<Box<dyn Machine>, SandboxError>;
    /// Starts one that goes on where another was when [`Machine::snapshot`] was taken of it. `vm` is as that one was: as many
    /// drives with the same contents, the same sockets. What the guest had open by vsock is closed for it. On error nothing
    /// is left of it but its directory.
    async fn restore(&self, vm: Vm, snapshot: &Path) -> Result<Box<dyn Machine>, SandboxError>;
    /// Whether a guest must let go of its drives before [`Machine::exchange`], since it is not told of it.
    fn exchanges_silently(&self) -> bool;
    /// Whether [`Machine::snapshot`] works; if not, why.
    fn snapshots(&self) -> Result<(), String>;
    /// How the guest knows the drive of this number.
    fn drive(&self, number: usize) -> String;
    /// What it is, for the operator.
    fn describe(&self) -> String;
}

/// What an engine answers that cannot keep machines as snapshots.
pub fn no_snapshots(engine: &str, id: SandboxId) -> SandboxError {
    SandboxError::Host {
        operation: format!("take or restore a snapshot of sandbox {id}"),
        source: io::Error::new(io::ErrorKind::Unsupported, format!("{engine} cannot snapshot here; Firecracker can")),
    }
}

/// What else is to be kept of a machine while it stands still: its drives.
pub type Beside = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A machine. Dropping it kills it.
#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// Stops it from running. Quick.
    fn pause(&self) -> io::Result<()>;
    /// Lets it run again. Quick. No error if it runs.
    fn resume(&self) -> io::Result<()>;
    /// Puts other contents, of any size, in the place of those of its drives, which nobody in the guest may have used; all of
    /// them, as many, writable where those were. To be called once, of a [`Vm::blank`]. Sockets that were added to its
    /// directory since the start are there for the guest afterwards. After an error it is of no use.
    async fn exchange(&self, drives: Vec<Drive>, directory: &Path) -> Result<(), SandboxError>;
    /// Writes its memory, processors and devices, but not its drives, into a directory that has no snapshot yet: on the file
    /// system of the engine's own, closed to all but root, since it has all that the guest knows. The machine stands still
    /// meanwhile, in which `beside` is called, and runs afterwards, whatever comes of it.
    async fn snapshot(&self, directory: &Path, beside: Beside) -> Result<(), SandboxError>;
    /// For how long a guest in which nothing else runs has to run until memory that it does not use is the host's again;
    /// `None`: it has no way to give any back.
    fn gives_back(&self) -> Option<Duration>;
    /// Kills it at once.
    fn kill(&self);
    /// Returns when its guest runs no more, by itself or killed.
    async fn ended(&self);
    /// The end of what its console said.
    fn console(&self) -> String;
}
