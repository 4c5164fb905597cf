//! What an operation is, and the macro that turns the generated table of operations into types.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::OperationId;

/// An operation of the API, as a type: `operations::SendMessage`.
pub trait Operation {
    /// Its entry in the list of operations.
    const ID: OperationId;
    /// The members that a request must have.
    const REQUIRED: &[&str];
    /// What a request carries.
    type Input: Default + Serialize + DeserializeOwned;
    /// What a successful response carries.
    type Output: Default + Serialize + DeserializeOwned;
}

macro_rules! define_operations {
    ($target:literal; $($(#[$doc:meta])* $name:ident($input:ident) -> $output:ident: $required:expr;)+) => {
        /// An operation of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OperationId {
            $($(#[$doc])* $name,)+
        }

        impl OperationId {
            /// Every operation, by name.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What stands before the name in the header `X-Amz-Target`, with a dot between.
            pub const TARGET_PREFIX: &str = $target;

            /// Its name, as in `sqs:<name>` of a policy.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }

        impl std::fmt::Display for OperationId {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        /// One type per operation, for `decode` and `encode`.
        pub mod operations {
            use super::OperationId;
            use crate::operation::Operation;
            use crate::types;

            $(
                $(#[$doc])*
                #[derive(Debug, Clone, Copy)]
                pub struct $name;

                impl Operation for $name {
                    const ID: OperationId = OperationId::$name;
                    const REQUIRED: &[&str] = &$required;
                    type Input = types::$input;
                    type Output = types::$output;
                }
            )+
        }
    };
}
pub(crate) use define_operations;
