//! The Runtime API (reference §2.4).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{BodyError, Context, MAX_PAYLOAD, Reply, accepted, error, header_text, text};
use crate::machine::{Answer, ApiError, runtime_error_type};
use crate::slot::NextEvent;

const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
const ERROR_BODY: &str = "lambda-runtime-function-error-body";
const RESPONSE_MODE: &str = "lambda-runtime-function-response-mode";
const INVOCATION_ID: HeaderName = HeaderName::from_static("lambda-runtime-invocation-id");
const ERROR_CAUSE_JSON: &str = "application/vnd.aws.lambda.error.cause+json";

impl Context {
    /// All but `next`.
    pub(super) async fn runtime(&self, path: &str, head: &Parts, body: &mut Incoming) -> Reply {
        let mut parts = path.split('/');
        match (&head.method, (parts.next(), parts.next(), parts.next(), parts.next())) {
            (&Method::POST, (Some("invocation"), Some(id), Some("response"), None)) => {
                self.response(id, head, body).await
            }
            (&Method::POST, (Some("invocation"), Some(id), Some("error"), None)) => {
                self.invocation_error(id, head, body).await
            }
            (&Method::POST, (Some("init"), Some("error"), None, None)) => self.init_error(head, body).await,
            (&Method::GET, (Some("restore"), Some("next"), None, None)) => self.restore_next().await,
            (&Method::POST, (Some("restore"), Some("error"), None, None)) => self.restore_error(head, body).await,
            (
                _,
                (Some("invocation"), Some("next"), None, None)
                | (Some("invocation"), Some(_), Some("response" | "error"), None)
                | (Some("init"), Some("error"), None, None)
                | (Some("restore"), Some("next" | "error"), None, None),
            ) => text(StatusCode::METHOD_NOT_ALLOWED, ""),
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    /// Waits for an event.
    pub(super) async fn next(&self) -> Reply {
        let wait = match self.slot.runtime_next() {
            Ok(wait) => wait,
            Err(refusal) => return refusal.into(),
        };
        match wait.await {
            Ok(event) => next_reply(event),
            // A newer `next` took over.
            Err(_) => ApiError::Transition { from: "Ready", to: "Ready" }.into(),
        }
    }

    /// Waits for the restore; there is nothing to say about it.
    async fn restore_next(&self) -> Reply {
        let wait = match self.slot.runtime_restore_next() {
            Ok(wait) => wait,
            Err(refusal) => return refusal.into(),
        };
        match wait.await {
            Ok(()) => text(StatusCode::OK, ""),
            Err(_) => ApiError::Transition { from: "RestoreReady", to: "RestoreReady" }.into(),
        }
    }

    async fn restore_error(&self, head: &Parts, body: &mut Incoming) -> Reply {
        self.report_error(head, body, |kind, payload| self.slot.runtime_restore_error(kind, payload)).await
    }

    async fn response(&self, id: &str, head: &Parts, body: &mut Incoming) -> Reply {
        let attempt = header_text(&head.headers, INVOCATION_ID.as_str());
        // Whoever may not answer is not listened to.
        if let Err(refusal) = self.slot.may_answer(id, attempt, "InvocationResponse") {
            return refusal.into();
        }
        let mode = header_text(&head.headers, RESPONSE_MODE);
        if mode.is_some_and(|mode| !mode.eq_ignore_ascii_case("streaming")) {
            let kind = "Runtime.InvalidResponseModeHeader";
            let message = "Invalid function response mode";
            let payload = json!({ "errorType": kind, "errorMessage": message }).to_string().into();
            return match self.slot.runtime_answer(id, attempt, Answer::Failure { payload, kind: kind.into() }) {
                Ok(()) => error(StatusCode::BAD_REQUEST, "InvalidFunctionResponseMode", message),
                Err(refusal) => refusal.into(),
            };
        }
        match self.body(body, MAX_PAYLOAD).await {
            Ok((body, trailers)) => {
                let answer = stream_error(&trailers).unwrap_or(Answer::Success(body));
                self.answer(id, attempt, answer).await
            }
            Err(cause) => self.bad_body(id, attempt, &cause),
        }
    }

    async fn invocation_error(&self, id: &str, head: &Parts, body: &mut Incoming) -> Reply {
        let attempt = header_text(&head.headers, INVOCATION_ID.as_str());
        if let Err(refusal) = self.slot.may_answer(id, attempt, "InvocationErrorResponse") {
            return refusal.into();
        }
        match self.body(body, MAX_PAYLOAD).await {
            Ok((body, _)) => {
                let (payload, kind) = error_object(&head.headers, body);
                self.answer(id, attempt, Answer::Failure { payload, kind }).await
            }
            Err(cause) => self.bad_body(id, attempt, &cause),
        }
    }

    async fn init_error(&self, head: &Parts, body: &mut Incoming) -> Reply {
        self.report_error(head, body, |kind, payload| self.slot.runtime_init_error(kind, payload)).await
    }

    async fn report_error(
        &self,
        head: &Parts,
        body: &mut Incoming,
        report: impl FnOnce(String, Bytes) -> Result<(), ApiError>,
    ) -> Reply {
        match self.body(body, MAX_PAYLOAD).await {
            Ok((body, _)) => {
                let (payload, kind) = error_object(&head.headers, body);
                match report(kind, payload) {
                    Ok(()) => accepted(),
                    Err(refusal) => refusal.into(),
                }
            }
            Err(BodyError::TooLarge) => too_large(),
            Err(BodyError::Truncated) => truncated(),
        }
    }

    async fn answer(&self, id: &str, attempt: Option<&str>, answer: Answer) -> Reply {
        match self.slot.runtime_answer(id, attempt, answer) {
            Ok(()) => {
                // The caller, who waits, gets the answer before the runtime gets its thanks.
                tokio::task::yield_now().await;
                accepted()
            }
            Err(refusal) => refusal.into(),
        }
    }

    fn bad_body(&self, id: &str, attempt: Option<&str>, cause: &BodyError) -> Reply {
        if matches!(cause, BodyError::Truncated) {
            return truncated();
        }
        let kind = "Function.ResponseSizeTooLarge";
        let message = format!("Response payload size exceeded maximum allowed payload size ({MAX_PAYLOAD} bytes).");
        let payload = json!({ "errorMessage": message, "errorType": kind }).to_string().into();
        match self.slot.runtime_answer(id, attempt, Answer::Failure { payload, kind: kind.into() }) {
            Ok(()) => too_large(),
            Err(refusal) => refusal.into(),
        }
    }
}

fn too_large() -> Reply {
    let message = format!("Exceeded maximum allowed payload size ({MAX_PAYLOAD} bytes).");
    error(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", &message)
}

fn truncated() -> Reply {
    error(StatusCode::BAD_REQUEST, "TruncatedHTTPRequest", "HTTP request detected as truncated")
}

/// The error object and type of an error report. The X-Ray cause that some runtimes send with it is not the caller's.
pub(super) fn error_object(headers: &HeaderMap, body: Bytes) -> (Bytes, String) {
    let kind = runtime_error_type(header_text(headers, ERROR_TYPE));
    if body.is_empty() {
        let payload = json!({ "errorMessage": "", "errorType": kind }).to_string();
        return (payload.into(), kind);
    }
    if header_text(headers, header::CONTENT_TYPE.as_str()) == Some(ERROR_CAUSE_JSON)
        && let Ok(Value::Object(mut object)) = serde_json::from_slice(&body)
    {
        object.remove("errorCause");
        return (Value::Object(object).to_string().into(), kind);
    }
    (body, kind)
}

/// The error that a streaming runtime put into the trailers of its response.
pub(super) fn stream_error(trailers: &HeaderMap) -> Option<Answer> {
    let kind = header_text(trailers, ERROR_TYPE)?;
    let payload = header_text(trailers, ERROR_BODY).and_then(|body| BASE64.decode(body).ok()).unwrap_or_default();
    Some(Answer::Failure { payload: payload.into(), kind: runtime_error_type(Some(kind)) })
}

fn next_reply(event: NextEvent) -> Reply {
    let NextEvent { request, attempt, deadline_ms } = event;
    let mut reply = Response::new(Full::new(request.payload));
    let headers = reply.headers_mut();
    headers.reserve(8);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut put = |name: &'static str, value: &str| {
        if value.is_empty() {
            return;
        }
        // Control characters cannot stand in a header; in JSON they are white space between tokens.
        let value = HeaderValue::from_str(value).or_else(|_| {
            let clean: Vec<u8> = value.bytes().map(|b| if b < b' ' || b == 0x7f { b' ' } else { b }).collect();
            HeaderValue::from_bytes(&clean)
        });
        if let Ok(value) = value {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let mut buffer = uuid::Uuid::encode_buffer();
    put("lambda-runtime-aws-request-id", request.request_id.0.hyphenated().encode_lower(&mut buffer));
    put("lambda-runtime-invocation-id", attempt.hyphenated().encode_lower(&mut buffer));
    put("lambda-runtime-deadline-ms", &deadline_ms.to_string());
    put("lambda-runtime-invoked-function-arn", &request.invoked_arn);
    put("lambda-runtime-trace-id", &request.trace_id);
    put("lambda-runtime-client-context", request.client_context.as_deref().unwrap_or_default());
    reply
}
