//! Placement: on which worker does a new sandbox go, and why.
//!
//! A pure decision over the workers' reports. Every worker that *admits* the sandbox (open, a free slot, enough memory) has a
//! *cost*; the cheapest is taken, among equals the one with the most free memory, and then the smallest worker id:
//!
//! ```text
//! cost = load now                      0 ..= 1000   the fuller of memory and slots, in thousandths
//!      + sandboxes now starting            × 10     starts compete for CPU and disk
//!      + the sandbox's share             0 ..  2000 its memory in thousandths of the worker's (that rounded down to a power of
//!                                                   two): where workers differ, large sandboxes go to large ones
//!      + sandboxes of this function        × 50     anti-correlation: a lost worker should cost a function little, and the
//!                                                   load of one function comes all at once
//!      + package or image not there          200    a download and an unpack on the cold path
//! ```
//!
//! Looked at are the workers that have the package, and besides these, of each size (power of two of memory) the 64 that are least
//! loaded. This gives the cheapest of all workers unless those 64 all have a sandbox of the function already; what could be won then is
//! spread, and a function on more than 64 workers has that.
//!
//! ```text
//!            reports, drain, cordon      ┌───────────────── Fleet ─────────────────┐
//! workers ──────────────────────────────►│ members ── load now ──► ladders, 1 a size│   place(memory, function, package)
//!            placed, init over, gone     │    ▲  2047 ···                          │◄─────────────────────────────────
//! manager ──────────────────────────────►│ bookings    1 [w7 w2]  most room first  │──► worker and reason, or NoCapacity
//!            holds, drops                │             0 [w1 w5 w9]                │    make_room(idle) ──► sandboxes
//! caches  ──────────────────────────────►│ functions ─ how many where · packages ─ who has them (64 each)
//!                                        └─────────────────────────────────────────┘
//! ```
//!
//! Who decides: a manager by its own [`Fleet`], or a [`Decider`] for all managers, which hears of every sandbox from the workers themselves.
//!
//! [`place`] is the specification, a scan; [`Fleet`] gives the same answers in microseconds at 10,000 workers, because only what is
//! special about a few workers (they have the package, or the function) depends on the request: all others of one size
//! stand in the same order for everybody, and the first of them that admits the sandbox is their best.
//!
//! Two terms are missing on purpose. Of one *account*: load spreads the accounts that are large enough to matter, and a term that
//! many workers have would have to be looked for on all of them. Of *zones*: see SPECIFICATION.md for what a lost third of the fleet costs a
//! function without one.
#![forbid(unsafe_code)]

mod cost;
mod decider;
mod fleet;
mod refusal;
mod room;
mod specification;

use std::fmt;

use domain::WorkerReport;

pub use cost::LOOKED_AT;
pub use decider::{Decider, HELD, Tally};
pub use fleet::{Fleet, Standing, Wanted};
pub use refusal::NoCapacity;
pub use room::{IdleSandbox, make_room};
pub use specification::place;

/// A worker, as it bears on one request.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerView {
    /// Load and capacity.
    pub report: WorkerReport,
    /// The request's package is unpacked there.
    pub has_package: bool,
    /// Sandboxes of the request's function there, over all versions.
    pub same_function: u32,
}

/// The sandbox that needs a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlaceRequest {
    /// `MemorySize` in MB.
    pub memory_mb: u32,
}

/// What [`place`] decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The sandbox goes there.
    Place {
        /// Index into the workers given.
        worker: usize,
        /// Why this one.
        reason: Reason,
    },
    /// No worker has room now.
    NoCapacity(NoCapacity),
}

/// What spoke for a worker: the term of the cost without which another one had been taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// There is no other.
    OnlyWorker,
    /// No other one has room.
    OnlyRoom,
    /// A less loaded one would have to fetch the package first.
    PackageCached,
    /// A less loaded one has more sandboxes of this function.
    Spread,
    /// It has the most room.
    LeastLoaded,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnlyWorker => "only worker",
            Self::OnlyRoom => "only one with room",
            Self::PackageCached => "package cached",
            Self::Spread => "spread",
            Self::LeastLoaded => "least loaded",
        })
    }
}

#[cfg(test)]
mod tests;
