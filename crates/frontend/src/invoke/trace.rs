//! X-Ray's trace header: `Root=1-<8 hex>-<24 hex>;Parent=<16 hex>;Sampled=<0|1>[;Lineage=…]`.

use std::time::{Duration, UNIX_EPOCH};

/// Longest header that is taken over.
const LIMIT: usize = 512;
/// Bytes of a header without what a lineage says.
const FRESH: usize = 96;

/// The trace of an invocation: the caller's where `X-Amzn-Trace-Id` names a valid root, else a new one. What it lacks is
/// filled in: a parent from `random`, and the decision to sample, which is `sampled` when the caller left it open.
pub fn trace_id(header: Option<&str>, wall: Duration, random: [u8; 20], sampled: bool) -> String {
    let header = header.filter(|h| h.len() <= LIMIT && h.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
    let field = |name: &str| {
        let fields = header?.split(';').filter_map(|part| part.trim().split_once('='));
        fields.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
    };
    let root = field("Root").filter(|root| is_root(root));
    // What belongs to a root that is not used is not used either.
    let inherited = |name: &str| root.and_then(|_| field(name));
    let parent = inherited("Parent").filter(|parent| is_hex(parent, 16));
    let decision = match inherited("Sampled") {
        Some("0") => false,
        Some("1") => true,
        _ => sampled,
    };
    let lineage = inherited("Lineage");
    // In one piece: every invocation makes one.
    let mut trace = String::with_capacity(FRESH + lineage.map_or(0, str::len));
    trace.push_str("Root=");
    match root {
        Some(root) => trace.push_str(root),
        None => {
            trace.push_str("1-");
            // The root's time has 32 bits.
            push_hex(&mut trace, &(wall.as_secs() as u32).to_be_bytes());
            trace.push('-');
            push_hex(&mut trace, &random[..12]);
        }
    }
    trace.push_str(";Parent=");
    match parent {
        Some(parent) => trace.push_str(parent),
        None => push_hex(&mut trace, &random[12..]),
    }
    trace.push_str(if decision { ";Sampled=1" } else { ";Sampled=0" });
    if let Some(lineage) = lineage {
        trace.push_str(";Lineage=");
        trace.push_str(lineage);
    }
    trace
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    text.extend(digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
}

/// Wall-clock time as the trace id wants it.
pub fn since_epoch(now: std::time::SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn is_root(text: &str) -> bool {
    let mut parts = text.split('-');
    let part = |part: Option<&str>, length| part.is_some_and(|p| is_hex(p, length));
    parts.next() == Some("1") && part(parts.next(), 8) && part(parts.next(), 24) && parts.next().is_none()
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "Root=1-5759e988-bd862e3fe1be46a994272793";

    fn trace(header: Option<&str>) -> String {
        trace_id(header, Duration::from_secs(0x5759_e988), [0xab; 20], false)
    }

    #[test]
    fn makes_one_where_there_is_none() {
        let fresh = format!("Root=1-5759e988-{};Parent={};Sampled=0", "ab".repeat(12), "ab".repeat(8));
        assert_eq!(trace(None), fresh);
        let long = format!("{ROOT};Lineage={}", "x".repeat(LIMIT));
        for bad in [
            "",
            "Root=",
            "Root=1-1-1",
            "Root=2-5759e988-bd862e3fe1be46a994272793",
            "Parent=53995c3f42cd8ad8;Sampled=1",
            &long,
        ] {
            assert_eq!(trace(Some(bad)), fresh, "{bad}");
        }
        assert!(trace_id(None, Duration::ZERO, [0; 20], true).ends_with("Sampled=1"));
    }

    #[test]
    fn keeps_what_the_caller_sent() {
        let whole = format!("{ROOT};Parent=53995c3f42cd8ad8;Sampled=1;Lineage=1:a87bd80c:0");
        assert_eq!(trace(Some(&whole)), whole);
        assert_eq!(
            trace(Some(&format!("Self=1; {ROOT} ; Sampled=?"))),
            format!("{ROOT};Parent={};Sampled=0", "ab".repeat(8))
        );
    }
}
