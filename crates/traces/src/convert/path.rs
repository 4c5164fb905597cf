//! The synchronous path.

use std::sync::Arc;

use domain::timeline::Step;
use domain::trace::{Assigned, Moment, Ran, SpanId, Trigger, Try, unix_nanos};

use super::{Stretch, span};
use crate::span::{Event, Kind, Member, Span};

pub(super) fn spans(ran: &Ran) -> Vec<Span> {
    let mut spans = Vec::with_capacity(ran.tries.len() * 4 + 6);
    let base = base(ran, &mut spans);
    let (whole, own) = (base.stretch(), base.id);
    spans.push(base);
    for (number, attempt) in (0..).zip(&ran.tries) {
        let last = number + 1 == ran.tries.len() as u64;
        one(ran, attempt, (number, last), (own, whole), &mut spans);
    }
    spans
}

/// The whole of it; and before that, of an event, its wait in the queue.
fn base(ran: &Ran, spans: &mut Vec<Span>) -> Span {
    let (origin, version, now) = (&ran.origin, &ran.version, &ran.now);
    let (name, kind, trigger, start) = match origin.trigger {
        Trigger::Call => (format!("invoke {}", version.name), Kind::Server, "http", now.unix_nanos(ran.began)),
        Trigger::Batch => (format!("invoke {}", version.name), Kind::Consumer, "pubsub", now.unix_nanos(ran.began)),
        Trigger::Event { attempt, waited_since, taken } => {
            let taken = unix_nanos(taken);
            let waited = Stretch::new(unix_nanos(waited_since).min(taken), taken);
            let id = origin.span.child("queue", 0);
            spans
                .push(span(origin.trace, id, origin.parent, "queue", waited).with("emberbox.attempt", number(attempt)));
            (format!("attempt {attempt}"), Kind::Consumer, "pubsub", taken)
        }
    };
    let whole = Stretch::new(start, now.unix_nanos(ran.ended));
    let cold = ran.tries.iter().filter_map(|attempt| attempt.assigned.as_ref()).any(|assigned| assigned.cold);
    let mut base = span(origin.trace, origin.span, origin.parent, name, whole)
        .with("faas.name", &*version.name)
        .with("faas.version", &*version.version)
        .with("faas.invocation_id", ran.request_id.to_string())
        .with("faas.trigger", trigger)
        .with("faas.coldstart", cold)
        .with("faas.max_memory", number(version.memory_mb.saturating_mul(1 << 20)))
        // Of the version that ran: an alias would change its meaning.
        .with("cloud.resource_id", version.arn.qualified(&version.version))
        .with("cloud.account.id", version.account.as_str())
        .with("cloud.region", &*version.region)
        .with("aws.lambda.invoked_arn", &*ran.invoked_arn)
        .failed(ran.error.as_deref());
    base.kind = kind;
    if let Trigger::Event { attempt, .. } = origin.trigger {
        base = base.with("emberbox.attempt", number(attempt));
    }
    base
}

fn number(value: u32) -> crate::span::Value {
    crate::span::Value::Int(value.into())
}

/// One sandbox that was asked for, within `(own, whole)`: the span of it all.
fn one(ran: &Ran, attempt: &Try, (number, last): (u64, bool), (own, whole): (SpanId, Stretch), spans: &mut Vec<Span>) {
    let (trace, now) = (ran.origin.trace, &ran.now);
    let at = |time| now.unix_nanos(time);
    let assigned_at = attempt.assigned.as_ref().map_or(attempt.ended, |assigned| assigned.at);
    let id = own.child("assign", number);
    let stretch = whole.within(at(attempt.began), at(assigned_at));
    let mut assign = span(trace, id, Some(own), "1 assign", stretch);
    let Some(assigned) = &attempt.assigned else {
        spans.push(assign.failed(attempt.error.as_deref()));
        return;
    };
    assign.member = assigned.manager.clone().map_or(Member::This, Member::Other);
    let start = match (assigned.cold, assigned.waited) {
        (true, _) => "cold",
        (false, true) => "waited",
        (false, false) => "warm",
    };
    let (manager, parent) = (assign.member.clone(), assign.id);
    spans.push(assign.with("emberbox.start", start));
    cold_start(ran, assigned, &manager, (parent, stretch), spans);

    let answered = attempt.marks.at(Step::Answered);
    let invoked = whole.within(at(assigned.at), at(answered.unwrap_or(attempt.ended)));
    let mut invoke = span(trace, attempt.invoke, Some(own), "3 invoke", invoked)
        .with("faas.coldstart", assigned.cold)
        .with("emberbox.worker", &*assigned.worker.0);
    invoke.member = Member::Other(Arc::clone(&assigned.worker.0));
    let error = attempt.error.as_deref().or_else(|| ran.error.as_deref().filter(|_| last));
    invoke = invoke.failed(error);
    invoke.events = marked(attempt, now, Step::Invoked, "invoked");
    spans.push(invoke);
    if let Some(answered) = answered.filter(|_| last) {
        let mut answer =
            span(trace, own.child("answer", number), Some(own), "answer", whole.within(at(answered), whole.end));
        answer.events = marked(attempt, now, Step::Frozen, "frozen");
        spans.push(answer);
    }
}

