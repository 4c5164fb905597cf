//! A manager in another process.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{AssignError, AssignRequest, Lease, SandboxId, VersionKey, WorkerError, WorkerId, WorkerManager};
use tokio::runtime::Handle;
use tonic::{Response, Status};

use crate::channel::{Channel, Channels};
use crate::convert;
use crate::failure::Failure;
use crate::identity::{Member, Role};
use crate::pb;
use crate::pb::worker_manager_client::WorkerManagerClient;
use crate::worker::client::{INIT_LIMIT, RemoteWorker};

/// Of an assignment: a cold start's Init, after a wait for room.
const ASSIGN_LIMIT: Duration = INIT_LIMIT.saturating_add(Duration::from_secs(60));
/// Of the other calls.
const LIMIT: Duration = Duration::from_secs(10);
/// How often a retirement is told that did not arrive, with a second more in between each time.
const RETIRE_ATTEMPTS: u32 = 5;

/// [`WorkerManager`] over a connection. Cheap to clone.
///
/// What fails on the way to the manager is [`AssignError::NotOwner`]: nothing was invoked, and another manager may be responsible by now.
#[derive(Clone)]
pub struct RemoteManager(Arc<Inner>);

struct Inner {
    id: Arc<str>,
    channel: Channel,
    channels: Channels,
    runtime: Handle,
}

impl RemoteManager {
    /// The manager with this id, which listens at `address` (`host:port`). Legal inside a tokio runtime only.
    pub fn new(id: Arc<str>, address: &str, channels: &Channels) -> Self {
        let channel = channels.channel(address, &Member::new(Role::WorkerManager, Arc::clone(&id)));
        Self(Arc::new(Inner { id, channel, channels: channels.clone(), runtime: Handle::current() }))
    }

    /// Which it is.
    pub fn id(&self) -> &Arc<str> {
        &self.0.id
    }
}

impl Inner {
    fn client(&self) -> WorkerManagerClient<Channel> {
        WorkerManagerClient::with_origin(self.channel.clone(), crate::channel::origin())
            .max_decoding_message_size(crate::MAX_MESSAGE)
            .max_encoding_message_size(crate::MAX_MESSAGE)
    }

    async fn call<T>(limit: Duration, answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::of_status(&status)),
            Err(_) => Err(Failure::unknown(format!("no answer within {limit:?}"))),
        }
    }

    async fn assign(self: Arc<Self>, request: AssignRequest) -> Result<Lease, AssignError> {
        let AssignRequest { version, limits } = request;
        let message = |whole: Bytes| pb::AssignRequest {
            version_key: version.key.to_string(),
            unreserved: limits.unreserved,
            reserved: limits.reserved,
            version: whole,
        };
        let failed = |failure: Failure| AssignError::NotOwner(failure.cause);
        let mut answer = Self::call(ASSIGN_LIMIT, self.client().assign(message(Bytes::new()))).await.map_err(failed)?;
        if answer.unknown_version {
            let whole = convert::version_bytes(&version);
            answer = Self::call(ASSIGN_LIMIT, self.client().assign(message(whole))).await.map_err(failed)?;
        }
        let Some(lease) = answer.lease.take() else { return Err(convert::assign_error(answer)) };
        let sandbox = convert::sandbox(&lease.sandbox)
            .map_err(|error| WorkerError::Sandbox(format!("the lease of manager {}: {error}", self.id)))?;
        let channel = self.channels.channel(&lease.address, &Member::new(Role::Worker, &*lease.worker));
        let worker = WorkerId(lease.worker.into());
        Ok(Lease {
            sandbox,
            worker: Arc::new(RemoteWorker::leased(worker, channel, lease.epoch, version.timeout)),
            cold: lease.cold,
            waited: lease.waited,
            manager: Some(Arc::clone(&self.id)),
            timeline: convert::timeline(lease.timeline, self.channel.clock().monotonic()),
        })
    }

    async fn release(&self, sandbox: SandboxId) {
        let message = pb::ReleaseRequest { sandbox: convert::sandbox_bytes(sandbox) };
        if let Err(error) = Self::call(LIMIT, self.client().release(message)).await {
            tracing::debug!(%sandbox, %error, "a lease was not given back; the manager takes it after a while");
        }
    }
}

#[async_trait]
impl WorkerManager for RemoteManager {
    /// Whoever drops this future does not get a lease that nobody knows of: the assignment goes on, and its lease is released.
    async fn assign(&self, request: AssignRequest) -> Result<Lease, AssignError> {
        let manager = Arc::clone(&self.0);
        let assigning = Box::pin(Arc::clone(&self.0).assign(request));
        Abandoned { manager, assigning: Some(assigning) }.await
    }

    /// Goes on in the background, once; see [`domain::ports::LEASE_LIMIT`].
    fn release(&self, sandbox: SandboxId) {
        let manager = Arc::clone(&self.0);
        self.0.runtime.spawn(async move { manager.release(sandbox).await });
    }

    /// Goes on in the background, once: whoever cannot use another lease tells it again.
    fn unreachable(&self, worker: &WorkerId) {
        let manager = Arc::clone(&self.0);
        let message = pb::UnreachableRequest { worker: worker.to_string() };
        self.0.runtime.spawn(async move {
            if let Err(error) = Inner::call(LIMIT, manager.client().unreachable(message)).await {
                tracing::debug!(%error, "a manager was not told of a worker that cannot be reached");
            }
        });
    }

    /// Goes on in the background, for some seconds; idle sandboxes of a version that is not used go after a while in any case.
    fn retire(&self, version: &VersionKey) {
        let manager = Arc::clone(&self.0);
        let message = pb::RetireRequest { version_key: version.to_string() };
        self.0.runtime.spawn(async move {
            for attempt in 1..=RETIRE_ATTEMPTS {
                match Inner::call(LIMIT, manager.client().retire(message.clone())).await {
                    Ok(_) => return,
                    Err(error) if attempt == RETIRE_ATTEMPTS => {
                        tracing::warn!(version = message.version_key, %error, "cannot retire a version's sandboxes");
                    }
                    Err(_) => tokio::time::sleep(Duration::from_secs(1) * attempt).await,
                }
            }
        });
    }
}

type Assigning = Pin<Box<dyn Future<Output = Result<Lease, AssignError>> + Send>>;

/// An assignment, which is finished without its caller if need be.
struct Abandoned {
    manager: Arc<Inner>,
    assigning: Option<Assigning>,
}

impl Future for Abandoned {
    type Output = Result<Lease, AssignError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        let Some(assigning) = &mut self.assigning else { return std::task::Poll::Pending };
        let answer = std::task::ready!(assigning.as_mut().poll(cx));
        self.assigning = None;
        std::task::Poll::Ready(answer)
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let Some(assigning) = self.assigning.take() else { return };
        let manager = Arc::clone(&self.manager);
        self.manager.runtime.spawn(async move {
            if let Ok(lease) = assigning.await {
                manager.release(lease.sandbox).await;
            }
        });
    }
}
