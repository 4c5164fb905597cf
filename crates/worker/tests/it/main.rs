//! The worker through its public API, with real runtimes in plain processes (no isolation).

mod engine;
mod extensions;
mod fixture;
mod hostile;
mod invoke;
mod lifecycle;
