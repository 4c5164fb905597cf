//! SnapStart: the step between the publication of a version and its use.

use std::sync::Arc;

use domain::VersionKey;
use store::Op;

use super::background::Busy;
use super::{Inner, SnapshotFault};
use crate::function::Published;
use crate::name::not_found;
use crate::record::{Failure, FailureCode, SNAPSHOT, Stored};

impl Inner {
    /// Has the snapshot of a version taken, unless that is under way.
    pub(super) fn start_snapshot(self: &Arc<Self>, function: String, version: &Published) {
        let runnable = Arc::clone(&version.runnable);
        if !self.taking.lock().insert(runnable.key.clone()) {
            return;
        }
        let busy = Busy::new(&self.busy);
        let (store, snapshots) = (Arc::clone(&self.store), Arc::clone(&self.snapshots));
        let state_id = version.version.state_id.clone();
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            let key = runnable.key.clone();
            // So that it is found, and removed, should the process end, or the version be deleted, before all is told.
            let record = Op::put(SNAPSHOT, &*key.0, &b"{}"[..]);
            let taken = match store.commit(vec![record]).await {
                Ok(_) => snapshots.take(runnable).await,
                Err(error) => {
                    let reason = format!("The snapshot could not be recorded: {error}. Publish the version again.");
                    Err(SnapshotFault::Failed(Failure { reason, code: FailureCode::InternalError }))
                }
            };
            // It may take minutes. Who ended the control plane meanwhile leaves the rest to the next start.
            let Some(inner) = inner.upgrade() else { return };
            inner.snapshot_taken(&function, &state_id, key, taken).await;
            drop(busy);
        });
    }

    async fn snapshot_taken(&self, function: &str, state_id: &str, key: VersionKey, taken: Result<(), SnapshotFault>) {
        let result = match taken {
            Ok(()) => Ok(None),
            Err(SnapshotFault::Unsupported(reason)) => {
                tracing::warn!(function, reason, "a version with SnapStart starts without a snapshot");
                Ok(Some(format!("SnapStart: no snapshot was taken, the version starts as any other does. {reason}")))
            }
            // It stays among those that are being taken: nothing of it is removed.
            Err(SnapshotFault::Stopping) => return,
            Err(SnapshotFault::Failed(failure)) => {
                tracing::warn!(function, reason = failure.reason, "the Init of a version with SnapStart failed");
                Err(failure)
            }
        };
        let changed = self.change(
            function,
            || not_found(function),
            |function, _| {
                function.settle_snapshot(state_id, &result);
                Ok(())
            },
        );
        match changed.await {
            Ok(()) => {}
            Err(error) if self.catalog.function(function).is_none() => {
                tracing::debug!(function, %error, "deleted meanwhile");
            }
            // The next start has it taken again.
            Err(error) => tracing::error!(function, %error, "store the end of a snapshot's taking"),
        }
        // The version may have been deleted while nothing could be removed yet.
        let stored = Stored::Snapshot(key.0.to_string());
        if !self.catalog.uses(&stored) {
            self.dropped.lock().insert(stored, self.clock.monotonic());
        }
        self.taking.lock().remove(&key);
    }

    /// Whether what is stored is not yet.
    pub(super) fn is_being_taken(&self, stored: &Stored) -> bool {
        matches!(stored, Stored::Snapshot(key) if self.taking.lock().iter().any(|taking| *taking.0 == **key))
    }
}
