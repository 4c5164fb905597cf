//! One worker, as one decider knows it.

use domain::{SandboxId, WorkerReport};
use foldhash::HashSet;

use crate::Standing;

/// A worker.
pub struct Member {
    /// One that has left is remembered until nothing is booked there: it may come back, and then counts again.
    pub here: bool,
    /// What there is now, as far as known: as reported, and closed also where the operator says so.
    pub now: WorkerReport,
    /// What the worker itself said last.
    pub draining: bool,
    pub standing: Standing,
    /// This decider's part of `now`.
    pub own: Load,
    pub sandboxes: HashSet<SandboxId>,
}

/// What sandboxes take.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Load {
    pub memory_mb: u64,
    pub slots: u32,
    pub starting: u32,
}

impl Member {
    pub fn new(now: WorkerReport) -> Self {
        let (standing, own, sandboxes) = (Standing::default(), Load::default(), HashSet::default());
        Self { here: true, draining: now.draining, now, standing, own, sandboxes }
    }

    /// It has reported.
    pub fn reported(&mut self, report: WorkerReport) {
        self.draining = report.draining;
        self.now = report;
        self.now.draining |= self.standing != Standing::Open;
        self.at_least_own();
    }

    /// A report cannot show less than there certainly is: then it is older than that.
    fn at_least_own(&mut self) {
        let (now, own) = (&mut self.now, &self.own);
        now.memory_used_mb = now.memory_used_mb.max(own.memory_mb);
        now.slots_used = now.slots_used.max(own.slots);
        now.starting = now.starting.max(own.starting);
    }

    /// Part of what there is is this decider's own.
    pub fn own_up(&mut self, added: Load) {
        self.own.memory_mb += added.memory_mb;
        self.own.slots += added.slots;
        self.own.starting += added.starting;
        self.at_least_own();
    }

    /// More of its own, which no report shows yet.
    pub fn grow(&mut self, added: Load) {
        // What is added to is the worker's word.
        let now = &mut self.now;
        now.memory_used_mb = now.memory_used_mb.saturating_add(added.memory_mb);
        now.slots_used = now.slots_used.saturating_add(added.slots);
        now.starting = now.starting.saturating_add(added.starting);
        self.own_up(added);
    }

    /// Less of its own. `now` holds at least this decider's own, so nothing wraps.
    pub fn shrink(&mut self, taken: Load) {
        for load in [&mut self.own.memory_mb, &mut self.now.memory_used_mb] {
            *load -= taken.memory_mb;
        }
        for load in [&mut self.own.slots, &mut self.now.slots_used] {
            *load -= taken.slots;
        }
        for load in [&mut self.own.starting, &mut self.now.starting] {
            *load -= taken.starting;
        }
    }
}
