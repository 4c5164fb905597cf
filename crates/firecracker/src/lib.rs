//! Firecracker, unmodified: its API as types ([`api`], [`Client`]), and its start through its jailer ([`Jailer`]).
//!
//! ```text
//! Jailer::open ──► Jail (a directory, empty) ──add files──► Jail::start ──► Vmm ──Client──► configure, boot, …
//!    │ sweeps what a killed server left                                      │
//!    └ holds the lock of its directory                                       └ stop, or drop: nothing is left
//! ```
//!
//! This crate knows nothing of functions and sandboxes. What it says about Firecracker's behaviour is held by
//! `tests/contract`, which drives the real binaries.
#![forbid(unsafe_code)]

pub mod api;
mod client;
mod console;
mod cpu;
mod error;
mod jail;
mod jailer;
mod leftovers;
mod process;
mod version;
mod vmm;

pub use client::Client;
pub use console::Console;
pub use cpu::{Bitmap, CpuConfig, CpuidModifier, CpuidRegister, MsrModifier, Register};
pub use error::{Error, Result};
pub use jail::{Jail, JailSpec, Place};
pub use jailer::{CgroupVersion, Jailer, JailerConfig, Swept};
pub use version::Version;
pub use vmm::Vmm;
