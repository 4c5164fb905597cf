//! Workers without sandboxes: every step takes simulated time, every rule of the contract is asserted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use domain::{
    AccountId, AssignRequest, Clock, CodeRef, ConcurrencyLimits, FunctionArn, FunctionVersion, InitDone, InitRequest,
    InvokeOutcome, InvokeRequest, Lease, LogFormat, LoggingSettings, RetireReason, SandboxId, SandboxState, SlotEvents,
    SlotPhase, Step, Timeline, VersionKey, Worker, WorkerError, WorkerId, WorkerReport,
};
use tokio::time::Instant;
use worker_manager::{Config, Manager};

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// For one version of function `name`, under an account limit of 50.
pub fn request(name: &str, memory_mb: u32, reserved: Option<u32>) -> AssignRequest {
    let account = AccountId::local();
    let arn = FunctionArn { region: "us-east-1".into(), account: account.clone(), name: name.into() };
    let version = FunctionVersion {
        key: VersionKey(format!("{name}:{memory_mb}").into()),
        account,
        region: "us-east-1".into(),
        name: name.into(),
        version: "$LATEST".into(),
        arn,
        runtime: "provided.al2023".into(),
        handler: String::new(),
        code: CodeRef { sha256: name.into(), size: 1, image: None },
        image_config: Default::default(),
        layers: vec![],
        memory_mb,
        timeout: ms(3000),
        ephemeral_mb: 512,
        environment: BTreeMap::new(),
        logging: LoggingSettings {
            format: LogFormat::Text,
            application_level: None,
            system_level: None,
            group: format!("/aws/lambda/{name}"),
        },
        tracing_active: false,
        snap_start: false,
    };
    AssignRequest { version: Arc::new(version), limits: ConcurrencyLimits { unreserved: 50, reserved } }
}

/// Tokio's clock, which tests pause.
pub struct TokioClock(Instant);

impl Clock for TokioClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.elapsed()
    }
}

pub struct Sim {
    pub manager: Manager,
    pub workers: Vec<Arc<SimWorker>>,
}

impl Sim {
    pub fn one_worker(config: Config) -> Self {
        Self::with_memory(config, &[16 * 1024])
    }

    pub fn with_memory(config: Config, memory_mb: &[u64]) -> Self {
        let clock = Arc::new(TokioClock(Instant::now()));
        let manager = Manager::new(clock.clone(), config, vec![]);
        let workers: Vec<_> = memory_mb
            .iter()
            .enumerate()
            .map(|(i, &memory_mb)| {
                Arc::new(SimWorker {
                    id: WorkerId(format!("w{i}").into()),
                    clock: clock.clone(),
                    memory_mb,
                    sandboxes: Mutex::default(),
                    inits: AtomicU32::new(0),
                    fail: AtomicBool::new(false),
                    unreachable: AtomicBool::new(false),
                    full: AtomicBool::new(false),
                    refuse: AtomicBool::new(false),
                    draining: AtomicBool::new(false),
                })
            })
            .collect();
        workers.iter().for_each(|w| manager.add_worker(w.clone()));
        Self { manager, workers }
    }

    /// A whole invocation.
    pub async fn invoke(&self, lease: Lease, time: Duration) {
        let sandbox = lease.sandbox;
        self.begin(sandbox);
        tokio::time::sleep(time).await;
        self.manager.answered(sandbox);
        self.end(sandbox);
        self.manager.idle(sandbox);
    }

    /// Returns when the answer is out; the sandbox becomes idle after `finish`.
    pub async fn answer(&self, lease: Lease, work: Duration, finish: Duration) {
        let sandbox = lease.sandbox;
        self.begin(sandbox);
        tokio::time::sleep(work).await;
        self.manager.answered(sandbox);
        let (manager, workers) = (self.manager.clone(), self.workers.clone());
        tokio::spawn(async move {
            tokio::time::sleep(finish).await;
            workers.iter().for_each(|w| w.end(sandbox));
            manager.idle(sandbox);
        });
    }

    fn begin(&self, sandbox: SandboxId) {
        self.workers.iter().find(|w| w.has(sandbox)).expect("a leased sandbox is on a worker").begin(sandbox);
    }

    fn end(&self, sandbox: SandboxId) {
        self.workers.iter().for_each(|w| w.end(sandbox));
    }
}

pub struct SimWorker {
    id: WorkerId,
    clock: Arc<TokioClock>,
    memory_mb: u64,
    sandboxes: Mutex<BTreeMap<SandboxId, SimSandbox>>,
    inits: AtomicU32,
    fail: AtomicBool,
    unreachable: AtomicBool,
    full: AtomicBool,
    /// The next shutdown comes in the name of a view that is over.
    refuse: AtomicBool,
    draining: AtomicBool,
}

struct SimSandbox {
    version: Arc<FunctionVersion>,
    ready: bool,
    running: bool,
}

impl SimWorker {
    pub fn inits(&self) -> u32 {
        self.inits.load(Ordering::SeqCst)
    }

