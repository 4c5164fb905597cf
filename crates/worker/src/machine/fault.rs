//! What can go wrong in a sandbox, and what its caller then sees (reference §2.8).

use std::time::Duration;

use bytes::Bytes;
use domain::RequestId;
use sandbox::ExitStatus;
use serde_json::json;

use super::InitFailure;

/// Longest name in an error type that is kept; it goes into logs.
const MAX_TYPE: usize = 200;

/// Why an Init or an invocation failed.
#[derive(Clone, PartialEq, Debug)]
pub enum Fault {
    /// The function's timeout, or the 10 s of Init, passed.
    Timeout(Duration),
    /// The runtime process ended without answering.
    RuntimeExit {
        /// How it ended.
        status: ExitStatus,
        /// The memory limit's killer struck.
        oom: bool,
    },
    /// There is nothing to start, or it cannot be executed; the text says what.
    Entrypoint(String),
    /// There is no such directory to start in; the text says which.
    WorkingDirectory(String),
    /// The runtime reported `init/error`.
    InitError {
        /// `Runtime.…` or `Function.…`.
        kind: String,
        /// The error object as reported.
        payload: Bytes,
    },
    /// An external extension's process ended while it was needed.
    ExtensionCrash {
        /// Its file name.
        name: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// An external extension could not be executed.
    ExtensionLaunch {
        /// Its file name.
        name: String,
        /// What the kernel said.
        cause: String,
    },
    /// An extension reported `init/error` or `exit/error`.
    ExtensionError {
        /// `Extension.InitError` or `Extension.ExitError`.
        kind: &'static str,
        /// The extension's name.
        name: String,
        /// The type that the extension gave.
        reported: String,
    },
    /// The runtime reported `restore/error`.
    RestoreError {
        /// `Runtime.…` or `Function.…`.
        kind: String,
        /// The error object as reported.
        payload: Bytes,
    },
    /// What the runtime does after a restore took too long.
    RestoreTimeout(Duration),
    /// The sandbox died under the invocation.
    SandboxGone,
}

impl Fault {
    /// `errorType`, also for the REPORT line and metrics.
    pub fn error_type(&self) -> &str {
        match self {
            Self::Timeout(_) => "Sandbox.Timedout",
            Self::RuntimeExit { oom: true, .. } => "Runtime.OutOfMemory",
            Self::RuntimeExit { .. } => "Runtime.ExitError",
            Self::Entrypoint(_) => "Runtime.InvalidEntrypoint",
            Self::WorkingDirectory(_) => "Runtime.InvalidWorkingDir",
            Self::InitError { kind, .. } | Self::RestoreError { kind, .. } => kind,
            Self::RestoreTimeout(_) => "Sandbox.Timedout",
            Self::ExtensionCrash { .. } => "Extension.Crash",
            Self::ExtensionLaunch { .. } => "Extension.LaunchError",
            Self::ExtensionError { kind, .. } => kind,
            Self::SandboxGone => "Sandbox.Failure",
        }
    }

    /// Whether it is a timeout; `Status: timeout` in the REPORT line.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout(_) | Self::RestoreTimeout(_))
    }

    /// For whoever waits for the Init.
    pub(super) fn failure(&self) -> InitFailure {
        let (kind, message) = (self.error_type().to_owned(), self.message());
        InitFailure { kind, message, timeout: self.is_timeout() }
    }

    /// The message without the request id.
    pub fn message(&self) -> String {
        match self {
            Self::Timeout(limit) => format!("Task timed out after {:.2} seconds", limit.as_secs_f64()),
            Self::RuntimeExit { status: ExitStatus::Code(0), .. } => "Runtime exited without providing a reason".into(),
            Self::RuntimeExit { status, .. } => format!("Runtime exited with error: {}", describe(*status)),
            Self::Entrypoint(text) | Self::WorkingDirectory(text) => text.clone(),
            Self::InitError { kind, payload } | Self::RestoreError { kind, payload } => {
                reported_message(payload).unwrap_or_else(|| kind.clone())
            }
            Self::RestoreTimeout(limit) => {
                format!("The runtime did not ask for an invocation within {} s of its restore", limit.as_secs_f64())
            }
            Self::ExtensionCrash { status, .. } => describe(*status),
            Self::ExtensionLaunch { name, cause } => format!("fork/exec /opt/extensions/{name}: {cause}"),
            Self::ExtensionError { name, reported, .. } => format!("extension {name} reported {reported}"),
            Self::SandboxGone => "The sandbox died".into(),
        }
    }

