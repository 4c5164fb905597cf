//! Any order of events: no panic, one outcome per invocation, `idle` once per completed one, nothing after the end.

use std::time::Duration;

use bytes::Bytes;
use domain::{RequestId, RetireReason};
use proptest::prelude::*;
use sandbox::{ExitStatus, ProcessId};
use uuid::Uuid;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(3);

fn settings(extensions: usize) -> Settings {
    Settings {
        begin: Begin::OnDemand,
        init_limit: Duration::from_secs(10),
        restore_limit: Duration::from_secs(10),
        timeout: TIMEOUT,
        freeze_after: Duration::from_millis(20),
        extensions: (0..extensions).map(|n| format!("e{n}")).collect(),
        internal_budget: Duration::from_millis(500),
        external_budget: Duration::from_secs(2),
    }
}

/// A driver that performs nothing but remembers what it was told.
struct Driver {
    machine: Machine,
    now: Duration,
    /// Unanswered operations: epoch and name, `None` for the runtime.
    starts: Vec<(u32, Option<String>)>,
    kills: Vec<u32>,
    processes: Vec<(ProcessId, Option<String>)>,
    next_process: u32,
    extensions: Vec<Uuid>,
    ids: u128,
    current: Option<Ticket>,
    accepted: usize,
    outcomes: usize,
    aborted: usize,
    idles: usize,
    answered: usize,
    deaths: usize,
    destroyed: bool,
    frozen: bool,
    init_done: usize,
    init_failed: bool,
    /// Calls of `restored` that were heeded, and their ends.
    restores: usize,
    restore_done: usize,
    restore_failed: bool,
    /// `restore/next` is waited in.
    waits: bool,
    released: usize,
    handed: usize,
    lines: Vec<Line>,
    shutdown_events: Vec<RetireReason>,
}

impl Driver {
    fn new(extensions: usize) -> Self {
        Self {
            machine: Machine::new(settings(extensions)),
            now: Duration::from_secs(1),
            starts: Vec::new(),
            kills: Vec::new(),
            processes: Vec::new(),
            next_process: 0,
            extensions: Vec::new(),
            ids: 0,
            current: None,
            accepted: 0,
            outcomes: 0,
            aborted: 0,
            idles: 0,
            answered: 0,
            deaths: 0,
            destroyed: false,
            frozen: false,
            init_done: 0,
            init_failed: false,
            restores: 0,
            restore_done: 0,
            restore_failed: false,
            waits: false,
            released: 0,
            handed: 0,
            lines: Vec::new(),
            shutdown_events: Vec::new(),
        }
    }

