//! Stand-ins for the control plane, worker manager, worker, packages and logs. What happens follows from the name of
//! the function.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{
    AccountId, AssignError, AssignRequest, Clock, CodeRef, ConcurrencyLimits, FunctionArn, FunctionVersion, InitDone,
    InitRequest, InvokeOutcome, InvokeRequest, Lease, LogFormat, LogType, LoggingSettings, RequestId, RetireReason,
    SandboxId, Step, SystemClock, ThrottleReason, Timeline, VersionKey, Worker, WorkerError, WorkerId, WorkerManager,
    WorkerReport,
};
use frontend::ports::{
    Call, Code, Event, EventStats, EventTimeline, Events, Functions, LogEvent, LogGroup, LogPage, LogQuery, LogStream,
    Logs, LogsError, NotAccepted, Sqs, Target,
};
use frontend::sync_path::SyncPath;
use frontend::{CodeUrlKey, Config, Deps, Identity, Listener, Metrics, Server};
use http::Response;
use lambda_api::{ApiError, ErrorCode, OperationId};
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// SHA-256 of nothing, as the API writes it: the package of every function.
pub const SHA: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// What tests look at.
#[derive(Default)]
pub struct State {
    /// Requests that reached a function.
    pub invoked: Mutex<Vec<InvokeRequest>>,
    /// Who asked for management operations.
    pub callers: Mutex<Vec<Identity>>,
    /// Events that were put on the queue.
    pub events: Mutex<Vec<Event>>,
    pub assigned: AtomicUsize,
    /// Invocations of `slow` that ended.
    pub finished: AtomicUsize,
    /// Lets an invocation of `slow` go on.
    pub proceed: Notify,
}

impl State {
    pub fn last(&self) -> InvokeRequest {
        self.invoked.lock().unwrap().last().expect("an invocation").clone()
    }
}

/// A running server.
pub struct Running {
    pub address: SocketAddr,
    pub state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<()>,
}

impl Running {
    pub fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }
}

pub fn config() -> Config {
    Config::local("127.0.0.1:0".parse().unwrap(), CodeUrlKey([7; 32]))
}

pub async fn start() -> Running {
    start_with(config()).await
}

pub async fn start_with(config: Config) -> Running {
    let state = Arc::new(State::default());
    let listener = Listener::bind(config).await.unwrap();
    let address = listener.local_addr();
    let server = Server::new(listener, deps(&state));
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    Running { address, state, stop: Some(stop), task }
}

pub fn deps(state: &Arc<State>) -> Deps {
    let mut registry = Registry::with_prefix("emberbox");
    let metrics = Metrics::register(&mut registry);
    let parts = Arc::new(Parts { state: Arc::clone(state), id: WorkerId("w".into()) });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    Deps {
        functions: Arc::clone(&parts) as _,
        sync_path: SyncPath::new(Arc::clone(&parts) as _, Arc::clone(&clock), metrics.clone()),
        events: Arc::clone(&parts) as _,
        code: Arc::clone(&parts) as _,
        sqs: Arc::clone(&parts) as _,
        logs: parts,
        clock,
        metrics,
        registry: Arc::new(registry),
    }
}

/// Every part at once.
pub struct Parts {
    state: Arc<State>,
    id: WorkerId,
}

/// One worker for each assignment, which knows the function.
struct FakeWorker {
    state: Arc<State>,
    id: WorkerId,
    function: String,
}

