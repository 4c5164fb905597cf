//! Container images, as an OCI layout and from a registry.
#![cfg(feature = "image")]

mod layout;
#[cfg(feature = "oci")]
mod registry;
#[cfg(feature = "oci")]
mod store;
mod support;
