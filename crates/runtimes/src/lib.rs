//! What a runtime is, and how it gets onto this host.
//!
//! A runtime is data: a TOML file that names its root, what is mounted into it, its bootstrap command and its
//! environment. The built-in ones are in `runtimes/*.toml`; a user adds others to `<data>/runtimes.d`.
//!
//! ```text
//!  runtimes/*.toml ──► Runtimes ──ensure──► base root      <data>/roots/base-<hash>       programs and libraries of this host
//!  runtimes.d/*.toml                   └──► installation   <data>/runtimes/<name>-<hash>  interpreter and AWS's client
//! ```
//!
//! Both directories are made beside their place and renamed into it when complete, and never change afterwards.
#![forbid(unsafe_code)]

mod base;
mod catalog;
mod copy;
mod error;
mod host;
mod image;
mod install;
mod interpreters;
mod libraries;
mod progress;
mod recipe;

pub use catalog::{Config, RuntimeState, RuntimeStatus, Runtimes};
pub use error::RuntimeError;
pub use image::{Bootstrap, RuntimeImage};
pub use progress::{Progress, Silent};
