//! Between messages and the terms of `domain`.

mod assign;
mod fault;
mod place;
mod words;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::timeline::Mark;
use domain::{
    FunctionVersion, InvokeOutcome, InvokeRequest, LogType, RequestId, SandboxId, SandboxState, Timeline, WorkerId,
    WorkerReport,
};
use tonic::Status;
use uuid::Uuid;

use crate::pb;

pub(crate) use assign::{assign_error, refusal};
pub(crate) use fault::{fault, snapshot_answer, snapshot_error, worker_error};
pub(crate) use place::{observed, observed_sandbox_message, place_message, place_request};
pub(crate) use words::{phase, phase_word, reason, reason_word};

/// A message that says something impossible.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub(crate) struct Malformed {
    what: &'static str,
    cause: String,
}

impl From<Malformed> for Status {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_argument(malformed.to_string())
    }
}

fn malformed<E: ToString>(what: &'static str) -> impl Fn(E) -> Malformed {
    move |cause| Malformed { what, cause: cause.to_string() }
}

pub(crate) fn sandbox_bytes(sandbox: SandboxId) -> Bytes {
    Bytes::copy_from_slice(sandbox.0.as_bytes())
}

pub(crate) fn sandbox(bytes: &[u8]) -> Result<SandboxId, Malformed> {
    Uuid::from_slice(bytes).map(SandboxId).map_err(malformed("sandbox"))
}

pub(crate) fn version_bytes(version: &FunctionVersion) -> Bytes {
    // Maps have texts as keys, so that nothing in it can fail.
    serde_json::to_vec(version).map(Bytes::from).unwrap_or_default()
}

pub(crate) fn version(bytes: &[u8]) -> Result<Arc<FunctionVersion>, Malformed> {
    serde_json::from_slice(bytes).map(Arc::new).map_err(malformed("function version"))
}

/// `now` is the time of the clock that made the marks.
pub(crate) fn marks(timeline: &Timeline, now: Duration) -> Vec<pb::Mark> {
    let mark = |mark: &Mark| pb::Mark {
        step: words::step_word(mark.step).to_owned(),
        age_ns: u64::try_from(now.saturating_sub(mark.at).as_nanos()).unwrap_or(u64::MAX),
        note: mark.note.clone(),
    };
    timeline.marks.iter().map(mark).collect()
}

/// `now` is the time of this process's clock: when the answer came.
pub(crate) fn timeline(marks: Vec<pb::Mark>, now: Duration) -> Timeline {
    let mark = |mark: pb::Mark| {
        let at = now.saturating_sub(Duration::from_nanos(mark.age_ns));
        Some(Mark { step: words::step(&mark.step)?, at, note: mark.note })
    };
    Timeline { marks: marks.into_iter().filter_map(mark).collect() }
}

pub(crate) fn invoke_message(sandbox: SandboxId, epoch: u64, request: InvokeRequest) -> pb::InvokeRequest {
    pb::InvokeRequest {
        sandbox: sandbox_bytes(sandbox),
        epoch,
        request_id: Bytes::copy_from_slice(request.request_id.0.as_bytes()),
        invoked_arn: request.invoked_arn,
        client_context: request.client_context,
        trace_id: request.trace_id,
        tail: request.log_type == LogType::Tail,
        payload: request.payload,
    }
}

pub(crate) fn invoke_request(message: pb::InvokeRequest) -> Result<InvokeRequest, Malformed> {
    Ok(InvokeRequest {
        request_id: Uuid::from_slice(&message.request_id).map(RequestId).map_err(malformed("request id"))?,
        payload: message.payload,
        invoked_arn: message.invoked_arn,
        client_context: message.client_context,
        trace_id: message.trace_id,
        log_type: if message.tail { LogType::Tail } else { LogType::None },
    })
}

pub(crate) fn invoke_answer(outcome: InvokeOutcome, now: Duration) -> pb::InvokeAnswer {
    pb::InvokeAnswer {
        fault: None,
        function_error: outcome.function_error.unwrap_or_default().to_owned(),
        log_tail: outcome.log_tail,
        timeline: marks(&outcome.timeline, now),
        payload: outcome.payload,
    }
}

pub(crate) fn invoke_outcome(answer: pb::InvokeAnswer, now: Duration) -> InvokeOutcome {
    InvokeOutcome {
        payload: answer.payload,
        function_error: match &*answer.function_error {
            "" => None,
            "Handled" => Some("Handled"),
            _ => Some("Unhandled"),
        },
        log_tail: answer.log_tail,
        timeline: timeline(answer.timeline, now),
    }
}

pub(crate) fn report_message(report: &WorkerReport, added: Vec<String>, removed: Vec<String>) -> pb::Report {
    pb::Report {
        memory_mb: report.memory_mb,
        memory_used_mb: report.memory_used_mb,
        slots: report.slots,
        slots_used: report.slots_used,
        starting: report.starting,
        draining: report.draining,
        packages_added: added,
        packages_removed: removed,
    }
}

pub(crate) fn report(worker: &WorkerId, message: &pb::Report) -> WorkerReport {
    WorkerReport {
        worker: worker.clone(),
        memory_mb: message.memory_mb,
        memory_used_mb: message.memory_used_mb,
        slots: message.slots,
        slots_used: message.slots_used,
        starting: message.starting,
        draining: message.draining,
    }
}

/// One message for each version.
pub(crate) fn sandboxes_messages(states: &[SandboxState]) -> Vec<pb::Sandboxes> {
    let mut by_version: Vec<&SandboxState> = states.iter().collect();
    by_version.sort_by(|a, b| a.version.key.cmp(&b.version.key));
    let one = |of_one: &[&SandboxState]| pb::Sandboxes {
        version: version_bytes(&of_one[0].version),
        sandboxes: of_one
            .iter()
            .map(|state| pb::Sandbox { id: sandbox_bytes(state.sandbox), phase: phase_word(state.phase).to_owned() })
            .collect(),
    };
    by_version.chunk_by(|a, b| a.version.key == b.version.key).map(one).collect()
}

pub(crate) fn sandbox_states(message: &pb::Sandboxes) -> Result<Vec<SandboxState>, Malformed> {
    let version = version(&message.version)?;
    let state = |one: &pb::Sandbox| {
        Ok(SandboxState { sandbox: sandbox(&one.id)?, version: Arc::clone(&version), phase: phase(&one.phase) })
    };
    message.sandboxes.iter().map(state).collect()
}

#[cfg(test)]
pub(crate) mod tests;
