//! From a request to a typed input: gather the members, check their JSON types, check their constraints, build the input.
//! The client side decodes responses through the same steps, without the constraints.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Map, Number, Value};

use crate::error::{ApiError, ErrorCode};
use crate::json_payload::body_not_json;
use crate::message::Message;
use crate::operation::Operation;
use crate::route::Routed;
use crate::schema::{Location, Member, Shape, Structure};
use crate::uri::query_pairs;
use crate::validate::validate;
use crate::wire::Timestamp;

mod text;

/// The input of a request that was routed to `Op`.
///
/// # Errors
/// InvalidRequestContentException for a body that is not JSON, SerializationException for a value of another JSON type
/// than its member, and ValidationException, in AWS's words, for all constraints of the service model that the input
/// breaks. Rules beyond the model are the server's.
pub fn decode<Op: Operation>(
    routed: &Routed,
    query: Option<&str>,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Op::Input, ApiError> {
    let source = Source { labels: &routed.labels, query: query.unwrap_or(""), headers, status: None, body: &body };
    if let Some(mut input) = text::decode::<Op::Input>(&source) {
        input.set_payload(body);
        return Ok(input);
    }
    general(&source, body.clone())
}

/// By way of a JSON tree, for every input; knows the words for whatever is wrong.
fn general<M: Message>(source: &Source<'_>, body: Bytes) -> Result<M, ApiError> {
    let input = gather(M::structure(), source)?;
    validate(M::structure(), &input, body.len())?;
    build(input, body)
}

/// Where the members of a message come from.
pub struct Source<'a> {
    pub labels: &'a [(&'static str, String)],
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub status: Option<u16>,
    pub body: &'a [u8],
}

/// The members that are present, by their names in the model, each with the JSON type of its shape.
pub fn gather(structure: &Structure, source: &Source<'_>) -> Result<Map<String, Value>, ApiError> {
    let mut body = json_body(structure, source.body)?;
    let mut gathered = Map::new();
    for member in structure.members {
        let value = match member.location {
            Location::Body => body.remove(member.name),
            Location::JsonPayload => Some(Value::Object(std::mem::take(&mut body))).filter(|_| !source.body.is_empty()),
            Location::RawPayload | Location::EventStream => None,
            Location::StatusCode => source.status.map(Value::from),
            Location::Label(name) => match source.labels.iter().find(|(label, _)| *label == name) {
                Some((_, text)) => Some(from_text(member.shape, text)?),
                None => None,
            },
            Location::Header(name) => match source.headers.get(name) {
                Some(text) => Some(from_text(member.shape, &String::from_utf8_lossy(text.as_bytes()))?),
                None => None,
            },
            Location::Query(name) => from_query(member, name, source.query)?,
        };
        if let Some(mut value) = value.filter(|value| !value.is_null()) {
            conform(member.shape, &mut value)?;
            gathered.insert(member.name.to_owned(), value);
        }
    }
    Ok(gathered)
}

/// The typed message of gathered members and a raw body.
pub fn build<M: Message>(gathered: Map<String, Value>, body: Bytes) -> Result<M, ApiError> {
    let mut message: M =
        serde_json::from_value(Value::Object(gathered)).map_err(|error| mismatch(error.to_string()))?;
    message.set_payload(body);
    Ok(message)
}

/// The body as a JSON object; empty where no member comes from it or there is none.
fn json_body(structure: &Structure, body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let is_json = |member: &Member| matches!(member.location, Location::Body | Location::JsonPayload);
    if body.is_empty() || !structure.members.iter().any(is_json) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(other) => Err(mismatch(format!("{} can not be converted to a structure", token(&other)))),
        Err(_) => Err(body_not_json(body)),
    }
}

fn from_query(member: &Member, name: &str, query: &str) -> Result<Option<Value>, ApiError> {
    let mut values = query_pairs(query).filter(|(key, _)| key == name).map(|(_, value)| value);
    match member.shape {
        Shape::List { member, .. } => {
            let values = values.map(|value| from_text(member, &value)).collect::<Result<Vec<_>, _>>()?;
            Ok(Some(Value::Array(values)).filter(|values| values != &Value::Array(Vec::new())))
        }
        shape => values.next().map(|value| from_text(shape, &value)).transpose(),
    }
}

