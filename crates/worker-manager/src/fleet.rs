//! The workers, and what this manager has placed on each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use domain::{FunctionVersion, PackageChanges, SandboxId, Worker, WorkerId, WorkerReport};
use parking_lot::Mutex;
use placement::{NoCapacity, Reason, Standing, Wanted};
use tokio::sync::Notify;

/// Every sandbox from the decision to start it until its worker says that nothing is left of it. Used on the cold path only.
///
/// Where sandboxes go is decided by an index of what the workers have told: a worker elsewhere tells again and again
/// ([`Fleet::reported`]), one in this process is asked.
pub struct Fleet {
    books: Mutex<Books>,
    gone: Notify,
}

#[derive(Default)]
struct Books {
    index: placement::Fleet,
    workers: HashMap<WorkerId, Member>,
    /// Those of them that this process has itself: it is one at most, but in tests.
    own: Vec<WorkerId>,
    /// They will start, and have no place yet.
    coming: HashSet<SandboxId>,
    /// Those that are to have no sandboxes.
    draining: HashSet<WorkerId>,
}

struct Member {
    worker: Arc<dyn Worker>,
    /// It has told how it is since [`Fleet::refresh`] looked.
    told: bool,
}

impl Fleet {
    pub fn new(workers: Vec<Arc<dyn Worker>>) -> Self {
        let fleet = Self { books: Mutex::default(), gone: Notify::new() };
        workers.into_iter().for_each(|w| fleet.add(w));
        fleet
    }

    /// One more worker, or a new way to one that is known.
    pub fn add(&self, worker: Arc<dyn Worker>) {
        let mut books = self.books.lock();
        let id = worker.id().clone();
        let report = report(&worker);
        let own = worker.route().is_none();
        if books.workers.insert(id.clone(), Member { worker, told: true }).is_none() {
            // If it was here before, starts of that time are not over, and count.
            books.index.report(report);
            books.stand(&id);
            if own {
                books.own.push(id);
            }
        }
    }

    /// Nothing is placed on it any more. Returns its sandboxes; those whose `Init` is under way are not among them, since its
    /// end is heard.
    pub fn remove(&self, worker: &WorkerId) -> Vec<SandboxId> {
        let mut books = self.books.lock();
        books.workers.remove(worker);
        books.own.retain(|own| own != worker);
        books.index.remove(worker);
        books.placed_on(worker)
    }

    /// Whether sandboxes are placed on it.
    pub fn has(&self, worker: &WorkerId) -> bool {
        self.books.lock().workers.contains_key(worker)
    }

    /// Its sandboxes, without those whose `Init` is under way.
    pub fn placed_on(&self, worker: &WorkerId) -> Vec<SandboxId> {
        self.books.lock().placed_on(worker)
    }

    /// How a worker is. Of one that is not here nobody needs to know.
    pub fn reported(&self, report: WorkerReport, packages: &PackageChanges) {
        let mut books = self.books.lock();
        let Books { index, workers, .. } = &mut *books;
        let Some(member) = workers.get_mut(&report.worker) else { return };
        member.told = true;
        packages.added.iter().for_each(|package| index.holds(&report.worker, package));
        packages.removed.iter().for_each(|package| index.drops(&report.worker, package));
        index.report(report);
    }

    /// Asks those that have not told anything since this was called last.
    pub fn refresh(&self) {
        let mut books = self.books.lock();
        let Books { index, workers, .. } = &mut *books;
        for member in workers.values_mut() {
            if !std::mem::take(&mut member.told) {
                index.report(report(&member.worker));
            }
        }
    }

    /// On these workers, and no others, nothing is placed.
    pub fn drain(&self, workers: &HashSet<WorkerId>) {
        let mut books = self.books.lock();
        let before = std::mem::replace(&mut books.draining, workers.clone());
        before.iter().chain(workers).for_each(|worker| books.stand(worker));
    }

    /// A sandbox that another manager has placed.
    pub fn adopt(&self, sandbox: SandboxId, worker: &WorkerId, version: &FunctionVersion) {
        let mut books = self.books.lock();
        let Books { index, workers, coming, .. } = &mut *books;
        if index.worker_of(sandbox).is_some() || coming.contains(&sandbox) {
            return;
        }
        let lost = !workers.contains_key(worker);
        if lost {
            // It is heard of again when the worker is claimed, and until then it is there.
            index.report(WorkerReport {
                worker: worker.clone(),
                memory_mb: 0,
                memory_used_mb: 0,
                slots: 0,
                slots_used: 0,
                starting: 0,
                draining: true,
            });
        }
        index.adopt(sandbox, worker, &wanted(version));
        index.init_over(sandbox);
        if lost {
            index.remove(worker);
        }
    }

