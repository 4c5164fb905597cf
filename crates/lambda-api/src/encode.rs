//! From a typed output to a response: its members go to where the model says that they travel.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::message::Message;
use crate::operation::Operation;
use crate::schema::{Location, Shape, Structure};
use crate::wire::Timestamp;

/// The response to a successful request. A sequence of events (of `InvokeWithResponseStream`) is left out: the server
/// writes them one by one after the head.
pub fn encode<Op: Operation>(output: &Op::Output) -> http::Response<Bytes> {
    let parts = Parts::of(output);
    let status = parts.status.unwrap_or_else(|| Op::ID.success_status());
    let has_body = !matches!(status, 204 | 304);
    let body = if has_body { parts.body } else { Bytes::new() };
    let mut response = http::Response::new(body);
    // A status that an output carries and HTTP does not have can only be a mistake of the server.
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = parts.headers;
    if has_body && !response.body().is_empty() {
        response.headers_mut().entry(CONTENT_TYPE).or_insert(JSON);
    }
    response
}

pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A message taken apart by where its members travel.
#[derive(Default)]
pub struct Parts {
    pub labels: Vec<(&'static str, String)>,
    pub query: Vec<(&'static str, String)>,
    pub headers: HeaderMap,
    pub status: Option<u16>,
    pub body: Bytes,
}

impl Parts {
    pub fn of<M: Message>(message: &M) -> Self {
        let structure = M::structure();
        // Most outputs are all body.
        if !structure.members.is_empty() && structure.members.iter().all(|member| member.location == Location::Body) {
            let body = serde_json::to_vec(message).expect("wire types always become JSON").into();
            return Self { body, ..Self::default() };
        }
        let Ok(Value::Object(members)) = serde_json::to_value(message) else {
            unreachable!("wire types always become JSON objects");
        };
        let mut parts = Self::split(structure, members);
        if let Some(payload) = message.payload() {
            parts.body = payload.clone();
        }
        parts
    }

    fn split(structure: &Structure, mut members: Map<String, Value>) -> Self {
        let mut parts = Self::default();
        let mut body = Map::new();
        let mut has_json_body = structure.payload.is_none();
        for member in structure.members {
            let Some(value) = members.remove(member.name) else { continue };
            match member.location {
                Location::Body => {
                    body.insert(member.name.to_owned(), value);
                }
                Location::JsonPayload => {
                    has_json_body = true;
                    if let Value::Object(payload) = value {
                        body = payload;
                    }
                }
                Location::Label(name) => parts.labels.push((name, text(member.shape, &value))),
                Location::Query(name) => match (member.shape, &value) {
                    (Shape::List { member, .. }, Value::Array(values)) => {
                        parts.query.extend(values.iter().map(|value| (name, text(member, value))));
                    }
                    (shape, value) => parts.query.push((name, text(shape, value))),
                },
                Location::Header(name) => {
                    parts.headers.insert(HeaderName::from_static(name), header_value(&text(member.shape, &value)));
                }
                Location::StatusCode => parts.status = value.as_u64().and_then(|status| status.try_into().ok()),
                Location::RawPayload | Location::EventStream => {}
            }
        }
        if has_json_body {
            parts.body = Value::Object(body).to_string().into();
        }
        parts
    }
}

/// A value as text, for labels, headers and the query string.
fn text(shape: &Shape, value: &Value) -> String {
    match (shape, value) {
        (Shape::Timestamp, value) => Timestamp(value.as_f64().unwrap_or_default()).to_string(),
        (_, Value::String(text)) => text.clone(),
        (_, other) => other.to_string(),
    }
}

/// A header's value; control characters, which no header can carry, are left out.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| {
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        HeaderValue::from_bytes(clean.as_bytes()).expect("text without control characters is a valid header value")
    })
}
