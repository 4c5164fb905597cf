//! Asynchronous invocation: what becomes of an event after the Frontend has answered 202.
//!
//! ```text
//! EventQueue ──Lease──► AsyncEvent ──Invoker──► Attempt ──rules──► Verdict ──► ack, release or Deliver
//! ```
//!
//! [`rules`], [`record`] and [`lineage`] decide without IO or clock; [`ports`] are the ways out.
#![forbid(unsafe_code)]

pub mod event;
pub mod lineage;
pub mod ports;
pub mod record;
pub mod rules;
pub mod target;

pub use event::AsyncEvent;
pub use ports::{Attempt, Deliver, DeliveryError, Invoker, Message, SettingsSource};
pub use rules::{Condition, Settings, Verdict};
pub use target::Target;
