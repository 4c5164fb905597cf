//! How invocations and sandboxes end: faults, resets and the shutdown phases.

use std::time::Duration;

use domain::RetireReason;
use sandbox::Signal;

use super::{
    Abort, Action, Answer, Begin, Fault, InitFailure, Invocation, Line, Machine, Phase, Report, Stage, Starting,
    Stopping, Then,
};

impl Machine {
    /// Take the sandbox down.
    pub fn shutdown(&mut self, now: Duration, reason: RetireReason) {
        match std::mem::replace(&mut self.phase, Phase::Dead) {
            Phase::Down => self.die(reason),
            Phase::Starting(Starting { invocation, .. }) => {
                match invocation {
                    None => self.actions.push(Action::InitDone(Err(interrupted("was shut down")))),
                    Some(_) => self.actions.push(Action::Abort(Abort::Unseen)),
                }
                self.stop(now, Then::Dead, reason, false);
            }
            Phase::Held => self.stop(now, Then::Dead, reason, false),
            Phase::Restoring(_) => {
                self.actions.push(Action::RestoreDone(Err(interrupted("was shut down"))));
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
                self.actions.push(Action::InitDone(Err(interrupted("the sandbox died"))));
            }
            Phase::Restoring(_) => {
                self.actions.push(Action::RestoreDone(Err(interrupted("the sandbox died"))));
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
            Phase::Down | Phase::Held | Phase::Idle { .. } | Phase::Stopping(_) => {}
        }
        self.die(RetireReason::Failure);
    }

    pub(super) fn die(&mut self, reason: RetireReason) {
        self.phase = Phase::Dead;
        self.epoch += 1;
        self.runtime = None;
        self.extensions.clear();
        self.actions.push(Action::SlotDead(reason));
        self.actions.push(Action::Destroy);
    }

    pub(super) fn end(
        &mut self,
        now: Duration,
        invocation: &Invocation,
        error: Option<String>,
        timeout: Option<Duration>,
    ) {
        let duration = timeout.unwrap_or_else(|| now.saturating_sub(invocation.started));
        let init = self.init_duration.take();
        let restored = self.restored.take();
        let report = Report { request: invocation.ticket.request, duration, init, restored, error, timeout };
        self.actions.push(Action::Log(Line::End(report)));
    }

    fn answer_fault(&mut self, invocation: &Invocation, fault: &Fault) {
        let payload = fault.payload(invocation.ticket.request);
        let answer = Answer::Failure { payload, kind: fault.error_type().to_owned() };
        self.actions.extend([Action::SlotAnswered, Action::Answer(answer)]);
    }

    /// Something broke: whoever waits hears of it, and the sandbox is reset.
    pub(super) fn fail(&mut self, now: Duration, fault: Fault) {
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
                        self.actions.push(Action::InitDone(Err(fault.failure())));
                    }
                }
            }
            Phase::Held => owes_idle = false,
            Phase::Restoring(restoring) => {
                owes_idle = false;
                let duration = now.saturating_sub(restoring.began);
                let failure = fault.failure();
                self.actions.push(Action::Log(Line::RestoreReport { duration, fault: Some(fault) }));
                self.actions.push(Action::RestoreDone(Err(failure)));
            }
            Phase::Idle { frozen: was_frozen, .. } => {
                owes_idle = false;
                frozen = was_frozen;
            }
            // It crashed before it saw the event (it had hung up its `next`): a fresh start serves it.
            Phase::Busy(invocation) if !invocation.delivered && !fault.is_timeout() => {
                if self.settings.begin == Begin::Snapshot {
                    // Of another sandbox, that is, since this one is of no more use.
                    self.actions.push(Action::Abort(Abort::Unseen));
                    self.stop(now, Then::Dead, reason, false);
                    return;
                }
                let then = Then::Down { owes_idle: false, pending: Some(invocation.ticket) };
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
                    self.actions.extend([Action::SlotAnswered, Action::Answer(answer)]);
                }
            }
            other => {
                self.phase = other;
                return;
            }
        }
        let then = match self.settings.begin {
            Begin::OnDemand => Then::Down { owes_idle, pending: None },
            Begin::Snapshot => Then::Dead,
        };
        self.stop(now, then, reason, frozen);
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
    pub(super) fn stop_extensions(&mut self) {
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
    pub(super) fn advance_stop(&mut self) {
        let Phase::Stopping(stopping) = &self.phase else { return };
        match stopping.stage {
            Stage::Runtime(_) if self.runtime.is_none() => self.stop_extensions(),
            Stage::Extensions if self.extensions.iter().all(|e| e.process.is_none()) => self.kill(),
            _ => {}
        }
    }

    pub(super) fn kill(&mut self) {
        if let Phase::Stopping(stopping) = &mut self.phase {
            stopping.stage = Stage::Killing;
            self.epoch += 1;
            self.runtime = None;
            self.extensions.clear();
            self.actions.push(Action::KillAll { epoch: self.epoch });
        }
    }
}

/// What is nobody's fault here.
fn interrupted(message: &str) -> InitFailure {
    InitFailure { kind: Fault::SandboxGone.error_type().to_owned(), message: message.to_owned(), timeout: false }
}
