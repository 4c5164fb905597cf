//! PID 1 of a sandbox, and the words it speaks with the engine outside.
//!
//! It is not a program of its own: the engine's helper process forks and calls [`init::run`] in the child, so that two
//! hundred of them share one copy of their code. It holds no secret of the host, and nothing outside believes a word of
//! it beyond what concerns its own sandbox.
//!
//! ```text
//!  engine                         PID 1                                   function's processes
//!    │  Prepare (mappings done) ──► network up, /proc, /dev on a bare tmpfs
//!    │ ◄── Ready ─────────────────  (blank: may wait in the pool from here)
//!    │  SetUp + mount fds ────────► root, /var/task, /tmp …; pivot; lock down
//!    │ ◄── listeners ─────────────
//!    │  Spawn + pipe ─────────────► fork ─────────────────────────────────► drop all rights, exec
//!    │ ◄── Spawned ───────────────
//!    │ ◄── Exited ────────────────  reap ◄──────────────────────────────────
//!    ✕ (socket closed) ───────────► exit, and the kernel kills everything inside
//! ```
//!
//! - [`protocol`]: the messages; [`wire`]: how messages and file descriptors cross a socket.
//! - [`init`]: the loop; [`stage`]: what is mounted where; [`exec`]: how a process is started.
//! - [`standby`]: a process that is started before it is known what for.
//! - [`privileges`], [`seccomp`]: what a function's process may not do.
//! - [`netlink`]: addresses, links and routes; [`sys`]: every system call that needs `unsafe`.

pub mod exec;
pub mod init;
pub mod netlink;
pub mod privileges;
pub mod protocol;
pub mod seccomp;
pub mod stage;
pub mod standby;
pub mod sys;
pub mod vm;
pub mod wire;
