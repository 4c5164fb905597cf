//! Spans as OTLP has them, by the member that each is of. Pure.

use std::sync::Arc;

use crate::exporter::Config;
use crate::otlp::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans, Status,
    Value as AnyOne, span, status,
};
use crate::span::{Kind, Member, Span, Value};

/// The bit of W3C's trace flags that says that a trace is sampled, as all are that come here.
const SAMPLED: u32 = 1;

/// One request for all of them.
pub fn request(spans: Vec<Span>, config: &Config) -> ExportTraceServiceRequest {
    let mut members: Vec<(Member, Vec<Span>)> = Vec::new();
    for mut one in spans {
        if matches!(&one.member, Member::Other(id) if *id == config.instance) {
            one.member = Member::This;
        }
        match members.iter_mut().find(|(member, _)| *member == one.member) {
            Some((_, of_it)) => of_it.push(one),
            None => members.push((one.member.clone(), vec![one])),
        }
    }
    let resource_spans = members.into_iter().map(|(member, spans)| ResourceSpans {
        resource: Some(resource(&member, config)),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope { name: "emberbox".to_owned(), ..Default::default() }),
            spans: spans.into_iter().map(message).collect(),
            schema_url: String::new(),
        }],
        schema_url: String::new(),
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }
}

fn resource(member: &Member, config: &Config) -> Resource {
    let mut attributes = vec![text("service.name", &config.service)];
    match member {
        Member::This => {
            attributes.push(text("service.instance.id", &config.instance));
            attributes.push(text("service.version", &config.version));
            attributes.push(text("emberbox.roles", &config.roles));
        }
        Member::Other(id) => {
            attributes.push(text("service.instance.id", id));
            if let Some(roles) = (config.roles_of)(id) {
                attributes.push(text("emberbox.roles", &roles));
            }
        }
    }
    Resource { attributes, ..Default::default() }
}

fn message(one: Span) -> crate::otlp::Span {
    let kind = match one.kind {
        Kind::Internal => span::SpanKind::Internal,
        Kind::Server => span::SpanKind::Server,
        Kind::Producer => span::SpanKind::Producer,
        Kind::Consumer => span::SpanKind::Consumer,
    };
    let event = |event: crate::span::Event| span::Event {
        time_unix_nano: event.at,
        name: event.name.to_owned(),
        ..Default::default()
    };
    crate::otlp::Span {
        trace_id: one.trace.0.to_vec(),
        span_id: one.id.0.to_vec(),
        parent_span_id: one.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: one.name,
        kind: kind.into(),
        start_time_unix_nano: one.start,
        end_time_unix_nano: one.end,
        attributes: one.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        events: one.events.into_iter().map(event).collect(),
        status: one.error.map(|message| Status { message, code: status::StatusCode::Error.into() }),
        ..Default::default()
    }
}

fn text(key: &'static str, value: &Arc<str>) -> KeyValue {
    attribute(key, Value::Text(value.as_ref().to_owned()))
}

fn attribute(key: &'static str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => AnyOne::StringValue(text),
        Value::Bool(yes) => AnyOne::BoolValue(yes),
        Value::Int(number) => AnyOne::IntValue(number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}
