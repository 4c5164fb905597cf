//! What can go wrong, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::version::Version;

/// Of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why Firecracker, or its jailer, did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Firecracker answered that it will not.
    #[error("Firecracker refused {request} ({status}): {fault_message}; {}", advice(.fault_message))]
    Refused {
        /// Method and path.
        request: String,
        /// Of HTTP.
        status: u16,
        /// Firecracker's own words.
        fault_message: String,
    },
    /// No answer came in time.
    #[error(
        "Firecracker did not answer {request} within {limit:?}; it hangs or the host is overloaded: stop this VM and \
         start another"
    )]
    TimedOut {
        /// Method and path.
        request: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The API socket did not accept a connection, or the connection broke.
    #[error("{request} did not reach Firecracker: {reason}; it has probably ended, see its last output")]
    Unreachable {
        /// Method and path.
        request: String,
        /// What the socket said.
        reason: String,
    },
    /// An answer that this crate does not understand.
    #[error(
        "Firecracker's answer to {request} is not what its API of {MINIMUM} describes ({reason}): {answer}; use a \
         version that Emberbox was tested with",
        MINIMUM = Version::MINIMUM
    )]
    Answer {
        /// Method and path.
        request: String,
        /// Where it differs.
        reason: String,
        /// Its first bytes.
        answer: String,
    },
    /// Too old, or not what it should be.
    #[error(
        "{program} is {found}, but version {} or later is needed, the same of firecracker and jailer: install a release \
         from https://github.com/firecracker-microvm/firecracker/releases",
        Version::MINIMUM
    )]
    Unsuitable {
        /// Of firecracker or the jailer.
        program: PathBuf,
        /// What it said of itself.
        found: String,
    },
    /// A value that the jailer would refuse, or that would be unsafe.
    #[error("{what} {value:?} cannot be used for a jail: {why}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// It.
        value: String,
        /// The rule.
        why: &'static str,
    },
    /// Another process has these jails.
    #[error(
        "{} belongs to another running process, which has locked it: stop that, or configure a directory of its own",
        .0.display()
    )]
    Locked(PathBuf),
    /// The jailer ended, or Firecracker did, before the API was there.
    #[error("the jailer did not start Firecracker in jail {id} ({how}): {output}")]
    NotStarted {
        /// Of the jail.
        id: String,
        /// Exit status, or what was waited for.
        how: String,
        /// The last that both wrote.
        output: String,
    },
    /// An operation of the host failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was done, to what.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// The words of Firecracker, if it is it that refused.
    pub fn fault_message(&self) -> Option<&str> {
        match self {
            Self::Refused { fault_message, .. } => Some(fault_message),
            _ => None,
        }
    }
}

/// Says what was done when an operation of the host failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Io { doing: what(), source: error.into() })
    }
}

/// What helps against a refusal. Firecracker has no codes; these are parts of the messages of 1.12.1, and what is not
/// among them gets the general advice.
fn advice(fault: &str) -> &'static str {
    const KNOWN: [(&str, &str); 10] = [
        ("not supported after starting", "this is configured before InstanceStart only: start a new VM for it"),
        ("not supported before starting", "start the VM, or load a snapshot, first"),
        ("Invalid JSON", "a field is unknown to this version of Firecracker, missing, or of another type"),
        ("deserializ", "a field is unknown to this version of Firecracker, missing, or of another type"),
        ("No such file", "paths are those inside the jail: add the file to the jail first"),
        (
            "Permission denied",
            "the jail's user must be able to read the file, and to write it if the drive is writable",
        ),
        ("Resource busy", "the tap belongs to another VM: give each VM its own"),
        ("/dev/kvm", "load the module kvm_intel or kvm_amd, and enable virtualisation in the firmware"),
        ("KVM", "see that KVM works here: Firecracker needs hardware virtualisation"),
        ("not in a paused state", "pause the VM first"),
    ];
    KNOWN.iter().find(|(part, _)| fault.contains(part)).map_or(
        "compare the request with Firecracker's API description of this version (firecracker.yaml)",
        |(_, advice)| advice,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_request_reason_and_remedy() {
        let error = Error::Refused {
            request: "PUT /machine-config".into(),
            status: 400,
            fault_message: "The requested operation is not supported after starting the microVM.".into(),
        };
        let text = error.to_string();
        assert!(text.contains("PUT /machine-config") && text.contains("400"), "{text}");
        assert!(text.contains("not supported after starting the microVM"), "{text}");
        assert!(text.ends_with("start a new VM for it"), "{text}");
    }

    #[test]
    fn an_old_version_is_named_with_the_one_that_is_needed() {
        let text = Error::Unsuitable { program: "/usr/bin/firecracker".into(), found: "1.11.0".into() }.to_string();
        assert!(text.starts_with("/usr/bin/firecracker is 1.11.0, but version 1.12.0 or later"), "{text}");
    }
}
