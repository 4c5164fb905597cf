//! Errors as they travel. Clients of SQS's older protocol know other names for many of them; those travel in a header.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::json;

use crate::CONTENT_TYPE_JSON;
use crate::generated::errors::with_modelled_errors;

macro_rules! define_error_codes {
    ($($(#[$doc:meta])* $name:ident;)+) => {
        /// The name of an error: those of the service model, and those that every service of AWS shares.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)+
            /// The caller may not do this.
            AccessDenied,
            /// The server failed.
            InternalFailure,
            /// A parameter has a value that it must not have.
            InvalidParameterValue,
            /// A parameter is missing.
            MissingParameter,
            /// The server does not have this operation.
            NotImplemented,
            /// The body is not JSON, or a value has another JSON type than its member.
            Serialization,
            /// SQS has no such operation.
            UnknownOperation,
        }

        impl ErrorCode {
            /// The namespace and name in the body's `__type`.
            pub const fn type_name(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("com.amazonaws.sqs#", stringify!($name)),)+
                    Self::AccessDenied => "com.amazon.coral.service#AccessDeniedException",
                    Self::InternalFailure => "com.amazon.coral.service#InternalFailure",
                    Self::InvalidParameterValue => "com.amazon.coral.service#InvalidParameterValueException",
                    Self::MissingParameter => "com.amazon.coral.service#MissingRequiredParameterException",
                    Self::NotImplemented => "com.amazon.coral.service#NotImplemented",
                    Self::Serialization => "com.amazon.coral.service#SerializationException",
                    Self::UnknownOperation => "com.amazon.coral.service#UnknownOperationException",
                }
            }
        }
    };
}

with_modelled_errors!(define_error_codes);

impl ErrorCode {
    /// Its name in the service model, or for the errors that all services share, theirs.
    pub fn name(self) -> &'static str {
        self.type_name().split_once('#').map_or("", |(_, name)| name)
    }

    /// Its name in the query protocol, which botocore and the AWS CLI show as the error's code. The published model lacks
    /// these names; they are those of SQS's API reference.
    pub fn query_name(self) -> &'static str {
        match self {
            Self::BatchEntryIdsNotDistinct => "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
            Self::BatchRequestTooLong => "AWS.SimpleQueueService.BatchRequestTooLong",
            Self::EmptyBatchRequest => "AWS.SimpleQueueService.EmptyBatchRequest",
            Self::InvalidBatchEntryId => "AWS.SimpleQueueService.InvalidBatchEntryId",
            Self::MessageNotInflight => "AWS.SimpleQueueService.MessageNotInflight",
            Self::PurgeQueueInProgress => "AWS.SimpleQueueService.PurgeQueueInProgress",
            Self::QueueDeletedRecently => "AWS.SimpleQueueService.QueueDeletedRecently",
            Self::QueueDoesNotExist => "AWS.SimpleQueueService.NonExistentQueue",
            Self::QueueNameExists => "QueueAlreadyExists",
            Self::TooManyEntriesInBatchRequest => "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
            Self::UnsupportedOperation => "AWS.SimpleQueueService.UnsupportedOperation",
            Self::AccessDenied => "AccessDenied",
            Self::InvalidParameterValue => "InvalidParameterValue",
            Self::MissingParameter => "MissingParameter",
            other => other.name(),
        }
    }

    /// The HTTP status that it comes with.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::AccessDenied => StatusCode::FORBIDDEN,
            Self::UnknownOperation => StatusCode::NOT_FOUND,
            Self::InternalFailure => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Whether the caller has to change the request before it can succeed.
    pub fn is_senders_fault(self) -> bool {
        !self.status().is_server_error()
    }
}

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Which error.
    pub code: ErrorCode,
    /// The text for the user.
    pub message: String,
}

impl ApiError {
    /// An error with a text for the user.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A required parameter is not there.
    pub fn missing(parameter: &str) -> Self {
        Self::new(ErrorCode::MissingParameter, format!("The request must contain the parameter {parameter}."))
    }

    /// The response that tells a client of the error.
    pub fn to_response(&self) -> http::Response<Bytes> {
        let body = json!({"__type": self.code.type_name(), "message": self.message});
        let fault = if self.code.is_senders_fault() { "Sender" } else { "Receiver" };
        let query_error = format!("{};{fault}", self.code.query_name());
        let mut response = http::Response::new(Bytes::from(body.to_string()));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, CONTENT_TYPE_JSON);
        headers.insert(
            QUERY_ERROR,
            HeaderValue::from_str(&query_error).expect("the names of errors are valid in headers"),
        );
        response
    }
}

const QUERY_ERROR: HeaderName = HeaderName::from_static("x-amzn-query-error");

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.query_name(), self.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_both_of_its_names() {
        let response = ApiError::new(ErrorCode::QueueDoesNotExist, "The specified queue does not exist.").to_response();
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()["x-amzn-query-error"], "AWS.SimpleQueueService.NonExistentQueue;Sender");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["__type"], "com.amazonaws.sqs#QueueDoesNotExist");
        assert_eq!(body["message"], "The specified queue does not exist.");
    }
}
