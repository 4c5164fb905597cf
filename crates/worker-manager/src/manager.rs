//! The shell around the pools.

mod cold;
mod quota;
mod takeover;
mod upkeep;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use domain::{
    AccountId, AssignError, AssignRequest, Clock, FunctionArn, FunctionVersion, Lease, Placement, RetireReason,
    SandboxId, SlotEvents, Step, Timeline, VersionKey, Worker, WorkerError, WorkerId, WorkerManager,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, oneshot, watch};
use uuid::Uuid;

use crate::concurrency::AccountUse;
use crate::config::Config;
use crate::fleet::Fleet;
use crate::map::ReadMap;
use crate::partition::Partition;
use crate::pool::{self, Answer, FunctionPool, Ticket};
use crate::quota::Home;
use crate::status::{AccountStatus, Status};

/// Suspicions that may wait for who claims workers; one that is missed is repeated by the next caller.
const SUSPECTS: usize = 64;

pub use quota::Homes;

type Result<T, E = AssignError> = std::result::Result<T, E>;
type Grant = pool::Grant<Arc<dyn Worker>>;
type Action = pool::Action<Caller, Arc<dyn Worker>>;
type Pool = FunctionPool<Caller, Arc<dyn Worker>>;

/// A waiting request is told once, under its function's lock: one that goes away finds either itself in the queue or
/// its lease in the channel.
type Caller = oneshot::Sender<Result<Granted>>;

struct Granted {
    grant: Grant,
    /// Of the start, if the sandbox was initialised for this request.
    timeline: Timeline,
}

/// Decides which sandbox serves a request. Cheap to clone; all clones are one manager.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    config: Config,
    fleet: Fleet,
    /// Who is asked first where a sandbox goes; the manager's own `fleet` knows as well.
    placement: OnceLock<Arc<dyn Placement>>,
    /// `Init` and `Shutdown` run here, whoever waits for them or not.
    runtime: Handle,
    stopping: AtomicBool,
    /// The warm path's way to a function, and that of the workers' events. Both change under the function's lock only.
    versions: ReadMap<VersionKey, Function>,
    sandboxes: ReadMap<SandboxId, Function>,
    functions: Mutex<BTreeMap<FunctionArn, Arc<Function>>>,
    /// `None` of the only manager. Changes under the lock of `functions` only.
    partition: ArcSwapOption<Partition>,
    /// The epoch in which each worker was claimed last.
    claims: Mutex<BTreeMap<WorkerId, u64>>,
    /// Held while a view or a worker's list is taken in: one after the other. Taken before all other locks.
    claiming: Mutex<()>,
    /// Those that are to have no sandboxes.
    draining: Mutex<HashSet<WorkerId>>,
    /// The last epoch whose sandboxes are all known.
    settled: watch::Sender<u64>,
    /// Workers that a caller could not reach.
    suspects: broadcast::Sender<WorkerId>,
    accounts: Mutex<BTreeMap<AccountId, Arc<AccountUse>>>,
    /// Told when an account wants more than this manager was granted.
    more: Arc<Notify>,
    /// Told of each partition.
    views: watch::Sender<u64>,
    /// Of the accounts that this manager counts for all.
    home: Mutex<Home>,
    /// How many questions it has asked homes.
    questions: AtomicU64,
}

struct Function {
    arn: FunctionArn,
    pool: Mutex<Pool>,
    /// Of the partition in which it became this manager's.
    since: u64,
    /// Whether [`Inner::watch`] runs. Changes under the pool's lock only.
    watched: AtomicBool,
}

impl Manager {
    /// A manager of these workers. Starts no task; [`Manager::run`] drives what depends on time.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(clock: Arc<dyn Clock>, config: Config, workers: Vec<Arc<dyn Worker>>) -> Self {
        Self(Arc::new(Inner {
            clock,
            config,
            fleet: Fleet::new(workers),
            placement: OnceLock::new(),
            runtime: Handle::current(),
            stopping: AtomicBool::new(false),
            versions: ReadMap::new(),
            sandboxes: ReadMap::new(),
            functions: Mutex::default(),
            partition: ArcSwapOption::empty(),
            claims: Mutex::default(),
            claiming: Mutex::default(),
            draining: Mutex::default(),
            settled: watch::Sender::new(0),
            suspects: broadcast::Sender::new(SUSPECTS),
            accounts: Mutex::default(),
            more: Arc::default(),
            views: watch::Sender::new(0),
            home: Mutex::default(),
            questions: AtomicU64::new(0),
        }))
    }

    /// One more worker: workers need the manager's [`SlotEvents`] to be built, so they may come after it.
    pub fn add_worker(&self, worker: Arc<dyn Worker>) {
        self.0.fleet.add(worker);
    }

    /// Asks `placement` first where sandboxes go. When that does not answer, or knows no place, the manager decides itself, as it does
    /// without. Only the first call counts.
    pub fn place_by(&self, placement: Arc<dyn Placement>) {
        let _ = self.0.placement.set(placement);
    }

    /// What there is now.
    pub fn status(&self) -> Status {
        let functions: Vec<_> = self.0.functions.lock().values().cloned().collect();
        let mut functions: Vec<_> = functions.iter().map(|f| f.pool.lock().status(f.arn.clone())).collect();
        functions.sort_by_key(|f| f.function.to_string());
        let accounts = self.0.accounts.lock();
        let mut accounts: Vec<_> = accounts
            .iter()
            .map(|(account, count)| AccountStatus { account: account.clone(), unreserved_in_use: count.in_use() })
            .collect();
        accounts.sort_by(|a, b| a.account.cmp(&b.account));
        Status { functions, accounts }
    }
}

