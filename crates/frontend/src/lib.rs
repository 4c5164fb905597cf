//! The Frontend: Emberbox's public HTTP API. It authenticates, validates, routes and answers, and carries payloads
//! from clients to workers. It keeps no state that another Frontend would need.
//!
//! ```text
//! server ──► service ──► auth, sigv4, loopback      who is calling
//!               ├──────► operations                 management, by the control plane
//!               ├──────► invoke, sync_path          invocations: run at once, or put on the queue
//!               │            └──► router            which Worker Manager is asked, if there are several
//!               ├──────► events_api                 how queued events are doing
//!               ├──────► (sqs)                      queues, by the part of that name
//!               ├──────► logs_api, code_url         reading logs, downloading code
//!               └──────► metrics
//! ```
#![forbid(unsafe_code)]

mod auth;
mod body;
mod code_url;
mod config;
mod events_api;
mod invoke;
mod logs_api;
mod loopback;
mod metrics;
pub mod ports;
pub mod router;
mod server;
mod service;
pub mod sigv4;
pub mod sync_path;

pub use auth::Identity;
pub use config::{CodeUrlKey, Config, Credential, Limits, TlsFiles};
pub use invoke::{Begun, draw_fraction, new_trace};
pub use metrics::Metrics;
pub use server::{BindError, Listener, Server};
pub use service::Deps;
