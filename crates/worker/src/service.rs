//! The worker itself: its sandboxes, by id.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use domain::{
    Clock, FunctionVersion, ImageRef, InitDone, InitRequest, InvokeOutcome, InvokeRequest, LogFormat, RetireReason,
    SandboxId, SandboxState, SlotEvents, SnapshotError, Step, Timeline, VersionKey, Worker, WorkerError, WorkerId,
    WorkerReport,
};
use parking_lot::{Mutex, RwLock};
use runtimes::RuntimeImage;
use sandbox::api::LINK_ADDRESS;
use sandbox::{Command, Mount, Process, Sandbox, SandboxEngine, SandboxSpec, Standby};
use time::OffsetDateTime;

use crate::api_server::{self, ApiServer};
use crate::config::Config;
use crate::env;
use crate::layers;
use crate::lines::Lines;
use crate::listener::Listener;
use crate::logs::{GroupId, LogStore, StreamId};
use crate::machine::{Begin, Held, Machine, Settings};
use crate::metrics::Metrics;
use crate::relay::{Endpoint, EndpointError};
use crate::slot::{Host, Programs, Slot};
use crate::slot_log::SlotLog;
use crate::snapshots::Snapshots;
use crate::sources::{Sources, entrypoint, external_extensions, runtime_of};
use crate::turns::Turns;

mod snap_start;

/// The sandboxes are found in one of so many maps, so that invocations of different ones do not meet at a lock.
const SHARDS: usize = 32;

/// How many snapshots are taken at the same time.
const SNAPSHOTS_AT_ONCE: usize = 2;

/// One host's sandboxes. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    host: Arc<Host>,
    engine: Arc<dyn SandboxEngine>,
    sources: Sources,
    endpoint: Option<Endpoint>,
    /// Or why there are none.
    snapshots: Result<Snapshots, String>,
    snapshotting: Turns,
    slots: Slots,
    /// Slots that are not among those yet, and their memory in MB.
    coming: Mutex<(u32, u64)>,
    starting: AtomicU32,
    draining: AtomicBool,
    /// As draining, and may end.
    cordoned: AtomicBool,
}

/// What a sandbox is made from.
struct Fetched {
    image: Arc<RuntimeImage>,
    /// `CMD` of a container image.
    command: Option<Vec<String>>,
    /// Where the runtime starts.
    directory: PathBuf,
    /// The unpacked package.
    task: Option<PathBuf>,
    /// It was on this host already.
    cached: bool,
    layers: Vec<(String, PathBuf)>,
}

/// The same, on this host.
struct Parts {
    image: Arc<RuntimeImage>,
    command: Option<Vec<String>>,
    directory: PathBuf,
    mounts: Vec<(PathBuf, String)>,
}

/// Where a sandbox comes from.
enum Origin {
    New(Begin),
    /// It was restored, with these processes in it.
    Kept(Held, Vec<Process>),
}

/// Slots by sandbox.
struct Slots([RwLock<HashMap<SandboxId, Arc<Slot>>>; SHARDS]);

impl Slots {
    fn shard(&self, id: SandboxId) -> &RwLock<HashMap<SandboxId, Arc<Slot>>> {
        // The low bits of an id are random. Truncation keeps them.
        &self.0[id.0.as_u128() as usize % SHARDS]
    }

    fn get(&self, id: SandboxId) -> Option<Arc<Slot>> {
        self.shard(id).read().get(&id).cloned()
    }

    fn all(&self) -> Vec<Arc<Slot>> {
        self.0.iter().flat_map(|shard| shard.read().values().cloned().collect::<Vec<_>>()).collect()
    }
}

/// Room for a sandbox that is being made, and is not among the slots yet.
struct Admitted {
    inner: Arc<Inner>,
    memory_mb: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut coming = self.inner.coming.lock();
        coming.0 -= 1;
        coming.1 -= self.memory_mb;
    }
}

impl Inner {
    /// Managers place by reports, which lag behind, and by what they have placed themselves: where there are several, two can
    /// find the same room.
    fn admit(self: &Arc<Self>, version: &FunctionVersion) -> Result<Admitted, WorkerError> {
        let Config { id, slots, memory_mb, .. } = &self.host.config;
        let mut coming = self.coming.lock();
        let (there, used) = self.used();
        let memory = u64::from(version.memory_mb);
        if there + coming.0 >= *slots || used + coming.1 + memory > *memory_mb {
            return Err(WorkerError::Full(id.clone()));
        }
        coming.0 += 1;
        coming.1 += memory;
        Ok(Admitted { inner: Arc::clone(self), memory_mb: memory })
    }

