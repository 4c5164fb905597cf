//! The life of one sandbox, as a state machine without IO, clock or randomness.
//!
//! ```text
//!            start()                 all asked for next            invoke()
//!   Down ───────────────► Starting ─────────────────────► Idle ───────────────► Busy
//!    ▲  ▲                  │    ▲                         │  ▲ │(frozen after     │ response, error
//!    │  │ invoke():        │    │                         │  │ │ a grace)         ▼
//!    │  └─suppressed init──┼────┘                         │  └─┼─────────── Finishing
//!    │                     │ fault                  crash │    │ all asked for next │
//!    │                     ▼                              ▼    │                    │
//!    └───────────────── Stopping ◄─────────────────────────────┴── fault, timeout ──┘
//!       reset: /tmp        │
//!       stays              │ shutdown(), or the sandbox cannot be reset
//!                          ▼
//!                         Dead
//! ```
//!
//! Stages inside a phase: Starting first waits until every external extension has registered, then starts the runtime
//! and waits until it and all extensions asked for their first event. Stopping gives the runtime SIGTERM and 30 % of
//! the budget, then the extensions their SHUTDOWN event and the rest, then kills what is left; without extensions the
//! budget is zero.
//!
//! Each method is one event. It returns what the asker must be told at once, and leaves the rest to do in
//! [`Machine::take_actions`], in order. Operations on processes are answered by further events that carry the `epoch`
//! under which they were begun, so that a late answer cannot be taken for one about the processes of after a reset.
//!
//! Invariants, held by the property test below: an accepted invocation gets exactly one [`Action::Answer`] or
//! [`Action::Abort`]; [`Action::SlotIdle`] follows it exactly once unless the sandbox dies; nothing follows
//! [`Action::Destroy`].

use std::time::Duration;

use bytes::Bytes;
use domain::{RequestId, RetireReason};
use sandbox::{ProcessId, Signal};
use uuid::Uuid;

mod api;
mod fault;
#[cfg(test)]
mod tests;

pub use api::{ApiError, Registration};
pub use fault::{Fault, runtime_error_type};

/// Extensions that may register, internal and external together.
pub const MAX_EXTENSIONS: usize = 10;

/// What is fixed for the life of a sandbox.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Limit of Init (10 s on AWS).
    pub init_limit: Duration,
    /// The function's `Timeout`.
    pub timeout: Duration,
    /// How long an idle sandbox runs on before it is frozen.
    pub freeze_after: Duration,
    /// File names of the external extensions.
    pub extensions: Vec<String>,
    /// Shutdown budget with internal extensions only (500 ms on AWS).
    pub internal_budget: Duration,
    /// Shutdown budget with an external extension (2 s on AWS).
    pub external_budget: Duration,
}

/// One attempt at one invocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The same for all attempts.
    pub request: RequestId,
    /// `Lambda-Runtime-Invocation-Id`: this attempt's own.
    pub attempt: Uuid,
    /// The answer carries the log, so it waits for the end of the invocation.
    pub tail: bool,
}

/// What the function made of an invocation.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// The runtime's response.
    Success(Bytes),
    /// The error object, and its type for the log.
    Failure {
        /// What the caller gets.
        payload: Bytes,
        /// e.g. `Runtime.ExitError`.
        kind: String,
    },
}

/// Why an invocation ended without an answer of the function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    /// The function certainly did not see it.
    Unseen,
    /// The sandbox was taken down while the function worked on it.
    Interrupted,
}

/// Why an invocation was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// It has one already.
    Busy,
    /// It is being taken down, or is gone.
    Gone,
}

/// A system line of the log.
#[derive(Clone, PartialEq, Debug)]
pub enum Line {
    /// Processes are being started.
    InitStart,
    /// Init failed or timed out; successful ones are part of the REPORT.
    InitReport {
        /// How long it took.
        duration: Duration,
        /// Whether an invocation waited for it.
        suppressed: bool,
        /// What went wrong.
        fault: Fault,
    },
    /// An invocation begins.
    Start(RequestId),
    /// An invocation is over: END and REPORT.
    End(Report),
}

