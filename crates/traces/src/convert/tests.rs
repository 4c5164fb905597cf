//! Records to spans.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use domain::timeline::{Mark, Step};
use domain::trace::{Accepted, Assigned, Delivered, Moment, Origin, Ran, SpanId, TraceId, Traced, Trigger, Try};
use domain::{
    AccountId, CodeRef, FunctionArn, FunctionVersion, LogFormat, LoggingSettings, RequestId, Timeline, VersionKey,
    WorkerId,
};
use proptest::prelude::*;

use super::*;

const TRACE: TraceId = TraceId([7; 16]);
const ROOT: SpanId = SpanId([1; 8]);
const CALLER: SpanId = SpanId([2; 8]);

fn arn() -> FunctionArn {
    FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() }
}

fn version() -> Arc<FunctionVersion> {
    Arc::new(FunctionVersion {
        key: VersionKey("f:1".into()),
        account: AccountId::local(),
        region: "us-east-1".into(),
        name: "f".into(),
        version: "1".into(),
        arn: arn(),
        runtime: "python3.12".into(),
        handler: "index.handler".into(),
        code: CodeRef { sha256: "x".into(), size: 1, image: None },
        image_config: Default::default(),
        layers: Vec::new(),
        memory_mb: 128,
        timeout: Duration::from_secs(3),
        ephemeral_mb: 512,
        environment: Default::default(),
        logging: LoggingSettings {
            format: LogFormat::Text,
            application_level: None,
            system_level: None,
            group: "/aws/lambda/f".into(),
        },
        tracing_active: false,
        snap_start: false,
    })
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// At 10 s of the process's time it is 1,000 s since 1970.
fn now() -> Moment {
    Moment { monotonic: ms(10_000), wall: UNIX_EPOCH + Duration::from_secs(1000) }
}

/// Milliseconds of the process's time as nanoseconds since 1970.
fn nanos(ms: u64) -> u64 {
    (990_000 + ms) * 1_000_000
}

fn marks(marks: &[(Step, u64, &str)]) -> Timeline {
    let mark = |(step, at, note): &(Step, u64, &str)| Mark { step: *step, at: ms(*at), note: (*note).into() };
    Timeline { marks: marks.iter().map(mark).collect() }
}

fn assigned(at: u64, cold: bool, timeline: Timeline) -> Option<Assigned> {
    let worker = WorkerId("w1".into());
    Some(Assigned { at: ms(at), cold, waited: !cold && at > 2000, worker, manager: Some("m1".into()), marks: timeline })
}

fn attempt(began: u64, assigned: Option<Assigned>, ended: u64, error: Option<&str>) -> Try {
    let invoked = assigned.as_ref().filter(|_| error.is_none()).map(|assigned| assigned.at);
    let marks = invoked.map_or_else(Timeline::default, |at| Timeline {
        marks: [(Step::Invoked, at + ms(1)), (Step::Answered, ms(ended) - ms(1))]
            .map(|(step, at)| Mark { step, at, note: String::new() })
            .into(),
    });
    let invoke = ROOT.child("invoke", began);
    Try { began: ms(began), assigned, ended: ms(ended), invoke, marks, error: error.map(str::to_owned) }
}

fn ran(trigger: Trigger, tries: Vec<Try>, error: Option<&str>) -> Ran {
    let ended = tries.last().map_or_else(|| ms(1000), |last| last.ended);
    Ran {
        origin: Origin { trace: TRACE, span: ROOT, parent: Some(CALLER), trigger },
        version: version(),
        invoked_arn: arn().qualified("live"),
        request_id: RequestId(uuid::Uuid::nil()),
        began: ms(1000),
        tries,
        ended,
        error: error.map(str::to_owned),
        now: now(),
    }
}

fn cold() -> Try {
    let lease = marks(&[
        (Step::Assigned, 1010, "cold"),
        (Step::Placed, 1020, "w1: has the package"),
        (Step::PackageFetched, 1030, "storage"),
        (Step::SandboxCreated, 1040, "pool"),
        (Step::RuntimeStarted, 1050, ""),
        (Step::InitDone, 1100, ""),
    ]);
    attempt(1001, assigned(1105, true, lease), 1200, None)
}

/// `name start..end` in milliseconds of the process's time, indented by its place in the tree.
fn tree(spans: &[Span]) -> Vec<String> {
    let parents: HashMap<SpanId, Option<SpanId>> = spans.iter().map(|span| (span.id, span.parent)).collect();
    let depth = |span: &Span| {
        std::iter::successors(span.parent, |id| parents.get(id).copied().flatten())
            .filter(|id| parents.contains_key(id))
            .count()
    };
    let of = |nanos: u64| nanos / 1_000_000 - 990_000;
    let line = |span: &Span| format!("{}{} {}..{}", " ".repeat(depth(span)), span.name, of(span.start), of(span.end));
    spans.iter().map(line).collect()
}

fn value<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
}

