//! The synchronous path: resolve → assign → invoke. A warm invocation touches no disk, no database and no lock that it
//! shares with other functions.

mod trace;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::{
    AssignError, AssignRequest, InvokeOutcome, InvokeRequest, LogType, RequestId, Step, Timeline, WorkerError,
    WorkerManager,
};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use lambda_api::types::{InvocationRequest, InvocationType, LogType as WireLogType};
use lambda_api::{ApiError, ErrorCode, check_json_payload, decode, operations};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::ports::{Call, Target};
use crate::service::Service;

/// Largest payload, in bytes.
pub const PAYLOAD_LIMIT: usize = 6_291_456;
/// Longest client context, in bytes of base64.
const CLIENT_CONTEXT_LIMIT: usize = 3583;
/// Sandboxes that are tried when one dies, or its worker stops, before the payload reached the function.
const ATTEMPTS: usize = 3;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const TRACE_ID: HeaderName = HeaderName::from_static("x-amzn-trace-id");
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

/// Serves one Invoke request. The invocation itself runs in a task of its own, so that it has its one outcome even if
/// the client goes away. `received`: when the request was read.
pub async fn invoke(
    service: &Arc<Service>,
    call: Call<'_>,
    request_id: RequestId,
    received: Duration,
) -> Result<Response<Bytes>, ApiError> {
    let headers = call.headers;
    let input = decode::<operations::Invoke>(call.routed, call.query, headers, call.body)?;
    refuse_unimplemented(&input)?;
    let client_context = client_context(input.client_context.as_deref())?;
    let payload = match input.payload {
        Some(payload) if !payload.is_empty() => payload,
        _ => Bytes::from_static(b"{}"),
    };
    check_json_payload(&payload)?;
    let random = Random::draw();
    let target =
        service.functions.resolve(call.caller, &input.function_name, input.qualifier.as_deref(), random.fraction())?;
    if input.invocation_type == Some(InvocationType::DryRun) {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    }
    let Target { version, invoked_arn, limits } = target;
    let trace_id = trace::trace_id(
        headers.get(TRACE_ID).and_then(|value| value.to_str().ok()),
        trace::since_epoch(service.clock.wall()),
        random.trace(),
        version.tracing_active,
    );
    let log_type = if input.log_type == Some(WireLogType::Tail) { LogType::Tail } else { LogType::None };
    let invocation = Invocation {
        request: InvokeRequest { request_id, payload, invoked_arn, client_context, trace_id, log_type },
        assign: AssignRequest { version, limits },
        received,
        show_timeline: headers.contains_key(TIMELINE),
    };
    let running = Box::pin(invocation.serve(Arc::clone(service)));
    Detached { running: Some(running), tasks: service.tasks.clone() }.await.unwrap_or_else(|Panicked| {
        tracing::error!(%request_id, "invocation failed");
        Err(ApiError::new(ErrorCode::ServiceException, "Emberbox failed to run the function; its log says why."))
    })
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

/// A valid request to run a function.
struct Invocation {
    request: InvokeRequest,
    assign: AssignRequest,
    received: Duration,
    show_timeline: bool,
}

/// What became of it.
struct Done {
    outcome: InvokeOutcome,
    cold: bool,
    timeline: Timeline,
}

enum Failure {
    Assign(AssignError),
    Worker(WorkerError),
}

impl Invocation {
    /// Runs it to its end, counts and logs it.
    async fn serve(self, service: Arc<Service>) -> Result<Response<Bytes>, ApiError> {
        let metrics = &service.metrics;
        metrics.in_flight.inc();
        let done = self.run(&*service.manager).await;
        metrics.in_flight.dec();
        let mut done = done.map_err(|failure| self.refusal(&service, failure))?;
        let latency = service.clock.monotonic().saturating_sub(self.received);
        if done.cold { &metrics.cold } else { &metrics.warm }.observe(latency);
        let failed = done.outcome.function_error.is_some();
        if failed {
            metrics.function_errors.inc();
        }
        done.timeline.append(std::mem::take(&mut done.outcome.timeline));
        let logged = tracing::enabled!(target: "emberbox::invoke", tracing::Level::INFO);
        let timeline = (self.show_timeline || logged).then(|| timeline_json(self.received, &done.timeline));
        let version = &self.assign.version;
        tracing::info!(
            target: "emberbox::invoke",
            request_id = %self.request.request_id, account = %version.account, function = version.name,
            version = version.version, start = if done.cold { "cold" } else { "warm" }, failed,
            us = latency.as_micros() as u64, timeline,
        );
        Ok(self.response(done.outcome, timeline))
    }

    /// Gets a sandbox and sends it the payload; with another one if the first was lost before the function saw it.
    async fn run(&self, manager: &dyn WorkerManager) -> Result<Done, Failure> {
        let mut attempt = 1;
        loop {
            let failed = match manager.assign(self.assign.clone()).await {
                Err(AssignError::Worker(error)) => error,
                Err(error) => return Err(Failure::Assign(error)),
                // From here on the worker ends the lease. Nothing is awaited in between, so none is left unused.
                Ok(lease) => match lease.worker.invoke(lease.sandbox, self.request.clone()).await {
                    Ok(outcome) => return Ok(Done { outcome, cold: lease.cold, timeline: lease.timeline }),
                    Err(error) => error,
                },
            };
            if !failed.retryable() || attempt == ATTEMPTS {
                return Err(Failure::Worker(failed));
            }
            tracing::debug!(request_id = %self.request.request_id, error = %failed, "trying another sandbox");
            attempt += 1;
        }
    }

    fn response(&self, outcome: InvokeOutcome, timeline: Option<String>) -> Response<Bytes> {
        let mut response = Response::new(outcome.payload);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(EXECUTED_VERSION, header_value(&self.assign.version.version));
        headers.insert(TRACE_ID, header_value(&self.request.trace_id));
        if let Some(error) = outcome.function_error {
            headers.insert(FUNCTION_ERROR, HeaderValue::from_static(error));
        }
        if let Some(log) = &outcome.log_tail {
            headers.insert(LOG_RESULT, header_value(&STANDARD.encode(log)));
        }
        if let Some(timeline) = timeline.filter(|_| self.show_timeline) {
            headers.insert(TIMELINE, header_value(&timeline));
        }
        response
    }

    /// What the caller of an invocation without outcome gets.
    fn refusal(&self, service: &Service, failure: Failure) -> ApiError {
        let (request_id, function) = (self.request.request_id, &self.assign.version.name);
        match failure {
            Failure::Assign(AssignError::Throttled(reason)) => {
                service.metrics.throttled(reason.as_str());
                ApiError::new(ErrorCode::TooManyRequestsException, "Rate Exceeded.").with_reason(reason.as_str())
            }
            Failure::Assign(AssignError::NoCapacity(cause)) => {
                tracing::warn!(%request_id, function, cause, "no worker has room");
                // Not a throttle: no limit that the caller set or could raise was reached, and a 429 would look as if
                // one was. As a 503 with Retry-After, SDKs and proxies try again.
                let message = format!("No worker has room for another sandbox: {cause}");
                ApiError::new(ErrorCode::ServiceUnavailableException, message).with_retry_after(1)
            }
            Failure::Worker(error) | Failure::Assign(AssignError::Worker(error)) => {
                tracing::error!(%request_id, function, %error, "invocation failed");
                let code = match error {
                    WorkerError::Package(_) => ErrorCode::InvalidZipFileException,
                    WorkerError::Runtime(_) => ErrorCode::InvalidRuntimeException,
                    WorkerError::Sandbox(_) | WorkerError::Gone(_) | WorkerError::Stopping => {
                        ErrorCode::ServiceException
                    }
                };
                ApiError::new(code, format!("Lambda was unable to run the function: {error}"))
            }
        }
    }
}

/// Never a fake success: what would need a part that does not exist yet says so.
fn refuse_unimplemented(input: &InvocationRequest) -> Result<(), ApiError> {
    let what = if input.invocation_type == Some(InvocationType::Event) {
        "Invoke with InvocationType Event"
    } else if input.durable_execution_name.is_some() {
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

/// `[{"step":"received","us":0},…]`: microseconds since the request was read, in the order of the marks.
fn timeline_json(received: Duration, timeline: &Timeline) -> String {
    #[derive(serde::Serialize)]
    struct Entry<'a> {
        step: Step,
        us: u64,
        #[serde(skip_serializing_if = "str::is_empty")]
        note: &'a str,
    }
    let first = Entry { step: Step::Received, us: 0, note: "" };
    let marks = timeline.marks.iter().map(|mark| Entry {
        step: mark.step,
        us: mark.at.saturating_sub(received).as_micros() as u64,
        note: &mark.note,
    });
    let entries: Vec<_> = std::iter::once(first).chain(marks).collect();
    serde_json::to_string(&entries).expect("marks always become JSON")
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
    fn a_timeline_is_compact_json_of_offsets() {
        let mut timeline = Timeline::default();
        timeline.note(Step::Assigned, Duration::from_micros(1012), "warm");
        timeline.mark(Step::Answered, Duration::from_micros(1500));
        assert_eq!(
            timeline_json(Duration::from_micros(1000), &timeline),
            r#"[{"step":"received","us":0},{"step":"assigned","us":12,"note":"warm"},{"step":"answered","us":500}]"#
        );
    }

    #[test]
    fn a_header_never_fails() {
        assert_eq!(header_value("a\nb é"), "a?b ?");
    }
}
