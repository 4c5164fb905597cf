//! One host's sandboxes: Init, Invoke, freeze, reset and shutdown, the Runtime API and Extensions API, and the logs.
//!
//! ```text
//!   Worker Manager ─init, shutdown─► Service ──create──► SandboxEngine            (crate sandbox)
//!   Frontend ───────────invoke─────►   │ by sandbox id
//!                                      ▼
//!   Worker Manager ◄──SlotEvents──── Slot: state machine (`machine`) under its own lock
//!                                    ▲   │ starts, kills, timer: the slot's driver task (`slot/driver`)
//!                     HTTP, 9001     │   └─lines─► LogStore (`logs`), in a thread of its own
//!   runtime, extensions ──────► ApiServer (`api_server`), one per sandbox
//! ```
//!
//! The warm path: [`Service`]'s `invoke` finds the slot, asks the machine under the slot's lock, and hands the event
//! to the task that serves the runtime's `next`. No disk, no lock shared between functions, no other task.
//!
//! A pool of pre-started blank sandboxes would plug in at `Inner::create` in `service.rs`: instead of
//! `SandboxEngine::create` and [`machine::Action::StartRuntime`] it would take a sandbox of the same runtime whose
//! interpreter already runs and waits for its code, mount the code and send the environment. The machine then begins
//! in Starting with the runtime already asked for; nothing behind it changes.
#![forbid(unsafe_code)]

mod api_server;
mod config;
mod env;
mod layers;
mod lines;
pub mod logs;
pub mod machine;
pub mod metrics;
mod output;
mod relay;
mod service;
mod slot;
mod slot_log;
pub mod sources;

pub use config::{Config, Credentials};
pub use relay::EndpointError;
pub use service::Service;
