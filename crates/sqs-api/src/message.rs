//! From a request to its operation and typed input, and from a typed output to a response.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Map, Value};

use crate::OperationId;
use crate::error::{ApiError, ErrorCode};
use crate::operation::Operation;

/// The content type of every request and response.
pub const CONTENT_TYPE_JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.0");

/// The operation that the header `X-Amz-Target` names: `AmazonSQS.SendMessage`.
///
/// # Errors
/// UnknownOperationException if SQS has none of that name.
pub fn operation(target: &str) -> Result<OperationId, ApiError> {
    target
        .strip_prefix(OperationId::TARGET_PREFIX)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|name| OperationId::ALL.iter().copied().find(|operation| operation.name() == name))
        .ok_or_else(|| {
            ApiError::new(ErrorCode::UnknownOperation, format!("SQS has no operation for X-Amz-Target {target:?}."))
        })
}

/// The input of a request.
///
/// # Errors
/// SerializationException for a body that is not JSON or a value of another JSON type than its member, and
/// MissingParameter for a required member that is not there.
pub fn decode<Op: Operation>(body: &[u8]) -> Result<Op::Input, ApiError> {
    let mismatch = |error: serde_json::Error| ApiError::new(ErrorCode::Serialization, error.to_string());
    let members: Map<String, Value> =
        if body.is_empty() { Map::new() } else { serde_json::from_slice(body).map_err(mismatch)? };
    for name in Op::REQUIRED {
        if members.get(*name).is_none_or(Value::is_null) {
            return Err(ApiError::missing(name));
        }
    }
    serde_json::from_value(Value::Object(members)).map_err(mismatch)
}

/// The response to a successful request.
pub fn encode<Op: Operation>(output: &Op::Output) -> http::Response<Bytes> {
    let body = serde_json::to_vec(output).expect("wire types always become JSON");
    let mut response = http::Response::new(Bytes::from(body));
    response.headers_mut().insert(CONTENT_TYPE, CONTENT_TYPE_JSON);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::{ChangeMessageVisibility, DeleteMessage, SendMessage};
    use crate::types;

    #[test]
    fn operations_are_found_by_their_target() {
        assert_eq!(operation("AmazonSQS.SendMessage"), Ok(OperationId::SendMessage));
        for target in ["AmazonSQS.Send", "SendMessage", "AmazonSNS.SendMessage", ""] {
            assert_eq!(operation(target).unwrap_err().code, ErrorCode::UnknownOperation, "{target}");
        }
    }

    #[test]
    fn a_body_becomes_an_input() {
        let body = br#"{"QueueUrl": "u", "MessageBody": "b", "MessageAttributes":
            {"a": {"DataType": "Binary", "BinaryValue": "AQI="}}, "DelaySeconds": null, "Later": 1}"#;
        let input = decode::<SendMessage>(body).unwrap();
        assert_eq!((input.queue_url.as_str(), input.message_body.as_str(), input.delay_seconds), ("u", "b", None));
        let attribute = &input.message_attributes.unwrap()["a"];
        assert_eq!(attribute.binary_value.as_deref(), Some(&[1, 2][..]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = decode::<ChangeMessageVisibility>(br#"{"QueueUrl": "u", "ReceiptHandle": "r"}"#).unwrap_err();
        assert_eq!(error.to_string(), "MissingParameter: The request must contain the parameter VisibilityTimeout.");
        let error = decode::<SendMessage>(br#"{"QueueUrl": 1, "MessageBody": "b"}"#).unwrap_err();
        assert_eq!(error.code, ErrorCode::Serialization);
        assert_eq!(decode::<SendMessage>(b"[]").unwrap_err().code, ErrorCode::Serialization);
    }

    #[test]
    fn an_output_without_members_is_an_empty_object() {
        let response = encode::<DeleteMessage>(&types::DeleteMessageResponse);
        assert_eq!(response.body().as_ref(), b"{}");
    }
}
