//! Sandboxes that are virtual machines of their own, each with its own kernel.
//!
//! ```text
//! emberbox ── MicrovmEngine ── Engine (qemu) ──► QEMU ◄──────────────► vhost-device-vsock   (one pair for each sandbox)
//!    │                                            │ guest kernel               │
//!    │                                            │   agent, PID 1 (`guest::vm`)
//!    └── control, output, Runtime API ◄─ Unix sockets in the VM's directory ◄──┘
//! ```
//!
//! The other engine is Firecracker ([`firecracker`]), which has its vsock device itself.
//!
//! A VM is booted for each sandbox, from files: the guest kernel, an initramfs with nothing but the agent (which is part
//! of this program), a read-only squashfs of every directory that the sandbox sees ([`images`]), and a sized ext4 for
//! `/tmp`. Inside, the agent makes the same sandbox that [`crate::process`] makes on a host, so a function sees no
//! difference; its network card leads to a tap device of the host ([`network`]); the memory limit is a cgroup in there, and
//! the VM has some more for its kernel.
//!
//! QEMU and its vsock device are each confined like a function ([`confine`]), by a process that does nothing else
//! ([`launcher`]).
//!
//! Everything that comes from a VM is hostile: it is bounded in size, in time and in meaning ([`control`]), and what does
//! not fit ends the VM. Nothing outlives the server: the kernel kills its children with it, and what has a name (cgroups,
//! the directory) the next start removes. (A Firecracker ends with its guest, which notices, or at the next start.)
//!
//! Booted VMs wait for a function, if the configuration wants it ([`waiting`]): they have disks without contents, in whose
//! place the function's come.
//!
//! One that was idle for a while gives back what memory its kernel has free ([`rest`]); under Firecracker not yet.
//!
//! A sandbox may be kept in a snapshot and restored from it, as often as wanted ([`kept`]), where the engine can.

mod boot;
mod config;
mod confine;
mod control;
mod engine;
mod firecracker;
mod images;
#[cfg(feature = "in-place")]
mod in_place;
mod initramfs;
mod kept;
pub(crate) mod launcher;
mod machine;
mod network;
mod pool;
mod qemu;
mod qmp;
mod rest;
mod sandbox;
mod seat;
mod spawner;
#[cfg(test)]
mod tests;
mod tree;
mod trial;
mod tsc;
mod waiting;

pub use config::{Accel, EngineKind, FirecrackerConfig, MicrovmConfig, Rate};
#[cfg(fuzzing)]
pub use control::hear_anything;
pub use engine::MicrovmEngine;
pub use pool::POOL_KINDS;
pub use trial::{Trial, trial};
