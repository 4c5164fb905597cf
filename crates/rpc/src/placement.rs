//! Where sandboxes go: `domain::Placement` over the network.

use std::sync::Arc;

use async_trait::async_trait;
use domain::{Place, PlaceError, PlaceRequest, Placement, WorkerId};
use tonic::{Request, Response, Status};

use crate::channel::Channel;
use crate::convert;
use crate::failure::Failure;
use crate::pb;
use crate::pb::placement_client::PlacementClient;

/// Serves managers.
#[derive(Clone)]
pub struct PlacementServer(Arc<dyn Placement>);

impl PlacementServer {
    /// With the answers of `placement`.
    pub fn new(placement: Arc<dyn Placement>) -> Self {
        Self(placement)
    }
}

#[async_trait]
impl pb::placement_server::Placement for PlacementServer {
    async fn place(&self, request: Request<pb::PlaceRequest>) -> Result<Response<pb::PlaceAnswer>, Status> {
        let request = convert::place_request(request.into_inner())?;
        let answer = match self.0.place(request).await {
            Ok(Place { worker, reason }) => pb::PlaceAnswer { worker: worker.0.to_string(), text: reason },
            Err(PlaceError::NoCapacity(text)) => pb::PlaceAnswer { worker: String::new(), text },
            Err(PlaceError::Unavailable(text)) => return Err(Status::unavailable(text)),
        };
        Ok(Response::new(answer))
    }
}

/// Placement in another process. Cheap to clone. It waits as long as its caller does.
#[derive(Clone)]
pub struct RemotePlacement(Channel);

impl RemotePlacement {
    /// At the other end of this connection.
    pub fn new(channel: Channel) -> Self {
        Self(channel)
    }
}

#[async_trait]
impl Placement for RemotePlacement {
    async fn place(&self, request: PlaceRequest) -> Result<Place, PlaceError> {
        let mut client = PlacementClient::with_origin(self.0.clone(), crate::channel::origin());
        let answer = client.place(convert::place_message(request)).await;
        let pb::PlaceAnswer { worker, text } =
            answer.map_err(|status| PlaceError::Unavailable(Failure::of_status(&status).cause))?.into_inner();
        if worker.is_empty() {
            return Err(PlaceError::NoCapacity(text));
        }
        Ok(Place { worker: WorkerId(worker.into()), reason: text })
    }
}
