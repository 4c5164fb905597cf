//! The trait and its data. Free of SQL: a second implementation needs nothing from here but these types.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

use crate::error::StoreError;

/// Commits that a slow subscriber may fall behind before it has to scan again.
const FEED_CAPACITY: usize = 1024;

/// One stored value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Revision of the commit that wrote it.
    pub version: u64,
    /// What was written.
    pub value: Bytes,
}

/// What must hold for an [`Op`] to be applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precondition {
    /// Nothing.
    None,
    /// There is no record under this key.
    DoesNotExist,
    /// The record is still the one that was read.
    Version(u64),
}

impl Precondition {
    /// Whether it holds for a record with this version (`None`: there is no record).
    pub(crate) fn holds(self, version: Option<u64>) -> bool {
        match self {
            Self::None => true,
            Self::DoesNotExist => version.is_none(),
            Self::Version(expected) => version == Some(expected),
        }
    }
}

/// One change within a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// What kind of record, e.g. `function`.
    pub kind: Cow<'static, str>,
    /// Its key; unique within the kind.
    pub key: String,
    /// The new value; `None` deletes the record.
    pub value: Option<Bytes>,
    /// What must hold.
    pub precondition: Precondition,
}

impl Op {
    /// Writes a record.
    pub fn put(kind: impl Into<Cow<'static, str>>, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { kind: kind.into(), key: key.into(), value: Some(value.into()), precondition: Precondition::None }
    }

    /// Deletes a record, if it is there.
    pub fn delete(kind: impl Into<Cow<'static, str>>, key: impl Into<String>) -> Self {
        Self { kind: kind.into(), key: key.into(), value: None, precondition: Precondition::None }
    }

    /// Applies (with the whole commit) only if `precondition` holds.
    #[must_use]
    pub fn when(mut self, precondition: Precondition) -> Self {
        self.precondition = precondition;
        self
    }
}

/// One change that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Kind of the record.
    pub kind: Cow<'static, str>,
    /// Its key.
    pub key: String,
    /// Its new state; `None`: deleted.
    pub record: Option<Record>,
}

/// One commit, as the feed shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// One more than that of the commit before.
    pub revision: u64,
    /// In the order of the ops.
    pub changes: Vec<Change>,
}

/// A consistent view of some records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Every commit up to this one is in it, and none after.
    pub revision: u64,
    /// By key, ascending.
    pub records: Vec<(String, Record)>,
}

/// Metadata storage.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One record; `None` if there is none.
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Record>, StoreError>;

    /// The records of a kind whose keys start with `prefix` (all of them for an empty one).
    async fn scan(&self, kind: &str, prefix: &str) -> Result<Snapshot, StoreError>;

    /// Applies all of `ops` or none, and returns the commit's revision once it is on disk.
    ///
    /// Preconditions are those of the state before the commit. [`StoreError::Conflict`] if one does not hold. A store on a
    /// server also fails while the server is away, and says so if it cannot find out whether a commit was made
    /// (`Unavailable`, `Uncertain`).
    async fn commit(&self, ops: Vec<Op>) -> Result<u64, StoreError>;

    /// Every commit from now on. The feed may begin with some that a scan made from now on has seen already: their
    /// revision is not above the scan's.
    fn changes(&self) -> Changes;
}

/// A subscription to the commits of a [`Store`].
#[derive(Debug)]
pub struct Changes {
    receiver: broadcast::Receiver<Feed>,
}

/// What a subscription has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Feed {
    /// The next commit.
    Commit(Arc<Commit>),
    /// The subscriber missed some, since it was too slow, or since the store has no longer what came while it could not
    /// be reached: scan again, then go on.
    Missed,
    /// The store is closed.
    Closed,
}

impl Changes {
    /// Waits for the next commit. Safe to cancel.
    pub async fn next(&mut self) -> Feed {
        match self.receiver.recv().await {
            Ok(feed) => feed,
            Err(broadcast::error::RecvError::Lagged(_)) => Feed::Missed,
            Err(broadcast::error::RecvError::Closed) => Feed::Closed,
        }
    }
}

/// The sending side of [`Changes`], for implementations.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    sender: broadcast::Sender<Feed>,
}

impl Publisher {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::Sender::new(FEED_CAPACITY) }
    }

    pub(crate) fn subscribe(&self) -> Changes {
        Changes { receiver: self.sender.subscribe() }
    }

    pub(crate) fn publish(&self, commit: Commit) {
        // Fails only when nobody listens.
        let _ = self.sender.send(Feed::Commit(Arc::new(commit)));
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn missed(&self) {
        let _ = self.sender.send(Feed::Missed);
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn subscriptions(&self) -> Subscriptions {
        Subscriptions { sender: self.sender.downgrade() }
    }
}

/// Makes subscriptions for as long as there is a [`Publisher`].
#[cfg(feature = "postgres")]
#[derive(Debug)]
pub(crate) struct Subscriptions {
    sender: broadcast::WeakSender<Feed>,
}

#[cfg(feature = "postgres")]
impl Subscriptions {
    pub(crate) fn subscribe(&self) -> Changes {
        // One without a sender says that it is closed.
        let sender = self.sender.upgrade().unwrap_or_else(|| broadcast::Sender::new(1));
        Changes { receiver: sender.subscribe() }
    }
}