/// The figures of a finished invocation.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// Which.
    pub request: RequestId,
    /// From its start to the last `next`.
    pub duration: Duration,
    /// Of the Init that this is the first invocation after.
    pub init: Option<Duration>,
    /// The error type if it failed.
    pub error: Option<String>,
    /// It failed by timeout; the limit.
    pub timeout: Option<Duration>,
}

/// What the driver must do, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Start this external extension; answer with [`Machine::extension_started`].
    StartExtension {
        /// For the answer.
        epoch: u32,
        /// Its file name.
        name: String,
    },
    /// Start the runtime; answer with [`Machine::runtime_started`].
    StartRuntime {
        /// For the answer.
        epoch: u32,
    },
    /// Give the current invocation to the runtime's `next`.
    HandToRuntime {
        /// Epoch-independent deadline, in monotonic time.
        deadline: Duration,
    },
    /// Give the current invocation to an extension's `next`.
    HandToExtension {
        /// Which.
        id: Uuid,
        /// In monotonic time.
        deadline: Duration,
    },
    /// Give a SHUTDOWN event to an extension's `next`, now or when it asks.
    ShutdownExtension {
        /// Which.
        id: Uuid,
        /// Why.
        reason: RetireReason,
        /// In monotonic time.
        deadline: Duration,
    },
    /// Let the processes run.
    Thaw,
    /// Stop them from running.
    Freeze,
    /// Send a signal.
    Signal(ProcessId, Signal),
    /// Kill all processes and forget all connections; answer with [`Machine::killed`].
    KillAll {
        /// For the answer.
        epoch: u32,
    },
    /// Write a system line.
    Log(Line),
    /// The initial Init is over; the error is a note for the timeline.
    InitDone(Result<(), String>),
    /// The invocation's outcome.
    Answer(Answer),
    /// The invocation ended without one.
    Abort(Abort),
    /// Tell the manager: answered.
    SlotAnswered,
    /// Tell the manager: idle.
    SlotIdle,
    /// Tell the manager: dead.
    SlotDead(RetireReason),
    /// Remove the sandbox.
    Destroy,
}

/// Why a process could not be started.
#[derive(Clone, PartialEq, Debug)]
pub enum StartError {
    /// The customer's fault: missing or not executable.
    Exec(String),
    /// The host's fault: the sandbox is of no use.
    Host(String),
}

#[derive(Clone, Debug)]
struct Invocation {
    ticket: Ticket,
    started: Duration,
    deadline: Duration,
    delivered: bool,
}

#[derive(Debug)]
enum Phase {
    /// No process runs; an invocation starts them.
    Down,
    Starting(Starting),
    Idle {
        freeze_at: Option<Duration>,
        frozen: bool,
    },
    Busy(Invocation),
    /// Answered; `pending` is the answer that waits for the log.
    Finishing {
        invocation: Invocation,
        pending: Option<Answer>,
        error: Option<String>,
    },
    Stopping(Stopping),
    Dead,
}

#[derive(Debug)]
struct Starting {
    began: Duration,
    deadline: Duration,
    invocation: Option<Invocation>,
    runtime_asked: bool,
}

#[derive(Debug)]
struct Stopping {
    stage: Stage,
    reason: RetireReason,
    /// When the whole budget ends.
    end: Duration,
    then: Then,
}

#[derive(Debug, PartialEq)]
enum Stage {
    /// SIGTERM was sent to the runtime; it has until then.
    Runtime(Duration),
    /// Extensions have until the end of the budget.
    Extensions,
    /// KillAll is under way.
    Killing,
}

#[derive(Debug)]
enum Then {
    /// The slot stays; the manager is owed `idle` for the invocation that failed; one may already wait.
    Down {
        owes_idle: bool,
        pending: Option<Ticket>,
        since: Duration,
    },
    Dead,
}

