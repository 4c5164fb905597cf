//! The workers, and what this manager has placed on each.

use std::collections::HashMap;
use std::sync::Arc;

use domain::{FunctionArn, FunctionVersion, SandboxId, Worker};
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
    members: Vec<Member>,
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
    member: usize,
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

    pub fn add(&self, worker: Arc<dyn Worker>) {
        let member = Member { worker, memory_mb: 0, slots: 0, starting: 0, functions: HashMap::new() };
        self.books.lock().members.push(member);
    }

    /// A sandbox will start: from here on [`Self::empty`] waits for its end.
    pub fn announce(&self, sandbox: SandboxId) {
        self.books.lock().sandboxes.insert(sandbox, None);
    }

    /// Finds a place for a new sandbox and books it.
    pub fn place(
        &self,
        sandbox: SandboxId,
        version: &FunctionVersion,
    ) -> Result<(Arc<dyn Worker>, Reason), NoCapacity> {
        let mut books = self.books.lock();
        let request = PlaceRequest { memory_mb: version.memory_mb };
        match placement::place(&books.views(version), &request) {
            Decision::NoCapacity(why) => Err(why),
            Decision::Place { worker: at, reason } => {
                let member = &mut books.members[at];
                member.memory_mb += u64::from(version.memory_mb);
                member.slots += 1;
                member.starting += 1;
                *member.functions.entry(version.arn.clone()).or_default() += 1;
                let worker = Arc::clone(&member.worker);
                let (memory_mb, function) = (version.memory_mb, version.arn.clone());
                books.sandboxes.insert(sandbox, Some(Placed { member: at, memory_mb, function, starting: true }));
                Ok((worker, reason))
            }
        }
    }

    /// Which of `idle` (least recently used first) have to go so that `version` has a place; empty if that cannot be.
    pub fn make_room(&self, version: &FunctionVersion, idle: &[Candidate]) -> Vec<SandboxId> {
        let books = self.books.lock();
        let known: Vec<(SandboxId, IdleSandbox)> = idle
            .iter()
            .filter_map(|c| {
                let worker = books.sandboxes.get(&c.sandbox)?.as_ref()?.member;
                Some((c.sandbox, IdleSandbox { worker, memory_mb: c.memory_mb }))
            })
            .collect();
        let sandboxes: Vec<IdleSandbox> = known.iter().map(|(_, s)| *s).collect();
        let request = PlaceRequest { memory_mb: version.memory_mb };
        let chosen = placement::make_room(&books.views(version), &request, &sandboxes).unwrap_or_default();
        chosen.into_iter().map(|at| known[at].0).collect()
    }

    /// `Init` is over.
    pub fn init_over(&self, sandbox: SandboxId) {
        let mut books = self.books.lock();
        let Books { members, sandboxes } = &mut *books;
        if let Some(placed) = sandboxes.get_mut(&sandbox).and_then(Option::as_mut).filter(|p| p.starting) {
            placed.starting = false;
            members[placed.member].starting -= 1;
        }
    }

    /// Nothing is left of the sandbox.
    pub fn gone(&self, sandbox: SandboxId) {
        let mut books = self.books.lock();
        if let Some(placed) = books.sandboxes.remove(&sandbox).flatten() {
            let member = &mut books.members[placed.member];
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
        drop(books);
        self.gone.notify_waiters();
    }

    /// The worker that has the sandbox.
    pub fn worker_of(&self, sandbox: SandboxId) -> Option<Arc<dyn Worker>> {
        let books = self.books.lock();
        let placed = books.sandboxes.get(&sandbox)?.as_ref()?;
        Some(Arc::clone(&books.members[placed.member].worker))
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
    fn views(&self, version: &FunctionVersion) -> Vec<WorkerView> {
        let view = |member: &Member| {
            let mut report = member.worker.report();
            report.memory_used_mb = report.memory_used_mb.max(member.memory_mb);
            report.slots_used = report.slots_used.max(member.slots);
            report.starting = report.starting.max(member.starting);
            let has_package = member.worker.has_package(&version.code.sha256);
            let same_function = member.functions.get(&version.arn).copied().unwrap_or(0);
            WorkerView { report, has_package, same_function }
        };
        self.members.iter().map(view).collect()
    }
}
