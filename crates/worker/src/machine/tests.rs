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
        init_limit: Duration::from_secs(10),
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
            handed: 0,
            lines: Vec::new(),
            shutdown_events: Vec::new(),
        }
    }

    fn settle(&mut self) {
        while self.machine.has_actions() {
            for action in self.machine.take_actions(Vec::new()) {
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
                    Action::InitDone(_) => self.init_done += 1,
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
