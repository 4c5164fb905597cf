//! The worker's side: its calls, and the streams of what becomes of its sandboxes.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use domain::{
    Clock, FunctionVersion, InitRequest, RetireReason, SandboxId, SandboxState, SlotEvents, SlotPhase, VersionKey,
    Worker, WorkerError,
};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::Claim;
use super::hub::{Event, Hub, QUEUE};
use super::observe::Observing;
use super::stream::Watching;
use crate::access::is_manager;
use crate::convert;
use crate::pb;

/// How old the list of packages may be: what is removed from a host is told after this time at the latest.
const PACKAGES_AGE: Duration = Duration::from_secs(10);

/// Serves a worker to managers and frontends. It is also the worker's [`SlotEvents`], and passes them on to the managers' streams.
///
/// Between `Worker::sandboxes` and the first event of a stream nothing is lost: the stream is there before the list is made. An event
/// from the moment in between is told after a list that knows it already. Leases of other managers have been refused since before
/// that moment, so that such an event is a repetition and never the end of an invocation that the stream's manager has begun later,
/// unless that began within this moment too; what a manager then does wrong ends in [`WorkerError::Busy`].
#[derive(Clone)]
pub struct WorkerServer(Arc<Inner>);

pub(super) struct Inner {
    worker: Arc<dyn Worker>,
    clock: Arc<dyn Clock>,
    /// Held for a moment only, also on the invoke path. Never while the worker is called: it calls back under its own locks.
    hub: Mutex<Hub>,
    /// Told whenever the worker's report is another.
    changed: watch::Sender<()>,
    /// The streams of those who only observe end.
    ended: CancellationToken,
    packages: Mutex<Packages>,
}

struct Packages {
    known: Arc<BTreeSet<String>>,
    listed: Option<Instant>,
}

impl WorkerServer {
    /// Of `worker`, whose `SlotEvents` it has to be made; `clock` is the one of its timelines.
    pub fn new(worker: Arc<dyn Worker>, clock: Arc<dyn Clock>) -> Self {
        let packages = Packages { known: Arc::default(), listed: None };
        let (hub, packages) = (Mutex::default(), Mutex::new(packages));
        let (changed, ended) = (watch::Sender::new(()), CancellationToken::new());
        Self(Arc::new(Inner { worker, clock, hub, changed, ended, packages }))
    }

    /// Ends every stream: the worker stops.
    pub fn end_streams(&self) {
        self.0.hub.lock().end_all();
        self.0.ended.cancel();
    }

    /// The worker's report is another for a reason that did not come through here: streams tell it at once.
    pub fn report_changed(&self) {
        self.0.changed.send_replace(());
    }

    fn watch(&self, claim: Claim) -> Result<Watching, Status> {
        let inner = &self.0;
        let claim = Arc::new(claim);
        let (queue, events) = mpsc::channel(QUEUE);
        let there = inner.worker.sandboxes();
        let number = inner.hub.lock().claim(&claim, &there, queue).map_err(|newer| {
            let Claim { manager, epoch, .. } = claim.as_ref();
            Status::failed_precondition(format!(
                "{manager} has claimed with epoch {newer} since, which is after {epoch}"
            ))
        })?;
        let states = inner.worker.sandboxes();
        let own: Vec<SandboxState> = {
            let mut hub = inner.hub.lock();
            hub.reconcile(&there, &states);
            states.into_iter().filter(|state| hub.is_covered(number, state.sandbox)).collect()
        };
        Ok(Watching::new(Arc::clone(inner), number, &own, events))
    }
}

