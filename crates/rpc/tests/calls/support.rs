//! A worker and a manager of the test's, behind a server of the crate's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{
    AccountId, AssignError, AssignRequest, Clock, CodeRef, ConcurrencyLimits, FunctionArn, FunctionVersion, InitDone,
    InitRequest, InvokeOutcome, InvokeRequest, Lease, LogFormat, LogType, LoggingSettings, RequestId, RetireReason,
    SandboxId, SandboxState, SlotEvents, SlotPhase, SnapshotError, Step, SystemClock, Timeline, VersionKey, Worker,
    WorkerError, WorkerEvents, WorkerId, WorkerManager, WorkerReport,
};
use parking_lot::Mutex;
use rpc::{
    Channel, Channels, Claim, Credentials, ManagerServer, Member, RemoteWorker, Role, Server, Services, WorkerServer,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub fn id(n: u128) -> SandboxId {
    SandboxId(Uuid::from_u128(n))
}

pub fn version(name: &str) -> Arc<FunctionVersion> {
    let arn = FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: name.into() };
    Arc::new(FunctionVersion {
        key: VersionKey(format!("{name}:1").into()),
        account: AccountId::local(),
        region: "us-east-1".into(),
        name: name.into(),
        version: "1".into(),
        arn,
        runtime: "python3.12".into(),
        handler: "index.handler".into(),
        code: CodeRef { sha256: format!("sha-of-{name}"), size: 100, image: None },
        image_config: Default::default(),
        layers: Vec::new(),
        memory_mb: 128,
        timeout: Duration::from_secs(3),
        ephemeral_mb: 512,
        environment: BTreeMap::from([("STAGE".into(), "test".into())]),
        logging: LoggingSettings {
            format: LogFormat::Text,
            application_level: None,
            system_level: None,
            group: "/aws/lambda/f".into(),
        },
        tracing_active: false,
        snap_start: false,
    })
}

pub fn request(payload: impl Into<Bytes>) -> InvokeRequest {
    InvokeRequest {
        request_id: RequestId(Uuid::from_u128(9)),
        payload: payload.into(),
        invoked_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".into(),
        client_context: Some("{}".into()),
        trace_id: "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1".into(),
        log_type: LogType::Tail,
    }
}

/// A worker whose sandboxes are entries in a table; an invocation answers with its payload.
#[derive(Default)]
pub struct Bench {
    pub id: Option<WorkerId>,
    pub sandboxes: Mutex<HashMap<SandboxId, SandboxState>>,
    /// Invocations and Inits wait for a permit while there is something here.
    pub held: Mutex<Option<Arc<tokio::sync::Semaphore>>>,
    /// Told whenever an invocation or Init begins.
    pub began: Notify,
    pub events: Mutex<Option<Arc<dyn SlotEvents>>>,
    pub done: Mutex<Vec<String>>,
    pub error: Mutex<Option<WorkerError>>,
    pub draining: Mutex<bool>,
    pub packages: Mutex<HashSet<String>>,
    pub clock: SystemClock,
}

impl Bench {
    pub fn hold(&self) -> Arc<tokio::sync::Semaphore> {
        let held = Arc::new(tokio::sync::Semaphore::new(0));
        *self.held.lock() = Some(Arc::clone(&held));
        held
    }

    async fn held_up(&self) {
        let held = self.held.lock().clone();
        self.began.notify_one();
        if let Some(held) = held {
            held.acquire().await.unwrap().forget();
        }
    }

    fn phase(&self, sandbox: SandboxId, phase: SlotPhase) {
        if let Some(state) = self.sandboxes.lock().get_mut(&sandbox) {
            state.phase = phase;
        }
    }

    pub fn put(&self, sandbox: SandboxId, version: &Arc<FunctionVersion>) {
        let state = SandboxState { sandbox, version: Arc::clone(version), phase: SlotPhase::Idle };
        self.sandboxes.lock().insert(sandbox, state);
    }

    pub fn tell(&self, event: impl FnOnce(&dyn SlotEvents)) {
        event(self.events.lock().as_deref().unwrap());
    }
}

static NAMELESS: std::sync::LazyLock<WorkerId> = std::sync::LazyLock::new(|| WorkerId("worker-1".into()));

#[async_trait]
impl Worker for Bench {
    fn id(&self) -> &WorkerId {
        self.id.as_ref().unwrap_or(&NAMELESS)
    }

    async fn init(&self, request: InitRequest) -> Result<InitDone, WorkerError> {
        self.held_up().await;
        if let Some(error) = self.error.lock().clone() {
            return Err(error);
        }
        self.put(request.sandbox, &request.version);
        self.packages.lock().insert(request.version.code.sha256.clone());
        let mut timeline = Timeline::default();
        timeline.mark(Step::SandboxCreated, self.clock.monotonic());
        timeline.note(Step::InitDone, self.clock.monotonic(), "failed: no handler");
        Ok(InitDone { timeline })
    }

