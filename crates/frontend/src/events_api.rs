//! Emberbox's own operations on events, for its command line. Signed as Lambda's operations are; JSON.
//!
//! - `GET /_emberbox/events/<function>`: how its events are doing ([`crate::ports::EventStats`]).
//! - `GET /_emberbox/events/<function>/<request id>`: the timeline of an event that was accepted with the header
//!   `X-Emberbox-Timeline`: `{"attempts": 1, "settled": true, "timeline": […]}`.

use bytes::Bytes;
use domain::{FunctionArn, RequestId};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Response};
use lambda_api::{ApiError, ErrorCode};
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use crate::auth::Identity;
use crate::service::Service;

/// Where the paths of these operations begin.
pub const PREFIX: &str = "/_emberbox/events/";

/// Answers one request.
pub async fn answer(service: &Service, caller: &Identity, parts: &Parts) -> Result<Response<Bytes>, ApiError> {
    let unknown = |message: &str| ApiError::new(ErrorCode::UnknownOperationException, message);
    if parts.method != Method::GET {
        return Err(unknown("Events are only shown here: use GET."));
    }
    let rest = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let (name, request_id) = match rest.split_once('/') {
        Some((name, id)) => (name, Some(id)),
        None => (rest, None),
    };
    let name = percent_decode_str(name).decode_utf8().map_err(|_| unknown("The function's name is not UTF-8."))?;
    let function = function(service, caller, &name)?;
    let body = match request_id {
        None => {
            let stats = service.events.stats(&function).await.map_err(|cause| {
                tracing::error!(%function, cause, "read the queue");
                ApiError::new(ErrorCode::ServiceException, format!("read the queue of {function}: {cause}"))
            })?;
            serde_json::to_string(&stats).expect("numbers always become JSON")
        }
        Some(id) => {
            let id = Uuid::try_parse(id).map_err(|_| unknown("The request id must be a UUID."))?;
            let timeline = service.events.timeline(&function, RequestId(id)).ok_or_else(|| {
                let message = "There is no timeline of this event here; send it with X-Emberbox-Timeline.";
                ApiError::new(ErrorCode::ResourceNotFoundException, message)
            })?;
            let (attempts, settled) = (timeline.attempts, timeline.settled);
            format!(r#"{{"attempts":{attempts},"settled":{settled},"timeline":{}}}"#, timeline.json)
        }
    };
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The function that the caller named, if it is the caller's.
fn function(service: &Service, caller: &Identity, name: &str) -> Result<FunctionArn, ApiError> {
    let target = service.functions.resolve(caller, name, None, 0.0)?;
    let arn = target.version.arn.clone();
    if arn.account != caller.account {
        let message = format!("Events of {arn} are shown to its own account only.");
        return Err(ApiError::new(ErrorCode::AccessDeniedException, message));
    }
    Ok(arn)
}
