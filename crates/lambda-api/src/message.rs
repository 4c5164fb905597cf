//! What ties a typed input or output to its schema.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::schema::Structure;

/// An input or output of an operation.
pub trait Message: Default + Serialize + DeserializeOwned {
    /// How its members travel, and their constraints.
    #[doc(hidden)]
    fn structure() -> &'static Structure;

    /// The body that it carries as it is, if its shape has one (the payload of `Invoke`).
    fn payload(&self) -> Option<&Bytes> {
        None
    }

    /// Sets that body; nothing happens where the shape has none.
    fn set_payload(&mut self, _body: Bytes) {}
}

/// Implements [`Message`]: the type, its schema, and the field of a raw payload, followed by `?` if it is optional.
macro_rules! message {
    ($type:path, $schema:path) => {
        impl crate::message::Message for $type {
            fn structure() -> &'static crate::schema::Structure {
                &$schema
            }
        }
    };
    ($type:path, $schema:path, $payload:ident) => {
        impl crate::message::Message for $type {
            fn structure() -> &'static crate::schema::Structure {
                &$schema
            }

            fn payload(&self) -> Option<&bytes::Bytes> {
                Some(&self.$payload)
            }

            fn set_payload(&mut self, body: bytes::Bytes) {
                self.$payload = body;
            }
        }
    };
    ($type:path, $schema:path, $payload:ident?) => {
        impl crate::message::Message for $type {
            fn structure() -> &'static crate::schema::Structure {
                &$schema
            }

            fn payload(&self) -> Option<&bytes::Bytes> {
                self.$payload.as_ref()
            }

            fn set_payload(&mut self, body: bytes::Bytes) {
                self.$payload = (!body.is_empty()).then_some(body);
            }
        }
    };
}
pub(crate) use message;
