//! How this process is, for `emberbox fleet status`, and what operators want of its worker.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::placement::Tally;
use async_trait::async_trait;
use domain::{RetireReason, SlotPhase, Worker, WorkerReport};
use event_queue::{EventQueue, QueueError};
use futures::StreamExt as _;
use membership::{Membership, View};
use parking_lot::Mutex;
use rpc::{Cordon, WorkerServer};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::tasks::Tasks;
use super::placement::{self, Deciding};

/// How often a worker that is drained looks for sandboxes that have become idle.
const DRAIN_AGAIN: Duration = Duration::from_millis(500);
/// Queues that are looked into at the same time.
const QUEUES_AT_ONCE: usize = 4;

/// What a process says of itself. A reader takes what it does not find for not said.
#[derive(Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Since it joined.
    pub up_ms: u64,
    /// Whom it knows of.
    pub view: Seen,
    /// Of a worker.
    pub worker: Option<OfWorker>,
    /// Of a worker manager: the functions that it has sandboxes of.
    pub manager: Option<Vec<OfFunction>>,
    /// Of a process that decides where sandboxes go, or would.
    pub placement: Option<OfPlacement>,
    /// If it was asked for, and there is a queue here.
    pub events: Option<Waiting>,
}

/// A process' view.
#[derive(Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Seen {
    /// Which.
    pub epoch: u64,
    /// For how long it has been the newest here.
    pub age_ms: u64,
    /// Why there may be a newer one: what the database said last, if that was an error.
    pub trouble: Option<String>,
}

/// What a worker has.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct OfWorker {
    /// Sandboxes that may be and that are, and their memory in MB.
    pub slots: u32,
    #[allow(missing_docs)]
    pub slots_used: u32,
    #[allow(missing_docs)]
    pub memory_mb: u64,
    #[allow(missing_docs)]
    pub memory_used_mb: u64,
    /// Takes no new ones, for whatever reason.
    pub draining: bool,
    /// By order of an operator: `none`, `cordon` or `drain`.
    pub cordon: String,
    /// Its sandboxes by function.
    pub functions: Vec<OfFunction>,
}

/// What Placement has and did.
#[derive(Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct OfPlacement {
    /// In its view, managers ask this one, and not another.
    pub decides: bool,
    /// Workers that it hears.
    pub workers: usize,
    /// Sandboxes that they have or were given.
    pub sandboxes: usize,
    /// Sandboxes that it gave a place, since its start.
    pub placed: u64,
    /// Those that it knew no place for.
    pub refused: u64,
}

/// Sandboxes of a function.
#[derive(Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct OfFunction {
    /// ARN without version.
    pub function: String,
    /// In Init.
    pub starting: u32,
    /// Ready.
    pub idle: u32,
    /// With an invocation, or finishing one.
    pub busy: u32,
    /// Requests that wait for a sandbox; a manager's to know.
    pub waiting: u32,
}

/// What waits in the event queue, over all functions.
#[derive(Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Waiting {
    /// Could run now.
    pub ready: u64,
    /// Run.
    pub in_flight: u64,
    /// Wait for a time.
    pub delayed: u64,
    /// Age of the oldest.
    pub oldest_ms: Option<u64>,
    /// Why it is not known.
    pub error: Option<String>,
}

/// The parts of a process that are asked.
pub struct Parts {
    /// Starts what goes on.
    pub tasks: Tasks,
    /// Its place.
    pub membership: Membership,
    /// If it is a worker: the sandboxes, and who hears of changes.
    pub worker: Option<(worker::Service, WorkerServer)>,
    /// If it is a worker manager.
    pub manager: Option<worker_manager::Manager>,
    /// If it decides where sandboxes go.
    pub deciding: Option<Deciding>,
    /// The event queue, once it is there.
    pub queue: Arc<OnceLock<Arc<dyn EventQueue>>>,
}

/// Answers for this process.
pub struct Own {
    parts: Parts,
    since: Instant,
    /// The newest view, and since when.
    view: Arc<Mutex<(u64, Instant)>>,
    following: JoinHandle<()>,
    cordon: Mutex<(Cordon, Option<JoinHandle<()>>)>,
}

impl Own {
    /// From now on.
    pub fn new(parts: Parts) -> Self {
        let since = Instant::now();
        let mut changes = parts.membership.changes();
        let epoch = |view: &View| view.epoch();
        let view = Arc::new(Mutex::new((epoch(&changes.borrow_and_update()), since)));
        let told = Arc::clone(&view);
        let following = parts.tasks.spawn("look at the view", async move {
            while changes.changed().await.is_ok() {
                *told.lock() = (epoch(&changes.borrow_and_update()), Instant::now());
            }
        });
        Self { parts, since, view, following, cordon: Mutex::new((Cordon::None, None)) }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.following.abort();
        if let Some(task) = self.cordon.lock().1.take() {
            task.abort();
        }
    }
}

