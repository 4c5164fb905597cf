//! Snapshots of versions with SnapStart: what the control plane needs, from the worker.

use std::sync::Arc;

use async_trait::async_trait;
use control_plane::{Failure, FailureCode, SnapshotFault};
use domain::{FunctionVersion, SnapshotError, VersionKey, Worker, WorkerError};

/// The worker, for the control plane.
pub struct Snapshots(pub Arc<dyn Worker>);

#[async_trait]
impl control_plane::SnapshotCatalog for Snapshots {
    async fn take(&self, version: Arc<FunctionVersion>) -> Result<(), SnapshotFault> {
        self.0.snapshot(version).await.map_err(fault)
    }

    async fn remove(&self, version: &VersionKey) -> Result<(), String> {
        self.0.forget(version).await
    }
}

/// What AWS calls it.
fn fault(error: SnapshotError) -> SnapshotFault {
    let code = match &error {
        SnapshotError::Unsupported(reason) => return SnapshotFault::Unsupported(reason.clone()),
        SnapshotError::Worker(WorkerError::Stopping) => return SnapshotFault::Stopping,
        // Of the host, at this time: the version may work later.
        SnapshotError::Worker(error @ (WorkerError::Sandbox(_) | WorkerError::Gone(_))) => {
            return SnapshotFault::Unsupported(format!("This host could not run it: {error}."));
        }
        // Its sandbox died.
        SnapshotError::Init { kind, .. } if kind == "Sandbox.Failure" => {
            return SnapshotFault::Unsupported("This host could not run it.".to_owned());
        }
        SnapshotError::Worker(_) => FailureCode::InternalError,
        SnapshotError::Init { kind, .. } => match kind.as_str() {
            "Sandbox.Timedout" => FailureCode::InitTimeout,
            "Runtime.InvalidEntrypoint" => FailureCode::InvalidEntryPoint,
            "Runtime.InvalidWorkingDir" => FailureCode::InvalidWorkingDirectory,
            "Runtime.OutOfMemory" => FailureCode::InitResourceExhausted,
            kind if kind.starts_with("Extension.") => FailureCode::ExtensionInitError,
            _ => FailureCode::RuntimeInitError,
        },
    };
    SnapshotFault::Failed(Failure { reason: format!("SnapStart: the version's Init failed: {error}"), code })
}
