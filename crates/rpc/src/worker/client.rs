//! A worker in another process.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use domain::{
    FunctionVersion, InitDone, InitRequest, InvokeOutcome, InvokeRequest, PackageChanges, RetireReason, SandboxId,
    SnapshotError, VersionKey, Worker, WorkerError, WorkerEvents, WorkerId, WorkerObserver, WorkerReport, WorkerRoute,
};
use parking_lot::RwLock;
use tonic::{Response, Status};

use super::{Claim, observe, watch};
use crate::channel::Channel;
use crate::convert;
use crate::failure::Failure;
use crate::pb;
use crate::pb::worker_client::WorkerClient;

/// Of calls that only look something up.
const LIMIT: Duration = Duration::from_secs(10);
/// Of a shutdown: extensions have 2 s, what they leave is killed.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
/// Of an Init or a snapshot: as long as an invocation may take; most of it is the way of a package or image.
pub(crate) const INIT_LIMIT: Duration = Duration::from_secs(900);
/// Of an invocation: the longest timeout of a function.
const INVOKE_LIMIT: Duration = Duration::from_secs(900);
/// What the worker may take beyond a function's timeout: to end it, the tail of its log, and the way there and back.
const MARGIN: Duration = Duration::from_secs(30);

/// [`Worker`] over a connection. Cheap to clone: a lease has one of its own, with its epoch.
#[derive(Clone)]
pub struct RemoteWorker {
    shared: Arc<Shared>,
    epoch: u64,
    invoke_limit: Duration,
}

pub(super) struct Shared {
    pub(super) id: WorkerId,
    /// Who calls, as in claims.
    manager: Arc<str>,
    channel: Channel,
    pub(super) seen: RwLock<Seen>,
}

/// What the stream last said.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) report: Option<WorkerReport>,
    pub(super) packages: HashSet<String>,
}

impl Seen {
    /// Takes a report in, and says what it has changed. A stream's `first` report names all packages; what an earlier stream said
    /// may be gone since.
    pub(super) fn reported(
        &mut self,
        id: &WorkerId,
        message: pb::Report,
        first: bool,
    ) -> (WorkerReport, PackageChanges) {
        let report = convert::report(id, &message);
        self.report = Some(report.clone());
        let (added, mut removed) = (message.packages_added, message.packages_removed);
        if first {
            let named: HashSet<&String> = added.iter().collect();
            removed.extend(self.packages.iter().filter(|package| !named.contains(package)).cloned());
        }
        removed.iter().for_each(|package| {
            self.packages.remove(package);
        });
        self.packages.extend(added.iter().cloned());
        (report, PackageChanges { added, removed })
    }
}

impl RemoteWorker {
    /// For a manager with this id: to be watched, and to make sandboxes on.
    pub fn new(id: WorkerId, channel: Channel, manager: Arc<str>) -> Self {
        let shared = Arc::new(Shared { id, manager, channel, seen: RwLock::default() });
        Self { shared, epoch: 0, invoke_limit: INVOKE_LIMIT + MARGIN }
    }

    /// For a frontend with a lease: to invoke on.
    pub(crate) fn leased(id: WorkerId, channel: Channel, epoch: u64, timeout: Duration) -> Self {
        let worker = Self::new(id, channel, "".into());
        Self { epoch, invoke_limit: timeout + MARGIN, ..worker }
    }

    /// The same worker, called in the name of a view with this epoch.
    pub fn at_epoch(&self, epoch: u64) -> Self {
        Self { epoch, ..self.clone() }
    }

    /// Claims the worker's sandboxes and tells `events` of them. Never ends: the stream is made again whenever it breaks, at first at once,
    /// then with more and more time in between, up to 2 s. Drop the future to end it, e.g. for a new claim: one claim at a time; nothing is
    /// told of that.
    ///
    /// Until the worker was heard, [`Worker::report`] says that it drains.
    pub async fn watch(&self, claim: Claim, events: Arc<dyn WorkerEvents>) {
        watch::run(self, &claim, events.as_ref()).await;
    }

    /// Tells `observer` of the worker and its sandboxes. Never ends: the stream is made again whenever it breaks, as that of [`Self::watch`].
    /// Drop the future to end it; nothing is told of that.
    pub async fn observe(&self, observer: Arc<dyn WorkerObserver>) {
        observe::run(self, observer.as_ref()).await;
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn client(&self) -> WorkerClient<Channel> {
        WorkerClient::with_origin(self.shared.channel.clone(), crate::channel::origin())
            .max_decoding_message_size(crate::MAX_MESSAGE)
            .max_encoding_message_size(crate::MAX_MESSAGE)
    }

    async fn call<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, WorkerError> {
        let failure = match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => Failure::of_status(&status),
            Err(_) => Failure::unknown(format!("no answer within {limit:?}")),
        };
        let Failure { cause, unsent } = failure;
        Err(WorkerError::Unreachable { worker: self.shared.id.clone(), cause, unsent })
    }
}

