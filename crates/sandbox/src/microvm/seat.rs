//! A VM's place on the host: its numbers, directory, cgroup and sockets. Nothing of it is left when it is dropped.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domain::SandboxId;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::machine::{Machine, VSOCK};
use super::network::Link;
use crate::process::cgroup::Group;
use crate::process::instance::{Instance, Slot};

/// A cgroup is empty some time after its last process was reaped.
const CGROUP_PATIENCE: Duration = Duration::from_secs(5);

/// The place of one VM.
#[derive(Debug)]
pub struct Seat {
    pub id: SandboxId,
    /// Its working directory.
    pub directory: PathBuf,
    /// Its cgroup.
    pub group: Option<Group>,
    /// User and group of its processes.
    pub user: Option<(u32, u32)>,
    /// Its way to the network, if it has one.
    pub link: Option<Link>,
    /// Its part of the host's memory.
    pub claim: Option<Claim>,
    /// Its numbers.
    pub slot: Slot,
    instance: Arc<Mutex<Instance>>,
}

/// A part of the host's memory that is spoken for, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    memory_mb: u64,
    all: Arc<AtomicU64>,
}

impl Claim {
    /// Adds this much to what all have.
    pub fn of(memory_mb: u32, all: &Arc<AtomicU64>) -> Self {
        let memory_mb = u64::from(memory_mb);
        all.fetch_add(memory_mb, Ordering::Relaxed);
        Self { memory_mb, all: Arc::clone(all) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.all.fetch_sub(self.memory_mb, Ordering::Relaxed);
    }
}

impl Seat {
    /// Takes one; `None` when there are none left.
    pub fn take(
        id: SandboxId,
        instance: &Arc<Mutex<Instance>>,
        vms: &Path,
        group: Option<&Group>,
        privileged: bool,
    ) -> Option<Self> {
        let slot = instance.lock().take()?;
        let name = id.0.simple().to_string();
        Some(Self {
            id,
            directory: vms.join(&name),
            group: group.map(|group| group.child(&name)),
            user: privileged.then(|| (slot.user_id(), slot.user_id())),
            link: None,
            claim: None,
            slot,
            instance: Arc::clone(instance),
        })
    }

    /// Makes its directory.
    pub fn prepare(&self) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&self.directory)?;
        give_away(&self.directory, self.user)
    }

    /// To be called when its processes have ended.
    async fn clear(mut self) {
        if let Some(link) = self.link.take() {
            // The kernel takes milliseconds for it.
            let _ = tokio::task::spawn_blocking(move || drop(link)).await;
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(sandbox = %self.id, %error, "cannot remove {}", self.directory.display());
        }
        let Some(group) = &self.group else { return };
        let removed = async {
            while let Err(error) = group.remove() {
                tracing::trace!(%error, "a cgroup is not empty yet");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(CGROUP_PATIENCE, removed).await.is_err() {
            tracing::warn!(sandbox = %self.id, "cannot remove the cgroup of a microVM");
        }
    }
}

/// Listens, in the directory of a VM, where its connections to the host's `port` will arrive. `user`: of its processes.
pub fn listen(directory: &Path, user: Option<(u32, u32)>, port: u32) -> io::Result<UnixListener> {
    let name = format!("{VSOCK}_{port}");
    // A socket's address has room for a hundred bytes, fewer than a path may have.
    let opened = File::open(directory)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()))?;
    give_away(&directory.join(name), user)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn give_away(path: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    // Of a VM that has waited, processes own the directory: what they may have put in its place is not followed.
    user.map_or(Ok(()), |(user, group)| lchown(path, Some(user), Some(group)))
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Only where nothing was started, or the runtime is at its end: `clear` has done it otherwise.
        let _ = fs::remove_dir_all(&self.directory);
        // Before somebody else gets the slot, whose name it has.
        drop(self.link.take());
        if let Some(group) = &self.group {
            let _ = group.remove();
        }
        self.instance.lock().put(self.slot);
    }
}

/// Waits for the end of a VM, or brings it about when `end` says so; then clears up and says `gone`.
pub async fn supervise(machine: Arc<dyn Machine>, seat: Seat, end: CancellationToken, gone: CancellationToken) {
    let id = seat.id;
    tokio::select! {
        () = end.cancelled() => {}
        () = machine.ended() => tracing::debug!(sandbox = %id, console = %machine.console(), "a microVM ended"),
    }
    // Also for all who wait for it.
    end.cancel();
    machine.kill();
    machine.ended().await;
    seat.clear().await;
    gone.cancel();
}
