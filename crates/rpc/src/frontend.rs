//! Frontends among themselves: a change that one has answered is to be seen by the others.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use crate::channel::Channel;
use crate::failure::Failure;
use crate::pb;
use crate::pb::frontend_client::FrontendClient;

/// A process' copy of the metadata.
#[async_trait]
pub trait MetadataCopy: Send + Sync + 'static {
    /// Returns when it has the commits up to this revision.
    ///
    /// # Errors
    /// In words: it cannot read one of them.
    async fn applied(&self, revision: u64) -> Result<(), String>;
}

/// Serves what other frontends ask.
#[derive(Clone)]
pub struct FrontendServer(Arc<dyn MetadataCopy>);

impl FrontendServer {
    /// Of a process with this copy.
    pub fn new(copy: Arc<dyn MetadataCopy>) -> Self {
        Self(copy)
    }
}

#[async_trait]
impl pb::frontend_server::Frontend for FrontendServer {
    async fn caught_up(&self, request: Request<pb::CaughtUpRequest>) -> Result<Response<pb::CaughtUpAnswer>, Status> {
        self.0.applied(request.get_ref().revision).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(pb::CaughtUpAnswer {}))
    }
}

/// A frontend, or whoever else has a copy of the metadata, in another process. Cheap to clone.
#[derive(Clone)]
pub struct RemoteFrontend(Channel);

impl RemoteFrontend {
    /// At the other end of this connection.
    pub fn new(channel: Channel) -> Self {
        Self(channel)
    }

    /// Waits until its copy has the commits up to `revision`, for at most `limit`.
    ///
    /// # Errors
    /// In words: it does not answer, or not in time, or it cannot read one of them.
    pub async fn caught_up(&self, revision: u64, limit: Duration) -> Result<(), String> {
        let mut client = FrontendClient::with_origin(self.0.clone(), crate::channel::origin());
        match tokio::time::timeout(limit, client.caught_up(pb::CaughtUpRequest { revision })).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(Failure::of_status(&status).cause),
            Err(_) => Err(format!("no answer within {limit:?}")),
        }
    }
}
