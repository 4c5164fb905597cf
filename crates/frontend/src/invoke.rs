//! Invoke and InvokeAsync: from the request to the function's answer, or to an event on the queue.

pub mod event;
mod trace;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::trace::Traces;
use domain::{AssignRequest, InvokeRequest, LogType, RequestId, Step, Timeline, lineage};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use lambda_api::types::{InvocationRequest, InvocationType, LogType as WireLogType};
use lambda_api::{ApiError, ErrorCode, check_json_payload, decode, operations};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::ports::{Call, Target};
use crate::service::Service;
use crate::sync_path::{Done, Invocation, timeline_json};
pub use trace::Begun;

/// Largest payload, in bytes.
pub const PAYLOAD_LIMIT: usize = 6_291_456;
/// Longest client context, in bytes of base64.
const CLIENT_CONTEXT_LIMIT: usize = 3583;

/// AWS's words for a loop.
const RECURSIVE: &str = "Lambda has detected your function being invoked in a recursive loop with other Amazon Web \
    Services resources and stopped your function's invocation.";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
pub(crate) const TRACE_ID: HeaderName = HeaderName::from_static("x-amzn-trace-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");
const TIMELINE: HeaderName = HeaderName::from_static("x-emberbox-timeline");

/// The caller's choice of the request id, if it made one.
///
/// # Errors
/// It is not a UUID.
pub fn chosen_request_id(headers: &HeaderMap) -> Result<Option<RequestId>, ApiError> {
    let Some(value) = headers.get(REQUEST_ID) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| Uuid::try_parse(text).ok()) {
        Some(id) => Ok(Some(RequestId(id))),
        None => Err(invalid("The request id in x-amzn-RequestId must be a UUID.")),
    }
}

/// Serves one Invoke request. `received`: when the request was read.
pub async fn invoke(
    service: &Arc<Service>,
    call: Call<'_>,
    request_id: RequestId,
    received: Duration,
) -> Result<Response<Bytes>, ApiError> {
    let headers = call.headers;
    let input = decode::<operations::Invoke>(call.routed, call.query, headers, call.body)?;
    refuse_unimplemented(&input)?;
    let show_timeline = headers.contains_key(TIMELINE);
    if input.invocation_type == Some(InvocationType::Event) {
        let payload = input.payload.unwrap_or_default();
        let name = event::Name { function: &input.function_name, qualifier: input.qualifier.as_deref() };
        let came = event::Came { received, show_timeline };
        return event::accept(service, call.caller, headers, name, payload, request_id, came).await;
    }
    let client_context = client_context(input.client_context.as_deref())?;
    let payload = payload(input.payload)?;
    let random = Random::draw();
    let target =
        service.functions.resolve(call.caller, &input.function_name, input.qualifier.as_deref(), random.fraction())?;
    if input.invocation_type == Some(InvocationType::DryRun) {
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let trace = begin_trace(service, headers, &random, target.version.tracing_active);
    let (trace_id, times) = lineage::hop(&trace.header, &target.version.arn);
    if lineage::is_loop(times) && !target.recursion_allowed {
        return Err(ApiError::new(ErrorCode::RecursiveInvocationException, RECURSIVE));
    }
    let Target { version, invoked_arn, limits, .. } = target;
    let log_type = if input.log_type == Some(WireLogType::Tail) { LogType::Tail } else { LogType::None };
    let mut before = Timeline::default();
    before.mark(Step::Received, received);
    let executed = Arc::clone(&version);
    let invocation = Invocation {
        request: InvokeRequest {
            request_id,
            payload,
            invoked_arn,
            client_context,
            trace_id: trace_id.clone(),
            log_type,
        },
        assign: AssignRequest { version, limits },
        begun: received,
        before,
        show_timeline,
        origin: trace.origin.map(Box::new),
    };
    let sync_path = service.sync_path.clone();
    let running = Box::pin(async move { sync_path.run(invocation).await });
    let done = Detached { running: Some(running), tasks: service.tasks.clone() }.await.map_err(|Panicked| {
        tracing::error!(%request_id, "invocation failed");
        ApiError::new(ErrorCode::ServiceException, "Emberbox failed to run the function; its log says why.")
    })?;
    let done = done.map_err(|failure| failure.to_api_error())?;
    Ok(response(done, &executed.version, &trace_id, show_timeline))
}

/// The event that the function gets: JSON, `{}` if the caller sent nothing.
fn payload(sent: Option<Bytes>) -> Result<Bytes, ApiError> {
    let payload = sent.filter(|sent| !sent.is_empty()).unwrap_or_else(|| Bytes::from_static(b"{}"));
    check_json_payload(&payload)?;
    Ok(payload)
}

/// The trace that the invocation is part of.
fn begin_trace(service: &Service, headers: &HeaderMap, random: &Random, sampled: bool) -> Begun {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let now = trace::since_epoch(service.clock.wall());
    match service.sync_path.traces() {
        None => Begun { header: trace::trace_id(text(&TRACE_ID), now, random.trace(), sampled), origin: None },
        Some(traces) => {
            let samples = |low| sampled || traces.samples(low);
            trace::begin(text(&TRACE_ID), text(&TRACEPARENT), now, random.trace(), samples)
        }
    }
}

fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

/// An invocation, which goes on in a task of its own if its caller goes away. While the caller is there it runs in the
/// caller's task: another one would cost every invocation two changes of task.
struct Detached<F: Future<Output: Send> + Send + 'static> {
    running: Option<Pin<Box<F>>>,
    tasks: TaskTracker,
}

