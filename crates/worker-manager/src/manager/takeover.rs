//! A manager of a fleet: functions come from other managers and go to others, and workers come and go.
//!
//! ```text
//!  view of the fleet ──set_partition──► functions that are another's now are given up, as they are
//!                                       functions that are new here wait until every worker was claimed
//!  worker ──claimed──► its sandboxes of these functions are taken over; what it does not name any more is gone
//!  worker ──lost─────► its sandboxes are given up: those that live are found when it is claimed again
//! ```

use domain::{PackageChanges, SandboxState, WorkerReport};

use super::*;
use crate::pool::Seen;

/// How long a function that is new here waits for workers that do not answer. The warm sandboxes of those are not used, and
/// what runs there is not counted, until they do.
const SETTLING: Duration = Duration::from_secs(1);

impl Manager {
    /// The view of the fleet has changed. `workers` are those that live: the others' sandboxes are gone. An older partition than
    /// the one in force changes nothing.
    pub fn set_partition(&self, partition: Partition, workers: &HashSet<WorkerId>) {
        let inner = &self.0;
        let _one = inner.claiming.lock();
        let epoch = partition.epoch;
        {
            let mut functions = inner.functions.lock();
            if inner.partition.load().as_ref().is_some_and(|known| known.epoch > epoch) {
                return;
            }
            functions.retain(|arn, function| {
                let stays = partition.owns(arn);
                if !stays {
                    inner.with(function, |pool, _, actions| pool.disown(actions));
                }
                stays
            });
            inner.home.lock().view(inner.now(), epoch, partition.managers.iter().cloned());
            inner.partition.store(Some(Arc::new(partition)));
            inner.accounts.lock().values().for_each(|account| account.share());
        }
        let dead: Vec<_> = {
            let mut claims = inner.claims.lock();
            let dead = claims.keys().filter(|worker| !workers.contains(worker)).cloned().collect::<Vec<_>>();
            workers.iter().for_each(|worker| _ = claims.entry(worker.clone()).or_default());
            claims.retain(|worker, _| workers.contains(worker));
            dead
        };
        inner.views.send_replace(epoch);
        dead.iter().for_each(|worker| inner.lose(worker));
        inner.look_whether_settled();
        let inner = Arc::clone(inner);
        inner.runtime.clone().spawn(async move {
            if tokio::time::timeout(SETTLING, inner.settle(epoch)).await.is_err() {
                tracing::warn!(epoch, "some workers were not claimed in {SETTLING:?}; going on without them");
                inner.settled.send_if_modified(|settled| {
                    *settled < epoch && {
                        *settled = epoch;
                        true
                    }
                });
            }
        });
    }

    /// These workers, and no others, drain: their idle sandboxes go now, the others after what they serve.
    pub fn drain_workers(&self, workers: HashSet<WorkerId>) {
        let inner = &self.0;
        inner.fleet.drain(&workers);
        *inner.draining.lock() = workers.clone();
        let mut workers: Vec<_> = workers.into_iter().collect();
        workers.sort_unstable();
        for sandbox in workers.iter().flat_map(|worker| inner.fleet.placed_on(worker)) {
            inner.event(sandbox, |pool, _, actions| pool.doom(sandbox, actions));
        }
    }

    /// Workers that a caller could not reach. Nothing of theirs is leased until they are claimed again, so whoever claims them must
    /// do so anew.
    pub fn suspects(&self) -> broadcast::Receiver<WorkerId> {
        self.0.suspects.subscribe()
    }

    /// In a fleet only: in one process, a worker is not to be had anew.
    pub(super) fn suspect(&self, worker: &WorkerId) {
        // Once, however many found it so.
        if self.0.partition.load().is_some() && self.0.fleet.has(worker) {
            self.0.lose(worker);
            // Fails only when nobody claims workers.
            let _ = self.0.suspects.send(worker.clone());
        }
    }

    /// The partition in force.
    pub fn partition(&self) -> Option<Arc<Partition>> {
        self.0.partition.load_full()
    }
}

