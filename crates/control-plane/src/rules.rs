//! What requests may ask for, and what they change. Pure functions over the records.

pub(crate) mod alias;
pub(crate) mod code;
pub(crate) mod concurrency;
pub(crate) mod environment;
pub(crate) mod event_invoke;
pub(crate) mod event_source;
pub(crate) mod policy;
pub(crate) mod settings;
pub(crate) mod tags;
pub(crate) mod unsupported;

use lambda_api::{ApiError, ErrorCode};

/// The error of most rules.
pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidParameterValueException, message)
}
