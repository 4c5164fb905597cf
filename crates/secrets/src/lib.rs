//! Encryption of what is secret in the metadata.
//!
//! ```text
//!  key file ──► Keyring ──seal(value, context)──► "v1:<key>:<nonce, ciphertext, tag>" ──► a record
//!  a line a key   first key                                                                  │
//!                 any key ◄────────────────────open(text, context)◄──────────────────────────┘
//! ```
//!
//! AES-256-GCM with a random nonce for each value. The context (kind and key of the record) is authenticated with it, so
//! that a value that somebody copies into another record does not open there. What this does not stop: whoever can write
//! the metadata can put back an older value of the same record, and whoever has the key file can read everything.
//!
//! Keys are rotated by the order of the file's lines: the first encrypts, all decrypt.
#![forbid(unsafe_code)]

mod file;
mod keyring;

pub use file::{KeyFileError, create, read};
pub use keyring::{Context, Keyring, OpenError, Opened, key_of};