fn marked(attempt: &Try, now: &Moment, step: Step, name: &'static str) -> Vec<Event> {
    attempt.marks.at(step).map(|at| Event { name, at: now.unix_nanos(at) }).into_iter().collect()
}

/// Placement and Init, from the lease's marks: each step ends where its mark is, and begins where the one before ended.
fn cold_start(
    ran: &Ran,
    assigned: &Assigned,
    manager: &Member,
    (parent, whole): (SpanId, Stretch),
    spans: &mut Vec<Span>,
) {
    let at = |time| ran.now.unix_nanos(time);
    let marks = &assigned.marks.marks;
    let trace = ran.origin.trace;
    let placements: Vec<usize> = (0..marks.len()).filter(|n| marks[*n].step == Step::Placed).collect();
    for (number, place) in (0..).zip(&placements) {
        let placed = &marks[*place];
        let asked = place.checked_sub(1).map_or(whole.start, |before| at(marks[before].at));
        let (worker, reason) = placed.note.split_once(": ").unwrap_or((&placed.note, ""));
        let id = parent.child("placement", number);
        let mut placement = span(trace, id, Some(parent), "placement", whole.within(asked, at(placed.at)))
            .with("emberbox.worker", worker)
            .with("emberbox.placement.reason", reason);
        placement.member = manager.clone();
        spans.push(placement);

        // What was placed again had failed by then.
        let next = placements.get(number as usize + 1);
        let steps = &marks[place + 1..next.map_or(marks.len(), |next| *next)];
        let end = next.map(|next| &marks[*next]).or_else(|| steps.last());
        let Some(end) = end else { continue };
        let worker = Member::Other(worker.into());
        let id = parent.child("2 init", number);
        let stretch = whole.within(at(placed.at), at(end.at));
        let mut init =
            span(trace, id, Some(parent), "2 init", stretch).failed(next.map(|_| "another worker was tried"));
        init.member = worker.clone();
        let mut before = stretch.start;
        let mut children = Vec::with_capacity(steps.len());
        for (place, mark) in (0..).zip(steps) {
            let name = match mark.step {
                Step::PackageFetched => "download",
                Step::SandboxCreated => "sandbox",
                Step::RuntimeStarted => "runtime",
                Step::InitDone => "init",
                _ => continue,
            };
            let stretch = stretch.within(before, at(mark.at));
            let mut step = span(trace, id.child(name, place), Some(id), name, stretch);
            step = match mark.step {
                Step::PackageFetched => step.with("emberbox.package.source", &*mark.note),
                // From a pool of those that wait, restored from a snapshot, or new.
                Step::SandboxCreated if mark.note.is_empty() => step.with("emberbox.sandbox.source", "new"),
                Step::SandboxCreated => step.with("emberbox.sandbox.source", &*mark.note),
                Step::InitDone if !mark.note.is_empty() => {
                    let kind = kind_of(&mark.note);
                    init = init.failed(Some(kind));
                    step.failed(Some(kind))
                }
                _ => step,
            };
            step.member = worker.clone();
            before = stretch.end;
            children.push(step);
        }
        spans.push(init);
        spans.append(&mut children);
    }
}

/// Of `failed: KIND: MESSAGE`, as a worker notes an Init. The message is the function's own, and may hold what is nobody else's.
fn kind_of(note: &str) -> &str {
    let said = note.strip_prefix("failed: ").unwrap_or(note);
    // Not at any colon: a type may be `Some::Error`.
    said.split(": ").next().unwrap_or(said)
}