    /// Names of the functions that have a sandbox here, once for each.
    pub fn functions(&self) -> Vec<String> {
        let mut names: Vec<_> = self.sandboxes.lock().unwrap().values().map(|s| s.version.name.clone()).collect();
        names.sort();
        names
    }

    pub fn fail_next_init(&self) {
        self.fail.store(true, Ordering::SeqCst);
    }

    /// The next Init goes on, and whoever asked for it hears nothing of it.
    pub fn break_next_init(&self) {
        self.unreachable.store(true, Ordering::SeqCst);
    }

    /// As a worker whose room was taken since its report.
    pub fn refuse_next_init(&self) {
        self.full.store(true, Ordering::SeqCst);
    }

    pub fn refuse_next_shutdown(&self) {
        self.refuse.store(true, Ordering::SeqCst);
    }

    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// An Init that nobody waits for any more is over.
    pub fn ready(&self, sandbox: SandboxId) {
        if let Some(sandbox) = self.sandboxes.lock().unwrap().get_mut(&sandbox) {
            sandbox.ready = true;
        }
    }

    pub fn kill(&self, sandbox: SandboxId) {
        self.sandboxes.lock().unwrap().remove(&sandbox);
    }

    pub fn has(&self, sandbox: SandboxId) -> bool {
        self.sandboxes.lock().unwrap().contains_key(&sandbox)
    }

    pub fn begin(&self, sandbox: SandboxId) {
        let mut sandboxes = self.sandboxes.lock().unwrap();
        let running = &mut sandboxes.get_mut(&sandbox).expect("a leased sandbox exists").running;
        assert!(!std::mem::replace(running, true), "two invocations in one sandbox");
    }

    pub fn end(&self, sandbox: SandboxId) {
        if let Some(s) = self.sandboxes.lock().unwrap().get_mut(&sandbox) {
            s.running = false;
        }
    }
}

#[async_trait]
impl Worker for SimWorker {
    fn id(&self) -> &WorkerId {
        &self.id
    }

    async fn init(&self, request: InitRequest) -> Result<InitDone, WorkerError> {
        if self.fail.swap(false, Ordering::SeqCst) {
            return Err(WorkerError::Sandbox("no more of them".into()));
        }
        if self.full.swap(false, Ordering::SeqCst) {
            return Err(WorkerError::Full(self.id.clone()));
        }
        self.inits.fetch_add(1, Ordering::SeqCst);
        let sandbox = SimSandbox { version: request.version, ready: false, running: false };
        {
            let mut sandboxes = self.sandboxes.lock().unwrap();
            sandboxes.insert(request.sandbox, sandbox);
            let used: u64 = sandboxes.values().map(|s| u64::from(s.version.memory_mb)).sum();
            assert!(used <= self.memory_mb, "placed beyond the worker's memory");
        }
        if self.unreachable.swap(false, Ordering::SeqCst) {
            let cause = "the connection broke".to_owned();
            return Err(WorkerError::Unreachable { worker: self.id.clone(), cause, unsent: false });
        }
        tokio::time::sleep(ms(10)).await;
        if let Some(sandbox) = self.sandboxes.lock().unwrap().get_mut(&request.sandbox) {
            sandbox.ready = true;
        }
        let mut timeline = Timeline::default();
        timeline.mark(Step::InitDone, self.clock.monotonic());
        Ok(InitDone { timeline })
    }

    async fn invoke(&self, _: SandboxId, _: InvokeRequest) -> Result<InvokeOutcome, WorkerError> {
        unreachable!("these tests drive the slots by events")
    }

    async fn shutdown(&self, sandbox: SandboxId, _: RetireReason) {
        tokio::time::sleep(ms(2)).await;
        if !self.refuse.swap(false, Ordering::SeqCst) {
            self.sandboxes.lock().unwrap().remove(&sandbox);
        }
    }

    async fn invoking(&self, sandbox: SandboxId) -> bool {
        self.sandboxes.lock().unwrap().get(&sandbox).is_some_and(|s| s.running)
    }

    fn sandboxes(&self) -> Vec<SandboxState> {
        let state = |(id, s): (&SandboxId, &SimSandbox)| {
            let phase = match (s.ready, s.running) {
                (false, _) => SlotPhase::Starting,
                (true, false) => SlotPhase::Idle,
                (true, true) => SlotPhase::Invoking,
            };
            SandboxState { sandbox: *id, version: Arc::clone(&s.version), phase }
        };
        self.sandboxes.lock().unwrap().iter().map(state).collect()
    }

    fn report(&self) -> WorkerReport {
        WorkerReport {
            worker: self.id.clone(),
            memory_mb: self.memory_mb,
            // Lags behind, as a remote worker's does.
            memory_used_mb: 0,
            slots: 1000,
            slots_used: 0,
            starting: 0,
            draining: self.draining.load(Ordering::SeqCst),
        }
    }

    fn has_package(&self, sha256: &str) -> bool {
        self.sandboxes.lock().unwrap().values().any(|s| s.version.code.sha256 == sha256)
    }
}
