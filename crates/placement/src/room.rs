//! Which idle sandboxes go when a new one has no place.

use crate::{Decision, PlaceRequest, WorkerView, place};

/// A sandbox that could be given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdleSandbox {
    /// Index of its worker.
    pub worker: usize,
    /// What it holds.
    pub memory_mb: u32,
}

/// The shortest run of `idle` on one worker, from the front (least recently used first), after whose end `request` has
/// a place there, as indices into `idle`. `None` when not even all of them make room.
pub fn make_room(workers: &[WorkerView], request: &PlaceRequest, idle: &[IdleSandbox]) -> Option<Vec<usize>> {
    let mut after = workers.to_vec();
    for (last, sandbox) in idle.iter().enumerate() {
        let report = &mut after.get_mut(sandbox.worker)?.report;
        report.memory_used_mb = report.memory_used_mb.saturating_sub(u64::from(sandbox.memory_mb));
        report.slots_used = report.slots_used.saturating_sub(1);
        // Only this worker changed, so only it can have become able.
        if let Decision::Place { .. } = place(&after[sandbox.worker..=sandbox.worker], request) {
            return Some((0..=last).filter(|&i| idle[i].worker == sandbox.worker).collect());
        }
    }
    None
}
