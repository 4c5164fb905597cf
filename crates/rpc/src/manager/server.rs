//! The manager's side.

use std::sync::Arc;

use domain::{AssignRequest, Clock, ConcurrencyLimits, Lease, SandboxId, VersionKey, WorkerId, WorkerManager};
use tonic::{Request, Response, Status};

use super::known::Known;
use crate::convert;
use crate::pb;

/// Serves a manager to frontends.
#[derive(Clone)]
pub struct ManagerServer(Arc<Inner>);

struct Inner {
    manager: Arc<dyn WorkerManager>,
    clock: Arc<dyn Clock>,
    known: Known,
}

impl ManagerServer {
    /// Of `manager`, whose leases must be on workers with a [`domain::Worker::route`]; `clock` is the one of its timelines.
    pub fn new(manager: Arc<dyn WorkerManager>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { manager, clock, known: Known::new() }))
    }

    fn lease_message(&self, lease: &Lease) -> Result<pb::Lease, Status> {
        let worker = lease.worker.id();
        let route = lease.worker.route();
        let route =
            route.ok_or_else(|| Status::internal(format!("worker {worker} has no address for other processes")))?;
        Ok(pb::Lease {
            sandbox: convert::sandbox_bytes(lease.sandbox),
            worker: worker.to_string(),
            address: route.address.to_string(),
            epoch: route.epoch,
            cold: lease.cold,
            waited: lease.waited,
            timeline: convert::marks(&lease.timeline, self.0.clock.monotonic()),
        })
    }
}

/// A lease on its way to the one who asked; dropped before that, it is released.
#[derive(Clone)]
pub(crate) struct Undelivered(Arc<Guard>);

struct Guard {
    lease: parking_lot::Mutex<Option<SandboxId>>,
    manager: Arc<dyn WorkerManager>,
}

impl Undelivered {
    fn new(manager: &Arc<dyn WorkerManager>, sandbox: SandboxId) -> Self {
        let lease = parking_lot::Mutex::new(Some(sandbox));
        Self(Arc::new(Guard { lease, manager: Arc::clone(manager) }))
    }

    pub(crate) fn delivered(self) {
        self.0.lease.lock().take();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(sandbox) = self.lease.lock().take() {
            tracing::debug!(%sandbox, "a lease could not be delivered");
            self.manager.release(sandbox);
        }
    }
}

#[async_trait::async_trait]
impl pb::worker_manager_server::WorkerManager for ManagerServer {
    async fn assign(&self, request: Request<pb::AssignRequest>) -> Result<Response<pb::AssignAnswer>, Status> {
        let message = request.into_inner();
        let key = VersionKey(message.version_key.into());
        let version = if message.version.is_empty() {
            self.0.known.get(&key)
        } else {
            let version = convert::version(&message.version)?;
            if version.key != key {
                return Err(Status::invalid_argument(format!("{key} was asked for, and described is {}", version.key)));
            }
            self.0.known.insert(Arc::clone(&version));
            Some(version)
        };
        let Some(version) = version else {
            return Ok(Response::new(pb::AssignAnswer { unknown_version: true, ..Default::default() }));
        };
        let limits = ConcurrencyLimits { unreserved: message.unreserved, reserved: message.reserved };
        match self.0.manager.assign(AssignRequest { version, limits }).await {
            Ok(lease) => {
                let undelivered = Undelivered::new(&self.0.manager, lease.sandbox);
                let lease = Some(self.lease_message(&lease)?);
                let mut response = Response::new(pb::AssignAnswer { lease, ..Default::default() });
                // Goes where the answer goes: see `server::Delivery`.
                response.extensions_mut().insert(undelivered);
                Ok(response)
            }
            Err(error) => Ok(Response::new(convert::refusal(&error))),
        }
    }

    async fn release(&self, request: Request<pb::ReleaseRequest>) -> Result<Response<pb::ReleaseAnswer>, Status> {
        self.0.manager.release(convert::sandbox(&request.get_ref().sandbox)?);
        Ok(Response::new(pb::ReleaseAnswer {}))
    }

    async fn retire(&self, request: Request<pb::RetireRequest>) -> Result<Response<pb::RetireAnswer>, Status> {
        let key = VersionKey(request.into_inner().version_key.into());
        self.0.known.forget(&key);
        self.0.manager.retire(&key);
        Ok(Response::new(pb::RetireAnswer {}))
    }

    async fn unreachable(
        &self,
        request: Request<pb::UnreachableRequest>,
    ) -> Result<Response<pb::UnreachableAnswer>, Status> {
        self.0.manager.unreachable(&WorkerId(request.into_inner().worker.into()));
        Ok(Response::new(pb::UnreachableAnswer {}))
    }
}
