//! What the runtime and the extensions may say, and when (reference §2.4, §2.5).

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::{Action, Answer, Extension, Fault, MAX_EXTENSIONS, Machine, Phase, RuntimeState};

/// Why a call of the Runtime API or Extensions API was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApiError {
    /// The request id is not that of the current invocation, or the echoed invocation id is a stale one.
    InvalidRequestId,
    /// The call does not fit what the runtime last did.
    Transition {
        /// State that the runtime is in.
        from: &'static str,
        /// State that it wanted.
        to: &'static str,
    },
    /// Refused by the Extensions API.
    Extension {
        /// e.g. `Extension.RegistrationClosed`.
        kind: &'static str,
        /// In words.
        message: String,
    },
}

/// What an extension registers for.
#[derive(Clone, Debug)]
pub struct Registration {
    /// `Lambda-Extension-Name`.
    pub name: String,
    /// `INVOKE` was among the events.
    pub invoke: bool,
    /// `SHUTDOWN` was among the events.
    pub shutdown: bool,
}

impl RuntimeState {
    fn name(self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::InitError => "InitError",
            Self::RestoreReady => "RestoreReady",
            Self::Restoring => "Restoring",
            Self::Ready => "Ready",
            Self::Running => "Running",
            Self::ResponseSent => "RuntimeResponseSentState",
        }
    }
}

fn refused(kind: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::Extension { kind, message: message.into() }
}

impl Machine {
    /// `GET /runtime/invocation/next`. The caller waits for [`Action::HandToRuntime`]; asking again supersedes the
    /// earlier wait. A runtime that lost the connection on which it got the event gets the same event again.
    pub fn runtime_next(&mut self, now: Duration) -> Result<(), ApiError> {
        match &self.phase {
            Phase::Starting(starting) if starting.runtime_asked && self.runtime_state != RuntimeState::InitError => {
                self.runtime_state = RuntimeState::Ready;
                self.advance_start(now);
                Ok(())
            }
            // It waits there since before the snapshot.
            Phase::Held if self.runtime_state == RuntimeState::Ready => Ok(()),
            Phase::Restoring(_) if self.runtime_state == RuntimeState::Restoring => {
                self.runtime_state = RuntimeState::Ready;
                self.advance_restore(now);
                Ok(())
            }
            Phase::Idle { .. } => Ok(()),
            Phase::Busy(_) => {
                self.hand_to_runtime();
                Ok(())
            }
            Phase::Finishing { .. } => {
                self.runtime_state = RuntimeState::Ready;
                self.advance_finish(now);
                Ok(())
            }
            _ => Err(self.transition("Ready")),
        }
    }

    /// Whether an answer to this request would be taken now: asked before its body is read.
    pub fn may_answer(&self, request: &str, attempt: Option<&str>, to: &'static str) -> Result<(), ApiError> {
        let (Phase::Busy(invocation) | Phase::Finishing { invocation, .. }) = &self.phase else {
            return Err(ApiError::InvalidRequestId);
        };
        let same = |text: &str, id: Uuid| Uuid::try_parse(text).is_ok_and(|given| given == id);
        let ticket = &invocation.ticket;
        if !same(request, ticket.request.0) || attempt.is_some_and(|text| !same(text, ticket.attempt)) {
            return Err(ApiError::InvalidRequestId);
        }
        match &self.phase {
            Phase::Busy(_) if self.runtime_state == RuntimeState::Running => Ok(()),
            _ => Err(self.transition(to)),
        }
    }

    /// `POST /runtime/invocation/{id}/response` or `/error`, its body read.
    pub fn runtime_answer(
        &mut self,
        now: Duration,
        request: &str,
        attempt: Option<&str>,
        answer: Answer,
    ) -> Result<(), ApiError> {
        let to = match &answer {
            Answer::Success(_) => "InvocationResponse",
            Answer::Failure { .. } => "InvocationErrorResponse",
        };
        self.may_answer(request, attempt, to)?;
        let Phase::Busy(invocation) = std::mem::replace(&mut self.phase, Phase::Dead) else {
            unreachable!("may_answer accepts only in Busy");
        };
        self.runtime_state = RuntimeState::ResponseSent;
        let error = match &answer {
            Answer::Success(_) => None,
            Answer::Failure { kind, .. } => Some(kind.clone()),
        };
        let pending = if invocation.ticket.tail {
            Some(answer)
        } else {
            // The manager first: the caller may be back before it.
            self.actions.extend([Action::SlotAnswered, Action::Answer(answer)]);
            None
        };
        self.phase = Phase::Finishing { invocation, pending, error };
        self.advance_finish(now);
        Ok(())
    }

