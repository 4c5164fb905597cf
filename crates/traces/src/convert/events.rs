//! Around an event: its acceptance, and what is sent when it is over. Its attempts are in `path`.

use domain::trace::{Accepted, Delivered};

use super::{Stretch, span};
use crate::span::{Kind, Span};

pub(super) fn accepted(accepted: &Accepted) -> Vec<Span> {
    let Accepted { origin, function, now, .. } = accepted;
    let at = |time| now.unix_nanos(time);
    let whole = Stretch::new(at(accepted.received), at(accepted.ended));
    let error = accepted.error.as_deref().map(|_| "not stored");
    let mut request = span(origin.trace, origin.span, origin.parent, format!("invoke {}", function.name), whole)
        .with("faas.name", &*function.name)
        .with("faas.invocation_id", accepted.request_id.to_string())
        .with("faas.trigger", "pubsub")
        .with("cloud.resource_id", function.text())
        .with("cloud.account.id", function.account.as_str())
        .with("cloud.region", &*function.region)
        .failed(error);
    if let Some(qualifier) = &accepted.qualifier {
        request = request.with("aws.lambda.invoked_arn", function.qualified(qualifier));
    }
    request.kind = Kind::Server;
    let id = origin.span.child("enqueue", 0);
    let stretch = whole.within(at(accepted.enqueued), whole.end);
    let mut enqueue = span(origin.trace, id, Some(origin.span), "enqueue", stretch).failed(accepted.error.as_deref());
    enqueue.kind = Kind::Producer;
    vec![request, enqueue]
}

pub(super) fn delivered(delivered: &Delivered) -> Span {
    let Delivered { trace, function, now, .. } = delivered;
    let stretch = Stretch::new(now.unix_nanos(delivered.began), now.unix_nanos(delivered.ended));
    let mut deliver = span(*trace, delivered.span, delivered.parent, "deliver", stretch)
        .with("faas.name", &*function.name)
        .with("faas.invocation_id", delivered.request_id.to_string())
        .with("messaging.destination.name", &*delivered.target)
        .with("emberbox.delivery", if delivered.dead_letter { "dead letter" } else { "record" })
        .failed(delivered.error.as_deref());
    deliver.kind = Kind::Producer;
    deliver
}
