//! Placement: on which worker does a new sandbox go, and why.
//!
//! A pure decision over the workers' reports. Every worker that *admits* the sandbox (not draining, a free slot,
//! enough memory) has a *cost*; the cheapest is taken, the smallest worker id among equals:
//!
//! ```text
//! cost = load after placement          0 ..= 1000   the fuller of memory and slots, in thousandths
//!      + sandboxes now starting            × 10     starts compete for CPU and disk
//!      + sandboxes of this function        × 20     a lost host should cost a function little, and load correlates
//!      + package not on the worker           200    a download and an unpack on the cold path
//! ```
//!
//! The scan is linear. Nothing but [`place`] sees it: an index for very many workers (ordered by load, with the few
//! workers that hold this function or its package looked at besides) can take its place behind the same signature,
//! because each term beside the load is zero or constant for all other workers.
#![forbid(unsafe_code)]

mod room;

use std::fmt;

use domain::WorkerReport;

pub use room::{IdleSandbox, make_room};

const STARTING_COST: u64 = 10;
const SAME_FUNCTION_COST: u64 = 20;
const PACKAGE_COST: u64 = 200;

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

/// Why no worker admits the sandbox; displays as a sentence for the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoCapacity {
    /// What was asked for.
    pub memory_mb: u32,
    /// Workers looked at.
    pub workers: usize,
    /// Of these, take no new sandboxes.
    pub draining: usize,
    /// Of these, have no free slot.
    pub without_slot: usize,
    /// The most memory that a worker with a free slot has left, in MB.
    pub largest_free_mb: u64,
    /// The most memory that a worker which takes sandboxes has in all, in MB.
    pub largest_worker_mb: u64,
}

impl NoCapacity {
    /// Whether the sandbox would fit on some worker were all others gone from it: making room can help.
    pub fn could_ever_fit(&self) -> bool {
        self.draining < self.workers && u64::from(self.memory_mb) <= self.largest_worker_mb
    }
}

impl fmt::Display for NoCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_mb, workers, draining, without_slot, largest_free_mb, largest_worker_mb } = self;
        let open = workers - draining;
        if *workers == 0 {
            f.write_str("there is no worker")
        } else if open == 0 {
            write!(f, "all {workers} workers are draining")
        } else if !self.could_ever_fit() {
            write!(
                f,
                "the function needs {memory_mb} MB and the largest worker has {largest_worker_mb} MB for sandboxes; \
                 lower MemorySize or give the worker more memory"
            )
        } else if *without_slot == open {
            write!(
                f,
                "every slot is taken ({open} of {workers} workers take sandboxes); raise the slots or add a worker"
            )
        } else {
            write!(
                f,
                "the function needs {memory_mb} MB and at most {largest_free_mb} MB are free on one worker \
                 ({workers} workers, {draining} draining, {without_slot} without a free slot)"
            )
        }
    }
}

/// Which worker takes a new sandbox, and why. Deterministic; the order of `workers` does not matter.
pub fn place(workers: &[WorkerView], request: &PlaceRequest) -> Decision {
    let candidates = || workers.iter().enumerate().filter(|(_, w)| admits(&w.report, request));
    let cheapest = |cost: &dyn Fn(&Cost) -> u64| {
        candidates()
            .map(|(index, w)| (cost(&Cost::of(w, request)), &w.report.worker, index))
            .min()
            .map(|(_, _, index)| index)
    };
    let Some(worker) = cheapest(&Cost::total) else {
        return Decision::NoCapacity(explain(workers, request));
    };
    let reason = if workers.len() == 1 {
        Reason::OnlyWorker
    } else if candidates().count() == 1 {
        Reason::OnlyRoom
    } else if cheapest(&|c| c.load + c.spread) != Some(worker) {
        Reason::PackageCached
    } else if cheapest(&|c| c.load + c.package) != Some(worker) {
        Reason::Spread
    } else {
        Reason::LeastLoaded
    };
    Decision::Place { worker, reason }
}

/// Whether `worker` may take the sandbox.
fn admits(worker: &WorkerReport, request: &PlaceRequest) -> bool {
    !worker.draining && worker.slots_used < worker.slots && free_mb(worker) >= u64::from(request.memory_mb)
}

fn free_mb(worker: &WorkerReport) -> u64 {
    worker.memory_mb.saturating_sub(worker.memory_used_mb)
}

/// The terms of the cost of one worker that admits the request.
struct Cost {
    load: u64,
    spread: u64,
    package: u64,
}

impl Cost {
    fn of(worker: &WorkerView, request: &PlaceRequest) -> Self {
        let r = &worker.report;
        let memory = thousandths(r.memory_used_mb + u64::from(request.memory_mb), r.memory_mb);
        let slots = thousandths(u64::from(r.slots_used) + 1, u64::from(r.slots));
        Self {
            load: memory.max(slots) + u64::from(r.starting) * STARTING_COST,
            spread: u64::from(worker.same_function) * SAME_FUNCTION_COST,
            package: if worker.has_package { 0 } else { PACKAGE_COST },
        }
    }

    fn total(&self) -> u64 {
        self.load + self.spread + self.package
    }
}

fn thousandths(part: u64, whole: u64) -> u64 {
    part.saturating_mul(1000) / whole.max(1)
}

fn explain(workers: &[WorkerView], request: &PlaceRequest) -> NoCapacity {
    let open = || workers.iter().map(|w| &w.report).filter(|r| !r.draining);
    let with_slot = || open().filter(|r| r.slots_used < r.slots);
    NoCapacity {
        memory_mb: request.memory_mb,
        workers: workers.len(),
        draining: workers.len() - open().count(),
        without_slot: open().count() - with_slot().count(),
        largest_free_mb: with_slot().map(free_mb).max().unwrap_or(0),
        largest_worker_mb: open().filter(|r| r.slots > 0).map(|r| r.memory_mb).max().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
