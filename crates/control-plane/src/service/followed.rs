//! How far this process' copy of the metadata has followed the store, and why it goes no further.
//!
//! A record that cannot be read (another key, another version of Emberbox, damage) is no reason to stop: other functions are followed, and
//! the one concerned stays as it was. But from that commit on the copy counts as behind: nobody takes it for one that has the change,
//! the process says that it is not ready, and it changes nothing itself, until all metadata could be read again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use store::StoreError;

use super::{ControlPlane, Error, Inner};
use crate::catalog::BadRecord;

/// Before all metadata are read again, since the store did not give them.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone, Default, Debug)]
pub(super) struct Followed {
    /// The last commit that the catalog has, with all before it.
    pub applied: u64,
    /// Why it is not a later one: what could not be read.
    pub trouble: Option<String>,
    /// The store was closed, or whoever followed it is gone.
    pub over: bool,
}

/// Why a copy of the metadata will not have a commit soon.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Behind {
    /// It cannot read that one, or one before it.
    #[error("this process cannot read a part of the metadata: {0}")]
    Unreadable(String),
    /// It follows no more.
    #[error("this process does not follow the metadata any more")]
    Over,
}

/// Says when it is dropped that nobody follows any more.
pub(super) struct Ended(pub Weak<Inner>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.closed();
        }
    }
}

impl ControlPlane {
    /// Returns when this process' copy of the metadata has the commit of `revision` and all before it.
    ///
    /// # Errors
    /// At once if it cannot follow so far.
    pub async fn applied(&self, revision: u64) -> Result<(), Behind> {
        self.inner.has_followed(revision).await.map_err(|error| match error {
            StoreError::Unreadable { reason } => Behind::Unreadable(reason),
            _ => Behind::Over,
        })
    }

    /// Why this process' copy of the metadata is not what it should be: a record that cannot be read, and why; `None` if all is well.
    pub fn trouble(&self) -> Option<String> {
        self.inner.trouble()
    }
}

impl Inner {
    pub(super) fn trouble(&self) -> Option<String> {
        let followed = self.followed.borrow();
        let over = || followed.over.then(|| Behind::Over.to_string());
        followed.trouble.clone().or_else(over)
    }

    /// Returns when the catalog has the commit of `revision` and all before it.
    pub(super) async fn has_followed(&self, revision: u64) -> Result<(), StoreError> {
        let done = |followed: &Followed| followed.applied >= revision || followed.trouble.is_some() || followed.over;
        let mut followed = self.followed.subscribe();
        let followed = followed.wait_for(done).await.map_err(|_| StoreError::Closed)?.clone();
        match followed {
            Followed { applied, .. } if applied >= revision => Ok(()),
            Followed { trouble: Some(reason), .. } => Err(StoreError::Unreadable { reason }),
            Followed { .. } => Err(StoreError::Closed),
        }
    }

    /// The catalog has one more commit; while it lacks one, that counts for nothing.
    pub(super) fn applied_up_to(&self, revision: u64) {
        self.followed.send_if_modified(|followed| {
            let ahead = revision > followed.applied && followed.trouble.is_none();
            if ahead {
                followed.applied = revision;
            }
            ahead
        });
    }

    /// The catalog has all that the store has at `revision`.
    pub(super) fn has_read_all(&self, revision: u64) {
        self.followed.send_modify(|followed| {
            if followed.trouble.take().is_some() {
                tracing::info!("all of the metadata can be read again");
            }
            followed.applied = followed.applied.max(revision);
        });
    }

    /// A commit is missing from the catalog from now on.
    pub(super) fn cannot_read(&self, error: &BadRecord) {
        let reason = error.to_string();
        tracing::error!(
            "{reason}. This process is not ready, and changes nothing, until it can read all of the metadata"
        );
        self.followed.send_modify(|followed| followed.trouble = Some(reason));
    }

    /// Nobody is to wait.
    pub(super) fn closed(&self) {
        self.followed.send_modify(|followed| followed.over = true);
    }

    /// After some commits were missed: returns when all metadata were read, or when it is known that they cannot be.
    pub(super) async fn load_at_last(self: &Arc<Self>) {
        loop {
            match self.load().await {
                Ok(()) => return,
                Err(Error::Record(error)) => return self.cannot_read(&error),
                Err(error) => tracing::error!(%error, "read the metadata again"),
            }
            tokio::time::sleep(STORE_AGAIN).await;
        }
    }

    /// While something cannot be read: it may be another by now.
    pub(super) async fn load_again(self: &Arc<Self>) {
        match self.load().await {
            // It was said before.
            Ok(()) | Err(Error::Record(_)) => {}
            Err(error) => tracing::warn!(%error, "read the metadata again"),
        }
    }
}
