//! A worker's host: sandboxes that take time, fail, and die. What the real worker does with processes is not here; what it promises
//! to managers and frontends (`domain::Worker`) is.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{
    FunctionVersion, InitDone, InitRequest, InvokeOutcome, InvokeRequest, RetireReason, SandboxId, SandboxState,
    SlotEvents, SlotPhase, Timeline, Worker, WorkerError, WorkerId, WorkerReport,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::clock;
use crate::entropy::Rng;
use crate::log::Log;
use crate::plan::TROUBLE;
use crate::truth::Truth;

/// Of a worker.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// In MB.
    pub memory_mb: u64,
    /// Sandboxes at once.
    pub slots: u32,
}

/// [`domain::Worker`] without processes. Cheap to clone.
#[derive(Clone)]
pub struct SimWorker(Arc<Inner>);

struct Inner {
    id: WorkerId,
    size: Size,
    truth: Truth,
    log: Log,
    events: OnceLock<Arc<dyn SlotEvents>>,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    packages: Vec<String>,
    draining: bool,
}

struct Sandbox {
    version: Arc<FunctionVersion>,
    phase: SlotPhase,
    /// Of the invocation that runs.
    answer: Option<oneshot::Sender<Result<InvokeOutcome, WorkerError>>>,
}

fn outcome(error: Option<&'static str>) -> InvokeOutcome {
    InvokeOutcome {
        payload: Bytes::from_static(b"null"),
        function_error: error,
        log_tail: None,
        timeline: Timeline::default(),
    }
}

impl SimWorker {
    pub(crate) fn new(id: &Arc<str>, size: Size, rng: Rng, truth: Truth, log: Log) -> Self {
        let state = State { rng, sandboxes: BTreeMap::new(), packages: Vec::new(), draining: false };
        let (id, events) = (WorkerId(Arc::clone(id)), OnceLock::new());
        Self(Arc::new(Inner { id, size, truth, log, events, state: Mutex::new(state) }))
    }

    pub(crate) fn connect(&self, events: Arc<dyn SlotEvents>) {
        assert!(self.0.events.set(events).is_ok(), "connected before");
    }

    fn events(&self) -> &dyn SlotEvents {
        self.0.events.get().expect("connected before it serves").as_ref()
    }

    /// How long something takes, in milliseconds.
    fn takes(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.0.state.lock().rng.between(low, high))
    }

    fn percent(&self, of_hundred: u64) -> bool {
        self.0.state.lock().rng.percent(of_hundred)
    }

    fn set(&self, id: SandboxId, phase: SlotPhase) -> bool {
        let mut state = self.0.state.lock();
        let Some(sandbox) = state.sandboxes.get_mut(&id) else { return false };
        sandbox.phase = phase;
        true
    }

    /// It is gone, with what ran in it.
    fn end(&self, id: SandboxId, reason: RetireReason) {
        let Some(sandbox) = self.0.state.lock().sandboxes.remove(&id) else { return };
        self.0.truth.ends(id);
        self.0.truth.gone(id);
        self.0.log.line(format_args!("{} has {id} no more: {reason:?} in {:?}", self.0.id, sandbox.phase));
        if let Some(answer) = sandbox.answer {
            let _ = answer.send(Ok(outcome(Some("Unhandled"))));
        }
        self.events().dead(id, reason);
    }

    /// The function runs, then runtime and extensions finish.
    async fn run(self, id: SandboxId, millis: u64) {
        let dies = self.percent(1) && clock::now() < TROUBLE.1;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        if dies {
            return self.end(id, RetireReason::Failure);
        }
        let answer = {
            let mut state = self.0.state.lock();
            let Some(sandbox) = state.sandboxes.get_mut(&id) else { return };
            sandbox.phase = SlotPhase::Finishing;
            sandbox.answer.take()
        };
        self.0.truth.ends(id);
        self.events().answered(id);
        if let Some(answer) = answer {
            // Whoever asked may be gone.
            let _ = answer.send(Ok(outcome(None)));
        }
        let rest = if self.percent(20) { self.takes(1, 300) } else { self.takes(0, 3) };
        tokio::time::sleep(rest).await;
        if self.set(id, SlotPhase::Idle) {
            self.events().idle(id);
        }
    }

    fn used(&self) -> (u64, u32, u32) {
        let state = self.0.state.lock();
        let memory = state.sandboxes.values().map(|sandbox| u64::from(sandbox.version.memory_mb)).sum();
        let starting = state.sandboxes.values().filter(|sandbox| sandbox.phase == SlotPhase::Starting).count();
        (memory, state.sandboxes.len() as u32, starting as u32)
    }
}

#[async_trait]
impl Worker for SimWorker {
    fn id(&self) -> &WorkerId {
        &self.0.id
    }

