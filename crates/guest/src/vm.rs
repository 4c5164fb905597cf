//! PID 1 of a microVM: what stands, inside the guest kernel, where the engine's helper stands on a host.
//!
//! It makes one sandbox of the very same kind as the process engine does (namespaces, stage, seccomp, a cgroup for the
//! limits), with [`crate::init`] as its PID 1, and carries words, output and connections between that sandbox and the
//! worker. So a function sees the same in both kinds of sandbox, and a hole in the guest kernel is not yet a way out.
//!
//! ```text
//!  host                              │ guest kernel
//!  worker ◄─── control (frames) ─────┼──► agent (PID 1 of the VM) ◄── Channel ──► init (PID 1 of the sandbox)
//!         ◄─── output, one each ─────┼─────────┤ ◄───────── pipe ──────────────────── processes
//!         ◄─── Runtime API … ────────┼─────────┘ ◄──── 169.254.100.1:9001 ───────────┘
//! ```
//!
//! All of it is virtio-vsock: the guest connects to the host, never the other way. The host is its only peer, and cannot
//! be told apart from what it says; everything that comes from the sandbox is data to carry. The agent needs no secret,
//! and the host believes it no more than it believes the function.
//!
//! - [`protocol`]: the words on the control connection, and their frames.
//! - [`link`]: how what a function says on a connection is carried.
//! - [`agent`]: its life; [`boot`]: mounts, clock, entropy, limits; [`drives`]: its disks; [`pump`]: what it carries.

pub mod agent;
mod boot;
mod drives;
pub mod link;
pub mod protocol;
mod pump;