/// What the runtime last did, in RAPID's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RuntimeState {
    Started,
    InitError,
    Ready,
    Running,
    ResponseSent,
}

#[derive(Debug)]
struct Extension {
    name: String,
    external: bool,
    /// Set by registration.
    id: Option<Uuid>,
    wants_invoke: bool,
    wants_shutdown: bool,
    /// It waits in `next`, or for an event type that it never asked for.
    waiting: bool,
    process: Option<ProcessId>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    phase: Phase,
    epoch: u32,
    runtime: Option<ProcessId>,
    runtime_state: RuntimeState,
    extensions: Vec<Extension>,
    /// Duration of the last Init, until an invocation reports it.
    init_duration: Option<Duration>,
    actions: Vec<Action>,
}

impl Machine {
    /// A sandbox without processes.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            phase: Phase::Down,
            epoch: 0,
            runtime: None,
            runtime_state: RuntimeState::Started,
            extensions: Vec::new(),
            init_duration: None,
            actions: Vec::new(),
        }
    }

    /// What is to be done since the last call.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether there is anything to be done.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// When [`Machine::timer`] wants to be called, in monotonic time.
    pub fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Down | Phase::Dead => None,
            Phase::Starting(starting) => Some(starting.deadline),
            Phase::Idle { freeze_at, .. } => *freeze_at,
            Phase::Busy(invocation) | Phase::Finishing { invocation, .. } => Some(invocation.deadline),
            Phase::Stopping(stopping) => match stopping.stage {
                Stage::Runtime(until) => Some(until),
                Stage::Extensions => Some(stopping.end),
                Stage::Killing => None,
            },
        }
    }

    /// For metrics: `init`, `idle`, `frozen`, `busy`, `down`, `stopping` or `dead`.
    pub fn state(&self) -> &'static str {
        match self.phase {
            Phase::Down => "down",
            Phase::Starting(_) => "init",
            Phase::Idle { frozen: true, .. } => "frozen",
            Phase::Idle { .. } => "idle",
            Phase::Busy(_) | Phase::Finishing { .. } => "busy",
            Phase::Stopping(_) => "stopping",
            Phase::Dead => "dead",
        }
    }

    /// Whether it will not serve again.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Dead | Phase::Stopping(Stopping { then: Then::Dead, .. }))
    }

    /// The initial Init. Only on a new machine.
    pub fn start(&mut self, now: Duration) {
        if matches!(self.phase, Phase::Down) {
            self.begin_start(now, None);
        }
    }

    /// An invocation arrives.
    pub fn invoke(&mut self, now: Duration, ticket: Ticket) -> Result<(), Refused> {
        match &mut self.phase {
            Phase::Idle { frozen, .. } => {
                if *frozen {
                    self.actions.push(Action::Thaw);
                }
                self.actions.push(Action::Log(Line::Start(ticket.request)));
                let invocation = self.invocation(now, ticket);
                self.begin_invocation(invocation);
                Ok(())
            }
            Phase::Down => {
                self.actions.push(Action::Log(Line::Start(ticket.request)));
                let invocation = self.invocation(now, ticket);
                self.begin_start(now, Some(invocation));
                Ok(())
            }
            // After a crash while idle the manager still counts the slot as idle.
            Phase::Stopping(Stopping {
                then: Then::Down { owes_idle: false, pending: pending @ None, since }, ..
            }) => {
                *pending = Some(ticket);
                *since = now;
                self.actions.push(Action::Log(Line::Start(ticket.request)));
                Ok(())
            }
            Phase::Stopping(Stopping { then: Then::Dead, .. }) | Phase::Dead => Err(Refused::Gone),
            _ => Err(Refused::Busy),
        }
    }

    /// The driver could not hand the invocation over: the runtime's connection was gone. It gets it with its next `next`.
    pub fn undelivered(&mut self) {
        if let Phase::Busy(invocation) = &mut self.phase {
            invocation.delivered = false;
            self.runtime_state = RuntimeState::Started;
        }
    }

    /// Answer to [`Action::StartExtension`].
    pub fn extension_started(&mut self, now: Duration, epoch: u32, name: &str, result: Result<ProcessId, StartError>) {
        if epoch != self.epoch {
            return;
        }
        match result {
            Ok(process) => {
                if let Some(extension) = self.extensions.iter_mut().find(|e| e.external && e.name == name) {
                    extension.process = Some(process);
                }
            }
            Err(StartError::Exec(cause)) => self.fail(now, Fault::ExtensionLaunch { name: name.to_owned(), cause }),
            Err(StartError::Host(_)) => self.gone(now),
        }
    }

    /// Answer to [`Action::StartRuntime`].
    pub fn runtime_started(&mut self, now: Duration, epoch: u32, result: Result<ProcessId, StartError>) {
        if epoch != self.epoch {
            return;
        }
        match result {
            Ok(process) => self.runtime = Some(process),
            Err(StartError::Exec(cause)) => self.fail(now, Fault::Entrypoint(cause)),
            Err(StartError::Host(_)) => self.gone(now),
        }
    }

    /// A process ended.
    pub fn exited(&mut self, now: Duration, process: ProcessId, status: sandbox::ExitStatus, oom: bool) {
        let fault = if self.runtime == Some(process) {
            self.runtime = None;
            Fault::RuntimeExit { status, oom }
        } else if let Some(extension) = self.extensions.iter_mut().find(|e| e.process == Some(process)) {
            extension.process = None;
            Fault::ExtensionCrash { name: extension.name.clone(), status }
        } else {
            return;
        };
        match &self.phase {
            Phase::Stopping(_) => self.advance_stop(),
            _ => self.fail(now, fault),
        }
    }

    /// Answer to [`Action::KillAll`]; `false` when the processes could not be killed.
    pub fn killed(&mut self, now: Duration, epoch: u32, done: bool) {
        let Phase::Stopping(stopping) = &mut self.phase else { return };
        if epoch != self.epoch || stopping.stage != Stage::Killing {
            return;
        }
        if !done {
            self.gone(now);
            return;
        }
        match std::mem::replace(&mut stopping.then, Then::Dead) {
            Then::Dead => {
                let reason = stopping.reason;
                self.die(reason);
            }
            Then::Down { owes_idle, pending, since } => {
                self.phase = Phase::Down;
                if owes_idle {
                    self.actions.push(Action::SlotIdle);
                }
                if let Some(ticket) = pending {
                    let invocation = self.invocation(since, ticket);
                    self.begin_start(now, Some(invocation));
                }
            }
        }
    }

    /// [`Machine::deadline`] has passed (harmless if it has not).
    pub fn timer(&mut self, now: Duration) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match &mut self.phase {
            Phase::Starting(starting) => {
                let limit =
                    if starting.invocation.is_some() { self.settings.timeout } else { self.settings.init_limit };
                self.fail(now, Fault::Timeout(limit));
            }
            Phase::Idle { freeze_at, frozen } => {
                *freeze_at = None;
                *frozen = true;
                self.actions.push(Action::Freeze);
            }
            Phase::Busy(_) | Phase::Finishing { .. } => self.fail(now, Fault::Timeout(self.settings.timeout)),
            Phase::Stopping(stopping) => match stopping.stage {
                Stage::Runtime(_) => self.stop_extensions(),
                Stage::Extensions => self.kill(),
                Stage::Killing => {}
            },
            Phase::Down | Phase::Dead => {}
        }
    }

    /// Take the sandbox down.
    pub fn shutdown(&mut self, now: Duration, reason: RetireReason) {
        match std::mem::replace(&mut self.phase, Phase::Dead) {
            Phase::Down => self.die(reason),
            Phase::Starting(Starting { invocation, .. }) => {
                match invocation {
                    None => self.actions.push(Action::InitDone(Err("was shut down".into()))),
                    Some(_) => self.actions.push(Action::Abort(Abort::Unseen)),
                }
                self.stop(now, Then::Dead, reason, false);
            }
            Phase::Idle { frozen, .. } => self.stop(now, Then::Dead, reason, frozen),
            Phase::Busy(invocation) => {
                let abort = if invocation.delivered { Abort::Interrupted } else { Abort::Unseen };
                self.end(now, &invocation, Some("Sandbox.Failure".into()), None);
                self.actions.push(Action::Abort(abort));
                self.stop(now, Then::Dead, reason, false);
            }
            Phase::Finishing { invocation, pending, error } => {
                self.end(now, &invocation, error, None);
                self.actions.extend(pending.map(Action::Answer));
                self.stop(now, Then::Dead, reason, false);
            }
            Phase::Stopping(mut stopping) => {
                if let Then::Down { pending: Some(_), .. } = stopping.then {
                    self.actions.push(Action::Abort(Abort::Unseen));
                }
                stopping.then = Then::Dead;
                stopping.reason = reason;
                self.phase = Phase::Stopping(stopping);
            }
            Phase::Dead => {}
        }
    }

    /// The sandbox died by itself, or can no longer be controlled.
    pub fn gone(&mut self, now: Duration) {
        match std::mem::replace(&mut self.phase, Phase::Dead) {
            Phase::Dead => return,
            Phase::Starting(Starting { invocation: None, .. }) => {
                self.actions.push(Action::InitDone(Err("the sandbox died".into())));
            }
            Phase::Starting(Starting { invocation: Some(_), .. })
            | Phase::Stopping(Stopping { then: Then::Down { pending: Some(_), .. }, .. }) => {
                self.actions.push(Action::Abort(Abort::Unseen));
            }
            Phase::Busy(invocation) if !invocation.delivered => self.actions.push(Action::Abort(Abort::Unseen)),
            Phase::Busy(invocation) => {
                self.end(now, &invocation, Some(Fault::SandboxGone.error_type().into()), None);
                self.answer_fault(&invocation, &Fault::SandboxGone);
            }
            Phase::Finishing { invocation, pending, error } => {
                self.end(now, &invocation, error, None);
                self.actions.extend(pending.map(Action::Answer));
            }
            Phase::Down | Phase::Idle { .. } | Phase::Stopping(_) => {}
        }
        self.die(RetireReason::Failure);
    }

    fn die(&mut self, reason: RetireReason) {
        self.phase = Phase::Dead;
        self.epoch += 1;
        self.runtime = None;
        self.extensions.clear();
        self.actions.push(Action::SlotDead(reason));
        self.actions.push(Action::Destroy);
    }

    fn invocation(&self, now: Duration, ticket: Ticket) -> Invocation {
        Invocation { ticket, started: now, deadline: now + self.settings.timeout, delivered: false }
    }

    fn begin_start(&mut self, now: Duration, invocation: Option<Invocation>) {
        self.epoch += 1;
        self.runtime = None;
        self.runtime_state = RuntimeState::Started;
        self.init_duration = None;
        self.extensions = (self.settings.extensions.iter())
            .map(|name| Extension {
                name: name.clone(),
                external: true,
                id: None,
                wants_invoke: false,
                wants_shutdown: false,
                waiting: false,
                process: None,
            })
            .collect();
        let deadline = invocation.as_ref().map_or(now + self.settings.init_limit, |i| i.deadline);
        self.phase = Phase::Starting(Starting { began: now, deadline, invocation, runtime_asked: false });
        self.actions.push(Action::Log(Line::InitStart));
        for name in &self.settings.extensions {
            self.actions.push(Action::StartExtension { epoch: self.epoch, name: name.clone() });
        }
        self.advance_start(now);
    }

    /// Starts the runtime once all external extensions have registered; ends Init once all have asked for `next`.
    fn advance_start(&mut self, now: Duration) {
        let Phase::Starting(starting) = &mut self.phase else { return };
        if !starting.runtime_asked {
            if self.extensions.iter().all(|e| e.id.is_some()) {
                starting.runtime_asked = true;
                self.actions.push(Action::StartRuntime { epoch: self.epoch });
            }
            return;
        }
        if self.runtime_state != RuntimeState::Ready || !self.extensions.iter().all(|e| e.waiting) {
            return;
        }
        let began = starting.began;
        match starting.invocation.take() {
            Some(invocation) => self.begin_invocation(invocation),
            None => {
                self.init_duration = Some(now.saturating_sub(began));
                self.become_idle(now);
                self.actions.push(Action::InitDone(Ok(())));
            }
        }
    }

    fn become_idle(&mut self, now: Duration) {
        self.phase = Phase::Idle { freeze_at: Some(now + self.settings.freeze_after), frozen: false };
    }

    fn begin_invocation(&mut self, invocation: Invocation) {
        let deadline = invocation.deadline;
        self.phase = Phase::Busy(invocation);
        self.hand_to_runtime();
        for extension in self.extensions.iter_mut().filter(|e| e.wants_invoke) {
            extension.waiting = false;
            self.actions.extend(extension.id.map(|id| Action::HandToExtension { id, deadline }));
        }
    }

    fn hand_to_runtime(&mut self) {
        if let Phase::Busy(invocation) = &mut self.phase {
            invocation.delivered = true;
            self.runtime_state = RuntimeState::Running;
            self.actions.push(Action::HandToRuntime { deadline: invocation.deadline });
        }
    }

    /// Ends the invocation once it was answered and all have asked for `next`.
    fn advance_finish(&mut self, now: Duration) {
        let ready = self.runtime_state == RuntimeState::Ready && self.extensions.iter().all(|e| e.waiting);
        if !ready || !matches!(self.phase, Phase::Finishing { .. }) {
            return;
        }
        if let Phase::Finishing { invocation, pending, error } = std::mem::replace(&mut self.phase, Phase::Dead) {
            self.end(now, &invocation, error, None);
            if let Some(answer) = pending {
                self.actions.extend([Action::Answer(answer), Action::SlotAnswered]);
            }
            self.become_idle(now);
            self.actions.push(Action::SlotIdle);
        }
    }

    fn end(&mut self, now: Duration, invocation: &Invocation, error: Option<String>, timeout: Option<Duration>) {
        let duration = timeout.unwrap_or_else(|| now.saturating_sub(invocation.started));
        let init = self.init_duration.take();
        let report = Report { request: invocation.ticket.request, duration, init, error, timeout };
        self.actions.push(Action::Log(Line::End(report)));
    }

    fn answer_fault(&mut self, invocation: &Invocation, fault: &Fault) {
        let payload = fault.payload(invocation.ticket.request);
        self.actions.push(Action::Answer(Answer::Failure { payload, kind: fault.error_type().to_owned() }));
        self.actions.push(Action::SlotAnswered);
    }

    /// Something broke: whoever waits hears of it, and the sandbox is reset.
    fn fail(&mut self, now: Duration, fault: Fault) {
        let reason = if fault.is_timeout() { RetireReason::Timeout } else { RetireReason::Failure };
        let timeout = if let Fault::Timeout(limit) = fault { Some(limit) } else { None };
        let mut owes_idle = true;
        let mut frozen = false;
        match std::mem::replace(&mut self.phase, Phase::Dead) {
            Phase::Starting(starting) => {
                let duration = now.saturating_sub(starting.began);
                let suppressed = starting.invocation.is_some();
                self.actions.push(Action::Log(Line::InitReport { duration, suppressed, fault: fault.clone() }));
                match starting.invocation {
                    Some(invocation) => {
                        self.end(now, &invocation, Some(fault.error_type().to_owned()), timeout);
                        self.answer_fault(&invocation, &fault);
                    }
                    None => {
                        owes_idle = false;
                        let note = format!("failed: {}: {}", fault.error_type(), fault.message());
                        self.actions.push(Action::InitDone(Err(note)));
                    }
                }
            }
            Phase::Idle { frozen: was_frozen, .. } => {
                owes_idle = false;
                frozen = was_frozen;
            }
            // It crashed before it saw the event (it had hung up its `next`): a fresh start serves it.
            Phase::Busy(invocation) if !invocation.delivered && !fault.is_timeout() => {
                let then = Then::Down { owes_idle: false, pending: Some(invocation.ticket), since: invocation.started };
                self.stop(now, then, reason, false);
                return;
            }
            Phase::Busy(invocation) => {
                self.end(now, &invocation, Some(fault.error_type().to_owned()), timeout);
                self.answer_fault(&invocation, &fault);
            }
            Phase::Finishing { invocation, pending, error } => {
                let error = error.or_else(|| Some(fault.error_type().to_owned()));
                self.end(now, &invocation, error, timeout);
                if let Some(answer) = pending {
                    self.actions.extend([Action::Answer(answer), Action::SlotAnswered]);
                }
            }
            other => {
                self.phase = other;
                return;
            }
        }
        self.stop(now, Then::Down { owes_idle, pending: None, since: now }, reason, frozen);
    }

    fn stop(&mut self, now: Duration, then: Then, reason: RetireReason, frozen: bool) {
        if frozen {
            self.actions.push(Action::Thaw);
        }
        let registered = |external| self.extensions.iter().any(|e| e.id.is_some() && e.external == external);
        let budget = match (registered(true), registered(false)) {
            (true, _) => self.settings.external_budget,
            (false, true) => self.settings.internal_budget,
            (false, false) => Duration::ZERO,
        };
        // RAPID's share of the runtime (runtimeDeadlineShare).
        let stage = Stage::Runtime(now + budget.mul_f64(0.3));
        self.phase = Phase::Stopping(Stopping { stage, reason, end: now + budget, then });
        if budget.is_zero() {
            self.kill();
            return;
        }
        match self.runtime {
            Some(process) => self.actions.push(Action::Signal(process, Signal::Terminate)),
            None => self.stop_extensions(),
        }
    }

    /// The runtime is gone or out of time: the extensions' turn.
    fn stop_extensions(&mut self) {
        let Phase::Stopping(stopping) = &mut self.phase else { return };
        stopping.stage = Stage::Extensions;
        let (reason, deadline) = (stopping.reason, stopping.end);
        if let Some(process) = self.runtime {
            self.actions.push(Action::Signal(process, Signal::Kill));
        }
        for extension in &self.extensions {
            match (extension.id, extension.process) {
                (Some(id), Some(_)) if extension.wants_shutdown => {
                    self.actions.push(Action::ShutdownExtension { id, reason, deadline });
                }
                (_, Some(process)) => self.actions.push(Action::Signal(process, Signal::Kill)),
                _ => {}
            }
        }
        if self.extensions.iter().all(|e| e.process.is_none()) {
            self.kill();
        }
    }

    /// A process ended while the sandbox stops.
    fn advance_stop(&mut self) {
        let Phase::Stopping(stopping) = &self.phase else { return };
        match stopping.stage {
            Stage::Runtime(_) if self.runtime.is_none() => self.stop_extensions(),
            Stage::Extensions if self.extensions.iter().all(|e| e.process.is_none()) => self.kill(),
            _ => {}
        }
    }

    fn kill(&mut self) {
        if let Phase::Stopping(stopping) = &mut self.phase {
            stopping.stage = Stage::Killing;
            self.epoch += 1;
            self.runtime = None;
            self.extensions.clear();
            self.actions.push(Action::KillAll { epoch: self.epoch });
        }
    }
}
