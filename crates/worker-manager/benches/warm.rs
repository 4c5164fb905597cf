//! What the Worker Manager costs a warm invocation: `assign`, then the worker's `answered` and `idle`.
//!
//! `cargo bench -p worker-manager` prints pairs per second per core: one thread alone, then every core with functions
//! of its own (nothing is shared, so it should scale), then every core on one function (one lock).

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use domain::{
    AccountId, AssignRequest, CodeRef, ConcurrencyLimits, FunctionArn, FunctionVersion, InitDone, InitRequest,
    InvokeOutcome, InvokeRequest, LogFormat, LoggingSettings, RetireReason, SandboxId, SlotEvents, SystemClock,
    Timeline, VersionKey, Worker, WorkerError, WorkerId, WorkerManager, WorkerReport,
};
use worker_manager::{Config, Manager};

const TIME: Duration = Duration::from_secs(1);
const FUNCTIONS: usize = 1000;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let manager = Manager::new(Arc::new(SystemClock::default()), Config::default(), vec![Arc::new(NoWorker::new())]);
    let requests: Vec<AssignRequest> = (0..FUNCTIONS).map(request).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for request in &requests {
        let leases: Vec<_> =
            (0..cores).map(|_| runtime.block_on(manager.assign(request.clone())).expect("room")).collect();
        leases.iter().for_each(|lease| manager.idle(lease.sandbox));
    }
    let row = |name: &str, threads: usize, functions: &(dyn Fn(usize) -> Vec<AssignRequest> + Sync)| {
        let pairs: f64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads)
                .map(|t| {
                    scope.spawn({
                        let manager = &manager;
                        move || turn(manager, &functions(t))
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().expect("a turn")).sum()
        });
        let each = pairs / threads as f64;
        println!("{name:<32} {each:>12.0} pairs/s/core {:>8.0} ns/pair", 1e9 / each);
    };
    row("1 thread, 1 function", 1, &|_| requests[..1].to_vec());
    row("1 thread, 1000 functions", 1, &|_| requests.clone());
    row("every core, functions of its own", cores, &|t| requests.iter().skip(t).step_by(cores).cloned().collect());
    row("every core, 1 function", cores, &|_| requests[..1].to_vec());
}

/// Pairs per second.
fn turn(manager: &Manager, requests: &[AssignRequest]) -> f64 {
    let mut context = Context::from_waker(Waker::noop());
    let started = Instant::now();
    let mut pairs = 0u64;
    while started.elapsed() < TIME {
        for request in requests.iter().cycle().take(1000) {
            let mut assign = manager.assign(request.clone());
            let Poll::Ready(Ok(lease)) = assign.as_mut().poll(&mut context) else { panic!("warm answers at once") };
            manager.answered(lease.sandbox);
            manager.idle(lease.sandbox);
        }
        pairs += 1000;
    }
    pairs as f64 / started.elapsed().as_secs_f64()
}

fn request(number: usize) -> AssignRequest {
    let account = AccountId::local();
    let name = format!("function-{number}");
    let version = FunctionVersion {
        key: VersionKey(format!("00000000-0000-4000-8000-{number:012}").into()),
        arn: FunctionArn { region: "us-east-1".into(), account: account.clone(), name: name.as_str().into() },
        account,
        region: "us-east-1".into(),
        name,
        version: "$LATEST".into(),
        runtime: "provided.al2023".into(),
        handler: String::new(),
        code: CodeRef { sha256: String::new(), size: 1, image: None },
        image_config: Default::default(),
        layers: vec![],
        memory_mb: 128,
        timeout: Duration::from_secs(3),
        ephemeral_mb: 512,
        environment: Default::default(),
        logging: LoggingSettings {
            format: LogFormat::Text,
            application_level: None,
            system_level: None,
            group: String::new(),
        },
        tracing_active: false,
        snap_start: false,
    };
    AssignRequest { version: Arc::new(version), limits: ConcurrencyLimits { unreserved: 10_000, reserved: None } }
}

struct NoWorker(WorkerId);

impl NoWorker {
    fn new() -> Self {
        Self(WorkerId("w0".into()))
    }
}

#[async_trait]
impl Worker for NoWorker {
    fn id(&self) -> &WorkerId {
        &self.0
    }

    async fn init(&self, _: InitRequest) -> Result<InitDone, WorkerError> {
        Ok(InitDone { timeline: Timeline::default() })
    }

    async fn invoke(&self, sandbox: SandboxId, _: InvokeRequest) -> Result<InvokeOutcome, WorkerError> {
        Err(WorkerError::Gone(sandbox))
    }

    async fn shutdown(&self, _: SandboxId, _: RetireReason) {}

    fn report(&self) -> WorkerReport {
        WorkerReport {
            worker: self.0.clone(),
            memory_mb: 1 << 30,
            memory_used_mb: 0,
            slots: 1 << 20,
            slots_used: 0,
            starting: 0,
            draining: false,
        }
    }

    fn has_package(&self, _: &str) -> bool {
        true
    }
}
