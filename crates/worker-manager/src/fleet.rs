//! The workers, and what this manager has placed on each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use domain::{FunctionArn, FunctionVersion, SandboxId, Worker, WorkerId};
use parking_lot::Mutex;
use placement::{Decision, IdleSandbox, NoCapacity, PlaceRequest, Reason, WorkerView};
use tokio::sync::Notify;

/// Every sandbox from the decision to start it until its worker says that nothing is left of it. Used on the cold path only.
pub struct Fleet {
    books: Mutex<Books>,
    gone: Notify,
}

#[derive(Default)]
struct Books {
    members: BTreeMap<WorkerId, Member>,
    /// `None` until it has a place.
    sandboxes: HashMap<SandboxId, Option<Placed>>,
}

/// A worker's report lags behind what was just placed on it, so the manager keeps count too.
struct Member {
    worker: Arc<dyn Worker>,
    memory_mb: u64,
    slots: u32,
    starting: u32,
    functions: HashMap<FunctionArn, u32>,
}

struct Placed {
    worker: WorkerId,
    memory_mb: u32,
    function: FunctionArn,
    starting: bool,
}

/// An idle sandbox that could make room.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub sandbox: SandboxId,
    pub memory_mb: u32,
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
        match books.members.get_mut(worker.id()) {
            Some(member) => member.worker = worker,
            None => {
                let id = worker.id().clone();
                let mut member = Member { worker, memory_mb: 0, slots: 0, starting: 0, functions: HashMap::new() };
                // It was here before, and starts of that time are not over.
                let there = books.sandboxes.values().flatten().filter(|placed| placed.worker == id);
                there.for_each(|placed| member.count(placed));
                books.members.insert(id, member);
            }
        }
    }

    /// Nothing is placed on it any more. Returns its sandboxes; those whose `Init` is under way are not among them, since its
    /// end is heard.
    pub fn remove(&self, worker: &WorkerId) -> Vec<SandboxId> {
        let mut books = self.books.lock();
        books.members.remove(worker);
        books.placed_on(worker)
    }

    /// Whether sandboxes are placed on it.
    pub fn has(&self, worker: &WorkerId) -> bool {
        self.books.lock().members.contains_key(worker)
    }

    /// Its sandboxes, without those whose `Init` is under way.
    pub fn placed_on(&self, worker: &WorkerId) -> Vec<SandboxId> {
        self.books.lock().placed_on(worker)
    }

    /// A sandbox that another manager has placed.
    pub fn adopt(&self, sandbox: SandboxId, worker: &WorkerId, version: &FunctionVersion) {
        let mut books = self.books.lock();
        if !books.sandboxes.contains_key(&sandbox) {
            books.book(sandbox, worker, version, false);
        }
    }

    /// It was placed, but not there: it needs another place.
    pub fn displaced(&self, sandbox: SandboxId) {
        let mut books = self.books.lock();
        books.strike(sandbox);
        books.sandboxes.insert(sandbox, None);
    }

    /// What was placed under the name `old` is not this manager's any more, or is found anew; `new` needs a place.
    pub fn renamed(&self, old: SandboxId, new: SandboxId) {
        let mut books = self.books.lock();
        books.strike(old);
        books.sandboxes.insert(new, None);
    }

    /// A sandbox will start: from here on [`Self::empty`] waits for its end.
    pub fn announce(&self, sandbox: SandboxId) {
        self.books.lock().sandboxes.insert(sandbox, None);
    }

    /// Finds a place for a new sandbox and books it; not on one of `except`.
    pub fn place(
        &self,
        sandbox: SandboxId,
        version: &FunctionVersion,
        except: &HashSet<WorkerId>,
    ) -> Result<(Arc<dyn Worker>, Reason), NoCapacity> {
        let mut books = self.books.lock();
        let request = PlaceRequest { memory_mb: version.memory_mb };
        let mut views = books.views(version);
        views.retain(|view| !except.contains(&view.report.worker));
        match placement::place(&views, &request) {
            Decision::NoCapacity(why) => Err(why),
            Decision::Place { worker: at, reason } => {
                let id = &views[at].report.worker;
                books.book(sandbox, id, version, true);
                Ok((Arc::clone(&books.members[id].worker), reason))
            }
        }
    }

    /// Which of `idle` (least recently used first) have to go so that `version` has a place; empty if that cannot be.
    pub fn make_room(&self, version: &FunctionVersion, idle: &[Candidate]) -> Vec<SandboxId> {
        let books = self.books.lock();
        let views = books.views(version);
        let known: Vec<(SandboxId, IdleSandbox)> = idle
            .iter()
            .filter_map(|c| {
                let on = &books.sandboxes.get(&c.sandbox)?.as_ref()?.worker;
                let worker = views.binary_search_by(|view| view.report.worker.cmp(on)).ok()?;
                Some((c.sandbox, IdleSandbox { worker, memory_mb: c.memory_mb }))
            })
            .collect();
        let sandboxes: Vec<IdleSandbox> = known.iter().map(|(_, s)| *s).collect();
        let request = PlaceRequest { memory_mb: version.memory_mb };
        let chosen = placement::make_room(&views, &request, &sandboxes).unwrap_or_default();
        chosen.into_iter().map(|at| known[at].0).collect()
    }

    /// `Init` is over.
    pub fn init_over(&self, sandbox: SandboxId) {
        let mut books = self.books.lock();
        let Books { members, sandboxes } = &mut *books;
        if let Some(placed) = sandboxes.get_mut(&sandbox).and_then(Option::as_mut).filter(|p| p.starting) {
            placed.starting = false;
            if let Some(member) = members.get_mut(&placed.worker) {
                member.starting -= 1;
            }
        }
    }

    /// Nothing is left of the sandbox, or it is not this manager's any more.
    pub fn gone(&self, sandbox: SandboxId) {
        self.books.lock().strike(sandbox);
        self.gone.notify_waiters();
    }

    /// The worker that has the sandbox.
    pub fn worker_of(&self, sandbox: SandboxId) -> Option<Arc<dyn Worker>> {
        let books = self.books.lock();
        let placed = books.sandboxes.get(&sandbox)?.as_ref()?;
        books.members.get(&placed.worker).map(|member| Arc::clone(&member.worker))
    }

    /// Waits until no sandbox is left anywhere.
    pub async fn empty(&self) {
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            // Registered before the look, so that no end in between is missed.
            gone.as_mut().enable();
            if self.books.lock().sandboxes.is_empty() {
                return;
            }
            gone.await;
        }
    }
}

