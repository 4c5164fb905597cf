//! OpenTelemetry: what is told of invocations ([`domain::trace`]) becomes spans, and goes to a collector by OTLP over HTTP.
//!
//! ```text
//!  invoke path ──take──► queue (bounded) ──► batch ──► spans ──► otlp ──► POST /v1/traces
//!   never waits          full: counted       convert: pure      encode: pure
//! ```
//!
//! The process that ran the synchronous path exports all spans of it, those of other members as well: it has all marks when
//! the invocation is over, by its own clock, so that hosts' clocks need not agree, and the other roles need no collector.
#![forbid(unsafe_code)]

mod convert;
mod encode;
mod exporter;
mod metrics;
mod otlp;
mod sampler;
mod span;

pub use convert::spans;
pub use exporter::{Config, Error, Exporter, RolesOf, Service};
pub use sampler::Sampler;
pub use span::{Event, Kind, Member, Span, Value};