#[async_trait]
impl rpc::Report for Own {
    async fn report(&self, events: bool) -> String {
        let (epoch, changed) = *self.view.lock();
        let trouble = self.parts.membership.trouble().map(|error| error.to_string());
        let events = match self.parts.queue.get().filter(|_| events) {
            Some(queue) => Some(waiting(queue.as_ref()).await),
            None => None,
        };
        let report = Report {
            up_ms: millis(self.since.elapsed()),
            view: Seen { epoch, age_ms: millis(changed.elapsed()), trouble },
            worker: self.parts.worker.as_ref().map(|(worker, _)| of_worker(worker, self.cordon.lock().0)),
            manager: self.parts.manager.as_ref().map(of_manager),
            placement: self.parts.deciding.as_ref().map(|deciding| of_placement(deciding, &self.parts.membership)),
            events,
        };
        serde_json::to_string(&report).expect("numbers and texts always become JSON")
    }

    fn cordon(&self, state: Cordon) -> Result<(), String> {
        let (worker, server) = self.parts.worker.as_ref().ok_or("this process is no worker")?;
        let mut cordon = self.cordon.lock();
        if let Some(task) = cordon.1.take() {
            task.abort();
        }
        cordon.0 = state;
        worker.cordon(state != Cordon::None);
        if state == Cordon::Drain {
            cordon.1 = Some(self.parts.tasks.spawn("drain", retire_idle(worker.clone())));
        }
        server.report_changed();
        tracing::info!(state = state.as_str(), "an operator decided whether this worker takes new sandboxes");
        Ok(())
    }
}

/// Takes down what is idle, again and again, until it is stopped. A sandbox that was leased in that moment is gone for the holder
/// of the lease, who goes elsewhere.
async fn retire_idle(worker: worker::Service) {
    loop {
        let idle = worker.sandboxes().into_iter().filter(|sandbox| sandbox.phase == SlotPhase::Idle);
        let ends = idle.map(|sandbox| {
            let worker = worker.clone();
            async move { worker.shutdown(sandbox.sandbox, RetireReason::Spindown).await }
        });
        futures::future::join_all(ends).await;
        tokio::time::sleep(DRAIN_AGAIN).await;
    }
}

fn of_worker(worker: &worker::Service, cordon: Cordon) -> OfWorker {
    let WorkerReport { slots, slots_used, memory_mb, memory_used_mb, draining, .. } = worker.report();
    let mut functions: BTreeMap<String, OfFunction> = BTreeMap::new();
    for sandbox in worker.sandboxes() {
        let function = sandbox.version.arn.to_string();
        let of = functions.entry(function.clone()).or_insert_with(|| OfFunction { function, ..Default::default() });
        *match sandbox.phase {
            SlotPhase::Starting => &mut of.starting,
            SlotPhase::Idle => &mut of.idle,
            SlotPhase::Invoking | SlotPhase::Finishing => &mut of.busy,
        } += 1;
    }
    let functions = functions.into_values().collect();
    OfWorker { slots, slots_used, memory_mb, memory_used_mb, draining, cordon: cordon.as_str().to_owned(), functions }
}

fn of_manager(manager: &worker_manager::Manager) -> Vec<OfFunction> {
    let functions = manager.status().functions.into_iter();
    let of = |f: worker_manager::FunctionStatus| OfFunction {
        function: f.function.to_string(),
        starting: f.starting,
        idle: f.idle,
        busy: f.busy,
        waiting: f.waiting,
    };
    functions.map(of).collect()
}

fn of_placement(deciding: &Deciding, membership: &Membership) -> OfPlacement {
    let Tally { workers, sandboxes, placed, refused, .. } = deciding.tally();
    let decides = placement::who(&membership.view()).is_some_and(|member| member.id == *membership.id());
    OfPlacement { decides, workers, sandboxes, placed, refused }
}

async fn waiting(queue: &dyn EventQueue) -> Waiting {
    let count = async {
        let mut all = Waiting::default();
        let mut depths = futures::stream::iter(queue.queues().await?)
            .map(|name| async move { queue.depth(&name).await })
            .buffer_unordered(QUEUES_AT_ONCE);
        while let Some(depth) = depths.next().await {
            let depth = depth?;
            all.ready += depth.ready;
            all.in_flight += depth.in_flight;
            all.delayed += depth.delayed;
            all.oldest_ms = all.oldest_ms.max(depth.oldest.map(millis));
        }
        Ok::<_, QueueError>(all)
    };
    count.await.unwrap_or_else(|error| Waiting { error: Some(error.to_string()), ..Default::default() })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