impl Books {
    /// In the order of the workers' ids.
    fn views(&self, version: &FunctionVersion) -> Vec<WorkerView> {
        let view = |(id, member): (&WorkerId, &Member)| {
            let mut report = member.worker.report();
            report.worker = id.clone();
            report.memory_used_mb = report.memory_used_mb.max(member.memory_mb);
            report.slots_used = report.slots_used.max(member.slots);
            report.starting = report.starting.max(member.starting);
            let has_package = member.worker.has_package(&version.code.sha256);
            let same_function = member.functions.get(&version.arn).copied().unwrap_or(0);
            WorkerView { report, has_package, same_function }
        };
        self.members.iter().map(view).collect()
    }

    fn placed_on(&self, worker: &WorkerId) -> Vec<SandboxId> {
        let there = |placed: &Placed| placed.worker == *worker && !placed.starting;
        self.sandboxes.iter().filter(|(_, placed)| placed.as_ref().is_some_and(there)).map(|(id, _)| *id).collect()
    }

    fn book(&mut self, sandbox: SandboxId, worker: &WorkerId, version: &FunctionVersion, starting: bool) {
        let (memory_mb, function) = (version.memory_mb, version.arn.clone());
        let placed = Placed { worker: worker.clone(), memory_mb, function, starting };
        if let Some(member) = self.members.get_mut(worker) {
            member.count(&placed);
        }
        self.sandboxes.insert(sandbox, Some(placed));
    }

    fn strike(&mut self, sandbox: SandboxId) {
        let Some(placed) = self.sandboxes.remove(&sandbox).flatten() else { return };
        let Some(member) = self.members.get_mut(&placed.worker) else { return };
        member.memory_mb -= u64::from(placed.memory_mb);
        member.slots -= 1;
        member.starting -= u32::from(placed.starting);
        if let Some(count) = member.functions.get_mut(&placed.function) {
            *count -= 1;
            if *count == 0 {
                member.functions.remove(&placed.function);
            }
        }
    }
}

impl Member {
    fn count(&mut self, placed: &Placed) {
        self.memory_mb += u64::from(placed.memory_mb);
        self.slots += 1;
        self.starting += u32::from(placed.starting);
        *self.functions.entry(placed.function.clone()).or_default() += 1;
    }
}