impl Inner {
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Ready when streams are to end.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.ended.clone().cancelled_owned()
    }

    /// Every sandbox, and whether its Init is under way.
    pub(super) fn sandboxes(&self) -> HashMap<SandboxId, (Arc<FunctionVersion>, bool)> {
        let hub = self.hub.lock();
        hub.all().map(|(id, version, starting)| (id, (Arc::clone(version), starting))).collect()
    }

    /// How the worker is, for a stream that has told of the packages `told`, and now tells of the others.
    pub(super) async fn report(self: &Arc<Self>, told: &mut Arc<BTreeSet<String>>) -> pb::Report {
        let packages = self.packages().await;
        let added = packages.difference(told).cloned().collect();
        let removed = told.difference(&packages).cloned().collect();
        *told = packages;
        convert::report_message(&self.worker.report(), added, removed)
    }

    pub(super) fn end(&self, number: u64) {
        self.hub.lock().end(number);
    }

    /// Packages and images on this host.
    async fn packages(self: &Arc<Self>) -> Arc<BTreeSet<String>> {
        {
            let mut packages = self.packages.lock();
            if packages.listed.is_some_and(|at| at.elapsed() < PACKAGES_AGE) {
                return Arc::clone(&packages.known);
            }
            // Now, so that other streams do not list them too.
            packages.listed = Some(Instant::now());
        }
        let worker = Arc::clone(&self.worker);
        let listed = if worker.packages_are_at_hand() {
            Ok(worker.packages())
        } else {
            tokio::task::spawn_blocking(move || worker.packages()).await
        };
        if let Ok(listed) = listed {
            self.packages.lock().known = Arc::new(listed.into_iter().collect());
        }
        Arc::clone(&self.packages.lock().known)
    }

    fn has(&self, version: &FunctionVersion) {
        let mut packages = self.packages.lock();
        for code in std::iter::once(&version.code).chain(&version.layers) {
            if !packages.known.contains(&code.sha256) {
                Arc::make_mut(&mut packages.known).insert(code.sha256.clone());
            }
        }
    }

    /// Runs to its end, whatever becomes of the caller.
    async fn init(&self, asker: &Asker, request: InitRequest) -> Result<pb::InitAnswer, WorkerError> {
        let (sandbox, version) = (request.sandbox, Arc::clone(&request.version));
        let done = self.worker.init(request).await;
        if done.is_ok() {
            self.has(&version);
            self.hub.lock().made(&SandboxState { sandbox, version, phase: SlotPhase::Idle }, asker.waits());
        } else {
            self.hub.lock().not_made(sandbox, asker.waits());
        }
        self.changed.send_replace(());
        done.map(|done| pb::InitAnswer {
            fault: None,
            timeline: convert::marks(&done.timeline, self.clock.monotonic()),
        })
    }
}

/// Who waits for an Init, as long as it does.
struct Asker {
    manager: String,
    answer: tokio::sync::oneshot::Sender<Result<pb::InitAnswer, WorkerError>>,
}

impl Asker {
    fn waits(&self) -> Option<&str> {
        (!self.answer.is_closed()).then_some(&*self.manager)
    }
}

impl SlotEvents for WorkerServer {
    fn answered(&self, sandbox: SandboxId) {
        self.0.hub.lock().happened(&Event::Answered(sandbox));
    }

    fn idle(&self, sandbox: SandboxId) {
        self.0.hub.lock().happened(&Event::Idle(sandbox));
    }

    fn dead(&self, sandbox: SandboxId, reason: RetireReason) {
        self.0.hub.lock().happened(&Event::Dead(sandbox, reason));
        self.0.changed.send_replace(());
    }
}

