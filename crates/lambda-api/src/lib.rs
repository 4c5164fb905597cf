//! The wire model of AWS Lambda: which operations exist, how a request becomes a typed input, which inputs AWS refuses
//! and in which words, and how a typed output or an error becomes a response. The same tables drive the client side.
//!
//! A server does `route` → `decode` → its work → `encode` or [`ApiError::to_response`]. The shapes, the routes and the
//! constraints are generated from AWS's published service model (`generated/README.md`); what interprets them is
//! written by hand and knows nothing of Lambda, apart from the table in `deviations.rs`.
#![forbid(unsafe_code)]

mod client;
mod decode;
mod deviations;
mod encode;
mod error;
mod generated;
mod json_payload;
mod message;
mod operation;
mod route;
mod schema;
mod uri;
mod validate;
mod wire;

pub use client::{decode_response, encode_request};
pub use decode::decode;
pub use deviations::unknown_runtime;
pub use encode::encode;
pub use error::{ApiError, ErrorCode};
pub use generated::operations::{OperationId, operations};
pub use generated::types;
pub use json_payload::check_json_payload;
pub use message::Message;
pub use operation::Operation;
pub use route::{RouteError, Routed, route};
pub use wire::Timestamp;
