//! SnapStart: sandboxes that are kept once, and restored often.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use domain::{
    FunctionVersion, InitDone, InitRequest, RetireReason, SandboxId, SnapshotError, Step, Timeline, VersionKey,
    WorkerError,
};
use sandbox::{Restored, SandboxEngine};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Inner, Origin, Parts, Service, StartingGuard};
use crate::config::Config;
use crate::machine::{Begin, InitFailure};
use crate::slot::Slot;
use crate::snapshots::Snapshots;

/// Of a sandbox that died; a function cannot say it.
const SANDBOX_FAILURE: &str = "Sandbox.Failure";

/// Opens the place for snapshots; or says why there are none.
pub(super) fn open(directory: Option<&Path>, engine: &dyn SandboxEngine) -> Result<Snapshots, String> {
    engine.keeps()?;
    let directory = directory.ok_or("This worker has no directory for snapshots.")?;
    Snapshots::open(directory.to_owned()).map_err(|error| {
        tracing::error!(%error, "cannot keep snapshots in {}", directory.display());
        format!("Snapshots cannot be kept in {}: {error}.", directory.display())
    })
}

impl Inner {
    /// Makes the sandbox from the snapshot of its version; `None` if there is none that is still good.
    pub(super) async fn restore(self: &Arc<Self>, request: &InitRequest) -> Result<Option<InitDone>, WorkerError> {
        let (Ok(snapshots), InitRequest { sandbox: id, version }) = (&self.snapshots, request) else {
            return Ok(None);
        };
        let clock = &self.host.clock;
        let began = clock.monotonic();
        let mut timeline = Timeline::default();
        let parts = self.parts(version, &mut timeline).await?;
        let Some((directory, held)) = snapshots.find(&version.key, &self.made_of(&parts)) else {
            tracing::warn!(version = %version.key, "a version with SnapStart starts without its snapshot: there is none, or \
                            this server's runtime, engine or credentials have changed since");
            return Ok(None);
        };
        let processes: Vec<_> = held.processes().collect();
        let mut spec = self.spec(*id, version, &parts);
        spec.standby = None;
        let Restored { sandbox, running } = match self.engine.restore(spec, &directory, &processes).await {
            Ok(restored) => restored,
            Err(error) => {
                tracing::error!(version = %version.key, %error, "cannot restore a snapshot; starting without");
                return Ok(None);
            }
        };
        timeline.note(Step::SandboxCreated, clock.monotonic(), "restored");
        let slot = self.assemble(Arc::clone(version), parts, Origin::Kept(held, running), sandbox.into())?;
        self.go_on(&slot, began).await?;
        timeline.mark(Step::InitDone, clock.monotonic());
        Ok(Some(InitDone { timeline }))
    }

    /// Lets a held sandbox go on, to its first `next`.
    async fn go_on(&self, slot: &Slot, began: Duration) -> Result<(), WorkerError> {
        let done = slot.restore(began).await;
        let Ok(Err(InitFailure { kind, message, timeout })) = done else {
            return done.map(drop).map_err(|_| WorkerError::Gone(slot.id()));
        };
        // No fault of the function's: another sandbox may do better.
        if kind == SANDBOX_FAILURE {
            return Err(WorkerError::Gone(slot.id()));
        }
        // It goes by itself.
        Err(match timeout {
            true => WorkerError::RestoreTimeout(format!("{message}.")),
            false => WorkerError::Restore(format!("{kind}: {message}")),
        })
    }

    /// Runs a version's Init in a sandbox of its own, to where it may be kept.
    async fn hold(
        self: &Arc<Self>,
        sandbox: SandboxId,
        version: Arc<FunctionVersion>,
    ) -> Result<Arc<Slot>, SnapshotError> {
        let request = InitRequest { sandbox, version };
        let slot = self.create(request, Begin::Snapshot, &mut Timeline::default()).await?;
        match slot.start().await {
            Ok(Ok(())) => Ok(slot),
            Ok(Err(InitFailure { kind, message, .. })) => {
                slot.shutdown(RetireReason::Failure).await;
                Err(SnapshotError::Init { kind, message })
            }
            Err(_) => Err(WorkerError::Gone(sandbox).into()),
        }
    }

