//! How single values of AWS's JSON protocols look, and the macros behind the generated enums and empty structures. Shared
//! by the wire models of all services; each re-exports what its generated code uses.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time: seconds since 1970 with fractions, a number in JSON.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub f64);

impl Timestamp {
    /// From the form that query strings use, `2026-01-31T08:30:00Z`; seconds since 1970 are understood too.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            return Some(Self(time.unix_timestamp_nanos() as f64 / 1e9));
        }
        text.parse().ok().filter(|seconds: &f64| seconds.is_finite()).map(Self)
    }
}

/// In the form that query strings use, to the millisecond.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanoseconds = (self.0 * 1e3).round() as i128 * 1_000_000;
        match OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok().and_then(|time| time.format(&Rfc3339).ok()) {
            Some(text) => f.write_str(&text),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Stands in `Debug` for a value that the service's model calls sensitive: environment variables, code, payloads.
pub struct Hidden;

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hidden")
    }
}

/// Blobs inside JSON are base64 strings.
pub mod blob {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    /// A member of blob type, required or not.
    pub trait Blob: Sized {
        /// Its bytes, if it is there.
        fn bytes(&self) -> Option<&Bytes>;
        /// One with these bytes.
        fn from_bytes(bytes: Bytes) -> Self;
    }

    impl Blob for Bytes {
        fn bytes(&self) -> Option<&Bytes> {
            Some(self)
        }
        fn from_bytes(bytes: Bytes) -> Self {
            bytes
        }
    }

    impl Blob for Option<Bytes> {
        fn bytes(&self) -> Option<&Bytes> {
            self.as_ref()
        }
        fn from_bytes(bytes: Bytes) -> Self {
            Some(bytes)
        }
    }

    /// As base64, or null.
    pub fn serialize<T: Blob, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        match value.bytes() {
            Some(bytes) => serializer.serialize_str(&STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    /// From base64.
    pub fn deserialize<'de, T: Blob, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(|error| D::Error::custom(format!("not base64: {error}")))?;
        Ok(T::from_bytes(bytes.into()))
    }
}

/// An enum whose values are strings, open for values that this version of the model does not know.
#[macro_export]
macro_rules! string_enum {
    ($(#[$doc:meta])* pub enum $name:ident { $($variant:ident => $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = concat!("`", $value, "`")] $variant,)+
            /// A value that the model does not know.
            Unknown(String),
        }

        impl $name {
            /// The values that the model knows, in its order.
            pub const VALUES: &[&str] = &[$($value,)+];

            /// The value as it stands on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $value,)+
                    Self::Unknown(value) => value,
                }
            }
        }

        impl From<&str> for $name {
            fn from(value: &str) -> Self {
                match value {
                    $($value => Self::$variant,)+
                    _ => Self::Unknown(value.to_owned()),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        /// The empty unknown value, which no valid request or response holds.
        impl Default for $name {
            fn default() -> Self {
                Self::Unknown(String::new())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self::from(std::borrow::Cow::<'de, str>::deserialize(deserializer)?.as_ref()))
            }
        }
    };
}

/// A structure without members: `{}` in JSON.
#[macro_export]
macro_rules! empty_structure {
    ($(#[$doc:meta])* pub struct $name:ident;) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name;

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serde::Serialize::serialize(&$crate::EmptyObject {}, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$crate::EmptyObject as serde::Deserialize>::deserialize(deserializer).map(|_| Self)
            }
        }
    };
}

/// A JSON object of which nothing is used.
#[derive(Serialize, Deserialize)]
pub struct EmptyObject {}
