//! A driver that performs nothing but remembers what it was told, and sees that the rules hold at each step.

use std::time::Duration;

use bytes::Bytes;
use domain::{RequestId, RetireReason};
use sandbox::{ExitStatus, ProcessId};
use uuid::Uuid;

use super::super::*;

pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn settings(extensions: usize) -> Settings {
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
pub(super) struct Driver {
    pub(super) machine: Machine,
    pub(super) now: Duration,
    /// Unanswered operations: epoch and name, `None` for the runtime.
    pub(super) starts: Vec<(u32, Option<String>)>,
    pub(super) kills: Vec<u32>,
    pub(super) processes: Vec<(ProcessId, Option<String>)>,
    pub(super) next_process: u32,
    pub(super) extensions: Vec<Uuid>,
    pub(super) ids: u128,
    pub(super) current: Option<Ticket>,
    pub(super) accepted: usize,
    pub(super) outcomes: usize,
    pub(super) aborted: usize,
    pub(super) idles: usize,
    pub(super) answered: usize,
    pub(super) deaths: usize,
    pub(super) destroyed: bool,
    pub(super) frozen: bool,
    pub(super) init_done: usize,
    pub(super) init_failed: bool,
    /// Calls of `restored` that were heeded, and their ends.
    pub(super) restores: usize,
    pub(super) restore_done: usize,
    pub(super) restore_failed: bool,
    /// `restore/next` is waited in.
    pub(super) waits: bool,
    pub(super) released: usize,
    pub(super) handed: usize,
    pub(super) lines: Vec<Line>,
    pub(super) shutdown_events: Vec<RetireReason>,
}

impl Driver {
    pub(super) fn new(extensions: usize) -> Self {
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

    pub(super) fn settle(&mut self) {
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

    pub(super) fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    pub(super) fn started(&mut self, result: Option<StartError>) {
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

    pub(super) fn exit(&mut self, runtime: bool, oom: bool) {
        if let Some(at) = self.processes.iter().position(|(_, name)| name.is_none() == runtime) {
            let (process, _) = self.processes.remove(at);
            self.machine.exited(self.now, process, ExitStatus::Code(1), oom);
            self.settle();
        }
    }

    pub(super) fn killed(&mut self, done: bool) {
        if !self.kills.is_empty() {
            let epoch = self.kills.remove(0);
            self.processes.clear();
            self.machine.killed(self.now, epoch, done);
            self.settle();
        }
    }

    pub(super) fn invoke(&mut self, tail: bool) -> Result<(), Refused> {
        let ticket = Ticket { request: RequestId(self.id()), attempt: self.id(), tail };
        let result = self.machine.invoke(self.now, ticket);
        if result.is_ok() {
            self.accepted += 1;
            self.current = Some(ticket);
        }
        self.settle();
        result
    }

    pub(super) fn answer(&mut self, id_is_right: bool, attempt: Option<bool>, answer: Answer) -> Result<(), ApiError> {
        let Some(ticket) = self.current else { return Err(ApiError::InvalidRequestId) };
        let wrong = self.id();
        let request = if id_is_right { ticket.request.to_string() } else { wrong.to_string() };
        let attempt = attempt.map(|right| if right { ticket.attempt.to_string() } else { wrong.to_string() });
        let result = self.machine.runtime_answer(self.now, &request, attempt.as_deref(), answer);
        self.settle();
        result
    }

    pub(super) fn next(&mut self) -> Result<(), ApiError> {
        let result = self.machine.runtime_next(self.now);
        self.settle();
        result
    }

    pub(super) fn restore_next(&mut self) -> Result<(), ApiError> {
        let before = std::mem::replace(&mut self.waits, true);
        let result = self.machine.runtime_restore_next(self.now);
        if result.is_err() {
            self.waits = before;
        }
        self.settle();
        result
    }

    pub(super) fn restored(&mut self) {
        self.restores += usize::from(self.machine.held().is_some());
        self.machine.restored(self.now, self.now.saturating_sub(Duration::from_millis(5)));
        self.settle();
    }

    /// The same processes in another sandbox; their connections are gone.
    pub(super) fn elsewhere(self) -> Self {
        let held = self.machine.held().expect("it is held");
        let text = serde_json::to_string(&held).unwrap();
        assert_eq!(held.processes().count(), self.processes.len());
        let settings = Settings { begin: Begin::Snapshot, ..settings(self.extensions.len()) };
        let machine = Machine::of(serde_json::from_str(&text).unwrap(), settings);
        let Self { now, processes, extensions, ids, next_process, .. } = self;
        let rest = Self::new(0);
        Self { machine, now, processes, extensions, ids, next_process, init_done: 1, ..rest }
    }

    pub(super) fn register(&mut self, name: &str, shutdown: bool) -> Result<Uuid, ApiError> {
        let id = self.id();
        let registration = Registration { name: name.into(), invoke: true, shutdown };
        let result = self.machine.extension_register(self.now, id, registration);
        self.settle();
        result.map(|()| {
            self.extensions.push(id);
            id
        })
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.machine.timer(self.now);
        self.settle();
    }

    /// With an Init that ends in a snapshot, which has begun.
    pub(super) fn for_snapshot(extensions: usize) -> Self {
        let mut driver = Self::new(extensions);
        driver.machine = Machine::new(Settings { begin: Begin::Snapshot, ..settings(extensions) });
        driver.machine.start(driver.now);
        driver.settle();
        driver
    }

    /// A runtime that has initialised.
    pub(super) fn held() -> Self {
        let mut driver = Self::for_snapshot(0);
        driver.started(None);
        driver.restore_next().unwrap();
        assert_eq!((driver.init_done, driver.machine.state(), driver.released), (1, "held", 0));
        driver
    }

    /// A runtime without extensions that has initialised.
    pub(super) fn ready() -> Self {
        let mut driver = Self::new(0);
        driver.machine.start(driver.now);
        driver.settle();
        driver.started(None);
        driver.next().unwrap();
        assert_eq!((driver.init_done, driver.machine.state()), (1, "idle"));
        driver
    }
}

pub(super) fn success() -> Answer {
    Answer::Success(Bytes::from_static(b"1"))
}