    /// Whether no new sandboxes are made.
    fn refuses(&self) -> bool {
        self.draining.load(Ordering::SeqCst) || self.cordoned.load(Ordering::SeqCst)
    }

    /// Slots, and their memory in MB.
    fn used(&self) -> (u32, u64) {
        let mut used = (0, 0);
        for shard in &self.slots.0 {
            for slot in shard.read().values() {
                used.0 += 1;
                used.1 += u64::from(slot.version().memory_mb);
            }
        }
        used
    }
}

/// Counts an Init under way.
struct StartingGuard<'a>(&'a AtomicU32);

impl Drop for StartingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    /// A worker without sandboxes. Refuses only an `endpoint_url` that is none.
    pub fn new(
        config: Config,
        engine: Arc<dyn SandboxEngine>,
        sources: Sources,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        logs: LogStore,
    ) -> Result<Self, EndpointError> {
        let endpoint = config.endpoint_url.as_deref().map(Endpoint::parse).transpose()?;
        let snapshots = snap_start::open(config.snapshots_dir.as_deref(), engine.as_ref());
        let host = Arc::new(Host { config, clock, events: OnceLock::new(), metrics, logs });
        let slots = Slots(std::array::from_fn(|_| RwLock::default()));
        Ok(Self(Arc::new(Inner {
            host,
            engine,
            sources,
            endpoint,
            snapshots,
            snapshotting: Turns::new(SNAPSHOTS_AT_ONCE),
            slots,
            coming: Mutex::default(),
            starting: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            cordoned: AtomicBool::new(false),
        })))
    }

    /// Names the manager that hears of the slots: after construction, as manager and worker refer to each other.
    /// Only the first call counts. The calls come under the lock of the slot concerned: they may wake whoever wants to
    /// use the slot, but must not call back into the worker themselves.
    pub fn connect(&self, events: Arc<dyn SlotEvents>) {
        // Set twice: the first stays, as documented.
        let _ = self.0.host.events.set(events);
    }

    /// Takes no new sandboxes while this is so; those that there are serve on.
    pub fn cordon(&self, cordoned: bool) {
        self.0.cordoned.store(cordoned, Ordering::SeqCst);
    }

    /// Graceful end: takes no new sandboxes, lets running invocations finish for `limit` at most, takes all
    /// sandboxes down. The engine is the caller's to stop.
    pub async fn stop(&self, limit: Duration) {
        self.0.draining.store(true, Ordering::SeqCst);
        // Snapshots that wait for their turn are taken after the next start.
        self.0.snapshotting.close();
        let finished = async {
            while self.0.starting.load(Ordering::SeqCst) > 0 || self.0.slots.all().iter().any(|slot| slot.is_busy()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(limit, finished).await.is_err() {
            tracing::warn!("invocations still run after the time that a stop waits for them; they are ended");
        }
        let mut shutdowns = tokio::task::JoinSet::new();
        for slot in self.0.slots.all() {
            shutdowns.spawn(async move { slot.shutdown(RetireReason::Spindown).await });
        }
        shutdowns.join_all().await;
        self.0.host.logs.flush().await;
    }
}

impl Inner {
    /// Makes the sandbox and the slot around it; removes that from `slots` again when it is gone.
    async fn create(
        self: &Arc<Self>,
        request: InitRequest,
        begin: Begin,
        timeline: &mut Timeline,
    ) -> Result<Arc<Slot>, WorkerError> {
        let InitRequest { sandbox: id, version } = request;
        let parts = self.parts(&version, timeline).await?;
        let mut spec = self.spec(id, &version, &parts);
        if begin == Begin::Snapshot {
            spec.standby = None;
        }
        let sandbox = self.engine.create(spec).await.map_err(|error| WorkerError::Sandbox(error.to_string()))?;
        let created = self.host.clock.monotonic();
        if sandbox.is_from_pool() {
            self.host.metrics.sandbox_from_pool();
            timeline.note(Step::SandboxCreated, created, "pool");
        } else {
            timeline.mark(Step::SandboxCreated, created);
        }
        self.assemble(version, parts, Origin::New(begin), sandbox.into())
    }

    /// Fetches what a sandbox is made from.
    async fn parts(&self, version: &FunctionVersion, timeline: &mut Timeline) -> Result<Parts, WorkerError> {
        let Fetched { image, command, directory, task, cached, layers } = match &version.code.image {
            Some(reference) => self.fetch_image(version, reference).await?,
            None => self.fetch(version).await?,
        };
        let note = if cached { "cache" } else { "storage" };
        timeline.note(Step::PackageFetched, self.host.clock.monotonic(), note);
        let mut mounts = image.mounts.clone();
        mounts.extend(task.map(|task| (task, "/var/task".into())));
        if let Some(opt) = layers::opt(&self.host.config.layers_dir, layers).await? {
            mounts.retain(|(_, target)| target != "/opt");
            mounts.push((opt, "/opt".into()));
        }
        Ok(Parts { image, command, directory, mounts })
    }

    /// A container image, in which all is, code and layers as well.
    async fn fetch_image(&self, version: &FunctionVersion, reference: &ImageRef) -> Result<Fetched, WorkerError> {
        let cached = self.sources.images.is_here(&reference.digest);
        let image = self.sources.images.image(reference).await?;
        let command = Some(image.command.clone());
        let (image, directory) = runtime_of(image, &version.image_config);
        Ok(Fetched { image: Arc::new(image), command, directory, task: None, cached, layers: Vec::new() })
    }

    /// Runtime, code and layers of a zip.
    async fn fetch(&self, version: &FunctionVersion) -> Result<Fetched, WorkerError> {
        let code = async {
            let task = self.sources.packages.unpacked(&version.code).await?;
            let mut layers = Vec::with_capacity(version.layers.len());
            for layer in &version.layers {
                layers.push((layer.sha256.clone(), self.sources.packages.unpacked(layer).await?.path));
            }
            Ok::<_, WorkerError>(((task.path, task.cached), layers))
        };
        let (image, (task, layers)) = tokio::try_join!(self.sources.runtimes.runtime(&version.runtime), code)?;
        let (task, cached) = task;
        Ok(Fetched { image, command: None, directory: "/var/task".into(), task: Some(task), cached, layers })
    }

    fn spec(&self, id: SandboxId, version: &FunctionVersion, Parts { image, mounts, .. }: &Parts) -> SandboxSpec {
        let name = self.endpoint.as_ref().and_then(Endpoint::host_name);
        SandboxSpec {
            id,
            root: image.root.clone(),
            mounts: mounts
                .iter()
                .map(|(source, target)| Mount { source: source.clone(), target: target.clone() })
                .collect(),
            memory_mb: version.memory_mb,
            vcpus: version.vcpus(),
            ephemeral_mb: version.ephemeral_mb,
            hosts: name.map(|name| (LINK_ADDRESS.into(), name.to_owned())).into_iter().collect(),
            listen: std::iter::once(api_server::PORT).chain(self.endpoint.as_ref().map(|e| e.port)).collect(),
            standby: standby(version, image),
        }
    }

    /// Puts a slot around a sandbox and starts the tasks that serve it.
    fn assemble(
        self: &Arc<Self>,
        version: Arc<FunctionVersion>,
        parts: Parts,
        origin: Origin,
        sandbox: Arc<dyn Sandbox>,
    ) -> Result<Arc<Slot>, WorkerError> {
        let Parts { image, command, directory: cwd, mounts } = parts;
        let id = sandbox.id();
        let begin = match origin {
            Origin::New(begin) => begin,
            Origin::Kept(..) => Begin::Snapshot,
        };
        let snap_start = begin == Begin::Snapshot;
        let config = &self.host.config;
        let listener = take_listener(sandbox.as_ref(), api_server::PORT)?;
        let api = listener.address(api_server::PORT);
        let events =
            sandbox.take_events().ok_or_else(|| WorkerError::Sandbox(format!("sandbox {id}: its events are taken")))?;
        let relay = match &self.endpoint {
            Some(endpoint) => Some((endpoint.clone(), take_listener(sandbox.as_ref(), endpoint.port)?)),
            None => None,
        };
        let endpoint_url = relay.as_ref().map(|(endpoint, listener)| endpoint.url(listener.address(endpoint.port)));

        let stream = self.stream_name(id, &version);
        let env = env::runtime(&env::Inputs {
            version: &version,
            image: &image,
            command: command.as_ref(),
            credentials: &config.credentials,
            api,
            log_stream: &stream,
            endpoint_url: endpoint_url.as_deref(),
            snap_start,
        });
        // In a container image its own entry point is who heeds this, or not.
        let wrapper = version.environment.get("AWS_LAMBDA_EXEC_WRAPPER").filter(|_| version.code.image.is_none());
        let wrapper = wrapper.map(String::as_str);
        let programs = Programs {
            extension_env: env::extension(&env),
            runtime: entrypoint(&image, &mounts, wrapper).map(|argv| Command { argv, env, cwd }),
        };
        let settings = Settings {
            begin,
            init_limit: match begin {
                Begin::OnDemand => config.init_limit,
                Begin::Snapshot => config.snapshot_init_limit.max(version.timeout),
            },
            restore_limit: config.restore_limit,
            timeout: version.timeout,
            freeze_after: config.freeze_after,
            extensions: external_extensions(&image, &mounts),
            internal_budget: config.internal_extension_budget,
            external_budget: config.external_extension_budget,
        };
        let (machine, running) = match origin {
            Origin::New(_) => (Machine::new(settings), Vec::new()),
            Origin::Kept(held, running) => (Machine::of(held, settings), running),
        };
        let group = GroupId {
            account: version.account.clone(),
            region: version.region.clone(),
            group: version.logging.group.clone(),
        };
        let log = SlotLog::new(self.host.logs.clone(), StreamId { group, stream });
        let lines = Lines::new(&version, &image, env::initialization(snap_start));
        let slot = Arc::new(Slot::new(version, Arc::clone(&self.host), sandbox, programs, lines, machine, log));
        self.slots.shard(id).write().insert(id, Arc::clone(&slot));

        let server = ApiServer::start(listener, Arc::clone(&slot));
        let inner = Arc::clone(self);
        let driven = Arc::clone(&slot);
        // The slot's own task: ends when the sandbox is gone, which `shutdown` and `stop` wait for.
        tokio::spawn(async move {
            let mut forwards = tokio::task::JoinSet::new();
            if let Some((endpoint, listener)) = relay {
                forwards.spawn(endpoint.forward(listener));
            }
            Arc::clone(&driven).drive(events, server, running).await;
            inner.slots.shard(id).write().remove(&id);
            driven.set_gone();
        });
        Ok(slot)
    }

    /// `YYYY/MM/DD/[version]` and 32 hex digits, which are the sandbox's id.
    fn stream_name(&self, id: SandboxId, version: &FunctionVersion) -> String {
        let date = OffsetDateTime::from(self.host.clock.wall()).date();
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        format!("{year:04}/{month:02}/{day:02}/[{}]{}", version.version, id.0.simple())
    }
}

/// What may run before the function is known; `None` if this function would see a difference: by variables or modules
/// that are read as the runtime starts. (That a package has modules of the same names as the client's, the client sees
/// itself, and starts again.)
fn standby(version: &FunctionVersion, image: &RuntimeImage) -> Option<Standby> {
    let eligible = image.standby
        && version.code.image.is_none()
        && version.layers.is_empty()
        && version.logging.format == LogFormat::Text
        && !version.environment.keys().any(|name| env::acts_on_start(name))
        && external_extensions(image, &image.mounts).is_empty();
    let argv = image.command(None).filter(|_| eligible)?;
    // The mounts of a sandbox begin with the image's.
    Some(Standby { command: Command { argv, env: env::standby(image), cwd: "/".into() }, mounts: image.mounts.len() })
}

fn take_listener(sandbox: &dyn Sandbox, port: u16) -> Result<Listener, WorkerError> {
    let id = sandbox.id();
    let listener = sandbox
        .take_listener(port)
        .ok_or_else(|| WorkerError::Sandbox(format!("sandbox {id} has no listener on port {port}")))?;
    Listener::new(listener)
        .map_err(|error| WorkerError::Sandbox(format!("listen on port {port} of sandbox {id}: {error}")))
}

#[async_trait]
impl Worker for Service {
    fn id(&self) -> &WorkerId {
        &self.0.host.config.id
    }

    async fn init(&self, request: InitRequest) -> Result<InitDone, WorkerError> {
        let inner = Arc::clone(&self.0);
        inner.starting.fetch_add(1, Ordering::SeqCst);
        let _starting = StartingGuard(&inner.starting);
        // After counting itself, so that `stop` either waits for this Init or is seen by it.
        if inner.refuses() {
            return Err(WorkerError::Stopping);
        }
        let id = request.sandbox;
        if request.version.snap_start
            && let Some(done) = inner.restore(&request).await?
        {
            return Ok(done);
        }
        let mut timeline = Timeline::default();
        let admitted = inner.host.config.shared.then(|| inner.admit(&request.version)).transpose()?;
        let slot = inner.create(request, Begin::OnDemand, &mut timeline).await?;
        // It counts by itself from here on.
        drop(admitted);
        let result = slot.start().await;
        let now = inner.host.clock.monotonic();
        if let Some(at) = slot.runtime_started() {
            timeline.mark(Step::RuntimeStarted, at);
        }
        match result {
            Ok(Ok(())) => timeline.mark(Step::InitDone, now),
            Ok(Err(_)) | Err(_) if slot.is_gone_or_going() => return Err(WorkerError::Gone(id)),
            Ok(Err(failure)) => timeline.note(Step::InitDone, now, failure.to_string()),
            Err(_) => return Err(WorkerError::Gone(id)),
        }
        Ok(InitDone { timeline })
    }

    async fn invoke(&self, sandbox: SandboxId, request: InvokeRequest) -> Result<InvokeOutcome, WorkerError> {
        let slot = self.0.slots.get(sandbox).ok_or(WorkerError::Gone(sandbox))?;
        // The sender is dropped without an answer only with the slot itself.
        slot.invoke(request)?.await.unwrap_or(Err(WorkerError::Gone(sandbox)))
    }

    async fn snapshot(&self, version: Arc<FunctionVersion>) -> Result<(), SnapshotError> {
        let inner = Arc::clone(&self.0);
        inner.starting.fetch_add(1, Ordering::SeqCst);
        let _starting = StartingGuard(&inner.starting);
        if inner.refuses() {
            return Err(WorkerError::Stopping.into());
        }
        inner.take_snapshot(version).await
    }

    async fn forget(&self, version: &VersionKey) -> Result<(), String> {
        self.0.forget(version).await
    }

    async fn shutdown(&self, sandbox: SandboxId, reason: RetireReason) {
        let slot = self.0.slots.get(sandbox);
        if let Some(slot) = slot {
            slot.shutdown(reason).await;
        }
    }

    async fn invoking(&self, sandbox: SandboxId) -> bool {
        self.0.slots.get(sandbox).is_some_and(|slot| slot.is_invoking())
    }

    fn sandboxes(&self) -> Vec<SandboxState> {
        let state = |slot: Arc<Slot>| {
            let version = Arc::clone(slot.version());
            slot.phase().map(|phase| SandboxState { sandbox: slot.id(), version, phase })
        };
        self.0.slots.all().into_iter().filter_map(state).collect()
    }

    fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    fn report(&self) -> WorkerReport {
        let config = &self.0.host.config;
        let (slots_used, memory_used_mb) = {
            // What is admitted counts, or others are placed where its slot will be.
            let coming = self.0.coming.lock();
            let (there, used) = self.0.used();
            (there + coming.0, used + coming.1)
        };
        WorkerReport {
            worker: config.id.clone(),
            memory_mb: config.memory_mb,
            memory_used_mb,
            slots: config.slots,
            slots_used,
            starting: self.0.starting.load(Ordering::Relaxed),
            draining: self.0.refuses(),
        }
    }

    fn has_package(&self, sha256: &str) -> bool {
        // An image's is in hexadecimal, a package's in base64: neither is taken for the other.
        self.0.sources.packages.is_unpacked(sha256) || self.0.sources.images.is_here(&format!("sha256:{sha256}"))
    }

    fn packages(&self) -> Vec<String> {
        let mut all = self.0.sources.packages.all();
        let images = self.0.sources.images.all();
        all.extend(images.iter().filter_map(|digest| digest.strip_prefix("sha256:")).map(str::to_owned));
        all
    }
}