    /// It was placed, but not there: it needs another place.
    pub fn displaced(&self, sandbox: SandboxId) {
        let mut books = self.books.lock();
        books.index.gone(sandbox);
        books.coming.insert(sandbox);
    }

    /// What was placed under the name `old` is not this manager's any more, or is found anew; `new` needs a place.
    pub fn renamed(&self, old: SandboxId, new: SandboxId) {
        let mut books = self.books.lock();
        books.index.gone(old);
        books.coming.remove(&old);
        books.coming.insert(new);
    }

    /// A sandbox will start: from here on [`Self::empty`] waits for its end.
    pub fn announce(&self, sandbox: SandboxId) {
        self.books.lock().coming.insert(sandbox);
    }

    /// Finds a place for a new sandbox and books it; not on one of `except`.
    pub fn place(
        &self,
        sandbox: SandboxId,
        version: &FunctionVersion,
        except: &HashSet<WorkerId>,
    ) -> Result<(Arc<dyn Worker>, Reason), NoCapacity> {
        let mut books = self.books.lock();
        books.ask_own();
        loop {
            let (id, reason) = books.index.place(&wanted(version), except)?;
            if let Some(worker) = books.book(sandbox, version, &id) {
                return Ok((worker, reason));
            }
        }
    }

    /// Books a place that was found elsewhere. `None` if this manager cannot place there: it does not have the worker, or knows
    /// that it takes nothing.
    pub fn book(&self, sandbox: SandboxId, version: &FunctionVersion, worker: &WorkerId) -> Option<Arc<dyn Worker>> {
        let mut books = self.books.lock();
        books.index.is_open(worker).then(|| books.book(sandbox, version, worker)).flatten()
    }

    /// Which of `idle` (least recently used first) have to go so that `version` has a place; empty if that cannot be.
    pub fn make_room(&self, version: &FunctionVersion, idle: impl IntoIterator<Item = SandboxId>) -> Vec<SandboxId> {
        self.books.lock().index.make_room(version.memory_mb, idle).unwrap_or_default()
    }

    /// `Init` is over.
    pub fn init_over(&self, sandbox: SandboxId) {
        self.books.lock().index.init_over(sandbox);
    }

    /// Nothing is left of the sandbox, or it is not this manager's any more.
    pub fn gone(&self, sandbox: SandboxId) {
        let mut books = self.books.lock();
        books.coming.remove(&sandbox);
        books.index.gone(sandbox);
        drop(books);
        self.gone.notify_waiters();
    }

    /// The worker that has the sandbox.
    pub fn worker_of(&self, sandbox: SandboxId) -> Option<Arc<dyn Worker>> {
        let books = self.books.lock();
        let worker = books.index.worker_of(sandbox)?;
        books.workers.get(worker).map(|member| Arc::clone(&member.worker))
    }

    /// Waits until no sandbox is left anywhere.
    pub async fn empty(&self) {
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            // Registered before the look, so that no end in between is missed.
            gone.as_mut().enable();
            {
                let books = self.books.lock();
                if books.coming.is_empty() && books.index.sandboxes() == 0 {
                    return;
                }
            }
            gone.await;
        }
    }
}

impl Books {
    fn placed_on(&self, worker: &WorkerId) -> Vec<SandboxId> {
        let there = self.index.sandboxes_on(worker).filter(|(_, starting)| !starting);
        let mut placed: Vec<_> = there.map(|(sandbox, _)| sandbox).collect();
        placed.sort_unstable();
        placed
    }

    fn stand(&mut self, worker: &WorkerId) {
        let draining = self.draining.contains(worker);
        self.index.set_standing(worker, if draining { Standing::Draining } else { Standing::Open });
    }

    fn ask_own(&mut self) {
        let Self { index, workers, own, .. } = self;
        own.iter().filter_map(|id| workers.get(id)).for_each(|member| index.report(report(&member.worker)));
    }

    /// `None` if the worker takes nothing after all; from here on that is known.
    fn book(&mut self, sandbox: SandboxId, version: &FunctionVersion, id: &WorkerId) -> Option<Arc<dyn Worker>> {
        let Some(member) = self.workers.get(id) else {
            self.index.remove(id);
            return None;
        };
        let worker = Arc::clone(&member.worker);
        // The report as a whole would hide what was booked since it was made. That it drains does not age.
        let report = report(&worker);
        if report.draining {
            self.index.report(report);
            return None;
        }
        self.coming.remove(&sandbox);
        self.index.book(sandbox, id, &wanted(version)).then_some(worker)
    }
}

fn report(worker: &Arc<dyn Worker>) -> WorkerReport {
    WorkerReport { worker: worker.id().clone(), ..worker.report() }
}

fn wanted(version: &FunctionVersion) -> Wanted<'_> {
    Wanted { memory_mb: version.memory_mb, function: &version.arn, package: &version.code.sha256 }
}
