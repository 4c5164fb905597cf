//! Container images, as an OCI layout and from a registry.
#![cfg(feature = "image")]

mod layout;
mod support;
