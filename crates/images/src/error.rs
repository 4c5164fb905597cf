//! What can go wrong with an image.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read or written, or a program not be started.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A layer is no archive that we read, or holds what it must not.
    #[error("{layer}: {reason}")]
    Layer {
        /// Which layer.
        layer: String,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A part of a container image is missing, damaged, or not what the image says.
    #[error("{what}: {reason}")]
    Oci {
        /// Which part, by its digest.
        what: String,
        /// What is wrong with it, and what can be done.
        reason: String,
    },
    /// A registry did not give what was asked for.
    #[error("{what}: {reason}")]
    Registry {
        /// What was being pulled.
        what: String,
        /// Why not, in one word.
        kind: Refusal,
        /// Why not, and what can be done.
        reason: String,
    },
    /// Larger than [`Limits`](crate::Limits) allow.
    #[error("{what} is larger than {limit} {unit}, the limit for images")]
    TooLarge {
        /// What is.
        what: String,
        /// How large it may be.
        limit: u64,
        /// Of what: bytes, files.
        unit: &'static str,
    },
    /// The writer of squashfs refused.
    #[error("write the squashfs image {}: {reason}", path.display())]
    Squashfs {
        /// The image.
        path: PathBuf,
        /// In the writer's words.
        reason: String,
    },
    /// A program is not installed.
    #[error("{doing}: this needs the program {program}; install it with `apt-get install {package}`")]
    Tool {
        /// What was being done.
        doing: String,
        /// Which program.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
    /// A program failed.
    #[error("{doing}: {program} failed ({status}):\n{output}")]
    Program {
        /// What was being done.
        doing: String,
        /// Which program.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines that it wrote to stderr.
        output: String,
    },
    /// What was named as a source is none.
    #[error("{source_name} is no source of an image: {reason}")]
    Source {
        /// As the user wrote it.
        source_name: String,
        /// Why, and what would be one.
        reason: String,
    },
}

/// Why a registry gave no image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There is no such repository, tag or digest.
    Missing,
    /// It wants other credentials, or any.
    Denied,
    /// It was asked too often.
    Limited,
    /// It does not answer, not in time, or not as a registry does.
    Unavailable,
    /// What it has is no image, or is damaged.
    Invalid,
}

pub(crate) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io { doing, path, source }
}
