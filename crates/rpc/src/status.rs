//! How a process of the fleet is, and orders of an operator.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use crate::access::may_count_events;
use crate::channel::Channel;
use crate::failure::Failure;
use crate::pb;
use crate::pb::status_client::StatusClient;

/// What an operator wants of a worker; lasts until its process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cordon {
    /// It takes new sandboxes.
    None,
    /// It takes none; those that there are serve on.
    Cordon,
    /// The same, and those that are idle go.
    Drain,
}

impl Cordon {
    /// As in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cordon => "cordon",
            Self::Drain => "drain",
        }
    }

    /// The inverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::None, Self::Cordon, Self::Drain].into_iter().find(|state| state.as_str() == text)
    }
}

/// A process that can say how it is.
#[async_trait]
pub trait Report: Send + Sync + 'static {
    /// A JSON object, for `emberbox fleet status`; with `events`, what waits in the queue is counted.
    async fn report(&self, events: bool) -> String;
    /// Carries an order out; otherwise why not, in words.
    fn cordon(&self, state: Cordon) -> Result<(), String>;
}

/// Serves what operators ask.
#[derive(Clone)]
pub struct StatusServer(Arc<dyn Report>);

impl StatusServer {
    /// Of this process.
    pub fn new(report: Arc<dyn Report>) -> Self {
        Self(report)
    }
}

#[async_trait]
impl pb::status_server::Status for StatusServer {
    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::ReportAnswer>, Status> {
        // Every queue is counted for it, which is not for anybody's asking; and how much waits for whom is not for workers.
        let events = request.get_ref().events;
        if events && !may_count_events(&request) {
            return Err(Status::permission_denied(
                "what waits in the event queue is told to frontends and pollers only",
            ));
        }
        Ok(Response::new(pb::ReportAnswer { json: self.0.report(events).await }))
    }

    async fn cordon(&self, request: Request<pb::CordonRequest>) -> Result<Response<pb::CordonAnswer>, Status> {
        let state = &request.get_ref().state;
        let unknown = || Status::invalid_argument(format!("this version does not know what {state:?} means"));
        let state = Cordon::parse(state).ok_or_else(unknown)?;
        self.0.cordon(state).map_err(Status::failed_precondition)?;
        Ok(Response::new(pb::CordonAnswer {}))
    }
}

/// A process of the fleet that can be asked how it is. Cheap to clone.
#[derive(Clone)]
pub struct RemoteStatus {
    channel: Channel,
    limit: Duration,
}

impl RemoteStatus {
    /// At the other end of this connection; a call has failed after `limit`.
    pub fn new(channel: Channel, limit: Duration) -> Self {
        Self { channel, limit }
    }

    /// What [`Report::report`] says there.
    ///
    /// # Errors
    /// In words: it does not answer, or not in time.
    pub async fn report(&self, events: bool) -> Result<String, String> {
        let mut client = StatusClient::with_origin(self.channel.clone(), crate::channel::origin());
        Ok(self.within(client.report(pb::ReportRequest { events })).await?.json)
    }

    /// Gives an order.
    ///
    /// # Errors
    /// In words: it does not answer, or cannot.
    pub async fn cordon(&self, state: Cordon) -> Result<(), String> {
        let mut client = StatusClient::with_origin(self.channel.clone(), crate::channel::origin());
        let request = pb::CordonRequest { state: state.as_str().to_owned() };
        self.within(client.cordon(request)).await.map(|_| ())
    }

    async fn within<T>(&self, call: impl Future<Output = Result<Response<T>, Status>> + Send) -> Result<T, String> {
        match tokio::time::timeout(self.limit, call).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(|status| Failure::of_status(&status).cause),
            Err(_) => Err(format!("no answer within {:?}", self.limit)),
        }
    }
}
