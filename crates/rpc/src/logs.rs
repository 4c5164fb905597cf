//! A worker's logs, for the frontends. The messages are plain values, and this part of the calls' contract.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use crate::channel::Channel;
use crate::failure::Failure;
use crate::pb;
use crate::pb::logs_client::LogsClient;

/// The largest answer, in bytes: a page of events ends after 1 MiB of messages, and the streams of a group, which nothing limits but the
/// group's size, may be a hundred thousand.
pub(crate) const MAX_ANSWER: usize = 32 << 20;

/// The logs of one worker. Calls may read files.
#[async_trait]
pub trait WorkerLogs: Send + Sync + 'static {
    /// Which groups there are.
    async fn groups(&self, request: pb::LogGroupsRequest) -> Result<pb::LogGroupsAnswer, LogsFault>;
    /// Which streams a group has.
    async fn streams(&self, request: pb::LogStreamsRequest) -> Result<pb::LogStreamsAnswer, LogsFault>;
    /// Some events of a group.
    async fn events(&self, request: pb::LogEventsRequest) -> Result<pb::LogEventsAnswer, LogsFault>;
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogsFault {
    /// What was asked for is not possible: a place that is none.
    #[error("{0}")]
    Invalid(String),
    /// The worker cannot be reached, or cannot read its files.
    #[error("{0}")]
    Failed(String),
}

impl From<LogsFault> for Status {
    fn from(fault: LogsFault) -> Self {
        match fault {
            LogsFault::Invalid(text) => Self::invalid_argument(text),
            LogsFault::Failed(text) => Self::internal(text),
        }
    }
}

/// Serves what frontends ask of a worker's logs.
#[derive(Clone)]
pub struct LogsServer(Arc<dyn WorkerLogs>);

impl LogsServer {
    /// Of the worker in this process.
    pub fn new(logs: Arc<dyn WorkerLogs>) -> Self {
        Self(logs)
    }
}

#[async_trait]
impl pb::logs_server::Logs for LogsServer {
    async fn groups(&self, request: Request<pb::LogGroupsRequest>) -> Result<Response<pb::LogGroupsAnswer>, Status> {
        Ok(Response::new(self.0.groups(request.into_inner()).await?))
    }

    async fn streams(&self, request: Request<pb::LogStreamsRequest>) -> Result<Response<pb::LogStreamsAnswer>, Status> {
        Ok(Response::new(self.0.streams(request.into_inner()).await?))
    }

    async fn events(&self, request: Request<pb::LogEventsRequest>) -> Result<Response<pb::LogEventsAnswer>, Status> {
        Ok(Response::new(self.0.events(request.into_inner()).await?))
    }
}

/// The logs of a worker in another process. Cheap to clone.
#[derive(Clone)]
pub struct RemoteLogs {
    channel: Channel,
    limit: Duration,
}

impl RemoteLogs {
    /// At the other end of this connection; a call has failed after `limit`.
    pub fn new(channel: Channel, limit: Duration) -> Self {
        Self { channel, limit }
    }

    fn client(&self) -> LogsClient<Channel> {
        LogsClient::with_origin(self.channel.clone(), crate::channel::origin()).max_decoding_message_size(MAX_ANSWER)
    }

    async fn within<T>(&self, call: impl Future<Output = Result<Response<T>, Status>> + Send) -> Result<T, LogsFault> {
        match tokio::time::timeout(self.limit, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => {
                Err(LogsFault::Invalid(status.message().to_owned()))
            }
            Ok(Err(status)) => Err(LogsFault::Failed(Failure::of_status(&status).cause)),
            Err(_) => Err(LogsFault::Failed(format!("no answer within {:?}", self.limit))),
        }
    }
}

#[async_trait]
impl WorkerLogs for RemoteLogs {
    async fn groups(&self, request: pb::LogGroupsRequest) -> Result<pb::LogGroupsAnswer, LogsFault> {
        self.within(self.client().groups(request)).await
    }

    async fn streams(&self, request: pb::LogStreamsRequest) -> Result<pb::LogStreamsAnswer, LogsFault> {
        self.within(self.client().streams(request)).await
    }

    async fn events(&self, request: pb::LogEventsRequest) -> Result<pb::LogEventsAnswer, LogsFault> {
        self.within(self.client().events(request)).await
    }
}
