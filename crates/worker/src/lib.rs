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
//! An interpreter may run before its function is known (`sandbox::Standby`): `service.rs` says for which functions, and
//! [`machine::Action::StartRuntime`] then finds it waiting in the sandbox. Nothing else here knows the difference.
#![forbid(unsafe_code)]

mod api_server;
mod config;
mod env;
mod layers;
mod lines;
mod listener;
pub mod logs;
pub mod machine;
pub mod metrics;
mod output;
mod relay;
mod service;
mod slot;
mod slot_log;
mod snapshots;
pub mod sources;
mod turns;

#[cfg(fuzzing)]
pub use api_server::anything::serve_anything;
pub use config::{Config, Credentials};
#[cfg(fuzzing)]
pub use output::split_anything;
pub use relay::EndpointError;
pub use service::Service;