    fn settle(&mut self) {
        loop {
            let actions = self.machine.take_actions(Vec::new());
            if actions.is_empty() {
                break;
            }
            for action in actions {
                assert!(!self.destroyed, "after the end: {action:?}");
                match action {
                    Action::StartExtension { epoch, name } => self.starts.push((epoch, Some(name))),
                    Action::StartRuntime { epoch } => self.starts.push((epoch, None)),
                    Action::KillAll { epoch } => self.kills.push(epoch),
                    Action::HandToRuntime { .. } => {
                        assert!(!self.frozen, "a frozen runtime cannot take an event");
                        self.handed += 1;
                    }
                    Action::HandToExtension { .. } => assert!(!self.frozen),
                    Action::ShutdownExtension { reason, .. } => self.shutdown_events.push(reason),
                    Action::Thaw => {
                        assert!(self.frozen);
                        self.frozen = false;
                    }
                    Action::Freeze => {
                        assert!(!self.frozen);
                        self.frozen = true;
                    }
                    Action::Signal(..) => assert!(!self.frozen),
                    Action::Log(line) => self.lines.push(line),
                    Action::InitDone(result) => {
                        self.init_done += 1;
                        self.init_failed |= result.is_err();
                    }
                    Action::ReleaseRuntime => {
                        if std::mem::take(&mut self.waits) {
                            self.released += 1;
                            self.machine.runtime_released();
                        }
                    }
                    Action::RestoreDone(result) => {
                        self.restore_done += 1;
                        self.restore_failed |= result.is_err();
                    }
                    Action::Answer(_) => self.outcomes += 1,
                    Action::Abort(_) => self.aborted += 1,
                    Action::SlotAnswered => self.answered += 1,
                    Action::SlotIdle => self.idles += 1,
                    Action::SlotDead(_) => self.deaths += 1,
                    Action::Destroy => self.destroyed = true,
                }
                assert!(self.deaths <= 1);
            }
        }
        assert!(self.outcomes + self.aborted <= self.accepted, "an outcome for nobody");
        assert!(self.idles <= self.outcomes, "idle without a completed invocation");
        assert!(self.answered <= self.outcomes, "answered without an answer");
        if self.frozen {
            assert!(matches!(self.machine.state(), "frozen" | "dead"), "{}", self.machine.state());
        }
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn started(&mut self, result: Option<StartError>) {
        if self.starts.is_empty() {
            return;
        }
        let (epoch, name) = self.starts.remove(0);
        let result = match result {
            Some(error) => Err(error),
            None => {
                self.next_process += 1;
                let id = ProcessId(self.next_process);
                self.processes.push((id, name.clone()));
                Ok(id)
            }
        };
        match name {
            Some(name) => self.machine.extension_started(self.now, epoch, &name, result),
            None => self.machine.runtime_started(self.now, epoch, result),
        }
        self.settle();
    }

    fn exit(&mut self, runtime: bool, oom: bool) {
        if let Some(at) = self.processes.iter().position(|(_, name)| name.is_none() == runtime) {
            let (process, _) = self.processes.remove(at);
            self.machine.exited(self.now, process, ExitStatus::Code(1), oom);
            self.settle();
        }
    }

    fn killed(&mut self, done: bool) {
        if !self.kills.is_empty() {
            let epoch = self.kills.remove(0);
            self.processes.clear();
            self.machine.killed(self.now, epoch, done);
            self.settle();
        }
    }

    fn invoke(&mut self, tail: bool) -> Result<(), Refused> {
        let ticket = Ticket { request: RequestId(self.id()), attempt: self.id(), tail };
        let result = self.machine.invoke(self.now, ticket);
        if result.is_ok() {
            self.accepted += 1;
            self.current = Some(ticket);
        }
        self.settle();
        result
    }

    fn answer(&mut self, id_is_right: bool, attempt: Option<bool>, answer: Answer) -> Result<(), ApiError> {
        let Some(ticket) = self.current else { return Err(ApiError::InvalidRequestId) };
        let wrong = self.id();
        let request = if id_is_right { ticket.request.to_string() } else { wrong.to_string() };
        let attempt = attempt.map(|right| if right { ticket.attempt.to_string() } else { wrong.to_string() });
        let result = self.machine.runtime_answer(self.now, &request, attempt.as_deref(), answer);
        self.settle();
        result
    }

    fn next(&mut self) -> Result<(), ApiError> {
        let result = self.machine.runtime_next(self.now);
        self.settle();
        result
    }

    fn restore_next(&mut self) -> Result<(), ApiError> {
        let before = std::mem::replace(&mut self.waits, true);
        let result = self.machine.runtime_restore_next(self.now);
        if result.is_err() {
            self.waits = before;
        }
        self.settle();
        result
    }

    fn restored(&mut self) {
        self.restores += usize::from(self.machine.held().is_some());
        self.machine.restored(self.now, self.now.saturating_sub(Duration::from_millis(5)));
        self.settle();
    }

    /// The same processes in another sandbox; their connections are gone.
    fn elsewhere(self) -> Self {
        let held = self.machine.held().expect("it is held");
        let text = serde_json::to_string(&held).unwrap();
        assert_eq!(held.processes().count(), self.processes.len());
        let settings = Settings { begin: Begin::Snapshot, ..settings(self.extensions.len()) };
        let machine = Machine::of(serde_json::from_str(&text).unwrap(), settings);
        let Self { now, processes, extensions, ids, next_process, .. } = self;
        let rest = Self::new(0);
        Self { machine, now, processes, extensions, ids, next_process, init_done: 1, ..rest }
    }

    fn register(&mut self, name: &str, shutdown: bool) -> Result<Uuid, ApiError> {
        let id = self.id();
        let registration = Registration { name: name.into(), invoke: true, shutdown };
        let result = self.machine.extension_register(self.now, id, registration);
        self.settle();
        result.map(|()| {
            self.extensions.push(id);
            id
        })
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.machine.timer(self.now);
        self.settle();
    }

    /// With an Init that ends in a snapshot, which has begun.
    fn for_snapshot(extensions: usize) -> Self {
        let mut driver = Self::new(extensions);
        driver.machine = Machine::new(Settings { begin: Begin::Snapshot, ..settings(extensions) });
        driver.machine.start(driver.now);
        driver.settle();
        driver
    }

    /// A runtime that has initialised.
    fn held() -> Self {
        let mut driver = Self::for_snapshot(0);
        driver.started(None);
        driver.restore_next().unwrap();
        assert_eq!((driver.init_done, driver.machine.state(), driver.released), (1, "held", 0));
        driver
    }

    /// A runtime without extensions that has initialised.
    fn ready() -> Self {
        let mut driver = Self::new(0);
        driver.machine.start(driver.now);
        driver.settle();
        driver.started(None);
        driver.next().unwrap();
        assert_eq!((driver.init_done, driver.machine.state()), (1, "idle"));
        driver
    }
}

fn success() -> Answer {
    Answer::Success(Bytes::from_static(b"1"))
}

#[derive(Clone, Debug)]
enum Op {
    Invoke { tail: bool },
    Next,
    Answer { right: bool, attempt: Option<bool>, error: bool },
    InitError,
    Undelivered,
    Register { name: u8, shutdown: bool },
    ExtensionNext(prop::sample::Index),
    ExtensionError(prop::sample::Index, bool),
    Started,
    StartFails { host: bool },
    Exit { runtime: bool, oom: bool },
    Killed { done: bool },
    Pass(u64),
    Shutdown,
    Gone,
    RestoreNext,
    HangUp,
    Restored,
    RestoreError,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => any::<bool>().prop_map(|tail| Op::Invoke { tail }),
        8 => Just(Op::Next),
        6 => (prop::bool::weighted(0.8), prop::option::of(prop::bool::weighted(0.8)), any::<bool>())
            .prop_map(|(right, attempt, error)| Op::Answer { right, attempt, error }),
        1 => Just(Op::InitError),
        1 => Just(Op::Undelivered),
        4 => (0u8..4, any::<bool>()).prop_map(|(name, shutdown)| Op::Register { name, shutdown }),
        8 => any::<prop::sample::Index>().prop_map(Op::ExtensionNext),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(i, init)| Op::ExtensionError(i, init)),
        8 => Just(Op::Started),
        1 => any::<bool>().prop_map(|host| Op::StartFails { host }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(runtime, oom)| Op::Exit { runtime, oom }),
        4 => prop::bool::weighted(0.95).prop_map(|done| Op::Killed { done }),
        4 => (0u64..4000).prop_map(Op::Pass),
        1 => Just(Op::Shutdown),
        1 => prop::bool::weighted(0.1).prop_map(|gone| if gone { Op::Gone } else { Op::Next }),
        4 => Just(Op::RestoreNext),
        1 => Just(Op::HangUp),
        4 => Just(Op::Restored),
        1 => Just(Op::RestoreError),
    ]
}

