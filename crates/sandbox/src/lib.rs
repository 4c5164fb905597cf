//! Isolation: what a sandbox is, whatever it is made of.
//!
//! A sandbox is a place with a file system, a network and limits, in which processes can be started. It does not know
//! what a function is. [`SandboxEngine`] makes them; [`Sandbox`] is one of them. Made of namespaces: [`process`]; virtual
//! machines: `microvm` (cargo feature of that name).

pub mod api;
#[cfg(feature = "microvm")]
pub mod microvm;
pub mod priority;
pub mod process;

pub use api::{
    Command, ExitStatus, Listener, Mount, Process, ProcessId, Restored, Sandbox, SandboxEngine, SandboxError,
    SandboxEvent, SandboxSpec, Signal, Standby, Usage,
};
