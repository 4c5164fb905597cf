//! Asynchronous invocation: what becomes of an event after the Frontend has answered 202.
//!
//! ```text
//! accept ──► EventQueue ──Lease──► AsyncEvent ──Invoker──► Attempt ──rules──► Verdict ──► ack, release or Deliver
//! ```
//!
//! For the process that wires the parts:
//! - [`Service::new`]`(Config, Arc<dyn EventQueue>, Arc<dyn Invoker>, Arc<dyn SettingsSource>, Arc<dyn Deliver>,
//!   Arc<dyn domain::Clock>, Metrics)`; the clock is the one that the queue has. Cheap to clone.
//! - [`Service::accept`]`(AsyncEvent::new(..)).await?` before a 202. Give the event a whole trace header (with its
//!   `Root`), or its lineage does not survive the function.
//! - [`Service::run`] on a task of its own; it returns after [`Service::stop`]`(limit)`.
//! - [`Service::stats`]`(&FunctionArn).await?` for the CLI; [`Metrics::register`] for `/metrics`.
//! - A synchronous invocation counts its hop by [`lineage::hop`] and asks [`lineage::is_loop`]; an [`Invoker`] must not:
//!   the service has done it.
//! - When a function is deleted its queue may be purged (`event_queue::EventQueue::purge`); what is left of it is
//!   dropped when it is taken.
//!
//! [`rules`], [`record`], [`lineage`], [`pending`] and `scheduler` (what is taken from the queue and run next) decide
//! without IO or clock; [`ports`] are the ways out; [`service`] drives.
#![forbid(unsafe_code)]

pub mod event;
mod metrics;
pub mod pending;
pub mod ports;
pub mod record;
pub mod rules;
mod scheduler;
pub mod service;
pub mod target;

pub use domain::lineage;
pub use event::AsyncEvent;
pub use metrics::Metrics;
pub use pending::Pending;
pub use ports::{Attempt, Deliver, DeliveryError, EventConfig, Invoker, Message, SettingsSource};
pub use rules::{Condition, Outcome, Settings, Verdict};
pub use scheduler::shared;
pub use service::{Config, EventStats, Service};
pub use target::Target;