/// A value that came as text: from a label, a header or the query string.
fn from_text(shape: &Shape, text: &str) -> Result<Value, ApiError> {
    let value = match shape {
        Shape::Integer { .. } => text.parse::<i64>().ok().map(Value::from),
        Shape::Double { .. } => text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number),
        Shape::Boolean => text.parse::<bool>().ok().map(Value::Bool),
        Shape::Timestamp => Timestamp::parse(text).and_then(|time| Number::from_f64(time.0)).map(Value::Number),
        _ => Some(Value::from(text)),
    };
    value.ok_or_else(|| mismatch(format!("STRING_VALUE can not be converted to {}", type_name(shape))))
}

/// Checks that a value has the JSON type of its shape, and drops the nulls in structures: they mean that a member is
/// absent.
fn conform(shape: &Shape, value: &mut Value) -> Result<(), ApiError> {
    match (shape, &mut *value) {
        (Shape::String { .. } | Shape::Enum { .. } | Shape::Blob { .. }, Value::String(_))
        | (Shape::Boolean, Value::Bool(_))
        | (Shape::Timestamp, Value::Number(_)) => Ok(()),
        // Then `2` is printed as AWS prints it, `2.0`.
        (Shape::Double { .. }, Value::Number(number)) => {
            if let Some(double) = number.as_f64().and_then(Number::from_f64) {
                *number = double;
            }
            Ok(())
        }
        (Shape::Integer { .. }, Value::Number(number)) => match whole(number) {
            Some(whole) => {
                *number = whole.into();
                Ok(())
            }
            None => Err(mismatch(format!("NUMBER_VALUE can not be converted to {}", type_name(shape)))),
        },
        (Shape::Timestamp, Value::String(text)) => {
            *value = from_text(shape, text)?;
            Ok(())
        }
        (Shape::List { member, .. }, Value::Array(elements)) => {
            elements.iter_mut().filter(|element| !element.is_null()).try_for_each(|element| conform(member, element))
        }
        (Shape::Map { value: inner, .. }, Value::Object(entries)) => {
            entries.values_mut().filter(|entry| !entry.is_null()).try_for_each(|entry| conform(inner, entry))
        }
        (Shape::Structure(structure), Value::Object(object)) => {
            object.retain(|_, value| !value.is_null());
            structure.members.iter().try_for_each(|member| match object.get_mut(member.name) {
                Some(value) => conform(member.shape, value),
                None => Ok(()),
            })
        }
        (shape, value) => Err(mismatch(format!("{} can not be converted to {}", token(value), type_name(shape)))),
    }
}

/// A number without a fraction, whichever way it was written.
fn whole(number: &Number) -> Option<i64> {
    let exact = |number: &f64| number.fract() == 0.0 && number.abs() < 9.0e15;
    number.as_i64().or_else(|| number.as_f64().filter(exact).map(|number| number as i64))
}

fn mismatch(message: String) -> ApiError {
    ApiError::new(ErrorCode::SerializationException, message)
}

/// A JSON value's type, as AWS names it.
fn token(value: &Value) -> &'static str {
    match value {
        Value::Null => "NULL_VALUE",
        Value::Bool(true) => "TRUE_VALUE",
        Value::Bool(false) => "FALSE_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::String(_) => "STRING_VALUE",
        Value::Array(_) => "START_ARRAY",
        Value::Object(_) => "START_OBJECT",
    }
}

fn type_name(shape: &Shape) -> &'static str {
    match shape {
        Shape::String { .. } | Shape::Enum { .. } => "String",
        Shape::Integer { .. } => "Integer",
        Shape::Double { .. } => "Double",
        Shape::Boolean => "Boolean",
        Shape::Timestamp => "Timestamp",
        Shape::Blob { .. } => "Blob",
        Shape::List { .. } => "a list",
        Shape::Map { .. } => "a map",
        Shape::Structure(_) => "a structure",
    }
}
