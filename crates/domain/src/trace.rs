//! Traces: what is known of an invocation, an accepted event or a delivery when it is over, for whom it may concern.
//!
//! A trace travels in `X-Amzn-Trace-Id`: `Root=1-<8 hex>-<24 hex>;Parent=<16 hex>;Sampled=<0|1>[;Lineage=…]`. Root is the
//! id of the trace, Parent that of the span that the next one belongs under. Where traces are taken, each part writes its own
//! span there before it hands the header on, so that nobody has to agree on ids.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::arn::FunctionArn;
use crate::function::FunctionVersion;
use crate::ids::{RequestId, WorkerId};
use crate::timeline::Timeline;

/// The id of a trace: X-Ray's root without its dashes, or W3C's `trace-id`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TraceId(pub [u8; 16]);

/// The id of a span, in its trace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SpanId(pub [u8; 8]);

impl TraceId {
    /// Of `1-<8 hex>-<24 hex>`. `None` of anything else, and of zeros, which name no trace.
    pub fn of_root(root: &str) -> Option<Self> {
        let (time, rest) = root.strip_prefix("1-")?.split_once('-')?;
        let mut id = [0; 16];
        unhex(time, &mut id[..4])?;
        unhex(rest, &mut id[4..])?;
        (id != [0; 16]).then_some(Self(id))
    }

    /// The half that is drawn at random whoever made the trace, so that all who sample by it agree.
    pub fn low(self) -> u64 {
        u64::from_be_bytes(self.0[8..].try_into().expect("eight bytes"))
    }
}

impl SpanId {
    /// `None` unless it is sixteen hexadecimal digits, and for zeros, which name no span.
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = [0; 8];
        unhex(text, &mut id)?;
        (id != [0; 8]).then_some(Self(id))
    }

    /// The id of a span under this one, the same for the same `name` and `number`.
    #[must_use]
    pub fn child(self, name: &str, number: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(number.to_be_bytes());
        hash.update(name);
        let digest: [u8; 32] = hash.finalize().into();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        // Zeros are no id.
        id[7] |= u8::from(id == [0; 8]);
        Self(id)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

fn unhex(text: &str, bytes: &mut [u8]) -> Option<()> {
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(digits[0])? << 4 | digit(digits[1])?).ok()?;
    }
    Some(())
}

/// The fields of a header, in any order; an unknown one is passed over.
pub fn fields(header: &str) -> impl Iterator<Item = (&str, &str)> {
    header.split(';').filter_map(|part| part.trim().split_once('='))
}

/// The trace of a header that is sampled, and the span that the next one belongs under. `None` of all others.
pub fn sampled(header: &str) -> Option<(TraceId, Option<SpanId>)> {
    let (mut trace, mut parent, mut sampled) = (None, None, false);
    for (key, value) in fields(header) {
        match key {
            "Root" => trace = TraceId::of_root(value),
            "Parent" => parent = SpanId::parse(value),
            "Sampled" => sampled = value == "1",
            _ => {}
        }
    }
    Some((trace.filter(|_| sampled)?, parent))
}

/// The header with another parent: the rest stays as it is.
pub fn with_parent(header: &str, span: SpanId) -> String {
    let own = format!("Parent={span}");
    let has = |part: &str| part.trim_start().starts_with("Parent=");
    if header.split(';').any(has) {
        let fields: Vec<&str> = header.split(';').map(|part| if has(part) { &*own } else { part }).collect();
        return fields.join(";");
    }
    // Behind the root, as others write it.
    match header.split_once(';') {
        Some((root, rest)) => [root, ";", &own, ";", rest].concat(),
        None => [header, ";", &own].concat(),
    }
}

/// A moment by both clocks of the process that saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// As in timelines.
    pub monotonic: Duration,
    /// The time of day.
    pub wall: SystemTime,
}

impl Moment {
    /// Nanoseconds since 1970 of a mark of the same process.
    pub fn unix_nanos(&self, at: Duration) -> u64 {
        let now = unix_nanos(self.wall);
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match at.checked_sub(self.monotonic) {
            Some(later) => now.saturating_add(nanos(later)),
            None => now.saturating_sub(nanos(self.monotonic - at)),
        }
    }
}

/// Nanoseconds since 1970; times before are 0.
pub fn unix_nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Where something belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Its trace.
    pub trace: TraceId,
    /// Its own span.
    pub span: SpanId,
    /// The span that it is under: the caller's, or that of the event.
    pub parent: Option<SpanId>,
    /// What it is.
    pub trigger: Trigger,
}

/// Why a function is invoked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// By a caller that waits.
    Call,
    /// By a batch of an event source.
    Batch,
    /// By an event.
    Event {
        /// Which attempt this is, from 1.
        attempt: u32,
        /// Since when it waited for it in the queue: accepted, or the end of the attempt before.
        waited_since: SystemTime,
        /// When it was taken from the queue.
        taken: SystemTime,
    },
}

/// What is told to [`Traces`].
#[derive(Clone, Debug)]
pub enum Traced {
    /// A synchronous path was taken to its end.
    Ran(Box<Ran>),
    /// An event was put on the queue, or could not be.
    Accepted(Box<Accepted>),
    /// A record or dead letter was sent, or could not be.
    Delivered(Box<Delivered>),
}

