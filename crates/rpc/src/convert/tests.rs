use std::collections::BTreeMap;

use domain::{
    AccountId, AssignError, CodeRef, FunctionArn, LogFormat, LoggingSettings, RetireReason, SlotPhase, SnapshotError,
    Step, ThrottleReason, VersionKey, WorkerError,
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

pub(crate) fn version() -> FunctionVersion {
    FunctionVersion {
        key: VersionKey("f:1:abc".into()),
        account: AccountId::local(),
        region: "us-east-1".into(),
        name: "f".into(),
        version: "1".into(),
        arn: FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() },
        runtime: "python3.12".into(),
        handler: "index.handler".into(),
        code: CodeRef { sha256: "c2hh".into(), size: 100, image: None },
        image_config: Default::default(),
        layers: Vec::new(),
        memory_mb: 128,
        timeout: Duration::from_secs(3),
        ephemeral_mb: 512,
        environment: BTreeMap::new(),
        logging: LoggingSettings {
            format: LogFormat::Text,
            application_level: None,
            system_level: None,
            group: "/aws/lambda/f".into(),
        },
        tracing_active: false,
        snap_start: false,
    }
}

fn any_sandbox() -> impl Strategy<Value = SandboxId> {
    any::<u128>().prop_map(|id| SandboxId(Uuid::from_u128(id)))
}

fn any_version() -> impl Strategy<Value = FunctionVersion> {
    let environment = prop::collection::btree_map(".{0,10}", ".{0,40}", 0..5);
    ("[a-z]{1,9}", environment, 1u64..900, any::<bool>(), prop::collection::vec("[a-z]{4}", 0..3)).prop_map(
        |(name, environment, timeout, snap_start, layers)| FunctionVersion {
            key: VersionKey(format!("{name}:1").into()),
            layers: layers.into_iter().map(|sha256| CodeRef { sha256, size: 1, image: None }).collect(),
            timeout: Duration::from_secs(timeout),
            name,
            environment,
            snap_start,
            ..version()
        },
    )
}

