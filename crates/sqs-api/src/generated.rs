//! What `cargo xtask codegen` writes; this list of its files is all that is written by hand.
// Each file has the imports that any of them may need.
#![allow(unused_imports)]

pub(crate) mod errors;
pub mod operations;

/// The shapes of SQS's API. `Option` members may be absent from the wire; the others are required.
pub mod types {
    mod enums;
    mod inputs;
    mod outputs;
    mod structures;

    pub use enums::*;
    pub use inputs::*;
    pub use outputs::*;
    pub use structures::*;
}
