//! The canonical request: one spelling for everything that is signed, whatever proxies and libraries did to it.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::HeaderMap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::SignedParts;

/// Everything but RFC 3986's unreserved characters is escaped.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same for a path, whose slashes stay.
const ESCAPED_IN_PATH: &AsciiSet = &ESCAPED.remove(b'/');

/// Builds the canonical request. `presigned`: leaves `X-Amz-Signature` out of the query.
pub(super) fn request(
    request: &SignedParts<'_>,
    signed_headers: &[String],
    body_hash: &str,
    presigned: bool,
) -> String {
    let mut text = String::with_capacity(1024);
    text.push_str(request.method.as_str());
    text.push('\n');
    // The path on the wire is encoded once already; services other than S3 sign it encoded twice.
    text.extend(utf8_percent_encode(&normalize(request.path), ESCAPED_IN_PATH));
    text.push('\n');
    query(&mut text, request.query, presigned);
    text.push('\n');
    for name in signed_headers {
        text.push_str(name);
        text.push(':');
        header(&mut text, request, name);
        text.push('\n');
    }
    let _ = write!(text, "\n{}\n{body_hash}", signed_headers.join(";"));
    text
}

/// Without empty and dot segments (RFC 3986, 5.2.4).
fn normalize(path: &str) -> Cow<'_, str> {
    if path.is_empty() {
        return "/".into();
    }
    if path.starts_with('/') && !path.contains("//") && !path.contains("/.") {
        return path.into();
    }
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let mut normal = format!("/{}", segments.join("/"));
    if ["/", "/.", "/.."].iter().any(|end| path.ends_with(end)) && !normal.ends_with('/') {
        normal.push('/');
    }
    normal.into()
}

/// Parameters as pairs, decoded. A plus sign is a space, as in forms.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// Sorted by encoded name, then by encoded value.
fn query(text: &mut String, query: &str, presigned: bool) {
    let mut pairs: Vec<(String, String)> = parameters(query)
        .filter(|(name, _)| !(presigned && name == "X-Amz-Signature"))
        .map(|(name, value)| {
            (utf8_percent_encode(&name, ESCAPED).to_string(), utf8_percent_encode(&value, ESCAPED).to_string())
        })
        .collect();
    pairs.sort();
    for (i, (name, value)) in pairs.iter().enumerate() {
        let _ = write!(text, "{}{name}={value}", if i > 0 { "&" } else { "" });
    }
}

/// All values of one header, trimmed, with runs of spaces made one, joined by commas.
fn header(text: &mut String, request: &SignedParts<'_>, name: &str) {
    let mut first = true;
    for value in values(request.headers, name) {
        if !first {
            text.push(',');
        }
        first = false;
        let mut words = value.split_ascii_whitespace();
        text.push_str(words.next().unwrap_or_default());
        for word in words {
            text.push(' ');
            text.push_str(word);
        }
    }
    if first && name == "host" {
        text.push_str(request.authority.unwrap_or_default());
    }
}

fn values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_dots_and_empty_segments() {
        for (path, normal) in [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            ("/./", "/"),
            ("/foo/..", "/"),
            ("/foo/bar/../..", "/"),
            ("/../../x", "/x"),
            ("//foo//", "/foo/"),
            ("/foo/./bar", "/foo/bar"),
            ("/foo/.well-known", "/foo/.well-known"),
        ] {
            assert_eq!(normalize(path), normal, "{path}");
        }
    }

    #[test]
    fn a_query_is_sorted_by_what_is_sent() {
        let mut text = String::new();
        query(&mut text, "b=2&a=%7e&a=1&c&d=a+b&A=%2f&X-Amz-Signature=0", true);
        assert_eq!(text, "A=%2F&a=1&a=~&b=2&c=&d=a%20b");
    }
}
