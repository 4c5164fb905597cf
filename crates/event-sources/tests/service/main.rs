//! The service through its public API: against a queue in memory, Emberbox's own endpoint, and a third party's server.

mod client;
mod embedded;
mod in_memory;
mod support;
mod third_party;
