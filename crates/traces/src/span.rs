//! A span, before it is a message.

use std::sync::Arc;

use domain::trace::{SpanId, TraceId};

/// One stretch of work in a trace. Times are nanoseconds since 1970.
#[derive(Clone, PartialEq, Debug)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Unique in the trace.
    pub id: SpanId,
    /// What it is part of, or came from.
    pub parent: Option<SpanId>,
    /// Of few kinds, but for the function's name.
    pub name: String,
    /// Which side of a call it is.
    pub kind: Kind,
    /// Never after its end.
    pub start: u64,
    /// When it was over.
    pub end: u64,
    /// By OpenTelemetry's semantic conventions where there is one; the others begin with `emberbox.`.
    pub attributes: Vec<(&'static str, Value)>,
    /// What happened in between.
    pub events: Vec<Event>,
    /// It failed, and why.
    pub error: Option<String>,
    /// Who did it.
    pub member: Member,
}

/// Which side of a call a span is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Neither.
    Internal,
    /// Somebody waits for it.
    Server,
    /// What it makes is worked off later.
    Producer,
    /// It works off what was made before.
    Consumer,
}

/// Of an attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Text.
    Text(String),
    /// Yes or no.
    Bool(bool),
    /// A number.
    Int(i64),
}

/// A moment in a span.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// What happened.
    pub name: &'static str,
    /// Nanoseconds since 1970.
    pub at: u64,
}

/// A process.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Member {
    /// The one that exports.
    This,
    /// Another one of its fleet, as it is called there.
    Other(Arc<str>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}
