//! How far this process' copy of the metadata has followed the store, and what of it cannot be read.
//!
//! A record that cannot be read (another key, another version of Emberbox, damage) is no reason to stop: everything else is followed
//! and can be changed. The function concerned stays as it was, and the catalog remembers why: its commit is the one that this
//! process says it does not have, and what would write over it is refused. Deleting it is not.

use std::sync::{Arc, Weak};
use std::time::Duration;

use store::StoreError;

use super::{ControlPlane, Inner};

/// Before all metadata are read again, since the store did not give them.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone, Default, Debug)]
pub(super) struct Followed {
    /// The last commit that the catalog has, with all before it, as far as they can be read.
    pub applied: u64,
    /// The store was closed, or whoever followed it is gone.
    pub over: bool,
}

/// Why a copy of the metadata will not have a commit soon.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Behind {
    /// It cannot read what that commit wrote.
    #[error("this process cannot read what was changed: {0}")]
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
    /// Returns when this process' copy of the metadata has the commit of `revision` and all before it, as far as they can be read.
    ///
    /// # Errors
    /// If it cannot read what that commit wrote, or follows no more.
    pub async fn applied(&self, revision: u64) -> Result<(), Behind> {
        self.inner.has_followed(revision).await.map_err(|error| match error {
            StoreError::Unreadable { reason } => Behind::Unreadable(reason),
            _ => Behind::Over,
        })
    }

    /// Whether this process' copy of the metadata follows the store at all.
    pub fn follows(&self) -> bool {
        !self.inner.followed.borrow().over
    }

    /// How many functions and accounts are not what is stored of them, since it cannot be read.
    pub fn unreadable_records(&self) -> usize {
        self.inner.catalog.unread().map_or(0, |(count, _)| count)
    }

    /// The same in words, with the reason of the first; `None` if all is well.
    pub fn trouble(&self) -> Option<String> {
        let (count, first) = self.inner.catalog.unread()?;
        let records = if count == 1 { "record" } else { "records" };
        Some(format!("{count} {records} of the metadata cannot be read: {first}"))
    }
}

impl Inner {
    /// Returns when the catalog has the commit of `revision` and all before it.
    pub(super) async fn has_followed(&self, revision: u64) -> Result<(), StoreError> {
        let done = |followed: &Followed| followed.applied >= revision || followed.over;
        let mut followed = self.followed.subscribe();
        let applied = followed.wait_for(done).await.map_err(|_| StoreError::Closed)?.applied;
        if applied < revision {
            return Err(StoreError::Closed);
        }
        match self.catalog.unread_of(revision) {
            Some(bad) => Err(StoreError::Unreadable { reason: bad.to_string() }),
            None => Ok(()),
        }
    }

    /// The catalog has these commits, as far as they can be read.
    pub(super) fn applied_up_to(&self, revision: u64) {
        self.followed.send_if_modified(|followed| {
            let ahead = revision > followed.applied;
            followed.applied = followed.applied.max(revision);
            ahead
        });
    }

    /// Nobody is to wait.
    pub(super) fn closed(&self) {
        self.followed.send_modify(|followed| followed.over = true);
    }

    /// After some commits were missed: returns when all metadata were read.
    pub(super) async fn load_at_last(self: &Arc<Self>) {
        while let Err(error) = self.load().await {
            tracing::error!(%error, "read the metadata again");
            tokio::time::sleep(STORE_AGAIN).await;
        }
    }

    /// While something cannot be read: it may be another by now.
    pub(super) async fn load_again(self: &Arc<Self>) {
        if let Err(error) = self.load().await {
            tracing::warn!(%error, "read the metadata again");
        }
    }
}