impl Driver {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Invoke { tail } => drop(self.invoke(*tail)),
            Op::Next => drop(self.next()),
            Op::Answer { right, attempt, error } => {
                let answer = if *error {
                    Answer::Failure { payload: Bytes::new(), kind: "Function.Error".into() }
                } else {
                    success()
                };
                let before = self.outcomes;
                let accepted = self.answer(*right, *attempt, answer).is_ok();
                assert!(!accepted || (*right && *attempt != Some(false)), "a stale id was accepted");
                assert!(accepted || self.outcomes == before, "a refused answer went out");
            }
            Op::InitError => {
                drop(self.machine.runtime_init_error(self.now, "Runtime.Unknown".into(), Bytes::new()));
                self.settle();
            }
            Op::Undelivered => {
                self.machine.undelivered();
                self.settle();
            }
            Op::Register { name, shutdown } => drop(self.register(&format!("e{name}"), *shutdown)),
            Op::ExtensionNext(index) => {
                if !self.extensions.is_empty() {
                    let id = *index.get(&self.extensions);
                    drop(self.machine.extension_next(self.now, id));
                    self.settle();
                }
            }
            Op::ExtensionError(index, init) => {
                if !self.extensions.is_empty() {
                    let id = *index.get(&self.extensions);
                    drop(self.machine.extension_error(self.now, id, *init, "x".into()));
                    self.settle();
                }
            }
            Op::Started => self.started(None),
            Op::StartFails { host } => {
                let error = if *host { StartError::Host("x".into()) } else { StartError::Exec("x".into()) };
                self.started(Some(error));
            }
            Op::Exit { runtime, oom } => self.exit(*runtime, *oom),
            Op::Killed { done } => self.killed(*done),
            Op::Pass(millis) => self.pass(Duration::from_millis(*millis)),
            Op::Shutdown => {
                self.machine.shutdown(self.now, RetireReason::Spindown);
                self.settle();
            }
            Op::RestoreNext => drop(self.restore_next()),
            Op::HangUp => self.waits = false,
            Op::Restored => self.restored(),
            Op::RestoreError => {
                drop(self.machine.runtime_restore_error(self.now, "Runtime.AfterRestoreError".into(), Bytes::new()));
                self.settle();
            }
            Op::Gone => {
                self.machine.gone(self.now);
                self.settle();
            }
        }
    }

    /// With a driver that does its duty and time that passes, everything comes to an end.
    fn run_out(&mut self) {
        for _ in 0..20 {
            while !self.starts.is_empty() {
                self.started(None);
            }
            while !self.kills.is_empty() {
                self.killed(true);
            }
            self.pass(Duration::from_secs(20));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_invocation_gets_one_outcome(extensions in 0usize..3, ops in prop::collection::vec(op(), 0..80)) {
        let mut driver = Driver::new(extensions);
        driver.machine.start(driver.now);
        driver.settle();
        for op in &ops {
            driver.apply(op);
        }
        driver.run_out();
        prop_assert_eq!(driver.init_done, 1);
        prop_assert_eq!(driver.outcomes + driver.aborted, driver.accepted);
        if driver.deaths == 0 {
            prop_assert_eq!(driver.aborted, 0);
            prop_assert_eq!(driver.idles, driver.accepted, "the slot is usable again after each");
            prop_assert_eq!(driver.answered, driver.accepted);
            prop_assert_eq!(driver.invoke(false), Ok(()), "an idle slot takes an invocation");
        } else {
            prop_assert!(driver.destroyed);
        }
        let starts = driver.lines.iter().filter(|l| matches!(l, Line::Start(_))).count();
        let ends = driver.lines.iter().filter(|l| matches!(l, Line::End(_))).count();
        prop_assert!(ends <= starts);
        driver.machine.shutdown(driver.now, RetireReason::Spindown);
        driver.settle();
        driver.run_out();
        prop_assert!(driver.destroyed);
        prop_assert_eq!(driver.outcomes + driver.aborted, driver.accepted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// What is kept is either restored, and then as any other sandbox, or it dies: never anything between.
    #[test]
    fn a_sandbox_of_a_snapshot(
        extensions in 0usize..3,
        before in prop::collection::vec(op(), 0..40),
        elsewhere in any::<bool>(),
        after in prop::collection::vec(op(), 0..40),
    ) {
        let mut driver = Driver::for_snapshot(extensions);
        for op in &before {
            driver.apply(op);
        }
        if elsewhere && driver.machine.held().is_some() {
            driver = driver.elsewhere();
            driver.restored();
        }
        for op in &after {
            driver.apply(op);
        }
        driver.run_out();
        prop_assert_eq!(driver.init_done, 1);
        prop_assert!(driver.restores <= 1 && driver.released <= driver.restores);
        prop_assert_eq!(driver.restore_done, driver.restores);
        prop_assert_eq!(driver.outcomes + driver.aborted, driver.accepted);
        let failed = driver.init_failed || driver.restore_failed;
        prop_assert!(!failed || driver.destroyed, "what failed is of no use");
        let state = driver.machine.state();
        prop_assert!(matches!(state, "held" | "frozen" | "dead"), "never without processes: {}", state);
        prop_assert_eq!(state == "dead", driver.destroyed);
        if state == "frozen" {
            prop_assert_eq!(driver.invoke(false), Ok(()));
        } else {
            prop_assert!(driver.invoke(false).is_err());
        }
    }
}

#[test]
fn a_restore_in_order() {
    for elsewhere in [false, true] {
        let mut d = Driver::held();
        assert!(matches!(&d.lines[..], [Line::InitStart, Line::Initialized(_)]));
        assert_eq!(d.machine.deadline(), None, "it may be held for ever");
        assert_eq!(d.invoke(false), Err(Refused::Busy));
        if elsewhere {
            d = d.elsewhere();
        }
        d.restored();
        if elsewhere {
            assert_eq!((d.released, d.machine.state()), (0, "init"), "its connection is gone");
            assert_eq!(d.next(), Err(ApiError::Transition { from: "RestoreReady", to: "Ready" }));
            d.restore_next().unwrap();
        }
        assert_eq!(d.released, 1);
        assert_eq!(d.restore_next(), Err(ApiError::Transition { from: "Restoring", to: "RestoreReady" }));
        d.pass(Duration::from_millis(7));
        d.next().unwrap();
        assert_eq!((d.restore_done, d.restore_failed, d.machine.state()), (1, false, "idle"));
        d.invoke(false).unwrap();
        d.answer(true, None, success()).unwrap();
        d.next().unwrap();
        let Some(Line::End(report)) = d.lines.last() else { panic!("no END: {:?}", d.lines) };
        let (duration, billed) = (Duration::from_millis(12), Duration::from_millis(7));
        assert_eq!((report.init, report.restored), (None, Some(Restored { duration, billed })));
        d.invoke(false).unwrap();
        d.answer(true, None, success()).unwrap();
        d.next().unwrap();
        assert!(matches!(d.lines.last(), Some(Line::End(Report { restored: None, .. }))), "once");
    }
}

#[test]
fn a_runtime_without_hooks_is_kept_where_it_asks_for_an_invocation() {
    let mut d = Driver::for_snapshot(0);
    d.started(None);
    d.next().unwrap();
    assert_eq!(d.machine.state(), "held");
    let mut d = d.elsewhere();
    d.restored();
    assert_eq!((d.restore_done, d.machine.state()), (1, "idle"));
    d.next().unwrap();
    d.invoke(false).unwrap();
    assert_eq!(d.handed, 1);
}

#[test]
fn without_a_snapshot_there_is_no_restore() {
    let mut d = Driver::new(0);
    d.machine.start(d.now);
    d.settle();
    d.started(None);
    assert_eq!(d.restore_next(), Err(ApiError::Transition { from: "Started", to: "RestoreReady" }));
    d.next().unwrap();
    d.restored();
    assert_eq!((d.restores, d.machine.state()), (0, "idle"));
}

#[test]
fn a_restore_has_a_limit_and_may_fail() {
    let mut late = Driver::held();
    late.restored();
    late.pass(Duration::from_secs(10));
    let mut failed = Driver::held();
    failed.restored();
    let report = failed.machine.runtime_restore_error(failed.now, "Runtime.AfterRestoreError".into(), Bytes::new());
    report.unwrap();
    failed.settle();
    let mut ended = Driver::held();
    ended.restored();
    ended.exit(true, false);
    for (mut d, kind) in
        [(late, "Sandbox.Timedout"), (failed, "Runtime.AfterRestoreError"), (ended, "Runtime.ExitError")]
    {
        assert!(d.restore_failed && d.restore_done == 1);
        let Some(Line::RestoreReport { fault: Some(fault), .. }) = d.lines.last() else { panic!("{:?}", d.lines) };
        assert_eq!(fault.error_type(), kind);
        d.killed(true);
        assert!(d.destroyed);
    }
}

#[test]
fn a_warm_invocation_in_order() {
    let mut d = Driver::ready();
    d.pass(Duration::from_millis(20));
    assert!(d.frozen);
    d.invoke(false).unwrap();
    assert_eq!((d.handed, d.frozen), (1, false));
    assert_eq!(d.invoke(false), Err(Refused::Busy));
    d.answer(true, Some(true), success()).unwrap();
    assert_eq!((d.outcomes, d.answered, d.idles), (1, 1, 0));
    assert_eq!(
        d.answer(true, None, success()),
        Err(ApiError::Transition { from: "RuntimeResponseSentState", to: "InvocationResponse" })
    );
    d.next().unwrap();
    assert_eq!(d.idles, 1);
    assert_eq!(d.answer(true, None, success()), Err(ApiError::InvalidRequestId), "over");
}

#[test]
fn init_that_takes_too_long_is_tried_again_by_the_first_invocation() {
    let mut d = Driver::new(0);
    d.machine.start(d.now);
    d.settle();
    d.started(None);
    d.pass(Duration::from_secs(10));
    assert_eq!(d.init_done, 1);
    d.killed(true);
    assert_eq!(d.machine.state(), "down");
    d.invoke(false).unwrap();
    assert_eq!(d.machine.state(), "init");
    d.started(None);
    d.next().unwrap();
    assert_eq!(d.handed, 1);
    d.answer(true, None, success()).unwrap();
    d.next().unwrap();
    assert_eq!((d.outcomes, d.idles), (1, 1));
}

#[test]
fn a_suppressed_init_is_under_the_functions_timeout() {
    let mut d = Driver::new(0);
    d.invoke(false).unwrap();
    d.started(None);
    d.pass(TIMEOUT);
    assert_eq!(d.outcomes, 1);
    d.killed(true);
    assert_eq!(d.idles, 1);
}

#[test]
fn a_crash_while_idle_is_hidden_by_a_fresh_start() {
    let mut d = Driver::ready();
    d.exit(true, false);
    assert_eq!(d.machine.state(), "stopping");
    d.invoke(false).unwrap();
    d.killed(true);
    d.started(None);
    d.next().unwrap();
    d.answer(true, None, success()).unwrap();
    d.next().unwrap();
    assert_eq!((d.accepted, d.outcomes, d.idles), (1, 1, 1));
    let starts = d.lines.iter().filter(|l| matches!(l, Line::Start(_))).count();
    assert_eq!(starts, 1);
}

#[test]
fn an_invocations_time_does_not_run_while_the_slot_recovers() {
    let mut d = Driver::ready();
    d.exit(true, false);
    d.invoke(false).unwrap();
    d.pass(TIMEOUT * 2);
    assert_eq!(d.outcomes, 0);
    d.killed(true);
    d.started(None);
    d.pass(TIMEOUT / 2);
    d.next().unwrap();
    d.answer(true, None, success()).unwrap();
    assert_eq!((d.outcomes, d.aborted), (1, 0));
}

#[test]
fn extensions_have_their_phases() {
    let mut d = Driver::new(1);
    d.machine.start(d.now);
    d.settle();
    assert_eq!(d.starts.len(), 1, "the runtime waits for the extension's registration");
    d.started(None);
    let external = d.register("e0", true).unwrap();
    d.started(None);
    let internal = d.register("internal", false).unwrap();
    assert!(matches!(d.register("late", true), Err(ApiError::Extension { kind: "Extension.InvalidEventType", .. })));
    d.next().unwrap();
    d.machine.extension_next(d.now, external).unwrap();
    d.settle();
    assert_eq!(d.init_done, 0, "one extension is not ready");
    d.machine.extension_next(d.now, internal).unwrap();
    d.settle();
    assert_eq!(d.init_done, 1);
    assert!(matches!(d.register("late", false), Err(ApiError::Extension { kind: "Extension.RegistrationClosed", .. })));
    d.invoke(false).unwrap();
    d.answer(true, None, success()).unwrap();
    d.next().unwrap();
    d.machine.extension_next(d.now, internal).unwrap();
    d.settle();
    assert_eq!((d.outcomes, d.idles), (1, 0), "answered, but an extension still works");
    d.pass(TIMEOUT);
    assert_eq!(d.machine.state(), "stopping");
    d.pass(Duration::from_millis(600));
    assert_eq!(d.shutdown_events, [RetireReason::Timeout], "after the runtime's share of the budget");
    d.exit(false, false);
    d.killed(true);
    assert_eq!((d.machine.state(), d.idles), ("down", 1));
}

#[test]
fn no_more_than_ten_extensions() {
    let mut d = Driver::new(0);
    d.machine.start(d.now);
    d.settle();
    for n in 0..MAX_EXTENSIONS {
        d.register(&format!("i{n}"), false).unwrap();
    }
    assert!(matches!(
        d.register("one more", false),
        Err(ApiError::Extension { kind: "Extension.TooManyExtensions", .. })
    ));
}
