//! Where the code of a create or an update comes from.

use bytes::Bytes;
use lambda_api::types::{FunctionCode, S3ObjectStorageMode, UpdateFunctionCodeRequest};
use lambda_api::{ApiError, ErrorCode};
use packages::PackageError;

use crate::record::{Failure, FailureCode};
use crate::rules::{invalid, unsupported};
use crate::service::{ImageFault, ImageFaultKind};

/// A source of code.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Source {
    /// The zip itself.
    Zip(Bytes),
    /// An object of an S3-compatible store.
    S3 { bucket: String, key: String, version: Option<String> },
    /// A container image in a registry.
    Image(String),
}

pub(crate) fn of_create(code: &FunctionCode, is_image: bool) -> Result<Source, ApiError> {
    match &code.image_uri {
        Some(uri) if is_image && is_only_image(code) => Ok(Source::Image(uri.clone())),
        Some(_) if is_image => {
            Err(invalid("Please do not provide other FunctionCode parameters when providing an ImageUri."))
        }
        None if is_image => Err(invalid("Please provide ImageUri when the intended function PackageType is Image.")),
        Some(_) => Err(invalid("Please don't provide ImageUri when the intended function PackageType is Zip.")),
        None => source(code),
    }
}

fn is_only_image(code: &FunctionCode) -> bool {
    code.zip_file.is_none() && code.s3_bucket.is_none() && code.s3_key.is_none() && code.s3_object_version.is_none()
}

pub(crate) fn of_update(request: &UpdateFunctionCodeRequest, is_image: bool) -> Result<Source, ApiError> {
    match &request.image_uri {
        Some(uri)
            if is_image && request.zip_file.is_none() && request.s3_bucket.is_none() && request.s3_key.is_none() =>
        {
            return Ok(Source::Image(uri.clone()));
        }
        _ if is_image => {
            return Err(invalid("Please provide ImageUri when updating a function with packageType Image."));
        }
        Some(_) => {
            return Err(invalid("Please don't provide ImageUri when updating a function with packageType Zip."));
        }
        None => {}
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
        PackageError::Unzip { .. }
        | PackageError::UnzippedTooLarge { .. }
        | PackageError::S3 { .. }
        | PackageError::NoS3 { .. } => ErrorCode::InvalidParameterValueException,
        PackageError::ZippedTooLarge { .. } => ErrorCode::RequestEntityTooLargeException,
        PackageError::S3AccessDenied { .. } => ErrorCode::AccessDeniedException,
        PackageError::NotFound { .. } | PackageError::Damaged { .. } => ErrorCode::InvalidZipFileException,
        PackageError::S3Unreachable { .. } | PackageError::Storage { .. } | PackageError::Io { .. } => {
            ErrorCode::ServiceException
        }
    };
    ApiError::new(code, error.to_string())
}

/// A refused or unavailable image in the API's terms, in AWS's words where it has such.
pub(crate) fn image_error(uri: &str, fault: &ImageFault) -> ApiError {
    let detail = &fault.reason;
    match fault.kind {
        ImageFaultKind::Name => {
            invalid(format!("Source image {uri} is not valid. Provide a valid source image. {detail}"))
        }
        ImageFaultKind::Missing => {
            invalid(format!("Source image {uri} does not exist. Provide a valid source image. {detail}"))
        }
        ImageFaultKind::Denied => ApiError::new(
            ErrorCode::AccessDeniedException,
            format!("Lambda does not have permission to access the ECR image. Check the ECR permissions. {detail}"),
        ),
        ImageFaultKind::Invalid => invalid(format!(
            "The image manifest, config or layer media type for the source image {uri} is not supported. {detail}"
        )),
        ImageFaultKind::Unavailable => ApiError::new(ErrorCode::ServiceException, detail.clone()),
    }
}

/// The same when it comes out later, in a function's state.
pub(crate) fn image_failure(fault: ImageFault) -> Failure {
    let code = match fault.kind {
        ImageFaultKind::Name | ImageFaultKind::Invalid => FailureCode::InvalidImage,
        ImageFaultKind::Missing => FailureCode::ImageDeleted,
        ImageFaultKind::Denied => FailureCode::ImageAccessDenied,
        ImageFaultKind::Unavailable => FailureCode::InternalError,
    };
    Failure { reason: fault.reason, code }
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
