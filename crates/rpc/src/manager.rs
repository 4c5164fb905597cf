//! `domain::WorkerManager` over the network.
//!
//! A version travels by its key; the whole of it goes along only when the manager says that it does not know the key. It is 1 to 8 KB of JSON,
//! to be written and read for every invocation otherwise (measured: see the test `cost_of_a_call` in `tests/calls.rs`).

pub(crate) mod client;
mod known;
pub(crate) mod server;