    /// The error object that the caller gets.
    pub fn payload(&self, request: RequestId) -> Bytes {
        if let Self::InitError { payload, .. } = self
            && !payload.is_empty()
        {
            return payload.clone();
        }
        let message = format!("RequestId: {request} Error: {}", self.message());
        json!({ "errorType": self.error_type(), "errorMessage": message }).to_string().into()
    }
}

/// `errorMessage` of a reported error object, cut to what a note may hold.
fn reported_message(payload: &[u8]) -> Option<String> {
    let object: serde_json::Value = serde_json::from_slice(payload).ok()?;
    Some(object.get("errorMessage")?.as_str()?.chars().take(500).collect())
}

fn describe(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("exit status {code}"),
        ExitStatus::Signal(signal) => format!("signal: {}", signal_name(signal)),
    }
}

/// The words that Go, and so AWS, has for a signal.
fn signal_name(signal: i32) -> String {
    match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        11 => "segmentation fault",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        31 => "bad system call",
        other => return format!("signal {other}"),
    }
    .into()
}

/// The rule for `Lambda-Runtime-Function-Error-Type`: kept if it has the form `(Runtime|Function).Name`; anything else
/// becomes the `Unknown` of its kind.
pub fn runtime_error_type(header: Option<&str>) -> String {
    let header = header.unwrap_or_default();
    let well_formed = |name: &str| {
        let mut letters = name.bytes();
        letters.next().is_some_and(|b| b.is_ascii_uppercase())
            && (2..=MAX_TYPE).contains(&name.len())
            && letters.all(|b| b.is_ascii_alphabetic())
    };
    match header.split_once('.') {
        Some(("Runtime" | "Function", name)) if well_formed(name) => header.to_owned(),
        Some(("Function", _)) => "Function.Unknown".into(),
        _ => "Runtime.Unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_types_are_kept_only_in_the_documented_form() {
        for (given, kept) in [
            (Some("Runtime.UnhandledPromiseRejection"), "Runtime.UnhandledPromiseRejection"),
            (Some("Function.MyError"), "Function.MyError"),
            (Some("Function.myError"), "Function.Unknown"),
            (Some("Function."), "Function.Unknown"),
            (Some("Runtime.Bad1"), "Runtime.Unknown"),
            (Some("KeyError"), "Runtime.Unknown"),
            (Some(""), "Runtime.Unknown"),
            (None, "Runtime.Unknown"),
        ] {
            assert_eq!(runtime_error_type(given), kept, "{given:?}");
        }
    }

    #[test]
    fn messages_are_those_of_aws() {
        let id = RequestId(uuid::Uuid::nil());
        let text = |fault: Fault| String::from_utf8(fault.payload(id).to_vec()).unwrap();
        let exit = |status| Fault::RuntimeExit { status, oom: false };
        let prefix = format!("RequestId: {id} Error:");
        assert_eq!(
            text(Fault::Timeout(Duration::from_secs(1))),
            format!(
                r#"{{"errorType":"Sandbox.Timedout","errorMessage":"{prefix} Task timed out after 1.00 seconds"}}"#
            )
        );
        assert!(text(exit(ExitStatus::Code(0))).contains("Runtime exited without providing a reason"));
        assert!(text(exit(ExitStatus::Code(127))).contains("Runtime exited with error: exit status 127"));
        assert!(text(exit(ExitStatus::Signal(9))).contains("Runtime exited with error: signal: killed"));
        assert!(text(Fault::RuntimeExit { status: ExitStatus::Signal(9), oom: true }).contains("Runtime.OutOfMemory"));
    }
}
