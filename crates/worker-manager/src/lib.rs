//! The Worker Manager: knows every sandbox, counts concurrency, and decides which sandbox serves a request.
//!
//! * [`pool`]: one function's sandboxes and waiting requests, as a state machine without IO or clock. Start here.
//! * [`concurrency`]: the account's count and the scaling rate (Lambda's Counting Service).
//! * [`manager`]: the shell: finds the pool of a request, carries out what it decides, drives time.
//! * [`fleet`]: the workers, and what this manager has placed on each.
//! * [`map`]: the maps that the warm path reads without taking a lock.
//!
//! A warm request reads two maps without locks and takes one lock, its own function's.
#![forbid(unsafe_code)]

mod concurrency;
mod config;
mod fleet;
mod manager;
mod map;
mod partition;
mod pool;
mod quota;
mod status;

pub use config::Config;
pub use manager::{Homes, Manager};
pub use partition::Partition;
pub use status::{AccountStatus, FunctionStatus, Status};
