//! Asynchronous invocation: the event is checked, put on the queue, and answered when it is durable.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::RequestId;
use http::{HeaderMap, Response, StatusCode};
use lambda_api::types::InvokeAsyncResponse;
use lambda_api::{ApiError, ErrorCode, decode, encode, operations};

use super::{Random, TRACE_ID, begin_trace, empty, header_value, payload as event_payload};
use crate::auth::Identity;
use crate::ports::{Call, Event, NotAccepted};
use crate::service::Service;

/// Largest event, in bytes.
pub const PAYLOAD_LIMIT: usize = 1 << 20;

/// Which function, as the caller named it.
pub struct Name<'a> {
    pub function: &'a str,
    pub qualifier: Option<&'a str>,
}

/// What is to be accepted.
struct Incoming<'a> {
    name: Name<'a>,
    payload: Bytes,
    request_id: RequestId,
    came: Came,
}

/// How it came.
#[derive(Clone, Copy)]
pub struct Came {
    /// When the request was read.
    pub received: Duration,
    /// Whether its caller will ask for the timeline.
    pub show_timeline: bool,
}

/// Serves Invoke with `InvocationType=Event`: 202 without a body, as recorded.
pub async fn accept(
    service: &Arc<Service>,
    caller: &Identity,
    headers: &HeaderMap,
    name: Name<'_>,
    payload: Bytes,
    request_id: RequestId,
    came: Came,
) -> Result<Response<Bytes>, ApiError> {
    let size = payload.len();
    // AWS's words; its limit was 256 KB when they were last seen.
    let too_large =
        |limit| format!("{size} byte payload is too large for the Event invocation type (limit {limit} bytes)");
    let payload = bounded(payload, too_large)?;
    let incoming = Incoming { name, payload, request_id, came };
    let trace_id = enqueue(service, caller, headers, incoming, too_large).await?;
    let mut response = empty(StatusCode::ACCEPTED);
    response.headers_mut().insert(TRACE_ID, header_value(&trace_id));
    Ok(response)
}

/// Serves InvokeAsync, the older operation for the same.
pub async fn invoke_async(
    service: &Arc<Service>,
    call: Call<'_>,
    request_id: RequestId,
    received: Duration,
) -> Result<Response<Bytes>, ApiError> {
    let input = decode::<operations::InvokeAsync>(call.routed, call.query, call.headers, call.body)?;
    let too_large = |limit| format!("Request must be smaller than {limit} bytes for the InvokeAsync operation");
    let payload = bounded(input.invoke_args, too_large)?;
    let name = Name { function: &input.function_name, qualifier: None };
    let came = Came { received, show_timeline: false };
    let incoming = Incoming { name, payload, request_id, came };
    enqueue(service, call.caller, call.headers, incoming, too_large).await?;
    let mut response = encode::<operations::InvokeAsync>(&InvokeAsyncResponse { status: Some(202) });
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// Refuses with `too_large`'s words for the limit what is larger, then what is no JSON.
fn bounded(payload: Bytes, too_large: impl Fn(usize) -> String) -> Result<Bytes, ApiError> {
    if payload.len() > PAYLOAD_LIMIT {
        return Err(ApiError::new(ErrorCode::RequestEntityTooLargeException, too_large(PAYLOAD_LIMIT)));
    }
    event_payload(Some(payload))
}

/// Returns the trace when the event is durable.
async fn enqueue(
    service: &Arc<Service>,
    caller: &Identity,
    headers: &HeaderMap,
    incoming: Incoming<'_>,
    too_large: impl Fn(usize) -> String,
) -> Result<String, ApiError> {
    let Incoming { name, payload, request_id, came } = incoming;
    let random = Random::draw();
    // Which version of a weighted alias runs is decided when the event is taken from the queue.
    let target = service.functions.resolve(caller, name.function, name.qualifier, random.fraction())?;
    let trace = begin_trace(service, headers, &random, target.version.tracing_active);
    let trace_id = trace.header;
    let event = Event {
        function: target.version.arn.clone(),
        qualifier: target.qualifier().map(str::to_owned),
        request_id,
        payload,
        trace_id: trace_id.clone(),
        received: came.received,
        timeline: came.show_timeline,
        origin: trace.origin.map(Box::new),
    };
    service.events.accept(event).await.map_err(|refused| match refused {
        // An engine may take less than AWS does (SQS, whose messages need room for more than the payload).
        NotAccepted::TooLarge(limit) => ApiError::new(ErrorCode::RequestEntityTooLargeException, too_large(limit)),
        NotAccepted::Failed(cause) => {
            tracing::error!(%request_id, function = target.version.name, cause, "event not accepted");
            let message = format!("The event could not be stored, and will not run: {cause}");
            ApiError::new(ErrorCode::ServiceException, message)
        }
    })?;
    Ok(trace_id)
}
