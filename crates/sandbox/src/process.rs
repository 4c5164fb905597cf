//! Sandboxes made of what the Linux kernel offers to any process: namespaces, cgroups, seccomp, Landlock.
//!
//! ```text
//! emberbox ─────────────── orders ──────────────► helper (one thread)          ─ makes, destroys, clears up
//!    │   ProcessEngine                              │ forks
//!    │                                              ├── midwife (short-lived)  ─ the slow part of making one
//!    │                                              │     │ bears, as its sibling
//!    └── spawn, signal, exits ◄── socket ──► PID 1 ◄┘─────┘                    ─ one for each sandbox, see `guest`
//!    └── freeze, thaw: a write to the cgroup      │ forks
//!                                                 └── the function's processes
//! ```
//!
//! The helper is this same program, started again before anything else runs in it ([`maybe_run_helper`]). When the
//! engine dies, however it dies, the helper sees its socket close and removes everything; should it be killed as well,
//! the kernel kills every PID 1 (parent-death signal; a frozen one dies when it is thawed), and the next instance thaws and
//! removes the cgroups. Mounts, loop devices and network namespaces have no names: they vanish with the last process that
//! uses them.
//!
//! Without root, the same helper first makes itself root of a user namespace. Then all functions have one user id on the
//! host, the one of Emberbox; `/tmp` is in memory; cgroups may be missing; and the network is `pasta`'s. What is so on
//! this host, the helper says when it has started: `SandboxEngine::describe`.
//!
//! Blank sandboxes wait in a pool; making one costs tens of milliseconds, giving it a purpose a few. For a runtime that
//! was used there are also some in which its interpreter already stands by ([`standbys`]).
//!
//! Walls between a function and the host, so that a hole in one is not yet a way out: user ids that own nothing on the host; a root that
//! is read-only; no capability, none to be gained; a system call filter; Landlock; namespaces for processes, mounts,
//! network, IPC; a packet filter that the function's network namespace ends at.

pub(crate) mod blank;
pub(crate) mod cgroup;
mod config;
mod connection;
mod engine;
pub(crate) mod firewall;
pub(crate) mod helper;
pub(crate) mod instance;
mod messages;
mod pasta;
mod peaks;
mod probe;
pub(crate) mod scratch;
mod standbys;
mod sys;

pub use config::{BadAddress, Destination, Egress, Network, ProcessConfig, Range, STANDBY_KINDS};
pub use engine::ProcessEngine;
#[cfg(feature = "microvm")]
pub(crate) use engine::error_of;
pub use probe::{Finding, HostReport, probe};

/// In the environment of a program: it is to be the helper.
pub(crate) const MARKER: &str = "EMBERBOX_SANDBOX_HELPER";
/// Value of that: it is to be the launcher of microVMs.
#[cfg(feature = "microvm")]
pub(crate) const LAUNCHER: &str = "microvm";

/// Turns this process into the sandbox helper if it was started as one, and then does not return. To be called first in
/// `main`: before threads are started, the environment is looked at, or anything is printed.
pub fn maybe_run_helper() {
    let Some(_part) = std::env::var_os(MARKER) else { return };
    #[cfg(feature = "microvm")]
    if _part == LAUNCHER {
        crate::microvm::launcher::run()
    }
    helper::run()
}
