//! The durable internal queue between the Frontend and the Pollers: one contract, several engines.
//!
//! It does not interpret events. What it promises is in [`EventQueue`].
//!
//! # Fairness
//!
//! One function's backlog must not delay another's first event. How, depends on the engine:
//!
//! - [`sqlite`]: one queue per function, in one file. Queues with something ready stand in a ring; each lease call goes
//!   round it and takes an even share of each. A queue that gets its first event joins the ring's end, so that it waits
//!   for one turn of each other ready queue, however long their backlogs are.
//! - `postgres`: the same in each process, by name instead of by order of arrival: a lease call starts behind the queue
//!   that this process served last.
//! - `sqs`: shuffle-sharding, as Lambda itself does. A name uses two of eight SQS queues, the shorter one for each
//!   event. A backlog fills its two; a function that shares one of them goes on in its other one, and only one in 28
//!   functions shares both.
//!
//! # Several engines in one measurement
//!
//! All engines are an `Arc<dyn EventQueue>`; `benches/throughput.rs` puts the embedded one beside a bare SQLite writer.
#![forbid(unsafe_code)]

pub mod api;
#[cfg(feature = "postgres")]
pub mod postgres;
mod rotation;
pub mod sqlite;
#[cfg(feature = "sqs")]
pub mod sqs;
mod time;

pub use api::{Content, Depth, Entry, EventQueue, Lease, LeaseId, QueueError, QueueName};

/// The largest body that every engine takes, in bytes.
pub const MAX_BODY: usize = 2 * 1024 * 1024;

/// Refuses entries that are too large before anything is written.
fn check_sizes(entries: &[Entry]) -> Result<(), QueueError> {
    entries.iter().try_for_each(|entry| check_size(entry.body.len()))
}

fn check_size(size: usize) -> Result<(), QueueError> {
    if size > MAX_BODY { Err(QueueError::TooLarge { size, limit: MAX_BODY }) } else { Ok(()) }
}
