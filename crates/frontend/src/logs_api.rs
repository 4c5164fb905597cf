//! The reading operations of CloudWatch Logs, on the same port, so that `aws logs tail` and SDKs show what functions
//! logged. Protocol: JSON 1.1, the operation in `X-Amz-Target: Logs_20140328.<Operation>`.

mod read;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::auth::Identity;
use crate::ports::{Logs, LogsError};

/// Largest request body, in bytes.
pub const BODY_LIMIT: usize = 1 << 20;
/// Service in the credential scope.
pub const SERVICE: &str = "logs";

const JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");

/// The operation of a target, if it is one of CloudWatch Logs.
pub fn operation(target: &HeaderValue) -> Option<&str> {
    target.to_str().ok()?.strip_prefix("Logs_20140328.")
}

/// Name of an operation for metrics; only those that are known, so that callers cannot make up series.
pub fn label(operation: &str) -> &'static str {
    match operation {
        "FilterLogEvents" => "FilterLogEvents",
        "GetLogEvents" => "GetLogEvents",
        "DescribeLogGroups" => "DescribeLogGroups",
        "DescribeLogStreams" => "DescribeLogStreams",
        _ => "Logs",
    }
}

/// An error as JSON 1.1 services tell it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message: message.into() }
    }

    fn parameter(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterException", message)
    }
}

impl From<LogsError> for Refusal {
    fn from(error: LogsError) -> Self {
        match error {
            LogsError::Token => Self::parameter("The specified nextToken is invalid."),
            LogsError::Failed(cause) => {
                tracing::error!(%cause, "logs cannot be read");
                Self { status: StatusCode::INTERNAL_SERVER_ERROR, ..Self::new("ServiceUnavailableException", cause) }
            }
        }
    }
}

/// Answers one request.
pub async fn answer(logs: &dyn Logs, caller: &Identity, operation: &str, body: &[u8]) -> Response<Bytes> {
    let result = match operation {
        "FilterLogEvents" => reply(read::filter_log_events(logs, caller, parse(body)).await),
        "GetLogEvents" => reply(read::get_log_events(logs, caller, parse(body)).await),
        "DescribeLogGroups" => reply(read::describe_log_groups(logs, caller, parse(body)).await),
        "DescribeLogStreams" => reply(read::describe_log_streams(logs, caller, parse(body)).await),
        other => {
            let name: String = other.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
            let message = format!("Emberbox does not implement {name} of CloudWatch Logs.");
            Err(Refusal { status: StatusCode::NOT_IMPLEMENTED, ..Refusal::new("NotImplemented", message) })
        }
    };
    result.unwrap_or_else(|refusal| {
        let body = serde_json::json!({ "__type": refusal.code, "message": refusal.message });
        response(refusal.status, body.to_string().into())
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(if body.is_empty() { b"{}" } else { body })
        .map_err(|error| Refusal::new("SerializationException", error.to_string()))
}

fn reply<T: Serialize>(result: Result<T, Refusal>) -> Result<Response<Bytes>, Refusal> {
    let body = serde_json::to_vec(&result?).expect("answers always become JSON");
    Ok(response(StatusCode::OK, body.into()))
}

fn response(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}
