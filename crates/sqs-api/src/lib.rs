//! The wire model of Amazon SQS in its JSON protocol (AWS JSON 1.0): which operations exist, how a request's body becomes
//! a typed input, and how a typed output or an error becomes a response.
//!
//! A server does [`operation`] → [`decode`] → its work → [`encode`] or [`ApiError::to_response`]. The shapes and the
//! operations are generated from AWS's published service model (`generated/README.md`). SQS's model has no constraints
//! but which members are required; the others are the server's.
#![forbid(unsafe_code)]

mod error;
mod generated;
mod message;
mod operation;

/// What the generated code uses of the values that all JSON services share.
mod wire {
    pub use aws_wire::{blob, empty_structure, string_enum};
}

pub use error::{ApiError, ErrorCode};
pub use generated::operations::{OperationId, operations};
pub use generated::types;
pub use message::{CONTENT_TYPE_JSON, decode, encode, operation};
pub use operation::Operation;
