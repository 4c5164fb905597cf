//! Metadata: functions, versions, aliases and whatever else must outlive the process, as versioned records.
//!
//! A record is bytes under a kind and a key. Changes are made by [`Store::commit`]: all of them or none, each under a
//! precondition, durable when the call returns. Every commit has a revision, one more than the last; a record's version
//! is the revision of the commit that wrote it, so a version never comes back after a delete. [`Store::changes`] follows
//! the commits, so that a reader can keep a copy in memory:
//!
//! ```text
//!  subscribe ─► scan (state at revision R) ─► apply every commit > R ─► … ─► missed some? scan again
//! ```
//!
//! [`SqliteStore`] keeps it all in one file and needs no other service. `PostgresStore` (feature `postgres`) keeps it in a
//! PostgreSQL database, for many processes at once. Both pass the same tests (`tests/conformance`).
#![forbid(unsafe_code)]

mod api;
mod error;
#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

pub use api::{Change, Changes, Commit, Feed, Op, Precondition, Record, Snapshot, Store};
pub use error::StoreError;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;
