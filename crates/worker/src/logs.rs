//! Function logs on disk: log groups, log streams and events, as CloudWatch Logs has them.
//!
//! A group is a directory of numbered segment files; each line of a segment is one event of any stream of the group,
//! in the order of arrival. So one file is open per group however many sandboxes write to it, a reader that follows
//! the group reads on from where it stopped, and retention deletes whole files.
//!
//! ```text
//!   <dir>/<account>/<region>/<group, percent-encoded>/name            the group's name
//!                                                    /00000001.log    <ms>\t<stream>\t<message, \n as \\n>
//! ```
//!
//! Nothing here is on the invoke path: [`LogStore::append`] puts a batch into a bounded queue, and a background thread
//! writes. What does not fit is dropped and counted, and a line in the stream says how much.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use domain::AccountId;
use serde::{Deserialize, Serialize};

mod query;
mod segment;
mod writer;

pub use query::{Event, Filter, Page, Position, StreamInfo};

/// Limits of the log store.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Where the groups are.
    pub dir: PathBuf,
    /// Size of one group's files, after which the oldest are deleted.
    pub group_bytes: u64,
    /// Age after which a segment is deleted.
    pub retention: Duration,
    /// Bytes that may wait to be written; what comes beyond is dropped.
    pub queue_bytes: usize,
}

impl LogConfig {
    /// 64 MiB a group, 14 days, 16 MiB of queue.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            group_bytes: 64 << 20,
            retention: Duration::from_secs(14 * 86_400),
            queue_bytes: 16 << 20,
        }
    }
}

/// Names a log group.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct GroupId {
    /// Owner.
    pub account: AccountId,
    /// e.g. `us-east-1`.
    pub region: String,
    /// e.g. `/aws/lambda/hello`.
    pub group: String,
}

/// Names a log stream.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct StreamId {
    /// Its group.
    pub group: GroupId,
    /// `YYYY/MM/DD/[version]hex`.
    pub stream: String,
}

/// One line on its way to disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEvent {
    /// Milliseconds since 1970.
    pub timestamp: u64,
    /// Without a trailing newline.
    pub message: String,
}

/// Why the log could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct LogError {
    operation: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

impl LogError {
    fn new(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self { operation, path, source }
    }
}

/// The log of all functions of a worker. Cheap to clone.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    queue: std::sync::mpsc::Sender<writer::Message>,
}

struct Shared {
    config: LogConfig,
    queued: AtomicUsize,
    dropped: AtomicU64,
}

impl LogStore {
    /// Opens the directory, creating it, and starts the writer. The writer ends when the last clone is dropped.
    pub fn open(config: LogConfig) -> Result<Self, LogError> {
        std::fs::create_dir_all(&config.dir).map_err(LogError::new("create log directory", &config.dir))?;
        let shared = Arc::new(Shared { config, queued: AtomicUsize::new(0), dropped: AtomicU64::new(0) });
        // Bounded by bytes rather than by number: `append` refuses before it sends.
        let (queue, messages) = std::sync::mpsc::channel();
        let dir = shared.config.dir.clone();
        let writer = writer::Writer::new(Arc::clone(&shared));
        std::thread::Builder::new()
            .name("function-logs".into())
            .spawn(move || writer.run(&messages))
            .map_err(LogError::new("start the writer of", dir))?;
        Ok(Self { shared, queue })
    }

    /// Queues lines of one stream. Never blocks: what does not fit is dropped and counted.
    pub fn append(&self, stream: &Arc<StreamId>, events: Vec<LogEvent>) {
        let bytes: usize = events.iter().map(|e| e.message.len() + 64).sum();
        let lines = events.len() as u64;
        let queued = self.shared.queued.fetch_add(bytes, Ordering::Relaxed);
        if queued + bytes > self.shared.config.queue_bytes {
            self.shared.queued.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(lines, Ordering::Relaxed);
            return;
        }
        let message = writer::Message::Append { stream: Arc::clone(stream), events, bytes };
        if self.queue.send(message).is_err() {
            self.shared.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }

    /// Lines dropped since the last report of it in a stream.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Returns when everything appended before is in the files.
    pub async fn flush(&self) {
        let (done, wait) = tokio::sync::oneshot::channel();
        if self.queue.send(writer::Message::Flush(done)).is_ok() {
            // An error means that the writer ended, and it writes all before it does.
            let _ = wait.await;
        }
    }

    /// Deletes a group.
    pub async fn delete_group(&self, group: &GroupId) {
        let (done, wait) = tokio::sync::oneshot::channel();
        if self.queue.send(writer::Message::Delete(group.clone(), done)).is_ok() {
            let _ = wait.await;
        }
    }
}
