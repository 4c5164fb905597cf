//! Brings what the writer has committed to disk, on a thread of its own, and then answers: meanwhile the writer works on
//! the next group.
//!
//! SQLite would sync its log itself at each commit (`synchronous = FULL`), and the writer would wait. With `NORMAL` it does
//! so only before a checkpoint; syncing the log after a commit gives the same promise: the log is all that a commit has
//! written (SQLite's documentation, "Write-Ahead Logging", 2.1).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::writer::{Answer, Done};
use crate::api::QueueError;

/// What is answered when the log is on disk.
pub(super) struct Group {
    /// The last event that was put in.
    pub last_seq: i64,
    pub log: Arc<File>,
    pub answers: Vec<(Done, Answer)>,
}

/// Syncs one group after the other. Ends when it is dropped; what was handed to it is still synced and answered.
pub(super) struct Syncer {
    groups: Option<mpsc::Sender<Group>>,
    thread: Option<thread::JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// One permit when there is something new on disk.
    synced: Notify,
}

#[derive(Default)]
struct State {
    /// Groups handed in that are not on disk yet.
    busy: usize,
    /// The last event that is on disk.
    last_seq: i64,
    /// Of a sync. After it nobody knows what is on disk, and another sync that succeeds does not tell (as Linux marks the
    /// pages clean that it could not write): only opening the file anew does.
    failed: Option<String>,
    #[cfg(test)]
    synced: usize,
}

impl Syncer {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (groups, received) = mpsc::channel::<Group>();
        let shared = Arc::<Shared>::default();
        let serve = {
            let shared = Arc::clone(&shared);
            move || received.into_iter().for_each(|group| shared.sync(group))
        };
        let thread = thread::Builder::new().name("event-queue-sync".to_owned()).spawn(serve)?;
        Ok(Self { groups: Some(groups), thread: Some(thread), shared })
    }

    /// Hands a group in.
    pub fn sync(&self, group: Group) {
        self.shared.state.lock().busy += 1;
        // The thread lives as long as this does.
        let _ = self.groups.as_ref().map(|groups| groups.send(group));
    }

    /// Waits so long at most for all that was handed in to be on disk; whether it is.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut state = self.shared.state.lock();
        if state.busy > 0 {
            self.shared.changed.wait_for(&mut state, limit);
        }
        state.busy == 0
    }

    /// How many groups were synced so far.
    #[cfg(test)]
    pub fn synced(&self) -> usize {
        self.shared.state.lock().synced
    }

    /// Waits for something new on disk.
    pub async fn news(&self) {
        self.shared.synced.notified().await;
    }

    /// The last event of those that were handed in and are on disk.
    pub fn last_seq(&self) -> i64 {
        self.shared.state.lock().last_seq
    }

    /// Why nothing is promised any more, after a sync that has failed.
    pub fn failure(&self) -> Option<String> {
        self.shared.state.lock().failed.clone()
    }
}

impl Shared {
    fn sync(&self, group: Group) {
        let synced = group.log.sync_data();
        let failure = {
            let mut state = self.state.lock();
            state.busy -= 1;
            #[cfg(test)]
            {
                state.synced += 1;
            }
            if let (Err(error), None) = (synced, &state.failed) {
                tracing::error!(%error, "sync the log of the event queue: it takes no more events until Emberbox is restarted");
                state.failed = Some(error.to_string());
            }
            if state.failed.is_none() {
                state.last_seq = group.last_seq;
            }
            state.failed.clone()
        };
        self.changed.notify_all();
        self.synced.notify_one();
        for (done, answer) in group.answers {
            let _ = done.send(failure.clone().map_or(Ok(answer), |cause| Err(failed(cause))));
        }
    }
}

/// What is answered then.
pub(super) fn failed(cause: String) -> QueueError {
    QueueError::Unavailable {
        operation: "sync the log of the event queue to disk".to_owned(),
        cause: format!("{cause}; see to the disk, then restart Emberbox"),
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.groups = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}