    /// `POST /runtime/init/error`.
    pub fn runtime_init_error(&mut self, now: Duration, kind: String, payload: Bytes) -> Result<(), ApiError> {
        match &self.phase {
            Phase::Starting(starting) if starting.runtime_asked && self.runtime_state == RuntimeState::Started => {
                self.runtime_state = RuntimeState::InitError;
                self.fail(now, Fault::InitError { kind, payload });
                Ok(())
            }
            _ => Err(self.transition("InitError")),
        }
    }

    pub(super) fn transition(&self, to: &'static str) -> ApiError {
        ApiError::Transition { from: self.runtime_state.name(), to }
    }

    /// `POST /extension/register`; `id` becomes its identifier.
    pub fn extension_register(&mut self, now: Duration, id: Uuid, wish: Registration) -> Result<(), ApiError> {
        let Phase::Starting(_) = &self.phase else {
            return Err(refused("Extension.RegistrationClosed", "Extension registration closed already"));
        };
        let Registration { name, invoke, shutdown } = wish;
        if name.is_empty() {
            return Err(refused("Extension.InvalidExtensionName", "Empty extension name"));
        }
        let registered = self.extensions.len();
        match self.extensions.iter_mut().find(|e| e.name == name) {
            Some(extension) if extension.id.is_some() => {
                return Err(refused(
                    "Extension.InvalidExtensionState",
                    format!(
                        "State transition from Registered to Registered failed for extension {name}. Error: State transition is not allowed"
                    ),
                ));
            }
            Some(extension) => {
                extension.id = Some(id);
                extension.wants_invoke = invoke;
                extension.wants_shutdown = shutdown;
            }
            None if shutdown => {
                return Err(refused(
                    "Extension.InvalidEventType",
                    "SHUTDOWN: event not supported for internal extensions",
                ));
            }
            None if registered >= MAX_EXTENSIONS => {
                return Err(refused(
                    "Extension.TooManyExtensions",
                    format!("Extension limit ({MAX_EXTENSIONS}) reached"),
                ));
            }
            None => self.extensions.push(Extension {
                name,
                external: false,
                id: Some(id),
                wants_invoke: invoke,
                wants_shutdown: false,
                waiting: false,
                process: None,
            }),
        }
        self.advance_start(now);
        Ok(())
    }

    /// `GET /extension/event/next`. The caller waits for its event.
    pub fn extension_next(&mut self, now: Duration, id: Uuid) -> Result<(), ApiError> {
        let extension = self.extensions.iter_mut().find(|e| e.id == Some(id)).ok_or_else(unknown_extension)?;
        extension.waiting = true;
        self.advance_start(now);
        self.advance_finish(now);
        Ok(())
    }

    /// `POST /extension/init/error` or `/exit/error`.
    pub fn extension_error(&mut self, now: Duration, id: Uuid, init: bool, reported: String) -> Result<(), ApiError> {
        let extension = self.extensions.iter().find(|e| e.id == Some(id)).ok_or_else(unknown_extension)?;
        let kind = if init { "Extension.InitError" } else { "Extension.ExitError" };
        self.fail(now, Fault::ExtensionError { kind, name: extension.name.clone(), reported });
        Ok(())
    }

    /// Name of a registered extension.
    pub fn extension_name(&self, id: Uuid) -> Option<&str> {
        self.extensions.iter().find(|e| e.id == Some(id)).map(|e| e.name.as_str())
    }
}

fn unknown_extension() -> ApiError {
    refused("Extension.UnknownExtensionIdentifier", "Unknown extension")
}