    async fn invoke(&self, sandbox: SandboxId, request: InvokeRequest) -> Result<InvokeOutcome, WorkerError> {
        if !self.sandboxes.lock().contains_key(&sandbox) {
            return Err(WorkerError::Gone(sandbox));
        }
        self.phase(sandbox, SlotPhase::Invoking);
        self.held_up().await;
        if let Some(error) = self.error.lock().clone() {
            return Err(error);
        }
        let mut timeline = Timeline::default();
        timeline.mark(Step::Invoked, self.clock.monotonic());
        self.phase(sandbox, SlotPhase::Idle);
        let tail = (request.log_type == LogType::Tail).then(|| Bytes::from_static(b"START\nEND\n"));
        let function_error = request.payload.starts_with(b"fail").then_some("Unhandled");
        Ok(InvokeOutcome { payload: request.payload, function_error, log_tail: tail, timeline })
    }

    async fn snapshot(&self, version: Arc<FunctionVersion>) -> Result<(), SnapshotError> {
        Err(SnapshotError::Init { kind: "Runtime.ExitError".into(), message: version.name.clone() })
    }

    async fn forget(&self, version: &VersionKey) -> Result<(), String> {
        self.done.lock().push(format!("forget {version}"));
        Err("the disk is read-only".into())
    }

    async fn shutdown(&self, sandbox: SandboxId, reason: RetireReason) {
        self.sandboxes.lock().remove(&sandbox);
        self.done.lock().push(format!("shutdown {reason:?}"));
        self.tell(|events| events.dead(sandbox, reason));
    }

    async fn invoking(&self, sandbox: SandboxId) -> bool {
        self.sandboxes.lock().get(&sandbox).is_some_and(|state| state.phase == SlotPhase::Invoking)
    }

    fn sandboxes(&self) -> Vec<SandboxState> {
        let mut all: Vec<_> = self.sandboxes.lock().values().cloned().collect();
        all.sort_by_key(|state| state.sandbox);
        all
    }

    fn drain(&self) {
        *self.draining.lock() = true;
    }

    fn report(&self) -> WorkerReport {
        let slots_used = self.sandboxes.lock().len() as u32;
        WorkerReport {
            worker: self.id().clone(),
            memory_mb: 1024,
            memory_used_mb: u64::from(slots_used) * 128,
            slots: 8,
            slots_used,
            starting: 0,
            draining: *self.draining.lock(),
        }
    }

    fn has_package(&self, sha256: &str) -> bool {
        self.packages.lock().contains(sha256)
    }

    fn packages(&self) -> Vec<String> {
        self.packages.lock().iter().cloned().collect()
    }
}

/// A manager that leases what the test gave it.
#[derive(Default)]
pub struct Desk {
    pub lease: Mutex<Option<(SandboxId, Arc<dyn Worker>)>>,
    pub refusal: Mutex<Option<AssignError>>,
    pub asked: Mutex<Vec<AssignRequest>>,
    pub held: Mutex<Option<Arc<tokio::sync::Semaphore>>>,
    pub began: Notify,
    pub released: Mutex<Vec<SandboxId>>,
    pub retired: Mutex<Vec<VersionKey>>,
    pub changed: Notify,
    pub clock: SystemClock,
}

#[async_trait]
impl WorkerManager for Desk {
    async fn assign(&self, request: AssignRequest) -> Result<Lease, AssignError> {
        self.asked.lock().push(request);
        self.began.notify_one();
        let held = self.held.lock().clone();
        if let Some(held) = held {
            held.acquire().await.unwrap().forget();
        }
        if let Some(refusal) = self.refusal.lock().take() {
            return Err(refusal);
        }
        let (sandbox, worker) = self.lease.lock().clone().unwrap();
        let mut timeline = Timeline::default();
        timeline.note(Step::Assigned, self.clock.monotonic(), "warm");
        Ok(Lease { sandbox, worker, cold: true, waited: false, manager: None, timeline })
    }

    fn release(&self, sandbox: SandboxId) {
        self.released.lock().push(sandbox);
        self.changed.notify_one();
    }

    fn retire(&self, version: &VersionKey) {
        self.retired.lock().push(version.clone());
        self.changed.notify_one();
    }
}

pub fn limits() -> ConcurrencyLimits {
    ConcurrencyLimits { unreserved: 900, reserved: Some(7) }
}

/// A server that runs until it is dropped or stopped.
pub struct Running {
    pub address: SocketAddr,
    pub stop: CancellationToken,
    pub serving: JoinHandle<()>,
}

