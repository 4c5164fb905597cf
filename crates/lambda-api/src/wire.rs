//! What the generated code uses of the values that all JSON services share.

pub use aws_wire::{Hidden, Timestamp, blob, empty_structure, string_enum};