#[async_trait]
impl Functions for Parts {
    fn resolve(&self, caller: &Identity, name: &str, qualifier: Option<&str>, random: f64) -> Result<Target, ApiError> {
        assert!((0.0..1.0).contains(&random));
        let arn = FunctionArn { region: caller.region.clone(), account: caller.account.clone(), name: name.into() };
        if name == "missing" {
            return Err(ApiError::new(ErrorCode::ResourceNotFoundException, format!("Function not found: {arn}")));
        }
        let version = FunctionVersion {
            key: VersionKey(name.into()),
            account: caller.account.clone(),
            region: caller.region.to_string(),
            name: name.to_owned(),
            version: qualifier.unwrap_or("$LATEST").to_owned(),
            arn: arn.clone(),
            runtime: "provided.al2023".into(),
            handler: String::new(),
            code: CodeRef { sha256: SHA.into(), size: 0, image: None },
            image_config: Default::default(),
            layers: vec![],
            memory_mb: 128,
            timeout: Duration::from_secs(3),
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
        Ok(Target {
            version: Arc::new(version),
            invoked_arn: qualifier.map_or_else(|| arn.to_string(), |q| arn.qualified(q)),
            limits: ConcurrencyLimits { unreserved: 1000, reserved: None },
            recursion_allowed: name == "loops",
        })
    }

    async fn manage(&self, call: Call<'_>) -> Option<Result<Response<Bytes>, ApiError>> {
        self.state.callers.lock().unwrap().push(call.caller.clone());
        match call.routed.operation {
            OperationId::GetFunction => Some(Ok(Response::new((call.code_url)(SHA).unwrap().into()))),
            OperationId::CreateFunction | OperationId::ListFunctions => Some(Ok(Response::new("{}".into()))),
            _ => None,
        }
    }
}

#[async_trait]
impl WorkerManager for Parts {
    async fn assign(&self, request: AssignRequest) -> Result<Lease, AssignError> {
        self.state.assigned.fetch_add(1, Ordering::SeqCst);
        let function = request.version.name.clone();
        match &*function {
            "throttled" => return Err(AssignError::Throttled(ThrottleReason::Reserved)),
            "full" => return Err(AssignError::NoCapacity("4 of 4 slots are busy".into())),
            "damaged" => return Err(AssignError::Worker(WorkerError::Package("checksum".into()))),
            "unrestored" => {
                return Err(AssignError::Worker(WorkerError::Restore("Runtime.AfterRestoreError: no".into())));
            }
            "late" => return Err(AssignError::Worker(WorkerError::RestoreTimeout("10 s".into()))),
            _ => {}
        }
        let mut timeline = Timeline::default();
        timeline.note(Step::Assigned, Duration::from_secs(3600), "warm");
        Ok(Lease {
            sandbox: SandboxId(Uuid::new_v4()),
            worker: Arc::new(FakeWorker { state: Arc::clone(&self.state), id: self.id.clone(), function }),
            cold: false,
            waited: false,
            manager: None,
            timeline,
        })
    }

    fn release(&self, _: SandboxId) {}

    fn retire(&self, _: &VersionKey) {}
}

#[async_trait]
impl Worker for FakeWorker {
    fn id(&self) -> &WorkerId {
        &self.id
    }

    async fn init(&self, _: InitRequest) -> Result<InitDone, WorkerError> {
        Ok(InitDone { timeline: Timeline::default() })
    }

    async fn invoke(&self, sandbox: SandboxId, request: InvokeRequest) -> Result<InvokeOutcome, WorkerError> {
        let attempt = self.state.assigned.load(Ordering::SeqCst);
        match &*self.function {
            "gone" => return Err(WorkerError::Gone(sandbox)),
            "flaky" if attempt < 3 => return Err(WorkerError::Gone(sandbox)),
            "broken" => return Err(WorkerError::Sandbox("mount: no space left".into())),
            "panics" => panic!("a bug in the worker"),
            _ => {}
        }
        self.state.invoked.lock().unwrap().push(request.clone());
        if self.function == "slow" {
            self.state.proceed.notified().await;
            self.state.finished.fetch_add(1, Ordering::SeqCst);
        }
        let mut timeline = Timeline::default();
        timeline.mark(Step::Answered, Duration::from_secs(3601));
        Ok(InvokeOutcome {
            payload: request.payload,
            function_error: (self.function == "fails").then_some("Unhandled"),
            log_tail: (request.log_type == LogType::Tail).then(|| Bytes::from_static(b"START\nEND\n")),
            timeline,
        })
    }

    async fn shutdown(&self, _: SandboxId, _: RetireReason) {}

