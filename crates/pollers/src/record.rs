//! The records that destinations get, and the attributes of dead letters; keys and their order as in the examples of
//! the Lambda developer guide ("Capturing records of asynchronous invocations").

use std::time::SystemTime;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::event::AsyncEvent;
use crate::ports::Attempt;
use crate::rules::Condition;

/// The `ErrorMessage` attribute of a dead letter holds this many bytes at most.
const ERROR_MESSAGE_LIMIT: usize = 1024;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    version: &'static str,
    timestamp: String,
    request_context: RequestContext,
    request_payload: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_context: Option<ResponseContext<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_payload: Option<Box<RawValue>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext {
    request_id: String,
    function_arn: String,
    condition: &'static str,
    approximate_invoke_count: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseContext<'a> {
    status_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    executed_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_error: Option<&'a str>,
}

/// A record. `condition` is `None` for success; `approximate_invoke_count` is how often the function ran, throttles
/// not counted; `attempt` is the last one, `None` when there was none (then the record has no response). `now` is when
/// the event was done with.
pub fn record(
    event: &AsyncEvent,
    condition: Option<Condition>,
    approximate_invoke_count: u32,
    attempt: Option<&Attempt>,
    now: SystemTime,
) -> String {
    let timestamp = OffsetDateTime::from(now)
        .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"))
        .expect("a UTC time has all the parts of this format");
    let record = Record {
        version: "1.0",
        timestamp,
        request_context: RequestContext {
            request_id: event.request_id.to_string(),
            function_arn: event.function.qualified(event.qualifier.as_deref().unwrap_or("$LATEST")),
            condition: condition.map_or("Success", Condition::as_str),
            approximate_invoke_count,
        },
        request_payload: json(&event.payload),
        response_context: attempt.map(|attempt| ResponseContext {
            status_code: attempt.status,
            executed_version: attempt.executed_version.as_deref(),
            function_error: attempt.function_error.as_deref(),
        }),
        response_payload: attempt.filter(|attempt| !attempt.payload.is_empty()).map(|attempt| json(&attempt.payload)),
    };
    serde_json::to_string(&record).expect("strings, numbers and JSON become JSON")
}

/// JSON as it is; what is none becomes a string, an empty payload `{}` as for the function.
fn json(payload: &[u8]) -> Box<RawValue> {
    let payload = if payload.is_empty() { b"{}" } else { payload };
    serde_json::from_slice(payload)
        .unwrap_or_else(|_| to_raw_value(&String::from_utf8_lossy(payload)).expect("a string becomes JSON"))
}

/// What SQS and SNS messages carry beside a dead letter's body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetterAttributes {
    /// `RequestID`, a String.
    pub request_id: String,
    /// `ErrorCode`, a Number.
    pub error_code: u16,
    /// `ErrorMessage`, a String: the first 1 KB.
    pub error_message: String,
}

/// Attributes of a dead letter. The code is the status of the last attempt: 200 for a function that failed, 429 where
/// none was made. The message is `errorMessage` of the error object if there is one.
pub fn dead_letter(event: &AsyncEvent, attempt: Option<&Attempt>, otherwise: &str) -> DeadLetterAttributes {
    #[derive(serde::Deserialize)]
    struct ErrorObject {
        #[serde(rename = "errorMessage")]
        message: String,
    }
    let mut message = attempt
        .and_then(|attempt| serde_json::from_slice::<ErrorObject>(&attempt.payload).ok())
        .map_or_else(|| otherwise.to_owned(), |object| object.message);
    message.truncate(message.floor_char_boundary(ERROR_MESSAGE_LIMIT));
    DeadLetterAttributes {
        request_id: event.request_id.to_string(),
        error_code: attempt.map_or(429, |attempt| attempt.status),
        error_message: message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Outcome;
    use domain::{AccountId, FunctionArn, RequestId};
    use std::time::{Duration, UNIX_EPOCH};

    fn event() -> AsyncEvent {
        let function = FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() };
        AsyncEvent::new(function, RequestId(uuid::Uuid::nil()), r#"{"b":1,"a":1.0}"#.into(), UNIX_EPOCH)
    }

    fn attempt(payload: &str) -> Attempt {
        Attempt {
            outcome: Outcome::FunctionError,
            status: 200,
            executed_version: Some("$LATEST".into()),
            function_error: Some("Unhandled".into()),
            payload: payload.to_owned().into(),
        }
    }

    const NOW: Duration = Duration::from_millis(1_573_755_365_568);

    /// The developer guide's example, with other ids.
    #[test]
    fn retries_exhausted() {
        let attempt = attempt(r#"{"errorMessage":"m","errorType":"E"}"#);
        let text = record(&event(), Some(Condition::RetriesExhausted), 3, Some(&attempt), UNIX_EPOCH + NOW);
        assert_eq!(
            text,
            concat!(
                r#"{"version":"1.0","timestamp":"2019-11-14T18:16:05.568Z","requestContext":"#,
                r#"{"requestId":"00000000-0000-0000-0000-000000000000","#,
                r#""functionArn":"arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST","#,
                r#""condition":"RetriesExhausted","approximateInvokeCount":3},"requestPayload":{"b":1,"a":1.0},"#,
                r#""responseContext":{"statusCode":200,"executedVersion":"$LATEST","functionError":"Unhandled"},"#,
                r#""responsePayload":{"errorMessage":"m","errorType":"E"}}"#
            )
        );
    }

    #[test]
    fn success_has_no_function_error() {
        let attempt = Attempt { outcome: Outcome::Success, function_error: None, ..attempt("null") };
        let text = record(&event(), None, 1, Some(&attempt), UNIX_EPOCH + NOW);
        let end = concat!(
            r#""condition":"Success","approximateInvokeCount":1},"requestPayload":{"b":1,"a":1.0},"#,
            r#""responseContext":{"statusCode":200,"executedVersion":"$LATEST"},"responsePayload":null}"#
        );
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn zero_reserved_concurrency_has_no_response() {
        let text = record(&event(), Some(Condition::ZeroReservedConcurrency), 0, None, UNIX_EPOCH + NOW);
        assert!(text.ends_with(r#""approximateInvokeCount":0},"requestPayload":{"b":1,"a":1.0}}"#), "{text}");
    }

    #[test]
    fn a_dead_letter_says_the_first_kilobyte() {
        let long = format!(r#"{{"errorMessage":"{}"}}"#, "é".repeat(2000));
        let attributes = dead_letter(&event(), Some(&attempt(&long)), "");
        assert_eq!((attributes.error_code, attributes.error_message.len()), (200, 1024));
        assert_eq!(dead_letter(&event(), Some(&attempt("no JSON")), "why").error_message, "why");
    }
}
