//! Event source mappings: what their pollers need from the control plane and the synchronous path, and what the control
//! plane needs from the queues.

use std::sync::Arc;
use std::time::Duration;

use ::event_sources::{InvokeError, QueueSource, SqsQueues};
use async_trait::async_trait;
use bytes::Bytes;
use control_plane::ControlPlane;
use domain::trace::{Origin, Trigger};
use domain::{
    AccountId, AssignRequest, EventSource, EventSourceMapping, InvokeRequest, LogType, QueueArn, RequestId, Step,
    Timeline, lineage,
};
use frontend::sync_path::Invocation;
use lambda_api::ErrorCode;
use tokio::sync::watch;
use uuid::Uuid;

use super::Direct;

/// What a mapping to another account's queue is told, as if there were no such queue.
const NO_QUEUE: &str = "Error occurred while ReceiveMessage. SQS Error Code: AWS.SimpleQueueService.NonExistentQueue. SQS \
                        Error Message: The specified queue does not exist.";

/// The control plane, for the pollers of event sources.
pub struct Mappings {
    /// Has the mappings.
    pub control_plane: ControlPlane,
    /// The queues are Emberbox's own, which no account shares with another.
    pub own_queues: bool,
}

impl ::event_sources::Mappings for Mappings {
    fn served(&self) -> Vec<EventSourceMapping> {
        let mut served = self.control_plane.served_event_sources();
        // One may have been made while the queues were elsewhere.
        served.retain(|mapping| {
            let EventSource::Sqs { queue, .. } = &mapping.source else { return true };
            !self.own_queues || queue.account == mapping.function.account
        });
        served
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.control_plane.event_source_changes()
    }

    fn report(&self, uuid: &str, problem: Option<String>) {
        self.control_plane.report_event_source(uuid, problem);
    }
}

/// The queues, for the control plane.
pub struct Queues {
    /// Where they are.
    pub queues: Arc<SqsQueues>,
    /// They are Emberbox's own, which no account shares with another.
    pub own: bool,
}

#[async_trait]
impl control_plane::EventSourceCheck for Queues {
    async fn visibility_timeout(&self, account: &AccountId, queue: &QueueArn) -> Result<Duration, String> {
        if self.own && queue.account != *account {
            return Err(NO_QUEUE.to_owned());
        }
        self.queues.visibility_timeout(queue).await.map_err(|error| error.to_string())
    }
}

/// Runs batches.
pub struct SourceInvoker(pub Direct);

#[async_trait]
impl ::event_sources::Invoker for SourceInvoker {
    async fn invoke(&self, invocation: ::event_sources::Invocation) -> Result<Bytes, InvokeError> {
        let ::event_sources::Invocation { function, qualifier, payload, trace_header } = invocation;
        let target = self.0.resolve(&function, qualifier.as_deref()).map_err(|error| match error.code {
            ErrorCode::ResourceNotFoundException => InvokeError::Refused(error.to_string()),
            // It is not Active yet, or not at the moment.
            _ => InvokeError::Throttled(error.to_string()),
        })?;
        let sampled = target.version.tracing_active;
        let traces = self.0.sync_path.traces();
        let trace = frontend::new_trace(trace_header.as_deref(), self.0.clock.wall(), sampled, traces);
        let (trace_id, times) = lineage::hop(&trace.header, &function);
        if lineage::is_loop(times) && !target.recursion_allowed {
            return Err(InvokeError::Refused(format!("{function} was invoked in a loop, and is not invoked again")));
        }
        let begun = self.0.clock.monotonic();
        let mut before = Timeline::default();
        before.mark(Step::Received, begun);
        let request = InvokeRequest {
            request_id: RequestId(Uuid::new_v4()),
            payload,
            invoked_arn: target.invoked_arn,
            client_context: None,
            trace_id,
            log_type: LogType::None,
        };
        let assign = AssignRequest { version: target.version, limits: target.limits };
        let origin = trace.origin.map(|origin| Box::new(Origin { trigger: Trigger::Batch, ..origin }));
        let invocation = Invocation { request, assign, begun, before, show_timeline: false, origin };
        let done = self.0.sync_path.run(invocation).await;
        let done = done.map_err(|failure| InvokeError::Throttled(failure.to_api_error().to_string()))?;
        match done.outcome.function_error {
            Some(_) => Err(InvokeError::Function(done.outcome.payload)),
            None => Ok(done.outcome.payload),
        }
    }
}
