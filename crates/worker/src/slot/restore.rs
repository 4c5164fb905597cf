//! SnapStart, in one sandbox.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Slot;
use crate::machine::{ApiError, Held, InitFailure};

impl Slot {
    /// What to keep beside a snapshot; `None` if none may be taken.
    pub(crate) fn held(&self) -> Option<Held> {
        self.core.lock().machine.held()
    }

    /// Keeps the sandbox in a directory.
    pub(crate) async fn keep(&self, directory: &Path) -> Result<(), sandbox::SandboxError> {
        self.sandbox.keep(directory).await
    }

    /// Removes the sandbox without a word to what is in it, which was told to be silent when it was kept; returns when nothing is
    /// left of it.
    pub(crate) async fn discard(&self) {
        {
            let mut core = self.core.lock();
            core.machine.gone(self.now());
            self.settle(&mut core);
        }
        self.wait_gone().await;
    }

    /// The sandbox runs again, where it was held; that had begun at `began`. Of one that has ended already nothing comes, as
    /// with [`Slot::start`].
    pub(crate) fn restore(&self, began: Duration) -> oneshot::Receiver<Result<(), InitFailure>> {
        let (done, wait) = oneshot::channel();
        let mut core = self.core.lock();
        if core.machine.held().is_some() {
            core.restored = Some(done);
            core.machine.restored(self.now(), began);
            self.settle(&mut core);
        }
        wait
    }

    pub(crate) fn runtime_restore_next(&self) -> Result<oneshot::Receiver<()>, ApiError> {
        let (waiter, wait) = oneshot::channel();
        let mut core = self.core.lock();
        self.drain(&mut core);
        // As with `next`.
        let before = core.restore.replace(waiter);
        if let Err(error) = core.machine.runtime_restore_next(self.now()) {
            core.restore = before;
            return Err(error);
        }
        self.settle(&mut core);
        Ok(wait)
    }

    pub(crate) fn runtime_restore_error(&self, kind: String, payload: Bytes) -> Result<(), ApiError> {
        let mut core = self.core.lock();
        self.drain(&mut core);
        let result = core.machine.runtime_restore_error(self.now(), kind, payload);
        self.settle(&mut core);
        result
    }
}
