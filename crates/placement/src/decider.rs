//! One process that decides for many managers.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use domain::{Observed, PlaceRequest, SandboxId, WorkerId};
use foldhash::HashMap;

use crate::{Fleet, NoCapacity, Reason, Standing, Wanted};

/// How long a sandbox is counted that was placed and that its worker does not name: its manager could not reach the worker, or
/// the worker refused it, or the manager is gone. Far longer than Init takes to arrive.
pub const HELD: Duration = Duration::from_secs(5);

/// The fleet as the workers tell of it, and what was placed since.
///
/// ```text
///  place ──► held, counted on the worker ──► named by the worker: counted as long as the worker has it
///                  └──────────────────────► not named for 5 s, or placed anew: not counted there any more
/// ```
///
/// A pure value: `now` is the time of any clock that does not go back.
#[derive(Default)]
pub struct Decider {
    fleet: Fleet,
    standing: HashMap<WorkerId, Standing>,
    /// Until when.
    held: HashMap<SandboxId, Duration>,
    /// The same in the order of time, with some that are not held any more.
    due: VecDeque<(Duration, SandboxId)>,
    tally: Tally,
}

/// What a [`Decider`] has and did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Workers that are heard.
    pub workers: usize,
    /// Sandboxes that they have, and those that are held.
    pub sandboxes: usize,
    /// Of these, not named by their worker yet.
    pub held: usize,
    /// Sandboxes that were given a place.
    pub placed: u64,
    /// And those that there was none for.
    pub refused: u64,
}

impl Decider {
    /// Where the sandbox goes, and why. It is counted there.
    pub fn place(&mut self, now: Duration, request: &PlaceRequest) -> Result<(WorkerId, Reason), NoCapacity> {
        self.expire(now);
        let sandbox = request.sandbox;
        if self.held.remove(&sandbox).is_some() {
            self.fleet.gone(sandbox);
        }
        let PlaceRequest { memory_mb, function, package, .. } = request;
        let wanted = Wanted { memory_mb: *memory_mb, function, package };
        let except: HashSet<WorkerId> = request.except.iter().cloned().collect();
        let (worker, reason) = self.fleet.place(&wanted, &except).inspect_err(|_| self.tally.refused += 1)?;
        self.tally.placed += 1;
        self.fleet.book(sandbox, &worker, &wanted);
        self.held.insert(sandbox, now + HELD);
        self.due.push_back((now + HELD, sandbox));
        Ok((worker, reason))
    }

    /// A worker has told of itself.
    pub fn observed(&mut self, observed: &Observed) {
        let Observed { report, whole, added, initialised, gone, packages } = observed;
        let worker = &report.worker;
        self.fleet.report(report.clone());
        if let Some(standing) = self.standing.get(worker) {
            self.fleet.set_standing(worker, *standing);
        }
        if *whole {
            let named: HashSet<SandboxId> = added.iter().map(|one| one.sandbox).collect();
            let known = self.fleet.sandboxes_on(worker).map(|(sandbox, _)| sandbox);
            let over = known.filter(|sandbox| !named.contains(sandbox) && !self.held.contains_key(sandbox));
            let over: Vec<_> = over.collect();
            over.into_iter().for_each(|sandbox| self.fleet.gone(sandbox));
        }
        // What another worker names by now is not this one's any more.
        for sandbox in gone.iter().filter(|sandbox| self.fleet.worker_of(**sandbox) == Some(worker)).collect::<Vec<_>>()
        {
            self.held.remove(sandbox);
            self.fleet.gone(*sandbox);
        }
        for one in added {
            self.held.remove(&one.sandbox);
            if self.fleet.worker_of(one.sandbox) != Some(worker) {
                let wanted = Wanted { memory_mb: one.memory_mb, function: &one.function, package: &one.package };
                self.fleet.adopt(one.sandbox, worker, &wanted);
            }
            if !one.starting {
                self.fleet.init_over(one.sandbox);
            }
        }
        for sandbox in initialised {
            if self.fleet.worker_of(*sandbox) == Some(worker) {
                self.fleet.init_over(*sandbox);
            }
        }
        packages.added.iter().for_each(|package| self.fleet.holds(worker, package));
        packages.removed.iter().for_each(|package| self.fleet.drops(worker, package));
        // What came and went above is in it already; only what is held comes on top.
        self.fleet.report(report.clone());
    }

    /// Nothing is heard of the worker: nothing is placed there until it is observed again.
    pub fn lost(&mut self, worker: &WorkerId) {
        self.fleet.remove(worker);
    }

    /// The worker is out of the fleet, and what it had is gone.
    pub fn left(&mut self, worker: &WorkerId) {
        self.fleet.remove(worker);
        let there: Vec<_> = self.fleet.sandboxes_on(worker).map(|(sandbox, _)| sandbox).collect();
        for sandbox in there {
            self.held.remove(&sandbox);
            self.fleet.gone(sandbox);
        }
        self.standing.remove(worker);
    }

    /// What the fleet says of a worker, beside what it says itself; also of one that was not heard yet.
    pub fn set_standing(&mut self, worker: &WorkerId, standing: Standing) {
        self.fleet.set_standing(worker, standing);
        self.standing.insert(worker.clone(), standing);
    }

    /// What it has now, and did so far.
    pub fn tally(&mut self, now: Duration) -> Tally {
        self.expire(now);
        let (workers, sandboxes, held) = (self.fleet.workers(), self.fleet.sandboxes(), self.held.len());
        Tally { workers, sandboxes, held, ..self.tally }
    }

    fn expire(&mut self, now: Duration) {
        while let Some((_, sandbox)) = self.due.pop_front_if(|(due, _)| *due <= now) {
            // It may have been placed anew since, and be held for longer.
            if self.held.get(&sandbox).is_some_and(|until| *until <= now) {
                self.held.remove(&sandbox);
                self.fleet.gone(sandbox);
            }
        }
    }
}

#[cfg(test)]
mod tests;