fn by_name<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {:?}", tree(spans)))
}

#[test]
fn a_cold_start_has_all_numbered_steps() {
    let spans = spans(&Traced::Ran(Box::new(ran(Trigger::Call, vec![cold()], None))));
    assert_eq!(
        tree(&spans),
        [
            "invoke f 1000..1200",
            " 1 assign 1001..1105",
            "  placement 1010..1020",
            "  2 init 1020..1100",
            "   download 1020..1030",
            "   sandbox 1030..1040",
            "   runtime 1040..1050",
            "   init 1050..1100",
            " 3 invoke 1105..1199",
            " answer 1199..1200",
        ]
    );
    let root = &spans[0];
    assert_eq!((root.id, root.parent, root.kind, &root.error), (ROOT, Some(CALLER), Kind::Server, &None));
    assert_eq!((root.start, root.trace), (nanos(1000), TRACE));
    for (key, expected) in [
        ("faas.name", Value::from("f")),
        ("faas.version", "1".into()),
        ("faas.coldstart", true.into()),
        ("faas.trigger", "http".into()),
        ("faas.max_memory", Value::Int(134_217_728)),
        ("faas.invocation_id", "00000000-0000-0000-0000-000000000000".into()),
        ("cloud.resource_id", "arn:aws:lambda:us-east-1:000000000000:function:f:1".into()),
        ("aws.lambda.invoked_arn", "arn:aws:lambda:us-east-1:000000000000:function:f:live".into()),
    ] {
        assert_eq!(value(root, key), Some(&expected), "{key}");
    }
    assert_eq!(value(by_name(&spans, "1 assign"), "emberbox.start"), Some(&"cold".into()));
    assert_eq!(value(by_name(&spans, "placement"), "emberbox.placement.reason"), Some(&"has the package".into()));
    assert_eq!(value(by_name(&spans, "download"), "emberbox.package.source"), Some(&"storage".into()));
    assert_eq!(value(by_name(&spans, "sandbox"), "emberbox.sandbox.source"), Some(&"pool".into()));
    let member = |name: &str| by_name(&spans, name).member.clone();
    let other = |id: &str| Member::Other(id.into());
    assert_eq!([member("1 assign"), member("placement")], [other("m1"), other("m1")]);
    assert_eq!([member("2 init"), member("init"), member("3 invoke")], [other("w1"), other("w1"), other("w1")]);
    assert_eq!([member("invoke f"), member("answer")], [Member::This, Member::This]);
    assert_eq!(by_name(&spans, "3 invoke").id, ROOT.child("invoke", 1001), "as the function was told");
}

#[test]
fn a_warm_one_has_no_placement() {
    let lease = || marks(&[(Step::Assigned, 1002, "warm")]);
    let warm = ran(Trigger::Call, vec![attempt(1001, assigned(1002, false, lease()), 1010, None)], None);
    let spans_of = |ran| spans(&Traced::Ran(Box::new(ran)));
    let warm = spans_of(warm);
    assert_eq!(
        tree(&warm),
        ["invoke f 1000..1010", " 1 assign 1001..1002", " 3 invoke 1002..1009", " answer 1009..1010"]
    );
    assert_eq!(value(&warm[1], "emberbox.start"), Some(&"warm".into()));
    assert_eq!(value(&warm[0], "faas.coldstart"), Some(&false.into()));
    let waited = spans_of(ran(Trigger::Call, vec![attempt(1001, assigned(2002, false, lease()), 2010, None)], None));
    assert_eq!(value(&waited[1], "emberbox.start"), Some(&"waited".into()));
}

#[test]
fn what_fails_says_so() {
    let mut failing = cold();
    failing.marks.marks[1].note = "ValueError".into();
    let failed = spans(&Traced::Ran(Box::new(ran(Trigger::Call, vec![failing], Some("ValueError")))));
    for name in ["invoke f", "3 invoke"] {
        let span = by_name(&failed, name);
        assert_eq!(span.error.as_deref(), Some("ValueError"), "{name}");
        assert_eq!(value(span, "error.type"), Some(&"ValueError".into()));
    }
    let throttled = attempt(1001, None, 1002, Some("throttled: ConcurrentInvocationLimitExceeded"));
    let throttled =
        spans(&Traced::Ran(Box::new(ran(Trigger::Call, vec![throttled], Some("TooManyRequestsException")))));
    assert_eq!(tree(&throttled), ["invoke f 1000..1002", " 1 assign 1001..1002"]);
    assert_eq!(value(&throttled[1], "error.type"), Some(&"throttled".into()));
}