impl Inner {
    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The function's pool, made if this is its first request.
    fn function(&self, version: &FunctionVersion) -> Result<Arc<Function>> {
        if let Some(function) = self.versions.get(&version.key) {
            return Ok(function);
        }
        let mut functions = self.functions.lock();
        if let Some(function) = functions.get(&version.arn) {
            return Ok(Arc::clone(function));
        }
        let partition = self.partition.load();
        if let Some(partition) = partition.as_deref().filter(|partition| !partition.owns(&version.arn)) {
            let owner = partition.owner(&version.arn).unwrap_or("nobody");
            return Err(AssignError::NotOwner(format!("{owner}, in epoch {}", partition.epoch)));
        }
        // The only manager has all of the limit.
        let grant = if partition.is_some() { 0 } else { u32::MAX };
        let new = || Arc::new(AccountUse::new(grant, Arc::clone(&self.more)));
        let account = Arc::clone(self.accounts.lock().entry(version.account.clone()).or_insert_with(new));
        let pool = FunctionPool::new(self.config, account, || SandboxId(Uuid::new_v4()), self.now());
        let function = Arc::new(Function {
            arn: version.arn.clone(),
            pool: Mutex::new(pool),
            since: partition.as_deref().map_or(0, |partition| partition.epoch),
            watched: AtomicBool::new(false),
        });
        functions.insert(version.arn.clone(), Arc::clone(&function));
        Ok(function)
    }

    /// An event about a sandbox. One that is not known (any more) concerns nobody.
    fn event(self: &Arc<Self>, sandbox: SandboxId, event: impl FnOnce(&mut Pool, Duration, &mut Vec<Action>)) {
        if let Some(function) = self.sandboxes.get(&sandbox) {
            self.with(&function, event);
        }
    }

    /// Tells the pool something and carries out what it decides.
    fn with<T>(
        self: &Arc<Self>,
        function: &Arc<Function>,
        event: impl FnOnce(&mut Pool, Duration, &mut Vec<Action>) -> T,
    ) -> T {
        let now = self.now();
        let mut actions = Vec::new();
        let mut pool = function.pool.lock();
        let result = event(&mut pool, now, &mut actions);
        self.carry_out(function, actions, &mut Timeline::default());
        result
    }

    /// Under the function's lock: nothing here waits. `init` is the timeline of the start that ended, if one did.
    fn carry_out(self: &Arc<Self>, function: &Arc<Function>, actions: Vec<Action>, init: &mut Timeline) {
        for action in actions {
            // A caller that does not listen any more is about to take itself out, see `Waiting`.
            match action {
                Action::Grant { caller, grant } => {
                    let timeline = if grant.cold { std::mem::take(init) } else { Timeline::default() };
                    let _ = caller.send(Ok(Granted { grant, timeline }));
                }
                Action::Throttle { caller, reason } => {
                    let _ = caller.send(Err(AssignError::Throttled(reason)));
                }
                Action::Gone { caller, sandbox } => {
                    let _ = caller.send(Err(WorkerError::Gone(sandbox).into()));
                }
                Action::Stopping { caller } => {
                    let _ = caller.send(Err(WorkerError::Stopping.into()));
                }
                Action::Start { sandbox, version } => {
                    self.sandboxes.insert(sandbox, Arc::clone(function));
                    self.fleet.announce(sandbox);
                    self.versions.insert(version.key.clone(), Arc::clone(function));
                    self.runtime.spawn(Arc::clone(self).start(Arc::clone(function), sandbox, version));
                }
                Action::Shutdown { sandbox } => {
                    self.sandboxes.remove(&sandbox);
                    self.runtime.spawn(Arc::clone(self).shut_down(sandbox));
                }
                Action::Disown { sandbox } => {
                    self.sandboxes.remove(&sandbox);
                    self.fleet.gone(sandbox);
                }
                Action::NotOwner { caller } => {
                    let _ = caller.send(Err(AssignError::NotOwner("it took the function over just now".to_owned())));
                }
                Action::Forget { version } => self.versions.remove(&version),
            }
        }
    }

    async fn shut_down(self: Arc<Self>, sandbox: SandboxId) {
        if let Some(worker) = self.fleet.worker_of(sandbox) {
            tokio::select! {
                biased;
                () = worker.shutdown(sandbox, RetireReason::Spindown) => {}
                () = self.left(worker.id()) => {}
            }
        }
        let _one = self.claiming.lock();
        // A worker that was claimed for a newer view meanwhile has refused, and has named it as one that lives: then it was taken over
        // again. Also where its worker has gone meanwhile: if that comes again with it, it is named, and taken over.
        if self.sandboxes.get(&sandbox).is_none() {
            self.fleet.gone(sandbox);
        }
    }

