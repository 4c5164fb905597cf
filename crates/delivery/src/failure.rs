//! What an error of a service means: whether to try again, and what the operator is told.

use std::error::Error;

use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use packages::S3Error;

/// A message was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Failure {
    /// What happened, and what to do.
    pub cause: String,
    /// Whether the same message may be taken later.
    pub retryable: bool,
}

impl Failure {
    /// Trying again is of no use.
    pub fn refused(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), retryable: false }
    }

    /// It may work later.
    pub fn temporary(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), retryable: true }
    }
}

/// Who was asked for what, for the text of a failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// e.g. `sqs:SendMessage`, as a policy names it.
    pub action: &'static str,
    /// Where, e.g. `http://127.0.0.1:4566`.
    pub endpoint: &'a str,
    /// The key in the configuration file that says where.
    pub setting: &'static str,
}

impl Call<'_> {
    /// An error of the AWS SDK.
    pub fn failed<E>(&self, error: &SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                match answer.err().code() {
                    Some(code) => self.answered(status, code, answer.err().message().unwrap_or_default()),
                    None => self.garbled(status),
                }
            }
            SdkError::TimeoutError(_) => self.silent(),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => self.silent(),
            SdkError::DispatchFailure(failure) if !failure.is_user() => {
                self.unreachable(&DisplayErrorContext(error).to_string())
            }
            SdkError::ResponseError(answer) => self.garbled(answer.raw().status().as_u16()),
            _ => Failure::refused(format!(
                "{} at {} cannot be asked; check {}: {}",
                self.action,
                self.endpoint,
                self.setting,
                DisplayErrorContext(error)
            )),
        }
    }

    /// An error of S3.
    pub fn s3_failed(&self, error: &S3Error) -> Failure {
        match error {
            S3Error::Refused { status, code, .. } if *code == status.to_string() => self.garbled(*status),
            S3Error::Refused { status, code, message } => self.answered(*status, code, message),
            S3Error::Unreachable(cause) => self.unreachable(cause),
            S3Error::TooLarge(_) => self.unreachable(&error.to_string()),
        }
    }

    /// An answer that names an error. `status` is 200 for an entry that was not taken while the request was.
    pub fn answered(&self, status: u16, code: &str, message: &str) -> Failure {
        let (retryable, advice) = judge(status, code);
        let separator = if advice.is_empty() { "" } else { "; " };
        let message = if message.is_empty() { String::new() } else { format!(": {}", message.trim_end_matches('.')) };
        Failure { cause: format!("{} answered {code}{message}{separator}{advice}", self.action), retryable }
    }

    /// Nobody answered in time.
    pub fn silent(&self) -> Failure {
        Failure::temporary(format!(
            "{} at {} did not answer in time; check that it runs, and {}",
            self.action, self.endpoint, self.setting
        ))
    }

    /// What answered is no such service, or one that is failing: nothing was said about the target.
    fn garbled(&self, status: u16) -> Failure {
        Failure::temporary(format!(
            "{} at {} answered with status {status} and no error that this service has; check that it works, and {}",
            self.action, self.endpoint, self.setting
        ))
    }

    fn unreachable(&self, cause: &str) -> Failure {
        Failure::temporary(format!(
            "{} at {} cannot be reached; check that it runs, and {}: {cause}",
            self.action, self.endpoint, self.setting
        ))
    }
}

/// Whether a code means that the target does not exist.
pub(crate) fn does_not_exist(code: &str) -> bool {
    // SQS has a name of its own beside the shape's, from its older protocol
    let code = code.rsplit(['#', '.']).next().unwrap_or(code);
    matches!(
        code,
        "QueueDoesNotExist"
            | "NonExistentQueue"
            | "NotFound"
            | "NotFoundException"
            | "ResourceNotFoundException"
            | "NoSuchBucket"
    )
}

/// Whether to try again, and what to do.
fn judge(status: u16, code: &str) -> (bool, &'static str) {
    if does_not_exist(code) {
        return (false, "create it, or correct the ARN in the function's configuration");
    }
    match code {
        // ends with the renewal of what the process was given
        "ExpiredToken" | "ExpiredTokenException" => (true, "the session token has expired: renew it"),
        "RequestTimeTooSkewed" | "RequestExpired" => (true, "set this host's clock"),
        "AccessDenied"
        | "AccessDeniedException"
        | "AuthorizationError"
        | "AuthorizationErrorException"
        | "NotAuthorized"
        | "KmsAccessDenied"
        | "KMSAccessDeniedException" => (false, "allow the action to the credentials in use"),
        "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "InvalidSecurity"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => (false, "correct the credentials"),
        _ if status >= 500 || status == 429 || status == 408 => (true, ""),
        "SlowDown" | "RequestTimeout" | "RequestLimitExceeded" | "TooManyRequestsException" | "OverLimit" => (true, ""),
        _ if ["Throttl", "Internal", "Unavailable"].iter().any(|part| code.contains(part)) => (true, ""),
        _ => (false, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call<'static> =
        Call { action: "sqs:SendMessage", endpoint: "http://127.0.0.1:1", setting: "events.sqs_endpoint" };

    #[test]
    fn what_does_not_exist_or_refuses_is_not_asked_again() {
        for code in [
            "AWS.SimpleQueueService.NonExistentQueue",
            "QueueDoesNotExist",
            "NotFound",
            "ResourceNotFoundException",
            "NoSuchBucket",
            "AccessDenied",
            "InvalidClientTokenId",
            "InvalidParameterValue",
            "InvalidMessageContents",
        ] {
            assert!(!CALL.answered(400, code, "").retryable, "{code}");
        }
    }

    #[test]
    fn what_passes_is_asked_again() {
        for (status, code) in [
            (500, "no code"),
            (503, "ServiceUnavailable"),
            (429, "429"),
            (400, "RequestThrottled"),
            (400, "ThrottlingException"),
            (400, "KMSThrottlingException"),
            (200, "InternalFailure"),
            (200, "InternalException"),
            (403, "ExpiredToken"),
        ] {
            assert!(CALL.answered(status, code, "").retryable, "{code}");
        }
    }

    #[test]
    fn says_what_to_do() {
        assert_eq!(
            CALL.answered(400, "QueueDoesNotExist", "The specified queue does not exist.").cause,
            "sqs:SendMessage answered QueueDoesNotExist: The specified queue does not exist; create it, or correct the ARN \
             in the function's configuration"
        );
        let cause = CALL.s3_failed(&S3Error::Unreachable("refused".into())).cause;
        assert!(cause.contains("check that it runs, and events.sqs_endpoint: refused"), "{cause}");
    }
}