impl Running {
    pub async fn start(services: Services, credentials: Option<Credentials>) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), services, credentials).await
    }

    pub async fn at(address: SocketAddr, services: Services, credentials: Option<Credentials>) -> Self {
        Self::of(Server::bind(address, credentials).await.unwrap(), services)
    }

    pub fn of(server: Server, services: Services) -> Self {
        let (address, stop) = (server.address(), CancellationToken::new());
        let serving = tokio::spawn(server.serve(services, stop.clone(), Duration::from_secs(5)));
        Self { address, stop, serving }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

pub fn channels() -> Channels {
    Channels::new(None, clock())
}

/// A worker behind a server, and the way to it.
pub struct Fixture {
    pub bench: Arc<Bench>,
    pub hub: WorkerServer,
    pub server: Running,
    pub channels: Channels,
}

pub fn served(bench: &Arc<Bench>) -> WorkerServer {
    let hub = WorkerServer::new(Arc::clone(bench) as Arc<dyn Worker>, clock());
    *bench.events.lock() = Some(Arc::new(hub.clone()));
    hub
}

pub async fn worker() -> Fixture {
    let bench = Arc::new(Bench::default());
    let hub = served(&bench);
    let services = Services { worker: Some(hub.clone()), ..rpc::Services::default() };
    Fixture { server: Running::start(services, None).await, bench, hub, channels: channels() }
}

impl Fixture {
    pub fn channel(&self) -> Channel {
        channel_to(&self.channels, self.server.address)
    }

    pub fn remote(&self) -> RemoteWorker {
        self.as_manager("manager-1")
    }

    pub fn as_manager(&self, manager: &str) -> RemoteWorker {
        RemoteWorker::new(WorkerId("worker-1".into()), self.channel(), manager.into())
    }
}

pub fn channel_to(channels: &Channels, address: SocketAddr) -> Channel {
    channels.channel(&address.to_string(), &Member::new(Role::Worker, "worker-1"))
}

pub async fn manager(desk: &Arc<Desk>) -> Running {
    let manager = ManagerServer::new(Arc::clone(desk) as Arc<dyn WorkerManager>, clock());
    Running::start(Services { manager: Some(manager), ..Services::default() }, None).await
}

pub fn claim(manager: &str, epoch: u64, managers: &[&str]) -> Claim {
    Claim { manager: manager.into(), epoch, managers: managers.iter().map(|m| Arc::from(*m)).collect() }
}

/// What a manager was told, in words.
#[derive(Default)]
pub struct Heard {
    words: Mutex<Vec<String>>,
    changed: Notify,
}

impl Heard {
    fn hear(&self, words: String) {
        self.words.lock().push(words);
        self.changed.notify_waiters();
    }

    pub fn all(&self) -> Vec<String> {
        self.words.lock().clone()
    }

    pub fn count(&self) -> usize {
        self.words.lock().len()
    }

    pub async fn wait_for(&self, words: &str) {
        let heard = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.words.lock().iter().any(|w| w == words) {
                    return;
                }
                changed.await;
            }
        };
        within(heard, &format!("{words:?} to be told")).await;
    }
}

impl SlotEvents for Heard {
    fn answered(&self, sandbox: SandboxId) {
        self.hear(format!("answered {}", sandbox.0.as_u128()));
    }

    fn idle(&self, sandbox: SandboxId) {
        self.hear(format!("idle {}", sandbox.0.as_u128()));
    }

    fn dead(&self, sandbox: SandboxId, reason: RetireReason) {
        self.hear(format!("dead {} {reason:?}", sandbox.0.as_u128()));
    }
}

impl WorkerEvents for Heard {
    fn claimed(&self, _: &WorkerId, mut sandboxes: Vec<SandboxState>) {
        sandboxes.sort_by_key(|state| state.sandbox);
        let states: Vec<String> =
            sandboxes.iter().map(|s| format!("{} {} {:?}", s.sandbox.0.as_u128(), s.version.name, s.phase)).collect();
        self.hear(format!("claimed [{}]", states.join(", ")));
    }

    fn adopted(&self, _: &WorkerId, sandbox: SandboxState) {
        self.hear(format!("adopted {} {:?}", sandbox.sandbox.0.as_u128(), sandbox.phase));
    }

    fn lost(&self, worker: &WorkerId) {
        self.hear(format!("lost {worker}"));
    }
}

/// Far above what anything here takes, also on a busy machine.
pub async fn within<T>(what: impl Future<Output = T>, words: &str) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.unwrap_or_else(|_| panic!("waited for {words}"))
}

pub async fn until(mut condition: impl FnMut() -> bool, words: &str) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within(holds, words).await;
}

/// A wire that can be cut.
pub struct Relay {
    pub address: SocketAddr,
    cut: CancellationToken,
    kill: CancellationToken,
}

impl Relay {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, kill) = (CancellationToken::new(), CancellationToken::new());
        let (cutting, killing) = (cut.clone(), kill.clone());
        tokio::spawn(async move {
            let carry_all = async {
                while let Ok((mut here, _)) = listener.accept().await {
                    let mut there = tokio::net::TcpStream::connect(to).await.unwrap();
                    let (cut, kill) = (cutting.clone(), killing.clone());
                    tokio::spawn(async move {
                        let carry = tokio::io::copy_bidirectional(&mut here, &mut there);
                        tokio::select! {
                            _ = carry => {}
                            () = kill.cancelled() => {}
                            // Both sockets stay open, and nobody reads them.
                            () = cut.cancelled() => kill.cancelled().await,
                        }
                    });
                }
            };
            killing.run_until_cancelled(carry_all).await;
        });
        Self { address, cut, kill }
    }

    pub fn cut(&self) {
        self.cut.cancel();
    }

    pub fn kill(&self) {
        self.kill.cancel();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}
