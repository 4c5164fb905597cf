//! The service through its public API, against a queue in memory and against a third party's server.

mod in_memory;
mod support;
mod third_party;