    async fn init(&self, request: InitRequest) -> Result<InitDone, WorkerError> {
        let InitRequest { sandbox, version } = request;
        let (memory, slots, _) = self.used();
        {
            let mut state = self.0.state.lock();
            if state.draining {
                return Err(WorkerError::Stopping);
            }
            let fits = memory + u64::from(version.memory_mb) <= self.0.size.memory_mb && slots < self.0.size.slots;
            if !fits {
                return Err(WorkerError::Full(self.0.id.clone()));
            }
            let new = Sandbox { version: Arc::clone(&version), phase: SlotPhase::Starting, answer: None };
            if state.sandboxes.insert(sandbox, new).is_some() {
                drop(state);
                self.0.truth.violation(format!("sandbox {sandbox} was made twice on {}", self.0.id));
            }
        }
        self.0.truth.made(&self.0.id.0, sandbox);
        self.0.log.line(format_args!("{} makes {sandbox} for {}", self.0.id, version.name));
        let takes = if self.percent(10) { self.takes(300, 3_000) } else { self.takes(20, 300) };
        tokio::time::sleep(takes).await;
        if self.percent(3) && clock::now() < TROUBLE.1 {
            self.0.state.lock().sandboxes.remove(&sandbox);
            self.0.truth.gone(sandbox);
            return Err(WorkerError::Sandbox("no luck".to_owned()));
        }
        let mut state = self.0.state.lock();
        if !state.packages.contains(&version.code.sha256) {
            state.packages.push(version.code.sha256.clone());
        }
        match state.sandboxes.get_mut(&sandbox) {
            Some(made) => {
                made.phase = SlotPhase::Idle;
                Ok(InitDone { timeline: Timeline::default() })
            }
            None => Err(WorkerError::Gone(sandbox)),
        }
    }

    async fn invoke(&self, id: SandboxId, request: InvokeRequest) -> Result<InvokeOutcome, WorkerError> {
        let answer = {
            let mut state = self.0.state.lock();
            let sandbox = state.sandboxes.get_mut(&id).ok_or(WorkerError::Gone(id))?;
            if sandbox.phase != SlotPhase::Idle {
                return Err(WorkerError::Busy(id));
            }
            sandbox.phase = SlotPhase::Invoking;
            let (sender, answer) = oneshot::channel();
            sandbox.answer = Some(sender);
            answer
        };
        self.0.truth.begins(&self.0.id.0, id, request.request_id);
        let millis = std::str::from_utf8(&request.payload).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        // Whoever asked may go; what was begun goes on.
        tokio::spawn(self.clone().run(id, millis));
        answer.await.unwrap_or(Err(WorkerError::Gone(id)))
    }

    async fn shutdown(&self, sandbox: SandboxId, reason: RetireReason) {
        let takes = self.takes(1, 30);
        let phase = self.0.state.lock().sandboxes.get(&sandbox).map(|sandbox| sandbox.phase);
        if phase == Some(SlotPhase::Invoking) {
            self.0.truth.violation(format!("sandbox {sandbox} is shut down while a function runs in it"));
        }
        if phase.is_some() {
            // Nothing is begun in it any more.
            self.set(sandbox, SlotPhase::Finishing);
            tokio::time::sleep(takes).await;
            self.end(sandbox, reason);
        }
    }

    async fn invoking(&self, sandbox: SandboxId) -> bool {
        let state = self.0.state.lock();
        state.sandboxes.get(&sandbox).is_some_and(|sandbox| sandbox.phase == SlotPhase::Invoking)
    }

    fn sandboxes(&self) -> Vec<SandboxState> {
        let state = self.0.state.lock();
        let one = |(id, sandbox): (&SandboxId, &Sandbox)| SandboxState {
            sandbox: *id,
            version: Arc::clone(&sandbox.version),
            phase: sandbox.phase,
        };
        state.sandboxes.iter().map(one).collect()
    }

    fn drain(&self) {
        self.0.state.lock().draining = true;
    }

    fn report(&self) -> WorkerReport {
        let (memory_used_mb, slots_used, starting) = self.used();
        WorkerReport {
            worker: self.0.id.clone(),
            memory_mb: self.0.size.memory_mb,
            memory_used_mb,
            slots: self.0.size.slots,
            slots_used,
            starting,
            draining: self.0.state.lock().draining,
        }
    }

    fn has_package(&self, sha256: &str) -> bool {
        self.0.state.lock().packages.iter().any(|known| known == sha256)
    }

    fn packages(&self) -> Vec<String> {
        self.0.state.lock().packages.clone()
    }

    fn packages_are_at_hand(&self) -> bool {
        true
    }
}