#[async_trait::async_trait]
impl pb::worker_server::Worker for WorkerServer {
    async fn init(&self, request: Request<pb::InitRequest>) -> Result<Response<pb::InitAnswer>, Status> {
        is_manager(&request, &request.get_ref().manager)?;
        let message = request.into_inner();
        let sandbox = convert::sandbox(&message.sandbox)?;
        let version = convert::version(&message.version)?;
        let fault = |error: WorkerError| pb::InitAnswer { fault: Some(convert::fault(&error)), timeline: Vec::new() };
        if !self.0.hub.lock().init(sandbox, &version, message.epoch) {
            return Ok(Response::new(fault(WorkerError::Gone(sandbox))));
        }
        self.0.changed.send_replace(());
        let (answer, wait) = tokio::sync::oneshot::channel();
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            let asker = Asker { manager: message.manager, answer };
            let done = inner.init(&asker, InitRequest { sandbox, version }).await;
            let _ = asker.answer.send(done);
        });
        let done = wait.await.map_err(|_| Status::internal("the Init broke off; the worker's log has more"))?;
        Ok(Response::new(done.unwrap_or_else(fault)))
    }

    async fn invoke(&self, request: Request<pb::InvokeRequest>) -> Result<Response<pb::InvokeAnswer>, Status> {
        let message = request.into_inner();
        let sandbox = convert::sandbox(&message.sandbox)?;
        let outcome = if self.0.hub.lock().admits(sandbox, message.epoch) {
            self.0.worker.invoke(sandbox, convert::invoke_request(message)?).await
        } else {
            Err(WorkerError::Gone(sandbox))
        };
        let outcome = outcome.and_then(|outcome| match outcome.payload.len() {
            0..=crate::MAX_PAYLOAD => Ok(outcome),
            n => {
                Err(WorkerError::Sandbox(format!("the answer has {n} bytes; {} go between roles", crate::MAX_PAYLOAD)))
            }
        });
        let answer = outcome.map(|outcome| convert::invoke_answer(outcome, self.0.clock.monotonic()));
        let fault = |error| pb::InvokeAnswer { fault: Some(convert::fault(&error)), ..Default::default() };
        Ok(Response::new(answer.unwrap_or_else(fault)))
    }

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<pb::SnapshotAnswer>, Status> {
        let version = convert::version(&request.get_ref().version)?;
        let worker = Arc::clone(&self.0.worker);
        let result = to_the_end(async move { worker.snapshot(version).await }).await?;
        Ok(Response::new(convert::snapshot_answer(result)))
    }

    async fn forget(&self, request: Request<pb::ForgetRequest>) -> Result<Response<pb::ForgetAnswer>, Status> {
        let key = VersionKey(request.into_inner().version_key.into());
        let worker = Arc::clone(&self.0.worker);
        let result = to_the_end(async move { worker.forget(&key).await }).await?;
        Ok(Response::new(pb::ForgetAnswer { error: result.err() }))
    }

    async fn shutdown(&self, request: Request<pb::ShutdownRequest>) -> Result<Response<pb::ShutdownAnswer>, Status> {
        let message = request.into_inner();
        let sandbox = convert::sandbox(&message.sandbox)?;
        let reason = convert::reason(&message.reason);
        // Another manager's by now: it may have an invocation in it.
        if self.0.hub.lock().admits(sandbox, message.epoch) {
            let inner = Arc::clone(&self.0);
            to_the_end(async move {
                inner.worker.shutdown(sandbox, reason).await;
                inner.hub.lock().forget(sandbox);
                inner.changed.send_replace(());
            })
            .await?;
        }
        Ok(Response::new(pb::ShutdownAnswer {}))
    }

    async fn invoking(&self, request: Request<pb::InvokingRequest>) -> Result<Response<pb::InvokingAnswer>, Status> {
        let sandbox = convert::sandbox(&request.get_ref().sandbox)?;
        Ok(Response::new(pb::InvokingAnswer { invoking: self.0.worker.invoking(sandbox).await }))
    }

    async fn drain(&self, _: Request<pb::DrainRequest>) -> Result<Response<pb::DrainAnswer>, Status> {
        self.0.worker.drain();
        self.0.changed.send_replace(());
        Ok(Response::new(pb::DrainAnswer {}))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::Told, Status>> + Send>>;

    async fn watch(&self, request: Request<pb::Claim>) -> Result<Response<Self::WatchStream>, Status> {
        is_manager(&request, &request.get_ref().manager)?;
        let message = request.into_inner();
        let managers: Vec<Arc<str>> = message.managers.into_iter().map(Into::into).collect();
        let claim = Claim { manager: message.manager.into(), epoch: message.epoch, managers };
        Ok(Response::new(Box::pin(self.watch(claim)?.stream())))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<pb::Observed, Status>> + Send>>;

    async fn observe(&self, _: Request<pb::ObserveRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        Ok(Response::new(Box::pin(Observing::new(Arc::clone(&self.0)).stream())))
    }
}

/// Goes on where the caller goes away: what was begun with a sandbox is finished.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(|error| Status::internal(format!("the call broke off: {error}")))
}
