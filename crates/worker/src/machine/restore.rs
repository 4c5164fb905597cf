//! SnapStart: where a sandbox may be kept, and how one goes on from there.

use std::time::Duration;

use bytes::Bytes;
use sandbox::ProcessId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Action, ApiError, Begin, Extension, Fault, Line, Machine, Phase, Restored, Restoring, RuntimeState, Settings,
};

/// What must be known of a sandbox's processes to go on with them where they were kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    runtime: Option<u32>,
    runtime_state: RuntimeState,
    extensions: Vec<HeldExtension>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct HeldExtension {
    name: String,
    external: bool,
    id: Option<Uuid>,
    wants_invoke: bool,
    wants_shutdown: bool,
    process: Option<u32>,
}

impl Held {
    /// Every process that runs, as its sandbox knows it.
    pub fn processes(&self) -> impl Iterator<Item = ProcessId> {
        self.runtime.into_iter().chain(self.extensions.iter().filter_map(|e| e.process)).map(ProcessId)
    }
}

impl Machine {
    /// Of a sandbox that is being restored from where another machine was held: [`Machine::restored`] comes next.
    pub fn of(held: Held, settings: Settings) -> Self {
        let mut machine = Self::new(settings);
        machine.settings.begin = Begin::Snapshot;
        machine.epoch = 1;
        machine.runtime = held.runtime.map(ProcessId);
        machine.runtime_state = held.runtime_state;
        let extension = |e: HeldExtension| Extension {
            name: e.name,
            external: e.external,
            id: e.id,
            wants_invoke: e.wants_invoke,
            wants_shutdown: e.wants_shutdown,
            waiting: true,
            process: e.process.map(ProcessId),
        };
        machine.extensions = held.extensions.into_iter().map(extension).collect();
        machine.phase = Phase::Held;
        machine
    }

    /// What to keep beside a snapshot; `None` while none may be taken.
    pub fn held(&self) -> Option<Held> {
        let Phase::Held = self.phase else { return None };
        let extension = |e: &Extension| HeldExtension {
            name: e.name.clone(),
            external: e.external,
            id: e.id,
            wants_invoke: e.wants_invoke,
            wants_shutdown: e.wants_shutdown,
            process: e.process.map(|process| process.0),
        };
        Some(Held {
            runtime: self.runtime.map(|process| process.0),
            runtime_state: self.runtime_state,
            extensions: self.extensions.iter().map(extension).collect(),
        })
    }

    /// Init has come so far that a snapshot may be taken.
    pub(super) fn hold(&mut self, duration: Duration) {
        self.phase = Phase::Held;
        self.actions.extend([Action::Log(Line::Initialized(duration)), Action::InitDone(Ok(()))]);
    }

    /// The sandbox was restored and runs again; that had begun at `began`. Only while it is held.
    pub fn restored(&mut self, now: Duration, began: Duration) {
        let Phase::Held = self.phase else { return };
        self.phase = Phase::Restoring(Restoring { began, released: now, deadline: now + self.settings.restore_limit });
        self.actions.push(Action::Log(Line::RestoreStart));
        if self.runtime_state == RuntimeState::RestoreReady {
            self.actions.push(Action::ReleaseRuntime);
        }
        self.advance_restore(now);
    }

    /// `GET /runtime/restore/next`. The caller waits for [`Action::ReleaseRuntime`]. A runtime that comes again after the
    /// restore (as its connection did not survive that) is released again.
    pub fn runtime_restore_next(&mut self, now: Duration) -> Result<(), ApiError> {
        match &self.phase {
            Phase::Starting(starting)
                if self.settings.begin == Begin::Snapshot
                    && starting.runtime_asked
                    && matches!(self.runtime_state, RuntimeState::Started | RuntimeState::RestoreReady) =>
            {
                self.runtime_state = RuntimeState::RestoreReady;
                self.advance_start(now);
                Ok(())
            }
            Phase::Held if self.runtime_state == RuntimeState::RestoreReady => Ok(()),
            Phase::Restoring(_) if self.runtime_state == RuntimeState::RestoreReady => {
                self.actions.push(Action::ReleaseRuntime);
                Ok(())
            }
            _ => Err(self.transition("RestoreReady")),
        }
    }

    /// Answer to [`Action::ReleaseRuntime`], once the runtime has heard it.
    pub fn runtime_released(&mut self) {
        if let (Phase::Restoring(_), RuntimeState::RestoreReady) = (&self.phase, self.runtime_state) {
            self.runtime_state = RuntimeState::Restoring;
        }
    }

    /// `POST /runtime/restore/error`.
    pub fn runtime_restore_error(&mut self, now: Duration, kind: String, payload: Bytes) -> Result<(), ApiError> {
        match (&self.phase, self.runtime_state) {
            (Phase::Restoring(_), RuntimeState::RestoreReady | RuntimeState::Restoring) => {
                self.fail(now, Fault::RestoreError { kind, payload });
                Ok(())
            }
            _ => Err(self.transition("RestoreError")),
        }
    }

    /// Ends the restore once the runtime has asked for `next`.
    pub(super) fn advance_restore(&mut self, now: Duration) {
        let Phase::Restoring(Restoring { began, released, .. }) = self.phase else { return };
        if self.runtime_state != RuntimeState::Ready {
            return;
        }
        let restored = Restored { duration: now.saturating_sub(began), billed: now.saturating_sub(released) };
        self.restored = Some(restored);
        self.become_idle(now);
        let line = Line::RestoreReport { duration: restored.duration, fault: None };
        self.actions.extend([Action::Log(line), Action::RestoreDone(Ok(()))]);
    }
}
