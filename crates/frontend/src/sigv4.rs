//! AWS Signature Version 4, the verifying side: header form and presigned query form, for services that are not S3.
//!
//! ```text
//! Claim::parse ──► check_scope ──► check_time ──► (look the key up, read the body) ──► verify
//! ```
//! Pure: time, secrets and body come in as arguments. All steps but the last need no body, so that a request which
//! cannot succeed is refused before it has sent one. Types, messages and order of the checks are AWS's, as the common
//! errors of its services show them.

mod canonical;
mod parse;

use std::time::{Duration, SystemTime};

use hmac::{Hmac, Mac};
use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// How far the caller's clock may be from ours.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
/// Longest life of a presigned request.
pub const MAX_EXPIRES: Duration = Duration::from_secs(7 * 24 * 3600);

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
const BASIC_FORMAT: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// The parts of a request that a signature covers, as they came over the wire.
#[derive(Clone, Copy, Debug)]
pub struct SignedParts<'a> {
    /// e.g. `POST`.
    pub method: &'a Method,
    /// Percent-encoded path.
    pub path: &'a str,
    /// Percent-encoded query without `?`; empty if there is none.
    pub query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// `:authority` of HTTP/2, which takes the place of `Host`.
    pub authority: Option<&'a str>,
}

impl<'a> SignedParts<'a> {
    /// From a request's head.
    pub fn of(parts: &'a http::request::Parts) -> Self {
        Self {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or_default(),
            headers: &parts.headers,
            authority: parts.uri.authority().map(http::uri::Authority::as_str),
        }
    }
}

/// Who a request says that it is from, and its proof: parsed, not yet believed.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which credential signed.
    pub access_key_id: String,
    /// Region of the credential scope.
    pub region: String,
    /// `X-Amz-Security-Token`, for temporary credentials.
    pub session_token: Option<String>,
    scope_date: String,
    service: String,
    terminator: String,
    signed_headers: Vec<String>,
    signature: String,
    /// When it was signed.
    time: OffsetDateTime,
    /// Life in seconds, of a presigned request.
    expires: Option<u64>,
    /// `UNSIGNED-PAYLOAD` stands where the body's hash would.
    unsigned_payload: bool,
}

/// Why a signature was not accepted. The text is the message that the caller gets; the status is always 403.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SigError {
    /// There is none.
    #[error("Missing Authentication Token")]
    Missing,
    /// It lacks a part or cannot be read.
    #[error("{0}")]
    Incomplete(String),
    /// It is wrong, too old, or for something else.
    #[error("{0}")]
    Invalid(String),
    /// The access key or the session token is not known.
    #[error("The security token included in the request is invalid.")]
    Unrecognized,
}

impl SigError {
    fn mismatch() -> Self {
        Self::Invalid(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
             Access Key and signing method. Consult the service documentation for details."
                .into(),
        )
    }
}

impl Claim {
    /// Reads the `Authorization` header or the `X-Amz-…` query parameters.
    ///
    /// # Errors
    /// [`SigError::Missing`] without either, [`SigError::Incomplete`] or [`SigError::Invalid`] when they cannot be used.
    pub fn parse(request: &SignedParts<'_>) -> Result<Self, SigError> {
        parse::claim(request)
    }

    /// Checks that the credential scope is one for `service` here, on the day of the signature.
    ///
    /// # Errors
    /// [`SigError::Invalid`] that names every part of the scope that is wrong.
    pub fn check_scope(&self, service: &str) -> Result<(), SigError> {
        let mut wrong = Vec::new();
        if !is_region(&self.region) {
            wrong.push("Credential should be scoped to a valid region. ".to_owned());
        }
        if self.service != service {
            wrong.push(format!("Credential should be scoped to correct service: '{service}'. "));
        }
        if self.terminator != TERMINATOR {
            wrong.push(format!("Credential should be scoped with a valid terminator: '{TERMINATOR}'. "));
        }
        let text = basic(self.time);
        if self.scope_date != text[..8] {
            wrong.push(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != \
                 '{}', from '{text}'. ",
                printable(&self.scope_date),
                &text[..8],
            ));
        }
        if wrong.is_empty() { Ok(()) } else { Err(SigError::Invalid(wrong.concat())) }
    }

    /// Checks that the signature is of now: within [`CLOCK_SKEW`], or for a presigned request within its life.
    ///
    /// # Errors
    /// [`SigError::Invalid`].
    pub fn check_time(&self, now: SystemTime) -> Result<(), SigError> {
        let now = OffsetDateTime::from(now);
        let signed = basic(self.time);
        if self.time > now + CLOCK_SKEW {
            return Err(SigError::Invalid(format!(
                "Signature not yet current: {signed} is still later than {} ({} + 5 min.)",
                basic(now + CLOCK_SKEW),
                basic(now),
            )));
        }
        if let Some(expires) = self.expires {
            let end = self.time + Duration::from_secs(expires);
            if end < now {
                return Err(SigError::Invalid(format!(
                    "Signature expired: {} is now earlier than {}",
                    basic(end),
                    basic(now)
                )));
            }
        } else if self.time < now - CLOCK_SKEW {
            return Err(SigError::Invalid(format!(
                "Signature expired: {signed} is now earlier than {} ({} - 5 min.)",
                basic(now - CLOCK_SKEW),
                basic(now),
            )));
        }
        Ok(())
    }

    /// Checks the signature itself, in constant time.
    ///
    /// # Errors
    /// [`SigError::Invalid`] when request, body or secret are not those that were signed.
    pub fn verify(&self, request: &SignedParts<'_>, secret_access_key: &str, body: &[u8]) -> Result<(), SigError> {
        let body_hash =
            if self.unsigned_payload { "UNSIGNED-PAYLOAD".to_owned() } else { hex::encode(Sha256::digest(body)) };
        let canonical = canonical::request(request, &self.signed_headers, &body_hash, self.expires.is_some());
        let string_to_sign = format!(
            "{ALGORITHM}\n{}\n{}/{}/{}/{}\n{}",
            basic(self.time),
            self.scope_date,
            self.region,
            self.service,
            self.terminator,
            hex::encode(Sha256::digest(canonical.as_bytes())),
        );
        let key = hmac(format!("AWS4{secret_access_key}").as_bytes(), &self.scope_date);
        let key = [&*self.region, &*self.service, &*self.terminator].iter().fold(key, |key, part| hmac(&key, part));
        let expected = hex::encode(hmac(&key, &string_to_sign));
        if bool::from(expected.as_bytes().ct_eq(self.signature.as_bytes())) {
            Ok(())
        } else {
            Err(SigError::mismatch())
        }
    }
}

/// One parameter of a query, decoded.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    canonical::parameters(query).find(|(n, _)| n == name).map(|(_, value)| value)
}

/// Whether `text` has the form of a region's name, e.g. `us-east-1` or `us-gov-west-1`.
pub fn is_region(text: &str) -> bool {
    let mut parts = text.rsplit('-');
    let number = parts.next().is_some_and(|n| (1..=2).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()));
    let mut words = 0;
    number
        && text.len() <= 32
        && parts.all(|word| {
            words += 1;
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase())
        })
        && words >= 2
}

fn hmac(key: &[u8], message: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().into()
}

/// `20150830T123600Z`.
fn basic(time: OffsetDateTime) -> String {
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    format!("{year:04}{:02}{day:02}T{hour:02}{minute:02}{second:02}Z", u8::from(month))
}

/// What a caller sent, fit to be repeated in a message: short, printable ASCII.
fn printable(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests;
