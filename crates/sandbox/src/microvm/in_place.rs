//! An engine for tests, on hosts where no engine can restore a machine that runs a kernel: the snapshot is the machine itself,
//! which stands still meanwhile, and can be restored once. For everything else it is as if another had been restored: the
//! guest finds its connections ended, another host that listens, other addresses, and later times.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::machine::{Beside, Drive, Engine, Machine, VSOCK, Vm};
use super::qemu::Qemu;
use crate::SandboxError;

/// In the directory of a snapshot: which machine it is.
const STATE: &str = "state";

type Kept = Arc<Mutex<HashMap<String, Real>>>;

/// See the module.
pub struct InPlace {
    qemu: Qemu,
    /// Of the machines' own directories: those of their sandboxes are gone before they are.
    directory: PathBuf,
    kept: Kept,
}

/// A machine, its directory and the user of its processes.
#[derive(Clone)]
struct Real {
    machine: Arc<dyn Machine>,
    directory: PathBuf,
    user: Option<(u32, u32)>,
}

/// A machine as one sandbox has it.
struct Loan {
    real: Real,
    kept: Kept,
    /// A snapshot has it: this sandbox' end is not its own.
    given: AtomicBool,
    end: CancellationToken,
}

impl InPlace {
    pub fn new(qemu: Qemu, directory: PathBuf) -> Self {
        Self { qemu, directory, kept: Kept::default() }
    }

    fn lend(&self, real: Real) -> Box<dyn Machine> {
        let (kept, given, end) = (Arc::clone(&self.kept), AtomicBool::new(false), CancellationToken::new());
        Box::new(Loan { real, kept, given, end })
    }
}

fn host(operation: &str) -> impl FnOnce(io::Error) -> SandboxError {
    let operation = operation.to_owned();
    |source| SandboxError::Host { operation, source }
}

/// What listens in one directory is reached in another, by this user.
fn link_sockets(from: &Path, to: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with(VSOCK) {
            let _ = fs::remove_file(to.join(&name));
            fs::hard_link(from.join(&name), to.join(&name))?;
            user.map_or(Ok(()), |(user, group)| chown(to.join(&name), Some(user), Some(group)))?;
        }
    }
    Ok(())
}

#[async_trait]
impl Engine for InPlace {
    async fn boot(&self, vm: Vm) -> Result<Box<dyn Machine>, SandboxError> {
        let directory = self.directory.join(vm.id.0.simple().to_string());
        fs::DirBuilder::new()
            .recursive(true)
            .create(&self.directory)
            .and_then(|()| fs::DirBuilder::new().mode(0o700).create(&directory))
            .and_then(|()| vm.user.map_or(Ok(()), |(user, group)| chown(&directory, Some(user), Some(group))))
            .and_then(|()| link_sockets(&vm.directory, &directory, vm.user))
            .map_err(host("make a machine's own directory"))?;
        // Its processes outlive the cgroup of its first sandbox.
        let user = vm.user;
        let machine = self.qemu.boot(Vm { directory: directory.clone(), group: None, ..vm }).await?;
        Ok(self.lend(Real { machine: machine.into(), directory, user }))
    }

    async fn restore(&self, vm: Vm, snapshot: &Path) -> Result<Box<dyn Machine>, SandboxError> {
        let name = fs::read_to_string(snapshot.join(STATE)).map_err(host("read the snapshot"))?;
        let kept = self.kept.lock().remove(&name);
        let Real { machine, directory, user } =
            kept.ok_or_else(|| host("restore a snapshot a second time")(io::ErrorKind::Unsupported.into()))?;
        link_sockets(&vm.directory, &directory, user)
            .and_then(|()| machine.resume())
            .map_err(host("connect the machine with its new sandbox"))?;
        Ok(self.lend(Real { machine, directory, user }))
    }

    fn snapshots(&self) -> Result<(), String> {
        Ok(())
    }

    fn exchanges_silently(&self) -> bool {
        self.qemu.exchanges_silently()
    }

    fn drive(&self, number: usize) -> String {
        self.qemu.drive(number)
    }

    fn describe(&self) -> String {
        format!("{}, with snapshots in place", self.qemu.describe())
    }
}

#[async_trait]
impl Machine for Loan {
    fn pause(&self) -> io::Result<()> {
        self.real.machine.pause()
    }

    fn resume(&self) -> io::Result<()> {
        self.real.machine.resume()
    }

    async fn snapshot(&self, directory: &Path, beside: Beside) -> Result<(), SandboxError> {
        let name = Uuid::new_v4().to_string();
        self.real
            .machine
            .pause()
            .and_then(|()| beside())
            .and_then(|()| fs::write(directory.join(STATE), &name))
            .map_err(host("keep a machine"))?;
        self.given.store(true, Ordering::SeqCst);
        self.kept.lock().insert(name, self.real.clone());
        Ok(())
    }

    async fn exchange(&self, drives: Vec<Drive>, directory: &Path) -> Result<(), SandboxError> {
        link_sockets(directory, &self.real.directory, self.real.user)
            .map_err(host("connect the machine with its sandbox"))?;
        self.real.machine.exchange(drives, directory).await
    }

    fn gives_back(&self) -> Option<Duration> {
        self.real.machine.gives_back()
    }

    fn kill(&self) {
        if self.given.load(Ordering::SeqCst) {
            self.end.cancel();
        } else {
            self.real.machine.kill();
        }
    }

    async fn ended(&self) {
        tokio::select! {
            () = self.end.cancelled() => {}
            () = self.real.machine.ended() => {}
        }
    }

    fn console(&self) -> String {
        self.real.machine.console()
    }
}
