//! The client side: requests from typed inputs, typed outputs from responses.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::CONTENT_TYPE;

use crate::decode::{Source, build, gather};
use crate::encode::{JSON, Parts};
use crate::error::ApiError;
use crate::message::Message;
use crate::operation::Operation;
use crate::schema::Location;
use crate::uri::{escape, escape_greedy};

/// The request for an operation. Its URI has a path and a query string; scheme, host and signature are the caller's.
pub fn encode_request<Op: Operation>(input: &Op::Input) -> http::Request<Bytes> {
    let parts = Parts::of(input);
    let structure = Op::Input::structure();
    let has_body = structure
        .members
        .iter()
        .any(|member| matches!(member.location, Location::Body | Location::JsonPayload | Location::RawPayload));
    let body = if has_body { parts.body } else { Bytes::new() };
    let mut uri = fill_in(Op::ID.uri_template(), &parts.labels);
    for (name, value) in &parts.query {
        let separator = if uri.contains('?') { '&' } else { '?' };
        write!(uri, "{separator}{}={}", escape(name), escape(value)).expect("a string takes any text");
    }
    let mut request = http::Request::new(body);
    *request.method_mut() = Op::ID.method();
    *request.uri_mut() = uri.parse().expect("a template with escaped labels and query is a valid URI");
    *request.headers_mut() = parts.headers;
    if !request.body().is_empty() {
        request.headers_mut().entry(CONTENT_TYPE).or_insert(JSON);
    }
    request
}

/// The output that a response carries, or the error that it tells of.
///
/// # Errors
/// What the server answered with a status from 300 on; SerializationException or InvalidRequestContentException for a
/// response that is not of the operation's shape.
pub fn decode_response<Op: Operation>(response: http::Response<Bytes>) -> Result<Op::Output, ApiError> {
    if response.status().as_u16() >= 300 {
        return Err(ApiError::from_response(&response));
    }
    let (head, body) = response.into_parts();
    let status = Some(head.status.as_u16());
    let source = Source { labels: &[], query: "", headers: &head.headers, status, body: &body };
    let output = gather(Op::Output::structure(), &source)?;
    build(output, body)
}

/// A template with its labels filled in. A label that the input lacks stays empty, which the server refuses.
fn fill_in(template: &str, labels: &[(&'static str, String)]) -> String {
    let mut uri = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (label, after) = after.split_once('}').unwrap_or((after, ""));
        let name = label.trim_end_matches('+');
        let value = labels.iter().find(|(label, _)| *label == name).map_or("", |(_, value)| value.as_str());
        uri.push_str(before);
        uri.push_str(&if label.ends_with('+') { escape_greedy(value) } else { escape(value) });
        rest = after;
    }
    uri.push_str(rest);
    uri
}
