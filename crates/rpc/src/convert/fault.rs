//! `domain::WorkerError` and `domain::SnapshotError`.

use domain::{SandboxId, SnapshotError, WorkerError, WorkerId};

use super::{sandbox, sandbox_bytes};
use crate::pb;

pub(crate) fn fault(error: &WorkerError) -> pb::Fault {
    let of = |kind: &str, text: &str| pb::Fault { kind: kind.to_owned(), text: text.to_owned(), ..Default::default() };
    let about = |kind: &str, id: SandboxId| pb::Fault { sandbox: sandbox_bytes(id), ..of(kind, "") };
    match error {
        WorkerError::Package(text) => of("package", text),
        WorkerError::Image(text) => of("image", text),
        WorkerError::Runtime(text) => of("runtime", text),
        WorkerError::Sandbox(text) => of("sandbox", text),
        WorkerError::Gone(id) => about("gone", *id),
        WorkerError::Busy(id) => about("busy", *id),
        WorkerError::Unreachable { worker, cause, unsent } => {
            pb::Fault { worker: worker.0.to_string(), unsent: *unsent, ..of("unreachable", cause) }
        }
        WorkerError::Restore(text) => of("restore", text),
        WorkerError::RestoreTimeout(text) => of("restore_timeout", text),
        WorkerError::Full(worker) => pb::Fault { worker: worker.to_string(), ..of("full", "") },
        WorkerError::Stopping => of("stopping", ""),
    }
}

pub(crate) fn worker_error(fault: pb::Fault) -> WorkerError {
    let pb::Fault { kind, text, sandbox: id, worker, unsent } = fault;
    match (&*kind, sandbox(&id)) {
        ("package", _) => WorkerError::Package(text),
        ("image", _) => WorkerError::Image(text),
        ("runtime", _) => WorkerError::Runtime(text),
        ("sandbox", _) => WorkerError::Sandbox(text),
        ("gone", Ok(id)) => WorkerError::Gone(id),
        ("busy", Ok(id)) => WorkerError::Busy(id),
        ("unreachable", _) => WorkerError::Unreachable { worker: WorkerId(worker.into()), cause: text, unsent },
        ("restore", _) => WorkerError::Restore(text),
        ("restore_timeout", _) => WorkerError::RestoreTimeout(text),
        ("full", _) => WorkerError::Full(WorkerId(worker.into())),
        ("stopping", _) => WorkerError::Stopping,
        (other, _) => WorkerError::Sandbox(format!("{other}: {text}")),
    }
}

pub(crate) fn snapshot_answer(result: Result<(), SnapshotError>) -> pb::SnapshotAnswer {
    let none = pb::SnapshotAnswer::default();
    match result {
        Ok(()) => none,
        Err(SnapshotError::Unsupported(text)) => pb::SnapshotAnswer { refusal: "unsupported".to_owned(), text, ..none },
        Err(SnapshotError::Init { kind, message }) => {
            pb::SnapshotAnswer { refusal: "init".to_owned(), error_type: kind, text: message, ..none }
        }
        Err(SnapshotError::Worker(error)) => pb::SnapshotAnswer { fault: Some(fault(&error)), ..none },
    }
}

pub(crate) fn snapshot_error(answer: pb::SnapshotAnswer) -> Result<(), SnapshotError> {
    match (answer.fault, &*answer.refusal) {
        (Some(fault), _) => Err(SnapshotError::Worker(worker_error(fault))),
        (None, "") => Ok(()),
        (None, "init") => Err(SnapshotError::Init { kind: answer.error_type, message: answer.text }),
        // Also for a refusal of later versions: the version starts without a snapshot.
        (None, _) => Err(SnapshotError::Unsupported(answer.text)),
    }
}