    /// See [`domain::Worker::snapshot`]. What ends because the worker does is no fault of the version's.
    pub(super) async fn take_snapshot(self: &Arc<Self>, version: Arc<FunctionVersion>) -> Result<(), SnapshotError> {
        // It is taken in the background; invocations need the host's processors more.
        let _turn = self.snapshotting.take(&version.account).await.ok_or(WorkerError::Stopping)?;
        let taken = self.hold_and_keep(version).await;
        match self.draining.load(Ordering::SeqCst) {
            true => taken.map_err(|_| WorkerError::Stopping.into()),
            false => taken,
        }
    }

    async fn hold_and_keep(self: &Arc<Self>, version: Arc<FunctionVersion>) -> Result<(), SnapshotError> {
        let snapshots = self.snapshots.as_ref().map_err(|reason| SnapshotError::Unsupported(reason.clone()))?;
        let parts = self.parts(&version, &mut Timeline::default()).await?;
        let made_of = self.made_of(&parts);
        // Before an Init that would be for nothing: all of its memory and of its disk may be written.
        let size = u64::from(version.memory_mb) + u64::from(version.ephemeral_mb);
        snapshots.check_room(size << 20).map_err(|error| {
            tracing::error!(version = %version.key, %error, "cannot keep a snapshot");
            SnapshotError::Unsupported("This host has no room to keep it.".to_owned())
        })?;
        let slot = self.hold(SandboxId(Uuid::new_v4()), Arc::clone(&version)).await?;
        let kept = async {
            let held = slot.held().ok_or_else(|| "its sandbox died before it could be kept".to_owned())?;
            let place = snapshots.begin(&version.key).map_err(|error| format!("make its directory: {error}"))?;
            slot.keep(&place.directory).await.map_err(|error| error.to_string())?;
            place.finish(made_of, held).map_err(|error| format!("name its directory: {error}"))
        };
        let kept = kept.await;
        slot.discard().await;
        kept.map_err(|error| {
            tracing::error!(version = %version.key, error, "cannot keep a snapshot");
            SnapshotError::Unsupported("This host could not keep it.".to_owned())
        })
    }

    pub(super) async fn forget(&self, version: &VersionKey) -> Result<(), String> {
        // Also where this engine takes none: another may have been configured before. Sandboxes that were restored from it have
        // its files open.
        let Some(directory) = &self.host.config.snapshots_dir else { return Ok(()) };
        let (directory, key) = (directory.clone(), version.clone());
        // It may have gigabytes.
        let removed = tokio::task::spawn_blocking(move || Snapshots::remove(&directory, &key)).await;
        let removed = removed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        removed.map_err(|error| format!("remove the snapshot of {version}: {error}"))
    }

    /// All that a snapshot holds and that may change while the version does not.
    fn made_of(&self, Parts { image, mounts, directory, .. }: &Parts) -> Value {
        let Config { credentials, endpoint_url, .. } = &self.host.config;
        let secrets = json!([credentials.access_key_id, credentials.secret_access_key, credentials.session_token]);
        // Only compared, and written to disk.
        let credentials = hex::encode(Sha256::digest(secrets.to_string()));
        json!({
            "engine": self.engine.keeps().unwrap_or_default(),
            "server": env!("CARGO_PKG_VERSION"),
            "runtime": [image.version, image.root, mounts, directory],
            "credentials": credentials,
            "endpoint": endpoint_url,
        })
    }
}

impl Service {
    /// Init of a version with SnapStart in one sandbox, on any engine: to where a snapshot is taken, and on from there without
    /// one. It is what a restore is for the runtime, but for the memory's way to the disk and back: so what runtimes make of
    /// it, and hooks, can be tried out where nothing can be restored.
    ///
    /// # Errors
    /// As [`domain::Worker::snapshot`], then as [`domain::Worker::init`].
    #[doc(hidden)]
    pub async fn init_in_place(&self, request: InitRequest) -> Result<(), SnapshotError> {
        let inner = Arc::clone(&self.0);
        inner.starting.fetch_add(1, Ordering::SeqCst);
        let _starting = StartingGuard(&inner.starting);
        let slot = inner.hold(request.sandbox, request.version).await?;
        inner.go_on(&slot, inner.host.clock.monotonic()).await.map_err(SnapshotError::from)
    }
}
