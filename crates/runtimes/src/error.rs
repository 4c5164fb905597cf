//! Why a runtime cannot be had.

use std::io;
use std::path::{Path, PathBuf};

/// Each says what to do, where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// AWS has retired it.
    #[error(
        "The runtime parameter of {0} is no longer supported for creating or updating AWS Lambda functions. We recommend \
         you use a supported runtime while creating or updating functions."
    )]
    Deprecated(String),
    /// Neither built in nor added by the user.
    #[error("unknown runtime {name}; known are {known}. A file in {add_to} adds others")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those that are, separated by commas.
        known: String,
        /// The directory for the user's own.
        add_to: PathBuf,
    },
    /// Something that it needs is not on this host.
    #[error("runtime {name} is not available on this host: {hint}")]
    Missing {
        /// Which runtime.
        name: String,
        /// What is missing and how to get it.
        hint: String,
    },
    /// A runtime file is wrong.
    #[error("runtime file {path}: {cause}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A program that installs something failed.
    #[error("{what} failed: {cause}")]
    Command {
        /// What was being done.
        what: String,
        /// The end of its output, or why it did not start.
        cause: String,
    },
    /// The disk failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// A verb, e.g. `copy`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl RuntimeError {
    /// For `map_err` on an IO call.
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }
}
