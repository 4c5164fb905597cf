//! What a microVM boots: the guest kernel, and read-only root images.
//!
//! The kernel is built from the distribution's kernel source with the configuration of this repository
//! (`kernel/x86_64.config`, each option with its reason): [`kernel`].
#![forbid(unsafe_code)]

pub mod kernel;
