//! What an operation is, and the macro that turns the generated table of operations into types.

use crate::OperationId;
use crate::message::Message;

/// An operation of the API, as a type: `operations::CreateFunction`.
pub trait Operation {
    /// Its entry in the list of operations.
    const ID: OperationId;
    /// What a request carries.
    type Input: Message;
    /// What a successful response carries.
    type Output: Message;
}

macro_rules! define_operations {
    ($($(#[$doc:meta])* $name:ident($input:ident) -> $output:ident: $method:ident, $uri:literal, $status:literal;)+) => {
        /// An operation of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OperationId {
            $($(#[$doc])* $name,)+
        }

        impl OperationId {
            /// Every operation, by name.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name, as in `lambda:<name>` of a policy.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// The HTTP method of its requests.
            pub const fn method(self) -> http::Method {
                match self {
                    $(Self::$name => http::Method::$method,)+
                }
            }

            /// The path of its requests, with labels in braces, and a query literal where it has one.
            pub const fn uri_template(self) -> &'static str {
                match self {
                    $(Self::$name => $uri,)+
                }
            }

            /// The HTTP status of its responses, unless the output sets one.
            pub const fn success_status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)+
                }
            }
        }

        /// The schemas of every input and output.
        #[cfg(test)]
        pub(crate) fn structures() -> Vec<&'static crate::schema::Structure> {
            use crate::message::Message as _;
            vec![$(crate::types::$input::structure(), crate::types::$output::structure(),)+]
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
                    type Input = types::$input;
                    type Output = types::$output;
                }
            )+
        }
    };
}
pub(crate) use define_operations;