impl Manager {
    /// A worker accepted the claim of the view with this epoch: these are its sandboxes of the functions that are this manager's, all
    /// of them. `worker` is the way to it for leases of that claim.
    pub fn claimed(&self, worker: Arc<dyn Worker>, epoch: u64, sandboxes: Vec<SandboxState>) {
        let inner = &self.0;
        let _one = inner.claiming.lock();
        let id = worker.id().clone();
        if inner.partition.load().as_ref().is_some_and(|partition| partition.epoch > epoch) {
            return;
        }
        let named: HashSet<_> = sandboxes.iter().map(|state| state.sandbox).collect();
        inner.fleet.add(Arc::clone(&worker));
        for sandbox in inner.fleet.placed_on(&id) {
            if !named.contains(&sandbox) {
                inner.dead(sandbox);
            }
        }
        // The list was made after the fence: what has not arrived by then never will.
        let fenced = inner.claims.lock().insert(id, epoch).is_none_or(|before| before < epoch);
        sandboxes.into_iter().for_each(|state| inner.adopt(&worker, state, fenced));
        inner.look_whether_settled();
    }

    /// One more sandbox of a worker that was claimed: its Init was asked for by another manager.
    pub fn adopted(&self, worker: &Arc<dyn Worker>, sandbox: SandboxState) {
        let _one = self.0.claiming.lock();
        self.0.adopt(worker, sandbox, false);
    }

    /// How a worker is that was claimed.
    pub fn reported(&self, report: WorkerReport, packages: &PackageChanges) {
        self.0.fleet.reported(report, packages);
    }

    /// The worker cannot be reached, or not any more. It may be claimed again.
    pub fn lost(&self, worker: &WorkerId) {
        self.0.lose(worker);
    }
}

impl Inner {
    pub(super) fn adopt(self: &Arc<Self>, worker: &Arc<dyn Worker>, state: SandboxState, fenced: bool) {
        let SandboxState { sandbox, version, phase } = state;
        loop {
            // Of another manager by now; it claims as well.
            let Ok(function) = self.function(&version) else { return };
            let mut pool = function.pool.lock();
            // Forgotten just now, for it had nothing: the next look finds another, or makes it, or finds that it is another manager's.
            // Whoever gave this one up is about to take it out of where it was found.
            if pool.is_closed() {
                drop(pool);
                std::thread::yield_now();
                continue;
            }
            let (version, worker) = (&version, Arc::clone(worker));
            let seen = Seen { sandbox, version: version.key.clone(), phase, fenced, worker: Arc::clone(&worker) };
            return self.take_over(&function, &mut pool, seen, version, &worker);
        }
    }

    /// Under the pool's lock.
    fn take_over(
        self: &Arc<Self>,
        function: &Arc<Function>,
        pool: &mut Pool,
        seen: Seen<Arc<dyn Worker>>,
        version: &FunctionVersion,
        worker: &Arc<dyn Worker>,
    ) {
        let (sandbox, now) = (seen.sandbox, self.now());
        let mut actions = Vec::new();
        // Before the pool may lease it, or give it up.
        self.sandboxes.insert(sandbox, Arc::clone(function));
        self.versions.insert(version.key.clone(), Arc::clone(function));
        self.fleet.adopt(sandbox, worker.id(), version);
        pool.seen(now, seen, &mut actions);
        if self.draining.lock().contains(worker.id()) {
            pool.doom(sandbox, &mut actions);
        }
        self.carry_out(function, actions, &mut Timeline::default());
    }

    /// Whether this worker is out of the fleet. In one process there is no fleet that it could leave.
    pub(super) fn has_left(&self, worker: &WorkerId) -> bool {
        self.partition.load().is_some() && !self.claims.lock().contains_key(worker)
    }

    /// Returns when this worker is out of the fleet: where a network is cut, its connection is found dead much later.
    pub(super) async fn left(&self, worker: &WorkerId) {
        let mut views = self.views.subscribe();
        while !self.has_left(worker) {
            // Its sender is in `self`.
            let _ = views.changed().await;
        }
    }

    fn lose(self: &Arc<Self>, worker: &WorkerId) {
        self.fleet.remove(worker).into_iter().for_each(|sandbox| self.dead(sandbox));
    }

    fn look_whether_settled(&self) {
        let Some(partition) = self.partition.load_full() else { return };
        if self.claims.lock().values().all(|claimed| *claimed >= partition.epoch) {
            self.settled.send_if_modified(|settled| {
                let later = *settled < partition.epoch;
                *settled = (*settled).max(partition.epoch);
                later
            });
        }
    }

    /// Waits until the sandboxes of an epoch are known.
    pub(super) async fn settle(&self, epoch: u64) {
        // The sender lives as long as `self`.
        let _ = self.settled.subscribe().wait_for(|settled| *settled >= epoch).await;
    }
}
