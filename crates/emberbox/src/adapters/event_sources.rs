//! Event source mappings: what their pollers need from the control plane and the synchronous path, and what the control
//! plane needs from the queues.

use std::time::Duration;

use ::event_sources::{InvokeError, QueueSource, SqsQueues};
use async_trait::async_trait;
use bytes::Bytes;
use control_plane::ControlPlane;
use domain::{AssignRequest, EventSourceMapping, InvokeRequest, LogType, QueueArn, RequestId, Step, Timeline, lineage};
use frontend::sync_path::Invocation;
use lambda_api::ErrorCode;
use tokio::sync::watch;
use uuid::Uuid;

use super::Direct;

/// The control plane, for the pollers of event sources.
pub struct Mappings(pub ControlPlane);

impl ::event_sources::Mappings for Mappings {
    fn served(&self) -> Vec<EventSourceMapping> {
        self.0.served_event_sources()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.event_source_changes()
    }

    fn report(&self, uuid: &str, problem: Option<String>) {
        self.0.report_event_source(uuid, problem);
    }
}

/// The queues, for the control plane.
pub struct Queues(pub std::sync::Arc<SqsQueues>);

#[async_trait]
impl control_plane::EventSourceCheck for Queues {
    async fn visibility_timeout(&self, queue: &QueueArn) -> Result<Duration, String> {
        self.0.visibility_timeout(queue).await.map_err(|error| error.to_string())
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
        let trace = frontend::new_trace(trace_header.as_deref(), self.0.clock.wall(), sampled);
        let (trace_id, times) = lineage::hop(&trace, &function);
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
        let invocation = Invocation { request, assign, begun, before, show_timeline: false };
        let done = self.0.sync_path.run(invocation).await;
        let done = done.map_err(|failure| InvokeError::Throttled(failure.to_api_error().to_string()))?;
        match done.outcome.function_error {
            Some(_) => Err(InvokeError::Function(done.outcome.payload)),
            None => Ok(done.outcome.payload),
        }
    }
}