/// The panic hook has said the rest.
struct Panicked;

impl<F: Future<Output: Send> + Send + 'static> Future for Detached<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let running = self.running.as_mut().expect("polled no more once it is done");
        // A bug must cost this invocation, not the connection with whatever else is on it. After one, nothing of the
        // invocation is used any more.
        let output = match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(_) => Err(Panicked),
        };
        self.running = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Detached<F> {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.tasks.spawn(running);
        }
    }
}

/// The answer of a function, as a response.
fn response(done: Done, version: &str, trace_id: &str, show_timeline: bool) -> Response<Bytes> {
    let Done { outcome, timeline } = done;
    let mut response = Response::new(outcome.payload);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(EXECUTED_VERSION, header_value(version));
    headers.insert(TRACE_ID, header_value(trace_id));
    if let Some(error) = outcome.function_error {
        headers.insert(FUNCTION_ERROR, HeaderValue::from_static(error));
    }
    if let Some(log) = &outcome.log_tail {
        headers.insert(LOG_RESULT, header_value(&STANDARD.encode(log)));
    }
    if let Some(timeline) = timeline.filter(|_| show_timeline) {
        headers.insert(TIMELINE, header_value(&timeline_json(&timeline)));
    }
    response
}

/// Never a fake success: what would need a part that does not exist yet says so.
fn refuse_unimplemented(input: &InvocationRequest) -> Result<(), ApiError> {
    let what = if input.durable_execution_name.is_some() {
        "durable executions"
    } else if input.tenant_id.is_some() {
        "tenant isolation"
    } else {
        return Ok(());
    };
    Err(ApiError::new(ErrorCode::NotImplemented, format!("Emberbox does not implement {what} yet.")))
}

/// Decodes `X-Amz-Client-Context` to JSON on one line, which is how the runtime gets it.
fn client_context(encoded: Option<&str>) -> Result<Option<String>, ApiError> {
    let Some(encoded) = encoded.filter(|encoded| !encoded.is_empty()) else { return Ok(None) };
    if encoded.len() > CLIENT_CONTEXT_LIMIT {
        return Err(invalid(&format!("Client context must be at most {CLIENT_CONTEXT_LIMIT} bytes of base64.")));
    }
    let decoded = STANDARD.decode(encoded).ok();
    match decoded.and_then(|json| serde_json::from_slice::<serde_json::Map<_, _>>(&json).ok()) {
        Some(object) => Ok(Some(serde_json::Value::Object(object).to_string())),
        None => Err(invalid("Client context must be a valid Base64-encoded JSON object.")),
    }
}

fn invalid(message: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequestContentException, message)
}

/// A value made of what came from outside; what a header cannot carry becomes a question mark.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| {
        let clean: String = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
        HeaderValue::from_str(&clean).expect("printable ASCII is a valid header value")
    })
}

/// The trace of an invocation that is not the API's: as `header` says, or a new one. `traces` take it, if they are there and
/// it is sampled.
pub fn new_trace(header: Option<&str>, now: SystemTime, sampled: bool, traces: Option<&Arc<dyn Traces>>) -> Begun {
    let (now, random) = (trace::since_epoch(now), Random::draw().trace());
    match traces {
        None => Begun { header: trace::trace_id(header, now, random, sampled), origin: None },
        Some(traces) => trace::begin(header, None, now, random, |low| sampled || traces.samples(low)),
    }
}

/// Decides between the versions of a weighted alias; in `0..1`.
pub fn draw_fraction() -> f64 {
    Random::draw().fraction()
}

/// Random bits of one invocation.
struct Random([u8; 32]);

impl Random {
    fn draw() -> Self {
        let mut bits = [0; 32];
        bits[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        bits[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Self(bits)
    }

    /// In `0..1`.
    fn fraction(&self) -> f64 {
        let bits = u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]);
        f64::from(bits) / (f64::from(u32::MAX) + 1.0)
    }

    /// Not those of the fraction. (A UUID's six fixed bits among them do no harm.)
    fn trace(&self) -> [u8; 20] {
        self.0[9..29].try_into().expect("twenty bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_context_is_a_json_object_in_base64() {
        let encode = |text: &str| STANDARD.encode(text);
        assert_eq!(client_context(None), Ok(None));
        let pretty = encode("{\n  \"custom\": {\"k\": \"é\"}\n}");
        assert_eq!(client_context(Some(&pretty)).unwrap().unwrap(), r#"{"custom":{"k":"é"}}"#);
        for bad in ["%", "e30", &encode("[]"), &encode("{"), &encode("\"x\"")] {
            assert_eq!(client_context(Some(bad)).unwrap_err().code, ErrorCode::InvalidRequestContentException, "{bad}");
        }
        let fits = encode(&format!("{{\"k\":\"{}\"}}", "x".repeat(2679)));
        assert_eq!(fits.len(), 3584);
        assert!(client_context(Some(&fits)).unwrap_err().message.contains("3583"));
    }

    #[test]
    fn a_header_never_fails() {
        assert_eq!(header_value("a\nb é"), "a?b ?");
    }
}