#[test]
fn a_sandbox_that_was_lost_is_there_beside_the_next() {
    let lease = marks(&[(Step::Assigned, 1002, "warm")]);
    let lost = attempt(1001, assigned(1002, false, lease), 1003, Some("sandbox x is gone"));
    let mut next = cold();
    next.began = ms(1004);
    next.invoke = ROOT.child("invoke", 1);
    let spans = spans(&Traced::Ran(Box::new(ran(Trigger::Call, vec![lost, next], None))));
    let names: Vec<_> = spans.iter().map(|span| (span.name.as_str(), span.error.is_some())).collect();
    assert_eq!(names[..4], [("invoke f", false), ("1 assign", false), ("3 invoke", true), ("1 assign", false)]);
    assert_eq!(names.iter().filter(|(name, _)| *name == "answer").count(), 1);
}

#[test]
fn a_worker_that_had_no_room_is_there_beside_the_next() {
    let lease = marks(&[
        (Step::Assigned, 1010, "cold"),
        (Step::Placed, 1020, "w9: empty"),
        (Step::Placed, 1030, "w1: the next"),
        (Step::PackageFetched, 1040, "cache"),
        (Step::InitDone, 1050, "failed: Bank::Error: no account for key: s3cr3t"),
    ]);
    let spans = spans(&Traced::Ran(Box::new(ran(
        Trigger::Call,
        vec![attempt(1001, assigned(1060, true, lease), 1070, None)],
        None,
    ))));
    assert_eq!(
        tree(&spans)[2..8],
        [
            "  placement 1010..1020",
            "  2 init 1020..1030",
            "  placement 1020..1030",
            "  2 init 1030..1050",
            "   download 1030..1040",
            "   init 1040..1050",
        ]
    );
    let inits: Vec<_> = spans.iter().filter(|span| span.name == "2 init").collect();
    assert_eq!(inits[0].member, Member::Other("w9".into()));
    assert_eq!(inits[0].error.as_deref(), Some("another worker was tried"));
    // The type of the function's error, and nothing of its message.
    for span in [inits[1], by_name(&spans, "init")] {
        assert_eq!(span.error.as_deref(), Some("Bank::Error"));
        assert!(span.attributes.contains(&("error.type", "Bank::Error".into())), "{span:?}");
    }
    assert!(!format!("{spans:?}").contains("s3cr3t"));
}

#[test]
fn an_attempt_has_its_wait_and_the_path_under_it() {
    let trigger =
        Trigger::Event { attempt: 2, waited_since: UNIX_EPOCH + ms(990_100), taken: UNIX_EPOCH + ms(990_900) };
    let spans = spans(&Traced::Ran(Box::new(ran(trigger, vec![cold()], None))));
    assert_eq!(tree(&spans)[..3], ["queue 100..900", "attempt 2 900..1200", " 1 assign 1001..1105"]);
    assert_eq!((spans[0].parent, spans[1].parent), (Some(CALLER), Some(CALLER)), "both are the event's");
    assert_eq!((spans[1].id, spans[1].kind), (ROOT, Kind::Consumer));
    assert_eq!(value(&spans[1], "emberbox.attempt"), Some(&Value::Int(2)));
    assert_eq!(value(&spans[1], "faas.trigger"), Some(&"pubsub".into()));
}

#[test]
fn an_event_is_enqueued_and_delivered() {
    let accepted = Accepted {
        origin: Origin { trace: TRACE, span: ROOT, parent: None, trigger: Trigger::Call },
        function: arn(),
        qualifier: Some("live".into()),
        request_id: RequestId(uuid::Uuid::nil()),
        received: ms(1000),
        enqueued: ms(1001),
        ended: ms(1005),
        error: None,
        now: now(),
    };
    let spans_of = |traced| spans(&traced);
    let spans = spans_of(Traced::Accepted(Box::new(accepted)));
    assert_eq!(tree(&spans), ["invoke f 1000..1005", " enqueue 1001..1005"]);
    assert_eq!((spans[0].kind, spans[1].kind), (Kind::Server, Kind::Producer));
    let delivered = Delivered {
        trace: TRACE,
        span: CALLER,
        parent: Some(ROOT),
        function: arn(),
        request_id: RequestId(uuid::Uuid::nil()),
        target: "arn:aws:sqs:us-east-1:000000000000:q".into(),
        dead_letter: false,
        began: ms(2000),
        ended: ms(2001),
        error: Some("no such queue".into()),
        now: now(),
    };
    let spans = spans_of(Traced::Delivered(Box::new(delivered)));
    assert_eq!(tree(&spans), ["deliver 2000..2001"]);
    assert_eq!((spans[0].parent, spans[0].error.as_deref()), (Some(ROOT), Some("no such queue")));
    assert_eq!(value(&spans[0], "messaging.destination.name"), Some(&"arn:aws:sqs:us-east-1:000000000000:q".into()));
}

