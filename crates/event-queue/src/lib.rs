//! The durable internal queue between the Frontend and the Pollers: one contract, several engines.
//!
//! It does not interpret events. What it promises is in [`EventQueue`].
#![forbid(unsafe_code)]

pub mod api;
#[cfg(feature = "postgres")]
pub mod postgres;
mod rotation;
pub mod sqlite;
mod time;

pub use api::{Depth, Entry, EventQueue, Lease, LeaseId, QueueError, QueueName};

/// The largest body that every engine takes, in bytes.
pub const MAX_BODY: usize = 2 * 1024 * 1024;

/// Refuses entries that are too large before anything is written.
fn check_sizes(entries: &[Entry]) -> Result<(), QueueError> {
    entries.iter().try_for_each(|entry| check_size(entry.body.len()))
}

fn check_size(size: usize) -> Result<(), QueueError> {
    if size > MAX_BODY { Err(QueueError::TooLarge { size, limit: MAX_BODY }) } else { Ok(()) }
}