    /// Ends the graces of requests that wait for a finishing sandbox, as long as there are any. One timer for all of them:
    /// under load most requests wait for a moment.
    async fn watch(self: Arc<Self>, function: Arc<Function>) {
        loop {
            let now = self.now();
            let due = {
                let pool = function.pool.lock();
                let due = pool.due(now);
                // Under the lock under which the next one begins to wait.
                function.watched.store(due.is_some(), Ordering::Relaxed);
                due
            };
            let Some(due) = due else { return };
            tokio::time::sleep(due.saturating_sub(now)).await;
            self.with(&function, |pool, now, actions| pool.settle(now, actions));
        }
    }
}

/// A request that waits. Dropped before it was answered, it takes itself out, or gives back what it was given.
struct Waiting {
    manager: Arc<Inner>,
    function: Arc<Function>,
    ticket: Ticket,
    answer: oneshot::Receiver<Result<Granted>>,
    over: bool,
}

impl Waiting {
    fn answered(mut self, answer: std::result::Result<Result<Granted>, oneshot::error::RecvError>) -> Result<Lease> {
        self.over = true;
        let Granted { grant, mut timeline } = answer.expect("a waiting request is answered before its sender goes")?;
        if !grant.cold {
            timeline.note(Step::Assigned, self.manager.now(), "warm");
        }
        let Grant { sandbox, worker, cold } = grant;
        Ok(Lease { sandbox, worker, cold, waited: !cold, manager: None, timeline })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let (ticket, answer) = (self.ticket, &mut self.answer);
        self.manager.with(&self.function, |pool, now, actions| {
            if !pool.cancel(now, ticket, actions)
                && let Ok(Ok(granted)) = answer.try_recv()
            {
                pool.release(now, granted.grant.sandbox, actions);
            }
        });
    }
}

#[async_trait]
impl WorkerManager for Manager {
    async fn assign(&self, request: AssignRequest) -> Result<Lease> {
        let inner = &self.0;
        loop {
            let function = inner.function(&request.version)?;
            if function.since > *inner.settled.borrow() {
                inner.settle(function.since).await;
            }
            let now = inner.now();
            let mut receiver = None;
            let answer = {
                let mut actions = Vec::new();
                let mut pool = function.pool.lock();
                // A function that is new since `stop` looked at all of them is seen here.
                if inner.is_stopping() {
                    return Err(WorkerError::Stopping.into());
                }
                let caller = || {
                    let (sender, answer) = oneshot::channel();
                    receiver = Some(answer);
                    sender
                };
                let answer = pool.assign(now, &request, caller, &mut actions);
                let waits = matches!(answer, Answer::Wait(_));
                if waits && !function.watched.load(Ordering::Relaxed) && pool.due(now).is_some() {
                    function.watched.store(true, Ordering::Relaxed);
                    inner.runtime.spawn(Arc::clone(inner).watch(Arc::clone(&function)));
                }
                inner.carry_out(&function, actions, &mut Timeline::default());
                answer
            };
            let ticket = match answer {
                Answer::Lease(Grant { sandbox, worker, cold }) => {
                    let mut timeline = Timeline::default();
                    timeline.note(Step::Assigned, now, "warm");
                    return Ok(Lease { sandbox, worker, cold, waited: false, manager: None, timeline });
                }
                Answer::Wait(ticket) => ticket,
                Answer::Throttled(reason) => return Err(AssignError::Throttled(reason)),
                Answer::Stopping => return Err(WorkerError::Stopping.into()),
                Answer::Closed => continue,
            };
            let answer = receiver.expect("a request that waits has left its caller");
            let manager = Arc::clone(inner);
            let mut waiting = Waiting { manager, function, ticket, answer, over: false };
            let answer = (&mut waiting.answer).await;
            return waiting.answered(answer);
        }
    }

    fn release(&self, sandbox: SandboxId) {
        self.0.event(sandbox, |pool, now, actions| pool.release(now, sandbox, actions));
    }

    fn retire(&self, version: &VersionKey) {
        if let Some(function) = self.0.versions.get(version) {
            self.0.with(&function, |pool, now, actions| pool.retire(now, version, actions));
        }
    }

    fn unreachable(&self, worker: &WorkerId) {
        self.suspect(worker);
    }
}

impl SlotEvents for Manager {
    fn answered(&self, sandbox: SandboxId) {
        self.0.event(sandbox, |pool, _, _| pool.answered(sandbox));
    }

    fn idle(&self, sandbox: SandboxId) {
        self.0.event(sandbox, |pool, now, actions| pool.idle(now, sandbox, actions));
    }

    fn dead(&self, sandbox: SandboxId, reason: RetireReason) {
        tracing::debug!(%sandbox, ?reason, "sandbox died");
        self.0.dead(sandbox);
    }
}
