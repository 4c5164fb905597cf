//! VMs that have booted and wait for a function.
//!
//! ```text
//!  somebody asks ──► one waits: its drives are exchanged, its agent told what it is for ──► a sandbox, never given back
//!        │           none does: a VM is booted for it
//!        └─────────► the keeper: a while later, one by one, boots those that are lacking; ends those nobody wants
//! ```
//!
//! One that waits has the size, the network card and the number of disks that its kind has, and nothing of any function: its
//! disks are empty files. What it was given when it booted (entropy, clock) it is given anew with its function. It counts
//! as any VM does: it has a place, a cgroup and a claim on memory, which it leaves when they are needed.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::SandboxId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::boot::{Booted, Core, Origin};
use super::pool::{Kind, Pool};
use super::sandbox::MicrovmSandbox;
use crate::api::{SandboxError, SandboxSpec};

/// From a start until others are booted in advance: whoever was started has the processors for itself meanwhile.
const LULL: Duration = Duration::from_secs(1);

/// All of them.
pub struct Waiting {
    core: Arc<Core>,
    pool: Mutex<Pool<Blank>>,
    /// A sandbox was made.
    made: Notify,
}

/// One of them. Dropping it kills it.
struct Blank {
    booted: Booted,
    /// Dropped when it is somebody's.
    _watched: DropGuard,
}

impl Waiting {
    /// None, and the task that changes that if the configuration wants any. Within a tokio runtime.
    pub fn start(core: Arc<Core>) -> Arc<Self> {
        let pool = Pool::new(core.config.pool, core.config.pool_expiry);
        let waiting = Arc::new(Self { core, pool: Mutex::new(pool), made: Notify::new() });
        if waiting.core.config.pool > 0 {
            waiting.core.tasks.spawn(Arc::clone(&waiting).keep());
        }
        waiting
    }

    /// A sandbox in a VM that has waited, if there is one. There will be others, soon after [`Waiting::made`].
    pub async fn take(&self, spec: &SandboxSpec) -> Option<MicrovmSandbox> {
        let kind = self.core.kind(spec);
        if self.core.config.pool == 0 {
            return None;
        }
        // That may take seconds, or fail, which is nothing of a VM's: the boot will say it.
        self.core.prepare(spec).await.ok()?;
        loop {
            let taken = self.pool.lock().take(kind, Instant::now());
            let Blank { booted, .. } = taken?;
            // Its death may not have been noticed yet, or may come now: then it is the next one, or a boot.
            let vm = booted.id;
            if booted.end.is_cancelled() {
                continue;
            }
            match self.core.take(booted, spec).await {
                Ok(sandbox) => {
                    tracing::debug!(sandbox = %spec.id, %vm, "a microVM that waited was taken");
                    return Some(sandbox);
                }
                Err(error) => tracing::warn!(sandbox = %spec.id, %vm, %error, "a microVM that waited is of no use"),
            }
        }
    }

    /// Whoever asked has a sandbox.
    pub fn made(&self) {
        self.made.notify_one();
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.pool.lock().len()
    }

    /// Before one of this kind is booted for somebody: those that wait yield the place.
    pub async fn make_room(&self, kind: Kind) {
        while !self.core.has_room(kind) {
            let Some(Blank { booted, .. }) = self.pool.lock().yield_one() else { return };
            booted.destroy().await;
        }
    }

    /// Keeps as many as are wanted, until the engine's end.
    async fn keep(self: Arc<Self>) {
        let end = self.core.end.clone();
        loop {
            let unwanted = self.pool.lock().expire(Instant::now());
            drop(unwanted);
            let lacking = self.pool.lock().lacking().filter(|kind| self.core.has_room(*kind));
            if let Some(kind) = lacking {
                let added = self.add(kind).await;
                if end.is_cancelled() {
                    break;
                }
                if let Err(error) = added {
                    tracing::warn!(%error, "cannot boot a microVM in advance");
                    self.pool.lock().forget(kind);
                }
                continue;
            }
            let expiry = self.pool.lock().expiry();
            let expired = async {
                match expiry {
                    Some(expiry) => tokio::time::sleep_until(expiry.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = async { self.made.notified().await; tokio::time::sleep(LULL).await } => {}
                () = expired => {}
                () = end.cancelled() => break,
            }
        }
        drop(self.pool.lock().drain());
    }

    async fn add(self: &Arc<Self>, kind: Kind) -> Result<(), SandboxError> {
        let id = SandboxId(uuid::Uuid::new_v4());
        let booted = self.core.boot(id, kind, Origin::Nobody).await?;
        let booted = self.core.let_wait(booted).await?;
        let watched = CancellationToken::new();
        let (control, end) = (Arc::clone(&booted.control), booted.end.clone());
        let number = self.pool.lock().put(kind, Blank { booted, _watched: watched.clone().drop_guard() });
        let waiting = Arc::clone(self);
        // It has nothing to say while it waits; its end is heard.
        self.core.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = watched.cancelled() => return,
                _ = control.listen() => {}
                () = end.cancelled() => {}
            }
            end.cancel();
            let lost = waiting.pool.lock().lose(number);
            if lost.is_some() && !waiting.core.end.is_cancelled() {
                tracing::warn!(vm = %id, "a microVM that waited has died");
            }
        });
        Ok(())
    }
}
