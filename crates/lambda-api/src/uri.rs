//! Percent-encoding of paths and query strings.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// All but the characters that RFC 3986 calls unreserved, as AWS's clients do it.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same for greedy labels, whose slashes stay.
const RESERVED_BUT_SLASH: &AsciiSet = &RESERVED.remove(b'/');

/// Escapes a label or a part of a query string.
pub fn escape(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Escapes a greedy label.
pub fn escape_greedy(text: &str) -> String {
    utf8_percent_encode(text, RESERVED_BUT_SLASH).to_string()
}

/// A path segment without its escapes. Bytes that are not UTF-8 become replacement characters, which no pattern allows.
pub fn unescape(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// The names and values of a query string. A `+` is a space there.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (query_part(name), query_part(value))
    })
}

fn query_part(part: &str) -> Cow<'_, str> {
    if part.contains('+') {
        let spaced = part.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(part).decode_utf8_lossy()
}
