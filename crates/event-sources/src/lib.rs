//! Event source mappings: polls sources, gathers batches, invokes functions with them.
//!
//! ```text
//!  Mappings ──which──► Service ──one for each──► mapping ──Scaler: how many──► poller
//!                                                                                │ loop
//!  QueueSource ──receive──► filter ──keep──► Batcher ──batch──► Invoker ──answer──► judge
//!       ▲                     └──drop──┐                                             │
//!       └───────────delete─────────────┴──────────────◄──what succeeded──────────────┘
//! ```
//!
//! # For the process that wires the parts
//! ```ignore
//! let queues = Arc::new(SqsQueues::new(SqsConfig { endpoint, credentials, http_client: None }));
//! let service = Arc::new(Service::new(Config::default(), queues, mappings, invoker, clock, metrics));
//! tokio::spawn({ let service = service.clone(); async move { service.run().await } });
//! …
//! service.stop(Duration::from_secs(30)).await;
//! ```
//! - [`Mappings`]: `ControlPlane::served_event_sources`, `event_source_changes` and `report_event_source` behind one
//!   trait; [`Invoker`]: the synchronous path.
//! - `ControlPlane::check_event_sources_with`: [`SqsQueues::visibility_timeout`], its error as text.
//!
//! # What holds
//! A message is deleted only after the function has succeeded with it, or no filter matches it. Whatever else happens
//! (errors, throttles, a stop, a crash) it becomes visible again after the queue's visibility timeout, and the queue's
//! own redrive policy applies. The order of FIFO groups is kept: the queue hands out nothing of a group while messages
//! of it are out, and of one poller's messages nothing of a group is sent after a failure in it.
//!
//! Other kinds of sources are new variants of [`domain::EventSource`] with a runner beside `service::mapping`; batches,
//! filters, verdicts and back-off serve them too.
#![forbid(unsafe_code)]

mod backoff;
mod batch;
mod filter;
mod message;
mod metrics;
mod ports;
mod response;
mod scaling;
mod service;
mod sqs;

pub use message::{Attribute, Message};
pub use metrics::Metrics;
pub use ports::{Invocation, InvokeError, Invoker, Mappings, QueueSource, SourceError};
pub use service::{Config, Service};
pub use sqs::{SqsConfig, SqsCredentials, SqsQueues};
