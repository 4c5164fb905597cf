//! What can go wrong with a package, in AWS's words where AWS has words for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a package was refused or could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PackageError {
    /// Not a zip, or one that must not be unpacked: `InvalidParameterValueException` (400).
    #[error("Could not unzip uploaded file. Please check your file, then try to upload again.")]
    Unzip {
        /// What is wrong with it, for the log; AWS does not tell the caller.
        reason: String,
    },
    /// `InvalidParameterValueException` (400).
    #[error("Unzipped size must be smaller than {limit} bytes")]
    UnzippedTooLarge {
        /// In bytes.
        limit: u64,
    },
    /// `RequestEntityTooLargeException` (413).
    #[error("Zipped size must be smaller than {limit} bytes")]
    ZippedTooLarge {
        /// In bytes.
        limit: u64,
    },
    /// S3 refused: `InvalidParameterValueException` (400).
    #[error("Error occurred while GetObject. S3 Error Code: {code}. S3 Error Message: {message}")]
    S3 {
        /// e.g. `NoSuchKey`, `NoSuchBucket`.
        code: String,
        /// S3's own.
        message: String,
    },
    /// The credentials may not read the object: `AccessDeniedException` (403).
    #[error(
        "Your access has been denied by S3, please make sure your request credentials have permission to GetObject for \
         {bucket}/{key}. S3 Error Code: AccessDenied. S3 Error Message: Access Denied"
    )]
    S3AccessDenied {
        /// Which bucket.
        bucket: String,
        /// Which key.
        key: String,
    },
    /// There is no S3 to ask: `InvalidParameterValueException` (400), as no other attempt helps.
    #[error(
        "This Emberbox has no S3 endpoint to get s3://{bucket}/{key} from. Name one by [s3] in its configuration, or send the \
         package as ZipFile."
    )]
    NoS3 {
        /// Which bucket.
        bucket: String,
        /// Which key.
        key: String,
    },
    /// The endpoint of S3 does not answer: `ServiceException` (500).
    #[error("get s3://{bucket}/{key}: {cause}")]
    S3Unreachable {
        /// Which bucket.
        bucket: String,
        /// Which key.
        key: String,
        /// What happened, and what to do.
        cause: String,
    },
    /// The package is not in storage: `InvalidZipFileException` (502).
    #[error("package {sha256} is not in storage")]
    NotFound {
        /// As in `CodeSha256`.
        sha256: String,
    },
    /// The stored zip is not what was stored: `InvalidZipFileException` (502). Uploading it again repairs it.
    #[error("package {sha256} is damaged in storage ({place}); upload it again")]
    Damaged {
        /// As in `CodeSha256`.
        sha256: String,
        /// Where it is stored: a file, or an object of the form `s3://bucket/key`.
        place: String,
    },
    /// The bucket that packages are stored in cannot be used: `ServiceException` (500).
    #[error("{operation} s3://{bucket}/{key} at {endpoint}: {cause}")]
    Storage {
        /// e.g. `read the package`.
        operation: &'static str,
        /// Which bucket.
        bucket: String,
        /// Which key.
        key: String,
        /// Which service, without credentials.
        endpoint: String,
        /// What happened, and what to do.
        cause: String,
    },
    /// The disk failed: `ServiceException` (500).
    #[error("{operation} {path}: {source}")]
    Io {
        /// A verb, e.g. `write`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: Arc<io::Error>,
    },
}

impl PackageError {
    pub(crate) fn unzip(reason: impl Into<String>) -> Self {
        Self::Unzip { reason: reason.into() }
    }

    /// For `map_err` on an IO call.
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }
}
