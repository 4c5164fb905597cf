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
//! With SnapStart ([`Begin::Snapshot`]) what lies between Starting and Idle is two steps more, and the second may be taken by
//! other machines, in other sandboxes, than the first:
//!
//! ```text
//!            start()             asked for restore/next, or next         restored()            asked for next
//!   Down ───────────► Starting ──────────────────────────────────► Held ────────────► Restoring ──────────────► Idle
//!                                                                   ╎ held()             ▲
//!                                                                   └╌╌╌ Machine::of() ╌╌┘ (of another sandbox)
//! ```
//!
//! Such a sandbox is not reset: after any fault it dies, and the next is restored from the snapshot.
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

use domain::{RetireReason, SlotPhase};
use sandbox::ProcessId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

mod api;
mod ending;
mod fault;
mod restore;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use api::{ApiError, Registration};
pub use fault::{Fault, runtime_error_type};
pub use restore::Held;
pub use vocabulary::{
    Abort, Action, Answer, Begin, InitFailure, Line, MAX_EXTENSIONS, Refused, Report, Restored, Settings, StartError,
    Ticket,
};

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
    /// Init is over; a snapshot may be taken.
    Held,
    Restoring(Restoring),
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
struct Restoring {
    /// When the sandbox began to be restored.
    began: Duration,
    /// When its processes ran again.
    released: Duration,
    deadline: Duration,
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
    },
    Dead,
}

/// What the runtime last did, in RAPID's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum RuntimeState {
    Started,
    InitError,
    /// It waits in `restore/next`.
    RestoreReady,
    /// It was told that it was restored.
    Restoring,
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
    /// And of the last restore.
    restored: Option<Restored>,
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
            restored: None,
            actions: Vec::new(),
        }
    }

    /// Exchanges what is to be done since the last call for the room in `done`, which must be empty.
    pub fn take_actions(&mut self, done: Vec<Action>) -> Vec<Action> {
        debug_assert!(done.is_empty(), "{done:?} were not done");
        std::mem::replace(&mut self.actions, done)
    }

    /// When [`Machine::timer`] wants to be called, in monotonic time.
    pub fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Down | Phase::Held | Phase::Dead => None,
            Phase::Restoring(restoring) => Some(restoring.deadline),
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

    /// For metrics: `init`, `held`, `idle`, `frozen`, `busy`, `down`, `stopping` or `dead`.
    pub fn state(&self) -> &'static str {
        match self.phase {
            Phase::Down => "down",
            Phase::Starting(_) | Phase::Restoring(_) => "init",
            Phase::Held => "held",
            Phase::Idle { frozen: true, .. } => "frozen",
            Phase::Idle { .. } => "idle",
            Phase::Busy(_) | Phase::Finishing { .. } => "busy",
            Phase::Stopping(_) => "stopping",
            Phase::Dead => "dead",
        }
    }

    /// As a manager sees it that was not told of what led here; `None` if it will not serve, or is one for a snapshot.
    pub fn phase(&self) -> Option<SlotPhase> {
        let for_snapshot = self.settings.begin == Begin::Snapshot;
        match &self.phase {
            Phase::Starting(Starting { invocation: Some(_), .. }) | Phase::Busy(_) => Some(SlotPhase::Invoking),
            Phase::Starting(_) if !for_snapshot => Some(SlotPhase::Starting),
            Phase::Restoring(_) => Some(SlotPhase::Starting),
            Phase::Down | Phase::Idle { .. } => Some(SlotPhase::Idle),
            // An answer that waits for its log is not out, and there is no harm in its slot being busy for longer.
            Phase::Finishing { pending: Some(_), .. } => Some(SlotPhase::Invoking),
            Phase::Finishing { .. } => Some(SlotPhase::Finishing),
            // After a fault between two invocations; the next one is accepted.
            Phase::Stopping(Stopping { then: Then::Down { owes_idle: false, pending: None }, .. }) => {
                Some(SlotPhase::Idle)
            }
            Phase::Stopping(Stopping { then: Then::Down { .. }, .. }) => Some(SlotPhase::Invoking),
            Phase::Starting(_) | Phase::Held | Phase::Stopping(_) | Phase::Dead => None,
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
            Phase::Stopping(Stopping { then: Then::Down { owes_idle: false, pending: pending @ None }, .. }) => {
                *pending = Some(ticket);
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
            Err(StartError::Exec(cause) | StartError::WorkingDirectory(cause)) => {
                self.fail(now, Fault::ExtensionLaunch { name: name.to_owned(), cause });
            }
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
            Err(StartError::WorkingDirectory(cause)) => self.fail(now, Fault::WorkingDirectory(cause)),
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
            Then::Down { owes_idle, pending } => {
                self.phase = Phase::Down;
                if owes_idle {
                    self.actions.push(Action::SlotIdle);
                }
                if let Some(ticket) = pending {
                    let invocation = self.invocation(now, ticket);
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
            Phase::Restoring(_) => self.fail(now, Fault::RestoreTimeout(self.settings.restore_limit)),
            Phase::Down | Phase::Held | Phase::Dead => {}
        }
    }

    fn invocation(&self, now: Duration, ticket: Ticket) -> Invocation {
        Invocation { ticket, started: now, deadline: now + self.settings.timeout, delivered: false }
    }

    fn begin_start(&mut self, now: Duration, invocation: Option<Invocation>) {
        self.epoch += 1;
        self.runtime = None;
        self.runtime_state = RuntimeState::Started;
        self.init_duration = None;
        self.restored = None;
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
        // A runtime that knows no hooks asks for `next` at once, and can be kept there just as well.
        let ready = matches!(self.runtime_state, RuntimeState::Ready | RuntimeState::RestoreReady);
        if !ready || !self.extensions.iter().all(|e| e.waiting) {
            return;
        }
        let began = starting.began;
        match starting.invocation.take() {
            Some(invocation) => self.begin_invocation(invocation),
            None if self.settings.begin == Begin::Snapshot => self.hold(now.saturating_sub(began)),
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
            self.become_idle(now);
            match pending {
                // The manager first: the caller may be back before it.
                Some(answer) => {
                    self.actions.extend([Action::SlotAnswered, Action::SlotIdle, Action::Answer(answer)]);
                }
                None => self.actions.push(Action::SlotIdle),
            }
        }
    }
}
