//! Errors as they travel: the code names the error and fixes its status and the casing of its body.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use serde_json::{Map, Value};

use crate::generated::errors::with_modelled_errors;

macro_rules! define_error_codes {
    ($($(#[$doc:meta])* $name:ident, $status:literal, $message:literal, $typed:ident;)+) => {
        /// The name of an error: those of the service model, and those of AWS's HTTP front that every service shares.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)+
        }

        impl ErrorCode {
            /// Every code: the modelled ones first.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name on the wire.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// The HTTP status that it comes with.
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)+
                }
            }

            /// The JSON member that holds the message: `Message` or `message`, by the code.
            pub const fn message_member(self) -> &'static str {
                match self {
                    $(Self::$name => $message,)+
                }
            }

            /// Whether the service itself raises it and so says whose fault it was; the HTTP front does not.
            const fn has_type(self) -> bool {
                match self {
                    $(Self::$name => define_error_codes!(@$typed),)+
                }
            }
        }
    };
    (@typed) => { true };
    (@untyped) => { false };
}

with_modelled_errors!(define_error_codes {
    /// The caller may not do this.
    AccessDeniedException, 403, "Message", untyped;
    /// The credentials have expired.
    ExpiredTokenException, 403, "message", untyped;
    /// The Authorization header lacks a part.
    IncompleteSignatureException, 403, "message", untyped;
    /// The server failed.
    InternalFailure, 500, "message", untyped;
    /// The signature does not fit the request.
    InvalidSignatureException, 403, "message", untyped;
    /// The request has no Authorization header.
    MissingAuthenticationTokenException, 403, "message", untyped;
    /// The server does not have this operation.
    NotImplemented, 501, "message", untyped;
    /// The request's body is too large for the operation.
    RequestEntityTooLargeException, 413, "message", untyped;
    /// A value has another JSON type than its member.
    SerializationException, 400, "Message", untyped;
    /// The server cannot take requests now.
    ServiceUnavailableException, 503, "message", untyped;
    /// The caller sends too many requests.
    ThrottlingException, 429, "message", untyped;
    /// No operation has this method and path.
    UnknownOperationException, 404, "message", untyped;
    /// The access key is not known.
    UnrecognizedClientException, 403, "message", untyped;
    /// The input breaks constraints of the service model.
    ValidationException, 400, "message", untyped;
});

impl ErrorCode {
    /// The code of a name on the wire, if it is one of ours.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Which error.
    pub code: ErrorCode,
    /// The text for the user.
    pub message: String,
    /// `User` or `Service`: whose fault; errors of the HTTP front do not say.
    pub kind: Option<&'static str>,
    /// Of TooManyRequestsException: which limit was reached.
    pub reason: Option<String>,
    /// When the client may try again; travels in the header `Retry-After`.
    pub retry_after_seconds: Option<u32>,
}

impl ApiError {
    /// An error with the type that its code has: User below status 500, Service above, none for the HTTP front's.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let kind = code.has_type().then_some(if code.status() < 500 { "User" } else { "Service" });
        Self { code, message: message.into(), kind, reason: None, retry_after_seconds: None }
    }

    /// Without the type: some errors of the service come without it.
    pub fn without_type(mut self) -> Self {
        self.kind = None;
        self
    }

    /// With the reason of a throttle.
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// With the number of seconds to wait before the next try.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The response that tells a client of the error.
    pub fn to_response(&self) -> http::Response<Bytes> {
        let mut body = Map::new();
        if let Some(reason) = &self.reason {
            body.insert("Reason".to_owned(), Value::from(reason.as_str()));
        }
        if let Some(kind) = self.kind {
            body.insert("Type".to_owned(), Value::from(kind));
        }
        body.insert(self.code.message_member().to_owned(), Value::from(self.message.as_str()));
        let mut response = http::Response::new(Value::Object(body).to_string().into());
        *response.status_mut() =
            http::StatusCode::from_u16(self.code.status()).expect("the table of codes holds valid statuses");
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ERROR_TYPE, HeaderValue::from_static(self.code.name()));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// The error that a response with a failure status tells of.
    pub(crate) fn from_response(response: &http::Response<Bytes>) -> Self {
        let body: Value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        let text = |member: &str| body[member].as_str();
        let header = response.headers().get(ERROR_TYPE).and_then(|value| value.to_str().ok());
        // Some senders add a namespace before the name or a URI after it.
        let name = header.or_else(|| text("__type")).unwrap_or("").split(':').next().unwrap_or("");
        let name = name.rsplit('#').next().unwrap_or(name);
        let message = text("message").or_else(|| text("Message")).unwrap_or_default().to_owned();
        let mut error = match ErrorCode::from_name(name) {
            Some(code) => Self::new(code, message),
            None => Self::new(
                ErrorCode::InternalFailure,
                format!("unknown error {name:?} with status {}: {message}", response.status()),
            ),
        };
        error.kind = match text("Type") {
            Some("User") => Some("User"),
            Some("Service") => Some("Service"),
            _ => None,
        };
        error.reason = text("Reason").map(str::to_owned);
        error.retry_after_seconds =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        error
    }
}

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for ApiError {}
