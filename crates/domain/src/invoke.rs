//! One invocation, as the Frontend hands it to a worker and gets it back.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::RequestId;
use crate::timeline::Timeline;

/// `X-Amz-Log-Type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum LogType {
    /// No log in the answer.
    #[default]
    None,
    /// The last 4 KB of the invocation's log in the answer; the answer then waits for the end of the invocation.
    Tail,
}

/// Step 3 of the synchronous path.
#[derive(Clone, Debug)]
pub struct InvokeRequest {
    /// `Lambda-Runtime-Aws-Request-Id`.
    pub request_id: RequestId,
    /// The event: valid JSON, at most 6 MB.
    pub payload: Bytes,
    /// ARN as invoked: with the qualifier only if the caller gave one.
    pub invoked_arn: String,
    /// Decoded client context (JSON); `None` when the caller sent none.
    pub client_context: Option<String>,
    /// `Root=…;Parent=…;Sampled=…[;Lineage=…]` for `Lambda-Runtime-Trace-Id`.
    pub trace_id: String,
    /// Whether the answer carries the log.
    pub log_type: LogType,
}

/// What became of an invocation that reached a runtime. A function that failed is an outcome, not an error.
#[derive(Clone, Debug)]
pub struct InvokeOutcome {
    /// The answer, or the error object of a failed function.
    pub payload: Bytes,
    /// `X-Amz-Function-Error`: `Some("Unhandled")` for a failed function.
    pub function_error: Option<&'static str>,
    /// The last 4 KB of log for [`LogType::Tail`], not yet base64.
    pub log_tail: Option<Bytes>,
    /// The worker's marks.
    pub timeline: Timeline,
}
