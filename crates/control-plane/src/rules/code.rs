//! Where the code of a create or an update comes from.

use bytes::Bytes;
use lambda_api::types::{FunctionCode, S3ObjectStorageMode, UpdateFunctionCodeRequest};
use lambda_api::{ApiError, ErrorCode};
use packages::PackageError;

use crate::rules::{invalid, unsupported};

/// A source of code.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Source {
    /// The zip itself.
    Zip(Bytes),
    /// An object of an S3-compatible store.
    S3 { bucket: String, key: String, version: Option<String> },
}

pub(crate) fn of_create(code: &FunctionCode) -> Result<Source, ApiError> {
    source(code)
}

pub(crate) fn of_update(request: &UpdateFunctionCodeRequest) -> Result<Source, ApiError> {
    if request.image_uri.is_some() {
        return Err(invalid("Please don't provide ImageUri when updating a function with packageType Zip."));
    }
    source(&FunctionCode {
        zip_file: request.zip_file.clone(),
        s3_bucket: request.s3_bucket.clone(),
        s3_key: request.s3_key.clone(),
        s3_object_version: request.s3_object_version.clone(),
        s3_object_storage_mode: request.s3_object_storage_mode.clone(),
        image_uri: None,
        source_kms_key_arn: request.source_kms_key_arn.clone(),
    })
}

fn source(code: &FunctionCode) -> Result<Source, ApiError> {
    unsupported::refuse(&[
        ("ImageUri", code.image_uri.is_some()),
        ("SourceKMSKeyArn", code.source_kms_key_arn.as_ref().is_some_and(|arn| !arn.is_empty())),
        ("S3ObjectStorageMode REFERENCE", code.s3_object_storage_mode == Some(S3ObjectStorageMode::Reference)),
    ])?;
    match (&code.zip_file, &code.s3_bucket, &code.s3_key) {
        (Some(zip), None, None) => Ok(Source::Zip(zip.clone())),
        (Some(_), _, _) => {
            Err(invalid("Please do not provide other FunctionCode parameters when providing a ZipFile."))
        }
        (None, Some(bucket), Some(key)) => {
            Ok(Source::S3 { bucket: bucket.clone(), key: key.clone(), version: code.s3_object_version.clone() })
        }
        (None, None, None) => Err(invalid("Please provide a source for function code.")),
        (None, _, _) => Err(invalid("Please provide both S3Bucket and S3Key for function code in S3.")),
    }
}

/// A refused or unavailable package in the API's terms.
pub(crate) fn package_error(error: &PackageError) -> ApiError {
    let code = match error {
        PackageError::Unzip { .. } | PackageError::UnzippedTooLarge { .. } | PackageError::S3 { .. } => {
            ErrorCode::InvalidParameterValueException
        }
        PackageError::ZippedTooLarge { .. } => ErrorCode::RequestEntityTooLargeException,
        PackageError::S3AccessDenied { .. } => ErrorCode::AccessDeniedException,
        PackageError::NotFound { .. } | PackageError::Damaged { .. } => ErrorCode::InvalidZipFileException,
        PackageError::S3Unreachable { .. } | PackageError::Io { .. } => ErrorCode::ServiceException,
    };
    ApiError::new(code, error.to_string())
}

/// All code of an account in a region, as AWS counts it: every version's, shared or not.
pub(crate) fn check_total(used: u64, added: u64, limit: u64) -> Result<(), ApiError> {
    if used.saturating_add(added) <= limit {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::CodeStorageExceededException,
        format!("Code storage limit exceeded: {used} of {limit} bytes are used, and {added} more are needed."),
    ))
}