#[async_trait]
impl Worker for RemoteWorker {
    fn id(&self) -> &WorkerId {
        &self.shared.id
    }

    async fn init(&self, request: InitRequest) -> Result<InitDone, WorkerError> {
        let message = pb::InitRequest {
            sandbox: convert::sandbox_bytes(request.sandbox),
            version: convert::version_bytes(&request.version),
            manager: self.shared.manager.to_string(),
            epoch: self.epoch,
        };
        let answer = self.call(INIT_LIMIT + MARGIN, self.client().init(message)).await?;
        match answer.fault {
            Some(fault) => Err(convert::worker_error(fault)),
            None => {
                Ok(InitDone { timeline: convert::timeline(answer.timeline, self.shared.channel.clock().monotonic()) })
            }
        }
    }

    async fn invoke(&self, sandbox: SandboxId, request: InvokeRequest) -> Result<InvokeOutcome, WorkerError> {
        let bytes = request.payload.len();
        if bytes > crate::MAX_PAYLOAD {
            let limit = crate::MAX_PAYLOAD;
            return Err(WorkerError::Sandbox(format!("the payload has {bytes} bytes; {limit} go between roles")));
        }
        let message = convert::invoke_message(sandbox, self.epoch, request);
        let mut answer = self.call(self.invoke_limit, self.client().invoke(message)).await?;
        match answer.fault.take() {
            Some(fault) => Err(convert::worker_error(fault)),
            None => Ok(convert::invoke_outcome(answer, self.shared.channel.clock().monotonic())),
        }
    }

    async fn snapshot(&self, version: Arc<FunctionVersion>) -> Result<(), SnapshotError> {
        let message = pb::SnapshotRequest { version: convert::version_bytes(&version) };
        convert::snapshot_error(self.call(INIT_LIMIT + MARGIN, self.client().snapshot(message)).await?)
    }

    async fn forget(&self, version: &VersionKey) -> Result<(), String> {
        let message = pb::ForgetRequest { version_key: version.to_string() };
        let answer =
            self.call(SHUTDOWN_LIMIT, self.client().forget(message)).await.map_err(|error| error.to_string())?;
        answer.error.map_or(Ok(()), Err)
    }

    /// Returns also where the worker could not be told: a sandbox that lives on is in its next list.
    async fn shutdown(&self, sandbox: SandboxId, reason: RetireReason) {
        let message = pb::ShutdownRequest {
            sandbox: convert::sandbox_bytes(sandbox),
            reason: convert::reason_word(reason).to_owned(),
            epoch: self.epoch,
        };
        if let Err(error) = self.call(SHUTDOWN_LIMIT, self.client().shutdown(message)).await {
            tracing::warn!(%sandbox, %error, "cannot shut a sandbox down");
        }
    }

    async fn invoking(&self, sandbox: SandboxId) -> bool {
        let message = pb::InvokingRequest { sandbox: convert::sandbox_bytes(sandbox) };
        self.call(LIMIT, self.client().invoking(message)).await.map_or(true, |answer| answer.invoking)
    }

    /// Goes on in the background, once: a worker that cannot be told is none that sandboxes are placed on.
    fn drain(&self) {
        let worker = self.clone();
        tokio::spawn(async move {
            if let Err(error) = worker.call(LIMIT, worker.client().drain(pb::DrainRequest {})).await {
                tracing::warn!(%error, "cannot tell a worker to take no new sandboxes; tell it again");
            }
        });
    }

    fn report(&self) -> WorkerReport {
        let nothing = || WorkerReport {
            worker: self.shared.id.clone(),
            memory_mb: 0,
            memory_used_mb: 0,
            slots: 0,
            slots_used: 0,
            starting: 0,
            draining: true,
        };
        self.shared.seen.read().report.clone().unwrap_or_else(nothing)
    }

    fn has_package(&self, sha256: &str) -> bool {
        self.shared.seen.read().packages.contains(sha256)
    }

    fn packages(&self) -> Vec<String> {
        self.shared.seen.read().packages.iter().cloned().collect()
    }

    fn route(&self) -> Option<WorkerRoute> {
        Some(WorkerRoute { address: Arc::clone(self.shared.channel.address()), epoch: self.epoch })
    }
}
