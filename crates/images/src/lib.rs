//! What a microVM boots: the guest kernel, and read-only images.
//!
//! ```text
//!  directory ───────────────────────────┬──► tree in memory ──► squashfs
//!  Debian release ──mmdebstrap──► tar ──┤    (never a directory of the host)
//!  OCI layout ──checked──► layers' tars ┘
//! ```
//!
//! The same input gives the same bytes, so an image can be kept by the hash of its content, and shared by all VMs. Owner
//! and time of a directory's files are no input. Images have directories, files and links only, without extended
//! attributes, and nothing in them is setuid.
//!
//! The kernel is built from the distribution's kernel source with the configuration of this repository
//! (`kernel/x86_64.config`, each option with its reason): [`kernel`].
#![forbid(unsafe_code)]

pub mod kernel;

#[cfg(feature = "image")]
mod build;
#[cfg(feature = "image")]
mod debian;
#[cfg(feature = "image")]
mod directory;
#[cfg(feature = "image")]
mod error;
#[cfg(feature = "image")]
mod layer;
#[cfg(feature = "image")]
mod limits;
#[cfg(feature = "image")]
pub mod oci;
#[cfg(feature = "image")]
mod scratch;
#[cfg(feature = "image")]
mod squashfs;
#[cfg(feature = "image")]
mod tree;
#[cfg(feature = "image")]
mod unpack;

#[cfg(feature = "image")]
pub use build::{Image, Options, Source, build, unpack};
#[cfg(feature = "image")]
pub use debian::Debian;
#[cfg(feature = "image")]
pub use error::{ImageError, Refusal};
#[cfg(feature = "image")]
pub use limits::Limits;
