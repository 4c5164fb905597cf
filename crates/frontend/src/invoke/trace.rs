//! X-Ray's trace header: `Root=1-<8 hex>-<24 hex>;Parent=<16 hex>;Sampled=<0|1>[;Lineage=…]`.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use domain::trace::{Origin, SpanId, TraceId, Trigger};

/// Longest header that is taken over.
const LIMIT: usize = 512;
/// Bytes of a header without what a lineage says.
const FRESH: usize = 96;

/// The trace of an invocation: the caller's where `X-Amzn-Trace-Id` names a valid root, else a new one. What it lacks is
/// filled in: a parent from `random`, and the decision to sample, which is `sampled` when the caller left it open.
pub fn trace_id(header: Option<&str>, wall: Duration, random: [u8; 20], sampled: bool) -> String {
    let caller = header.map(Caller::read).unwrap_or_default();
    caller.header(wall, random, caller.sampled.unwrap_or(sampled), caller.parent)
}

/// What a trace that is taken begins with.
pub struct Begun {
    /// The header that goes on: its parent is the span of this invocation, if it is sampled.
    pub header: String,
    /// Of a trace that is sampled.
    pub origin: Option<Origin>,
}

/// The same where traces are taken: a caller without `X-Amzn-Trace-Id` may have sent W3C's `traceparent`. `samples` decides
/// when the caller left it open, by [`TraceId::low`].
pub fn begin(
    header: Option<&str>,
    traceparent: Option<&str>,
    wall: Duration,
    random: [u8; 20],
    samples: impl FnOnce(u64) -> bool,
) -> Begun {
    let caller = header.map(Caller::read).filter(|caller| caller.root.is_some());
    let caller = caller.or_else(|| Caller::read_w3c(traceparent?)).unwrap_or_default();
    let root = caller.root.clone().unwrap_or_else(|| new_root(wall, &random).into());
    let trace = TraceId::of_root(&root);
    let sampled = caller.sampled.unwrap_or_else(|| trace.is_some_and(|trace| samples(trace.low())));
    let span = SpanId(random[12..].try_into().expect("eight bytes"));
    let Some(trace) = trace.filter(|_| sampled && span.0 != [0; 8]) else {
        return Begun { header: caller.header(wall, random, sampled, caller.parent), origin: None };
    };
    let parent = caller.parent.and_then(SpanId::parse);
    let origin = Origin { trace, span, parent, trigger: Trigger::Call };
    Begun { header: caller.header(wall, random, true, None), origin: Some(origin) }
}

/// What a caller said of a trace; nothing of it without a valid root.
#[derive(Clone, Default)]
struct Caller<'a> {
    root: Option<Cow<'a, str>>,
    parent: Option<&'a str>,
    sampled: Option<bool>,
    lineage: Option<&'a str>,
}

impl<'a> Caller<'a> {
    fn read(header: &'a str) -> Self {
        if header.len() > LIMIT || !header.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Self::default();
        }
        let field = |name: &str| domain::trace::fields(header).find(|(key, _)| *key == name).map(|(_, value)| value);
        let Some(root) = field("Root").filter(|root| is_root(root)) else { return Self::default() };
        Self {
            root: Some(root.into()),
            parent: field("Parent").filter(|parent| is_hex(parent, 16)),
            sampled: match field("Sampled") {
                Some("0") => Some(false),
                Some("1") => Some(true),
                _ => None,
            },
            lineage: field("Lineage"),
        }
    }

    /// `00-<32 hex>-<16 hex>-<2 hex>`, and whatever a later version has after that (W3C Trace Context, level 1).
    fn read_w3c(header: &'a str) -> Option<Self> {
        let mut parts = header.trim().split('-');
        let mut part = |length| parts.next().filter(|part| is_hex(part, length));
        let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        // Zeros name nothing.
        SpanId::parse(parent)?;
        let root = ["1-", &trace[..8], "-", &trace[8..]].concat();
        TraceId::of_root(&root)?;
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { root: Some(root.into()), parent: Some(parent), sampled: Some(sampled), lineage: None })
    }

    fn header(&self, wall: Duration, random: [u8; 20], sampled: bool, parent: Option<&str>) -> String {
        // In one piece: every invocation makes one.
        let mut trace = String::with_capacity(FRESH + self.lineage.map_or(0, str::len));
        trace.push_str("Root=");
        match &self.root {
            Some(root) => trace.push_str(root),
            None => push_root(&mut trace, wall, &random),
        }
        trace.push_str(";Parent=");
        match parent {
            Some(parent) => trace.push_str(parent),
            None => push_hex(&mut trace, &random[12..]),
        }
        trace.push_str(if sampled { ";Sampled=1" } else { ";Sampled=0" });
        if let Some(lineage) = self.lineage {
            trace.push_str(";Lineage=");
            trace.push_str(lineage);
        }
        trace
    }
}

fn new_root(wall: Duration, random: &[u8; 20]) -> String {
    let mut root = String::new();
    push_root(&mut root, wall, random);
    root
}

fn push_root(text: &mut String, wall: Duration, random: &[u8; 20]) {
    text.push_str("1-");
    // The root's time has 32 bits.
    push_hex(text, &(wall.as_secs() as u32).to_be_bytes());
    text.push('-');
    push_hex(text, &random[..12]);
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

    #[test]
    fn a_trace_that_is_taken_has_the_invocation_as_parent() {
        let begun = |header, traceparent, samples| {
            begin(header, traceparent, Duration::from_secs(0x5759_e988), [0xab; 20], |low| {
                assert_ne!(low, 0);
                samples
            })
        };
        let own = "ab".repeat(8);
        let fresh = begun(None, None, true);
        assert_eq!(fresh.header, format!("Root=1-5759e988-{};Parent={own};Sampled=1", "ab".repeat(12)));
        let origin = fresh.origin.unwrap();
        assert_eq!((origin.span.to_string(), origin.parent), (own.clone(), None));
        assert!(begun(None, None, false).origin.is_none());

        let sent = format!("{ROOT};Parent=53995c3f42cd8ad8;Sampled=1;Lineage=a87bd80c:1");
        let kept = begun(Some(&sent), Some("not looked at"), false);
        assert_eq!(kept.header, sent.replace("53995c3f42cd8ad8", &own));
        assert_eq!(kept.origin.unwrap().parent.unwrap().to_string(), "53995c3f42cd8ad8");
        let not = sent.replace("Sampled=1", "Sampled=0");
        let not_sampled = begun(Some(&not), None, true);
        assert_eq!((not_sampled.header, not_sampled.origin), (not, None));
    }

    #[test]
    fn a_traceparent_counts_where_there_is_no_header_of_aws() {
        let begun = |traceparent| {
            begin(Some("Self=1"), Some(traceparent), Duration::ZERO, [0xab; 20], |_| panic!("W3C's says it"))
        };
        let w3c = begun("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(w3c.header, "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=abababababababab;Sampled=1");
        assert_eq!(w3c.origin.unwrap().parent.unwrap().to_string(), "00f067aa0ba902b7");
        let not_sampled = begun("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
        assert!(not_sampled.origin.is_none());
        assert!(not_sampled.header.ends_with(";Parent=00f067aa0ba902b7;Sampled=0"), "{}", not_sampled.header);
        let later = begun("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more");
        assert!(later.origin.is_some());
    }

    #[test]
    fn what_is_no_traceparent_is_not_used() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473ä-00f067aa0ba902b7-01",
        ] {
            assert!(Caller::read_w3c(bad).is_none(), "{bad}");
        }
    }
}
