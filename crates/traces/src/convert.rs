//! What was told becomes spans. Pure: the same record, the same spans.
//!
//! ```text
//!  a caller that waits                       an event
//!  invoke NAME                               invoke NAME                (the request, until 202)
//!   ├─ 1 assign                               ├─ enqueue
//!   │   ├─ placement          cold only       ├─ queue                  (each wait for an attempt)
//!   │   └─ 2 init             cold only       ├─ attempt 1              (with 1 assign … answer under it, as on the left)
//!   │       ├─ download                       ├─ queue
//!   │       ├─ sandbox                        ├─ attempt 2 …
//!   │       ├─ runtime                        └─ deliver                (each try of each target)
//!   │       └─ init
//!   ├─ 3 invoke                              the function's own spans are under `3 invoke`
//!   └─ answer
//! ```

mod events;
mod path;

use domain::trace::{SpanId, TraceId, Traced};

use crate::span::{Kind, Member, Span, Value};

/// All spans of one record. Each is within the one that it is part of; an attempt is later than the event's span that it
/// is under.
pub fn spans(traced: &Traced) -> Vec<Span> {
    match traced {
        Traced::Ran(ran) => path::spans(ran),
        Traced::Accepted(accepted) => events::accepted(accepted),
        Traced::Delivered(delivered) => vec![events::delivered(delivered)],
    }
}

/// From when to when, in nanoseconds since 1970.
#[derive(Clone, Copy)]
struct Stretch {
    start: u64,
    end: u64,
}

impl Stretch {
    fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// As much of `start..end` as is within this one. Marks of another process may be off by what its answer took.
    fn within(self, start: u64, end: u64) -> Self {
        let start = start.clamp(self.start, self.end);
        Self { start, end: end.clamp(start, self.end) }
    }
}

fn span(trace: TraceId, id: SpanId, parent: Option<SpanId>, name: impl Into<String>, stretch: Stretch) -> Span {
    Span {
        trace,
        id,
        parent,
        name: name.into(),
        kind: Kind::Internal,
        start: stretch.start,
        end: stretch.end,
        attributes: Vec::new(),
        events: Vec::new(),
        error: None,
        member: Member::This,
    }
}

impl Span {
    fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((key, value.into()));
        self
    }

    fn failed(mut self, error: Option<&str>) -> Self {
        if let Some(error) = error {
            self.error = Some(error.to_owned());
            // Of few kinds: what follows a colon is about this one.
            let kind = error.split(": ").next().unwrap_or(error);
            self.attributes.push(("error.type", kind.into()));
        }
        self
    }

    fn stretch(&self) -> Stretch {
        Stretch { start: self.start, end: self.end }
    }
}

#[cfg(test)]
mod tests;
