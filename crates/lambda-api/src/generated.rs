//! What `cargo xtask codegen` writes; this list of its files is all that is written by hand.
#![allow(non_camel_case_types)]

pub(crate) mod errors;
mod messages;
pub mod operations;
pub(crate) mod routes;
pub(crate) mod schema;

/// The shapes of AWS Lambda's API. `Option` members may be absent from the wire; the others are required.
pub mod types {
    mod enums;
    mod inputs;
    mod outputs;
    mod structures;

    pub use enums::*;
    pub use inputs::*;
    pub use outputs::*;
    pub use structures::*;

    pub use crate::wire::Timestamp;
}