fn any_error() -> impl Strategy<Value = WorkerError> {
    let unreachable = ("[a-z]{1,9}", ".*", any::<bool>()).prop_map(|(worker, cause, unsent)| {
        WorkerError::Unreachable { worker: WorkerId(worker.into()), cause, unsent }
    });
    prop_oneof![
        ".*".prop_map(WorkerError::Package),
        ".*".prop_map(WorkerError::Image),
        ".*".prop_map(WorkerError::Runtime),
        ".*".prop_map(WorkerError::Sandbox),
        any_sandbox().prop_map(WorkerError::Gone),
        any_sandbox().prop_map(WorkerError::Busy),
        unreachable,
        ".*".prop_map(WorkerError::Restore),
        ".*".prop_map(WorkerError::RestoreTimeout),
        Just(WorkerError::Stopping),
        "[a-z]{1,9}".prop_map(|worker| WorkerError::Full(WorkerId(worker.into()))),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    use Step::*;
    prop::sample::select(vec![
        Received,
        Queued,
        Dequeued,
        Assigned,
        Placed,
        PackageFetched,
        SandboxCreated,
        RuntimeStarted,
        InitDone,
        Invoked,
        Answered,
        Frozen,
        Settled,
    ])
}

fn any_timeline() -> impl Strategy<Value = Timeline> {
    let mark = (any_step(), 0u64..1 << 50, ".{0,9}").prop_map(|(step, at, note)| Mark {
        step,
        at: Duration::from_nanos(at),
        note,
    });
    prop::collection::vec(mark, 0..6).prop_map(|marks| Timeline { marks })
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

/// Through the bytes that travel.
fn over_the_wire<M: prost::Message + Default>(message: &M) -> M {
    M::decode(Bytes::from(message.encode_to_vec())).unwrap()
}

proptest! {
    #[test]
    fn versions(before in any_version()) {
        let after = super::version(&version_bytes(&before)).unwrap();
        prop_assert_eq!(after.as_ref(), &before);
    }

    #[test]
    fn requests(
        sandbox in any_sandbox(), epoch: u64, id: u128, payload in any_bytes(), invoked_arn: String, trace_id: String,
        client_context: Option<String>, tail: bool,
    ) {
        let log_type = if tail { LogType::Tail } else { LogType::None };
        let request_id = RequestId(Uuid::from_u128(id));
        let before = InvokeRequest { request_id, payload, invoked_arn, client_context, trace_id, log_type };
        let message = over_the_wire(&invoke_message(sandbox, epoch, before.clone()));
        prop_assert_eq!(super::sandbox(&message.sandbox).unwrap(), sandbox);
        prop_assert_eq!(message.epoch, epoch);
        let after = invoke_request(message).unwrap();
        prop_assert_eq!(format!("{before:?}"), format!("{after:?}"));
    }

    #[test]
    fn outcomes(payload in any_bytes(), log_tail in prop::option::of(any_bytes()), failed: bool, timeline in any_timeline()) {
        let before = InvokeOutcome { payload, function_error: failed.then_some("Unhandled"), log_tail, timeline };
        // Later than every mark; the other process's clock began elsewhere.
        let (theirs, ours) = (Duration::from_nanos(1 << 51), Duration::from_nanos(1 << 52));
        let after = invoke_outcome(over_the_wire(&invoke_answer(before.clone(), theirs)), ours);
        let mut expected = before;
        expected.timeline.marks.iter_mut().for_each(|mark| mark.at += ours - theirs);
        prop_assert_eq!(format!("{expected:?}"), format!("{after:?}"));
    }

    #[test]
    fn errors(before in any_error()) {
        let after = worker_error(over_the_wire(&fault(&before)));
        prop_assert_eq!(format!("{before:?}"), format!("{after:?}"));
        let assign = AssignError::Worker(before);
        let after = assign_error(over_the_wire(&refusal(&assign)));
        prop_assert_eq!(format!("{assign:?}"), format!("{after:?}"));
    }

    #[test]
    fn anything_is_read_or_refused(bytes in any_bytes()) {
        if let Ok(message) = pb::Told::decode(bytes.clone())
            && let Some(pb::told::Event::Sandboxes(sandboxes)) = message.event {
            let _ = sandbox_states(&sandboxes);
        }
        if let Ok(message) = pb::InvokeRequest::decode(bytes.clone()) {
            let _ = (sandbox(&message.sandbox), invoke_request(message));
        }
        if let Ok(answer) = pb::AssignAnswer::decode(bytes) {
            let _ = assign_error(answer);
        }
    }
}

#[test]
fn sandboxes_of_several_versions() {
    let other = Arc::new(FunctionVersion { key: VersionKey("g".into()), ..version() });
    let this = Arc::new(version());
    let phases = [SlotPhase::Starting, SlotPhase::Idle, SlotPhase::Invoking, SlotPhase::Finishing];
    let before: Vec<SandboxState> = phases
        .into_iter()
        .enumerate()
        .map(|(i, phase)| {
            let version = Arc::clone(if i % 2 == 0 { &this } else { &other });
            SandboxState { sandbox: SandboxId(Uuid::from_u128(i as u128)), version, phase }
        })
        .collect();
    let messages = sandboxes_messages(&before);
    assert_eq!(messages.len(), 2, "a version is sent once");
    let mut after: Vec<SandboxState> =
        messages.iter().flat_map(|message| sandbox_states(&over_the_wire(message)).unwrap()).collect();
    after.sort_by_key(|state| state.sandbox);
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
}

#[test]
fn refusals_of_assign_and_snapshot() {
    for reason in [ThrottleReason::Account, ThrottleReason::Reserved, ThrottleReason::ScalingRate] {
        assert!(
            matches!(assign_error(refusal(&AssignError::Throttled(reason))), AssignError::Throttled(r) if r == reason)
        );
    }
    for error in [AssignError::NoCapacity("full".into()), AssignError::NotOwner("m2".into())] {
        assert_eq!(format!("{:?}", assign_error(refusal(&error))), format!("{error:?}"));
    }
    let init = SnapshotError::Init { kind: "Runtime.ExitError".into(), message: "1".into() };
    for error in [SnapshotError::Unsupported("no".into()), init, SnapshotError::Worker(WorkerError::Stopping)] {
        let after = snapshot_error(snapshot_answer(Err(error.clone()))).unwrap_err();
        assert_eq!(format!("{after:?}"), format!("{error:?}"));
    }
    assert!(snapshot_error(snapshot_answer(Ok(()))).is_ok());
}

/// By hand: what an older Emberbox sends, which knew nothing of log tails, epochs and SnapStart.
#[test]
fn a_message_of_an_older_version() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct OldInvoke {
        #[prost(bytes = "bytes", tag = "1")]
        sandbox: Bytes,
        #[prost(bytes = "bytes", tag = "3")]
        request_id: Bytes,
        #[prost(bytes = "bytes", tag = "15")]
        payload: Bytes,
    }
    let id = Bytes::from(vec![7; 16]);
    let old = OldInvoke { sandbox: id.clone(), request_id: id, payload: Bytes::from_static(b"{}") };
    let read = pb::InvokeRequest::decode(Bytes::from(old.encode_to_vec())).unwrap();
    assert_eq!(read.epoch, 0, "below every fence");
    let request = invoke_request(read).unwrap();
    assert_eq!((&*request.payload, request.log_type, request.client_context), (&b"{}"[..], LogType::None, None));

    let mut old = serde_json::to_value(version()).unwrap();
    old.as_object_mut().unwrap().remove("snap_start").unwrap();
    old["code"].as_object_mut().unwrap().remove("image");
    let read = version_of(&old);
    assert!(!read.snap_start && read.code.image.is_none());
}

/// By hand: what a newer Emberbox sends.
#[test]
fn a_message_of_a_newer_version() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct NewAnswer {
        #[prost(message, repeated, tag = "4")]
        timeline: Vec<pb::Mark>,
        #[prost(bytes = "bytes", tag = "15")]
        payload: Bytes,
        #[prost(string, tag = "99")]
        new: String,
    }
    let mark = |step: &str| pb::Mark { step: step.into(), age_ns: 0, note: String::new() };
    let timeline = vec![mark("invoked"), mark("teleported"), mark("answered")];
    let new = NewAnswer { timeline, payload: Bytes::from_static(b"1"), new: "what is this".into() };
    let read = pb::InvokeAnswer::decode(Bytes::from(new.encode_to_vec())).unwrap();
    let outcome = invoke_outcome(read, Duration::ZERO);
    let steps: Vec<Step> = outcome.timeline.marks.iter().map(|mark| mark.step).collect();
    assert_eq!((&*outcome.payload, steps), (&b"1"[..], vec![Step::Invoked, Step::Answered]));

    let mut new = serde_json::to_value(version()).unwrap();
    new["gpu"] = serde_json::json!({ "kind": "big" });
    new["code"]["signed_by"] = serde_json::json!("somebody");
    assert_eq!(*version_of(&new), version());

    assert_eq!(phase("dreaming"), SlotPhase::Invoking, "not to be used");
    assert_eq!(reason("boredom"), RetireReason::Failure);
    let fault = pb::Fault { kind: "melted".into(), text: "at 40 °C".into(), ..Default::default() };
    let error = worker_error(fault);
    assert!(!error.retryable() && error.to_string().contains("melted: at 40 °C"), "{error}");
    let answer = pb::AssignAnswer { refusal: "asleep".into(), ..Default::default() };
    assert!(matches!(assign_error(answer), AssignError::NoCapacity(_)));
    let told = pb::Told::decode(Bytes::from_static(&[0xfa, 0x07, 0x01, 0x00])).unwrap();
    assert_eq!(told.event, None, "an event that is not known is none");
}

fn version_of(json: &serde_json::Value) -> Arc<FunctionVersion> {
    super::version(&serde_json::to_vec(json).unwrap()).unwrap()
}