fn any_marks() -> impl Strategy<Value = Timeline> {
    let steps = prop::sample::select(vec![
        Step::Received,
        Step::Assigned,
        Step::Placed,
        Step::PackageFetched,
        Step::SandboxCreated,
        Step::RuntimeStarted,
        Step::InitDone,
        Step::Invoked,
        Step::Answered,
        Step::Frozen,
        Step::Settled,
    ]);
    // In no order, since other processes made them; some are later than what they are part of.
    let mark = (steps, 0..30_000_u64, "[a-z: ]{0,9}");
    prop::collection::vec(mark, 0..12).prop_map(|all| Timeline {
        marks: all.into_iter().map(|(step, at, note)| Mark { step, at: ms(at), note }).collect(),
    })
}

fn any_ran() -> impl Strategy<Value = Ran> {
    let lease = (0..30_000_u64, any::<bool>(), any_marks());
    let one = (0..30_000_u64, prop::option::of(lease), 0..30_000_u64, any_marks(), any::<bool>());
    let trigger = prop_oneof![
        Just(Trigger::Call),
        Just(Trigger::Batch),
        (1..5_u32, 0..2_000_000_u64, 0..2_000_000_u64).prop_map(|(attempt, since, taken)| Trigger::Event {
            attempt,
            waited_since: UNIX_EPOCH + ms(since),
            taken: UNIX_EPOCH + ms(taken),
        }),
    ];
    (trigger, prop::collection::vec(one, 0..4), 0..30_000_u64, 0..30_000_u64).prop_map(
        |(trigger, all, began, ended)| {
            let tries = (0..).zip(all).map(|(n, (began, lease, ended, marks, error))| Try {
                began: ms(began),
                assigned: lease.and_then(|(at, cold, marks)| assigned(at, cold, marks)),
                ended: ms(ended),
                invoke: ROOT.child("invoke", n),
                marks,
                error: error.then(|| "lost".to_owned()),
            });
            let ran = ran(trigger, tries.collect(), None);
            Ran { began: ms(began), ended: ms(ended), ..ran }
        },
    )
}

proptest! {
    /// Whatever the marks say: one tree under the caller's span, ids that differ, and nothing outside of what it is part of.
    #[test]
    fn spans_are_a_tree(ran in any_ran()) {
        let tries = ran.tries.len();
        let event = matches!(ran.origin.trigger, Trigger::Event { .. });
        let spans = spans(&Traced::Ran(Box::new(ran)));
        let by_id: HashMap<SpanId, &Span> = spans.iter().map(|span| (span.id, span)).collect();
        prop_assert_eq!(by_id.len(), spans.len(), "ids differ");
        let parents: HashSet<_> = spans.iter().filter_map(|span| span.parent).collect();
        prop_assert!(parents.iter().all(|id| *id == CALLER || by_id.contains_key(id)));
        let tops = spans.iter().filter(|span| span.parent == Some(CALLER)).count();
        prop_assert_eq!(tops, 1 + usize::from(event), "an attempt has its wait beside it");
        prop_assert_eq!(spans.iter().filter(|span| span.name == "1 assign").count(), tries);
        for span in &spans {
            prop_assert_eq!(span.trace, TRACE);
            prop_assert!(span.start <= span.end);
            if let Some(parent) = span.parent.and_then(|id| by_id.get(&id)) {
                prop_assert!(parent.start <= span.start && span.end <= parent.end, "{} in {}", span.name, parent.name);
            }
        }
    }

    /// Events may wait for their poller in another process: the same record is the same spans, wherever it is made.
    #[test]
    fn the_same_record_is_the_same_spans(ran in any_ran()) {
        let traced = Traced::Ran(Box::new(ran));
        prop_assert_eq!(spans(&traced), spans(&traced));
    }
}
