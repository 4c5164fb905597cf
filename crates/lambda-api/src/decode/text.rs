//! The short way for inputs whose members all come as text, beside a raw body: Invoke's. Every warm invocation goes it, so
//! no JSON tree is built and nothing allocated that the input does not keep.

use std::borrow::Cow;

use serde::de::value::{Error, MapDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::Source;
use crate::message::Message;
use crate::schema::{Location, Member, Shape};
use crate::uri::query_pairs;
use crate::validate::is_valid_text;

/// The input, without its raw body. `None` where the general way has to look: a member is not text, or breaks a
/// constraint.
pub fn decode<M: Message>(source: &Source<'_>) -> Option<M> {
    let members = M::structure().members;
    let mut texts = Vec::with_capacity(members.len());
    for member in members {
        if member.location == Location::RawPayload && matches!(member.shape, Shape::Blob { min: None, max: None }) {
            continue;
        }
        match text(member, source)? {
            Some(text) if is_valid_text(member.shape, &text) => texts.push((member.name, Text(text))),
            None if !member.required => {}
            _ => return None,
        }
    }
    M::deserialize(MapDeserializer::<_, Error>::new(texts.into_iter())).ok()
}

/// The member's text, if it has one; nothing where it is not simply text.
fn text<'a>(member: &Member, source: &Source<'a>) -> Option<Option<Cow<'a, str>>> {
    if !matches!(member.shape, Shape::String { .. } | Shape::Enum { .. }) {
        return None;
    }
    match member.location {
        Location::Label(name) => {
            let label = source.labels.iter().find(|(label, _)| *label == name);
            Some(label.map(|(_, text)| Cow::Borrowed(text.as_str())))
        }
        Location::Header(name) => match source.headers.get(name) {
            Some(value) => value.to_str().ok().map(|text| Some(Cow::Borrowed(text))),
            None => Some(None),
        },
        Location::Query(name) => Some(query_pairs(source.query).find(|(key, _)| key == name).map(|(_, value)| value)),
        _ => None,
    }
}

/// A text as serde takes it, also for a member that may be absent.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserializer<'de> for Text<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Cow::Borrowed(text) => visitor.visit_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Text<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::decode::general;
    use crate::types::UpdateFunctionConfigurationRequest;
    use crate::types::{InvocationRequest, InvokeAsyncRequest};

    fn value(name: &'static str) -> impl Strategy<Value = Option<String>> {
        let known: Vec<&str> = match name {
            "x-amz-invocation-type" => vec!["Event", "RequestResponse", "DryRun", "event", ""],
            "x-amz-log-type" => vec!["Tail", "None", "x"],
            _ => vec!["$LATEST", "a b", "live", "12", ""],
        };
        prop::option::of(prop_oneof![prop::sample::select(known).prop_map(str::to_owned), "\\PC{0,6}"])
    }

    const HEADERS: [&str; 5] = [
        "x-amz-invocation-type",
        "x-amz-log-type",
        "x-amz-client-context",
        "x-amz-durable-execution-name",
        "x-amz-tenant-id",
    ];

    proptest! {
        /// It says what the general way says, or nothing; and it says something to whatever is fine and ASCII.
        #[test]
        fn agrees_with_the_general_way(
            function in prop_oneof![Just("f".to_owned()), "[a-z:$0-9]{0,12}", "\\PC{0,4}"],
            values in [value(HEADERS[0]), value(HEADERS[1]), value(HEADERS[2]), value(HEADERS[3]), value(HEADERS[4])],
            query in prop_oneof![Just(String::new()), "Qualifier=[a-z%0-9+$]{0,5}", "[A-Za-z&=]{0,20}"],
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in HEADERS.iter().zip(values) {
                if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            }
            let labels = [("FunctionName", function)];
            let source = Source { labels: &labels, query: &query, headers: &headers, status: None, body: b"x" };
            let general = general::<InvocationRequest>(&source, Bytes::from_static(b"x"));
            match (decode::<InvocationRequest>(&source), general) {
                (Some(mut short), Ok(general)) => {
                    short.set_payload(Bytes::from_static(b"x"));
                    prop_assert_eq!(short, general);
                }
                (None, Ok(_)) => prop_assert!(headers.values().any(|value| value.to_str().is_err())),
                (short, Err(_)) => prop_assert_eq!(short, None),
            }
        }
    }

    #[test]
    fn leaves_other_inputs_to_the_general_way() {
        let labels = [("FunctionName", "f".to_owned())];
        let source = Source { labels: &labels, query: "", headers: &HeaderMap::new(), status: None, body: b"{}" };
        assert!(decode::<InvokeAsyncRequest>(&source).is_some());
        assert_eq!(decode::<UpdateFunctionConfigurationRequest>(&source), None);
    }
}
