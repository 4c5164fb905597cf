//! Where one part's words meet another's: each part states what it needs as a trait of its own, and these few types
//! implement it over the part that has it. No decisions here.

mod direct;
mod event_sources;
mod events;
#[cfg(feature = "cluster")]
mod fleet;
mod functions;
mod images;
mod logs;
mod packages;
mod runtimes;
mod snapshots;
mod sqs;
mod traces;

pub use direct::Direct;
pub use event_sources::{Mappings, Queues, SourceInvoker};
pub use events::{Attempts, EventSettings, Events, Records, Timelines};
#[cfg(feature = "cluster")]
pub use fleet::{NoQueues, NoSnapshots, RuntimesOfWorkers};
pub use functions::Functions;
pub use images::Images;
pub use logs::Logs;
pub use packages::Code;
pub use runtimes::{Catalog, Logged};
pub use snapshots::Snapshots;
pub use sqs::{OwnQueues, Sqs};
pub use traces::TracedDelivery;