    fn report(&self) -> WorkerReport {
        unreachable!("the Frontend asks for no reports")
    }

    fn has_package(&self, _: &str) -> bool {
        unreachable!("the Frontend asks for no packages")
    }
}

/// The disk is full for the events of `undurable`, and the queue takes no large ones of `small`.
#[async_trait]
impl Events for Parts {
    async fn accept(&self, event: Event) -> Result<(), NotAccepted> {
        if *event.function.name == *"undurable" {
            return Err(NotAccepted::Failed("write events.db: disk full".into()));
        }
        if *event.function.name == *"small" && event.payload.len() > 10 {
            return Err(NotAccepted::TooLarge(10));
        }
        self.state.events.lock().unwrap().push(event);
        Ok(())
    }

    async fn stats(&self, function: &FunctionArn) -> Result<EventStats, String> {
        let events = self.state.events.lock().unwrap();
        let depth = events.iter().filter(|event| event.function == *function).count() as u64;
        Ok(EventStats { depth, oldest_age_ms: Some(1500), ..EventStats::default() })
    }

    fn timeline(&self, function: &FunctionArn, request_id: RequestId) -> Option<EventTimeline> {
        let events = self.state.events.lock().unwrap();
        let event = events.iter().find(|event| event.function == *function && event.request_id == request_id)?;
        event.timeline.then(|| EventTimeline { json: "[]".into(), attempts: 1, settled: true })
    }
}

/// Says what it was asked.
#[async_trait]
impl Sqs for Parts {
    fn label(&self, target: &str) -> &'static str {
        if target == "AmazonSQS.ListQueues" { "ListQueues" } else { "SQS" }
    }

    async fn answer(
        &self,
        caller: &Identity,
        endpoint: &str,
        target: &str,
        _: Option<&str>,
        body: Bytes,
    ) -> Response<Bytes> {
        let asked = format!("{} {} {endpoint} {target} {}", caller.account, caller.region, body.len());
        Response::new(asked.into())
    }
}

#[async_trait]
impl Code for Parts {
    async fn zip(&self, sha256_base64: &str) -> Result<Option<Bytes>, String> {
        Ok((sha256_base64 == SHA).then(|| Bytes::from_static(b"PK\x05\x06")))
    }
}

/// Ten events in two streams of `/aws/lambda/f`, a second apart.
#[async_trait]
impl Logs for Parts {
    async fn groups(&self, account: &AccountId, _: &str) -> Result<Vec<String>, LogsError> {
        Ok(match account.as_str() {
            "000000000000" => vec!["/aws/lambda/f".into(), "/aws/lambda/g".into(), "other".into()],
            _ => vec![],
        })
    }

    async fn streams(&self, _: &LogGroup) -> Result<Vec<LogStream>, LogsError> {
        let stream = |name: &str, last| LogStream { name: name.into(), first: 1, last, bytes: 10 };
        Ok(vec![stream("a", 9000), stream("b", 8000)])
    }

    async fn events(&self, _: &LogGroup, query: LogQuery) -> Result<LogPage, LogsError> {
        let place = |text: Option<String>, default| text.map_or(Ok(default), |text| text.parse::<u64>());
        let from = place(query.from, 0).map_err(|_| LogsError::Token)?;
        let until = place(query.until, 10).map_err(|_| LogsError::Token)?;
        let all = (from..until).map(|i| LogEvent {
            id: format!("{i:03}"),
            stream: if i % 2 == 0 { "b" } else { "a" }.into(),
            timestamp: i * 1000,
            message: format!("line {i}"),
        });
        let mut wanted = all.filter(|event| {
            (query.streams.is_empty() || query.streams.contains(&event.stream))
                && query.start.is_none_or(|start| event.timestamp >= start)
                && query.end.is_none_or(|end| event.timestamp < end)
        });
        let events: Vec<_> = wanted.by_ref().take(query.limit).collect();
        let next = wanted.next().map(|event| event.id);
        Ok(LogPage { events, more: next.is_some(), next: next.unwrap_or_else(|| "010".into()) })
    }
}
