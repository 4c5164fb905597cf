//! Queues and messages in one SQLite file in WAL mode, used by one process at a time.
//!
//! ```text
//!  requests ──► writer thread: BEGIN, all that wait, COMMIT (one fsync) ──► answers
//!  receives that find nothing ──► wait in the writer, in turn, for a message, a timeout's end or their own deadline
//! ```
//!
//! What decides (see `queue`) is kept in memory, about 200 bytes a message; contents stay on disk. Each group's changes are
//! committed before anybody gets an answer. A group that only receives is written without a sync: `kill -9` loses nothing
//! of it; a power failure may lose the last receives, and then their messages are visible earlier, as at-least-once
//! allows. If a group cannot be written, its callers get an error, and memory is made again from the file.

mod format;
mod state;
mod statements;
mod writer;

pub(crate) use state::{Entry, FIFO_SUFFIX, QueueKey, Sent, State};
pub(crate) use writer::{Received, Store};