/// See [`Traced::Ran`]. Times are monotonic.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Where it belongs.
    pub origin: Origin,
    /// What ran.
    pub version: Arc<FunctionVersion>,
    /// As the caller named it.
    pub invoked_arn: String,
    /// Of the invocation.
    pub request_id: RequestId,
    /// When the work on it began.
    pub began: Duration,
    /// Each sandbox that was tried. The last one's end is that of the invocation.
    pub tries: Vec<Try>,
    /// When the answer was there.
    pub ended: Duration,
    /// The error that its caller gets: the function's type of it, or the platform's.
    pub error: Option<String>,
    /// When this was written, for the times of day.
    pub now: Moment,
}

/// One sandbox that was asked for.
#[derive(Clone, Debug)]
pub struct Try {
    /// When it was asked for.
    pub began: Duration,
    /// The lease, if there was one.
    pub assigned: Option<Assigned>,
    /// When the worker's answer was there, or the refusal.
    pub ended: Duration,
    /// The span of the invocation on the worker: the function's parent.
    pub invoke: SpanId,
    /// The worker's marks.
    pub marks: Timeline,
    /// Why the sandbox came to nothing.
    pub error: Option<String>,
}

/// A lease, as it concerns a trace.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// When it was there.
    pub at: Duration,
    /// Whether the sandbox was initialised for this.
    pub cold: bool,
    /// Whether it was waited for until another invocation had ended.
    pub waited: bool,
    /// Where the sandbox is.
    pub worker: WorkerId,
    /// Who gave it, if that was another process.
    pub manager: Option<Arc<str>>,
    /// Marks of the manager, and for a cold start those of placement and Init.
    pub marks: Timeline,
}

/// See [`Traced::Accepted`]. Times are monotonic.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Where it belongs; the attempts are under its span.
    pub origin: Origin,
    /// Of which function.
    pub function: FunctionArn,
    /// Version or alias, if the caller named one.
    pub qualifier: Option<String>,
    /// The same over all attempts.
    pub request_id: RequestId,
    /// When the request was read.
    pub received: Duration,
    /// When it was given to the queue.
    pub enqueued: Duration,
    /// When it was durable.
    pub ended: Duration,
    /// Why it was not accepted.
    pub error: Option<String>,
    /// When this was written.
    pub now: Moment,
}

/// See [`Traced::Delivered`]. Times are monotonic.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// The trace of the event.
    pub trace: TraceId,
    /// Its own span.
    pub span: SpanId,
    /// The event's span.
    pub parent: Option<SpanId>,
    /// Of the function whose event it was.
    pub function: FunctionArn,
    /// Of the event.
    pub request_id: RequestId,
    /// ARN of the target.
    pub target: String,
    /// A dead letter, not a record.
    pub dead_letter: bool,
    /// When it was sent.
    pub began: Duration,
    /// When the target had it, or did not take it.
    pub ended: Duration,
    /// Why it did not.
    pub error: Option<String>,
    /// When this was written.
    pub now: Moment,
}

/// Takes traces. Calls must not block: they are made on the invoke path.
pub trait Traces: Send + Sync + 'static {
    /// Whether a trace is taken whose caller left that open; `low` is [`TraceId::low`].
    fn samples(&self, low: u64) -> bool;
    /// Takes what there is to tell of one that is sampled, or counts that it could not.
    fn take(&self, traced: Traced);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1;Lineage=a:1";

    #[test]
    fn a_header_names_trace_and_parent_if_it_is_sampled() {
        let (trace, parent) = sampled(HEADER).unwrap();
        assert_eq!(trace.0[..5], [0x57, 0x59, 0xe9, 0x88, 0xbd]);
        assert_eq!(trace.low(), 0xe1be_46a9_9427_2793);
        assert_eq!(parent.unwrap().to_string(), "53995c3f42cd8ad8");
        for other in [
            "",
            "Root=1-5759e988-bd862e3fe1be46a994272793",
            "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0",
            "Root=1-5759e988-bd862e3fe1be46a99427279;Sampled=1",
            "Root=1-00000000-000000000000000000000000;Sampled=1",
            "Root=1-5759e988-+d862e3fe1be46a994272793;Sampled=1",
        ] {
            assert_eq!(sampled(other), None, "{other}");
        }
    }

    #[test]
    fn the_parent_is_exchanged_and_the_rest_stays() {
        let span = SpanId([0xab; 8]);
        assert_eq!(with_parent(HEADER, span), HEADER.replace("53995c3f42cd8ad8", "abababababababab"));
        assert_eq!(with_parent("Root=1-5-6;Sampled=1", span), "Root=1-5-6;Parent=abababababababab;Sampled=1");
        assert_eq!(with_parent("Root=1-5-6", span), "Root=1-5-6;Parent=abababababababab");
    }

    #[test]
    fn children_differ_by_name_and_number_and_not_by_time() {
        let span = SpanId([1; 8]);
        assert_eq!(span.child("assign", 0), span.child("assign", 0));
        let others = [span.child("assign", 1), span.child("invoke", 0), SpanId([2; 8]).child("assign", 0)];
        assert!(!others.contains(&span.child("assign", 0)));
    }

    #[test]
    fn marks_get_the_time_of_day() {
        let now = Moment { monotonic: Duration::from_secs(10), wall: UNIX_EPOCH + Duration::from_secs(1000) };
        assert_eq!(now.unix_nanos(Duration::from_secs(9)), 999_000_000_000);
        assert_eq!(now.unix_nanos(Duration::from_secs(11)), 1_001_000_000_000);
        assert_eq!(unix_nanos(UNIX_EPOCH - Duration::from_secs(1)), 0);
    }
}
