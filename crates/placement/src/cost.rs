//! What a worker costs a request; shared by the specification and the index.

use std::cmp::Reverse;

use domain::WorkerReport;

use crate::Reason;

const STARTING_COST: u64 = 10;
const SAME_FUNCTION_COST: u64 = 50;
const PACKAGE_COST: u64 = 200;

/// How many of the least loaded workers of one size a decision looks at.
pub const LOOKED_AT: usize = 64;

/// Levels that [`level`] tells apart.
pub const LEVELS: usize = 2048;

/// Whether `worker` may take a sandbox of this size.
pub fn admits(worker: &WorkerReport, memory_mb: u32) -> bool {
    !worker.draining && worker.slots_used < worker.slots && free_mb(worker) >= u64::from(memory_mb)
}

/// Memory for sandboxes that no sandbox has.
pub fn free_mb(worker: &WorkerReport) -> u64 {
    worker.memory_mb.saturating_sub(worker.memory_used_mb)
}

/// What a worker costs whoever asks. At most 2,047: a worker on which a hundred sandboxes start is as bad as one with more.
pub fn level(worker: &WorkerReport) -> usize {
    let memory = thousandths(worker.memory_used_mb, worker.memory_mb);
    let slots = thousandths(u64::from(worker.slots_used), u64::from(worker.slots));
    let level = memory.max(slots).saturating_add(u64::from(worker.starting) * STARTING_COST);
    level.min(LEVELS as u64 - 1) as usize
}

/// The power of two of MB that a worker's memory reaches. In powers, since no two hosts have quite the same.
pub fn size(worker: &WorkerReport) -> u32 {
    worker.memory_mb.max(1).ilog2()
}

fn thousandths(part: u64, whole: u64) -> u64 {
    part.saturating_mul(1000) / whole.max(1)
}

/// A worker that admits the request and is looked at.
pub struct Candidate<'a, T> {
    at: T,
    report: &'a WorkerReport,
    load: u64,
    spread: u64,
    package: u64,
}

impl<'a, T: Copy + PartialEq> Candidate<'a, T> {
    /// `at` names it to the caller.
    pub fn new(at: T, report: &'a WorkerReport, memory_mb: u32, has_package: bool, same_function: u32) -> Self {
        Self {
            at,
            report,
            load: level(report) as u64 + thousandths(u64::from(memory_mb), 1 << size(report)),
            spread: u64::from(same_function) * SAME_FUNCTION_COST,
            package: if has_package { 0 } else { PACKAGE_COST },
        }
    }

    /// The cheapest of them, of a fleet of `workers`.
    pub fn choose(candidates: &[Self], workers: usize) -> Option<(T, Reason)> {
        let cheapest = |cost: &dyn Fn(&Self) -> u64| {
            let order = |c: &&Self| (cost(c), Reverse(free_mb(c.report)), &c.report.worker);
            candidates.iter().min_by(|a, b| order(a).cmp(&order(b))).map(|c| c.at)
        };
        let worker = cheapest(&|c| c.load + c.spread + c.package)?;
        let reason = if workers == 1 {
            Reason::OnlyWorker
        } else if candidates.len() == 1 {
            Reason::OnlyRoom
        } else if cheapest(&|c| c.load + c.spread) != Some(worker) {
            Reason::PackageCached
        } else if cheapest(&|c| c.load + c.package) != Some(worker) {
            Reason::Spread
        } else {
            Reason::LeastLoaded
        };
        Some((worker, reason))
    }
}
