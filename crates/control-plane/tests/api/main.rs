//! The control plane through its public API, with a real store and real packages, against what AWS answered: tests with
//! "Recorded:" in their comment replay a recording of the real service (LocalStack's snapshots), by shape and by message.

mod aliases;
mod concurrency;
mod durability;
mod event_invoke;
mod event_source;
mod functions;
mod images;
mod peers;
mod permissions;
mod resolving;
mod secrets;
mod snap_start;
mod support;
mod tags;
mod updates;
mod upgrades;
mod versions;
