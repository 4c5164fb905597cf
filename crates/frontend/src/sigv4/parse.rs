//! Taking a signature apart.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, DATE};
use sha2::{Digest, Sha256};
use time::format_description::well_known::Rfc2822;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::{ALGORITHM, BASIC_FORMAT, Claim, MAX_EXPIRES, SigError, SignedParts, canonical, printable};

/// Whether the query carries a signature; cheap, for the common case that it does not.
pub(super) fn is_presigned(query: &str) -> bool {
    query.contains("X-Amz-") && canonical::parameters(query).any(|(name, _)| name == "X-Amz-Algorithm")
}

pub(super) fn claim(request: &SignedParts<'_>) -> Result<Claim, SigError> {
    let claim = match request.headers.get(AUTHORIZATION) {
        Some(value) => from_header(request.headers, value.to_str().unwrap_or_default())?,
        None if is_presigned(request.query) => from_query(request)?,
        None => return Err(SigError::Missing),
    };
    if !claim.signed_headers.iter().any(|name| name == "host") {
        return Err(SigError::Invalid(
            "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.".into(),
        ));
    }
    let absent = claim
        .signed_headers
        .iter()
        .find(|name| !request.headers.contains_key(name.as_str()) && (*name != "host" || request.authority.is_none()));
    match absent {
        Some(_) => Err(SigError::mismatch()),
        None => Ok(claim),
    }
}

/// `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`
fn from_header(headers: &HeaderMap, authorization: &str) -> Result<Claim, SigError> {
    let trimmed = authorization.trim();
    let (algorithm, rest) = trimmed.split_once([' ', '\t']).unwrap_or((trimmed, ""));
    if algorithm != ALGORITHM {
        return Err(if algorithm.starts_with("AWS4-") || algorithm.starts_with("AWS3") {
            SigError::Incomplete(format!("Unsupported AWS 'algorithm': '{}'.", printable(algorithm)))
        } else {
            SigError::Missing
        });
    }
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for part in rest.split(',') {
        let Some((name, value)) = part.trim().split_once('=') else {
            return Err(SigError::Incomplete(format!(
                "'{}' not a valid key=value pair (missing equal-sign) in Authorization header: {}",
                printable(part.trim()),
                hashed(authorization),
            )));
        };
        match name {
            "Credential" => credential = Some(value),
            "SignedHeaders" => signed_headers = Some(value),
            "Signature" => signature = Some(value),
            _ => {}
        }
    }
    let date = headers.get("x-amz-date").or_else(|| headers.get(DATE)).map(|value| value.to_str().unwrap_or_default());
    let (Some(credential), Some(signature), Some(signed_headers), Some(date)) =
        (credential, signature, signed_headers, date)
    else {
        let missing = [
            (credential.is_none(), "Authorization header requires 'Credential' parameter. "),
            (signature.is_none(), "Authorization header requires 'Signature' parameter. "),
            (signed_headers.is_none(), "Authorization header requires 'SignedHeaders' parameter. "),
            (date.is_none(), "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. "),
        ];
        let missing: String = missing.iter().filter(|(absent, _)| *absent).map(|(_, message)| *message).collect();
        return Err(SigError::Incomplete(missing + &hashed(authorization)));
    };
    let scope = Scope::parse(credential)?;
    Ok(Claim {
        session_token: text(headers, "x-amz-security-token"),
        signed_headers: signed_header_names(signed_headers),
        signature: signature.to_owned(),
        time: time(date)?,
        expires: None,
        unsigned_payload: text(headers, "x-amz-content-sha256").as_deref() == Some("UNSIGNED-PAYLOAD"),
        access_key_id: scope.access_key_id,
        scope_date: scope.date,
        region: scope.region,
        service: scope.service,
        terminator: scope.terminator,
    })
}

/// `?X-Amz-Algorithm=…&X-Amz-Credential=…&…`
fn from_query(request: &SignedParts<'_>) -> Result<Claim, SigError> {
    let parameters: Vec<(String, String)> = canonical::parameters(request.query).collect();
    let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let need = |name: &str| {
        get(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            SigError::Incomplete(format!(
                "AWS query-string parameters must include '{name}'. Re-examine the query-string parameters."
            ))
        })
    };
    let algorithm = need("X-Amz-Algorithm")?;
    if algorithm != ALGORITHM {
        return Err(SigError::Incomplete(format!("Unsupported AWS 'algorithm': '{}'.", printable(algorithm))));
    }
    let scope = Scope::parse(need("X-Amz-Credential")?)?;
    let expires: u64 =
        need("X-Amz-Expires")?.parse().map_err(|_| SigError::Incomplete("X-Amz-Expires should be a number".into()))?;
    if expires > MAX_EXPIRES.as_secs() {
        return Err(SigError::Incomplete(format!(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than {} seconds",
            MAX_EXPIRES.as_secs(),
        )));
    }
    let content =
        get("X-Amz-Content-Sha256").map(str::to_owned).or_else(|| text(request.headers, "x-amz-content-sha256"));
    Ok(Claim {
        session_token: get("X-Amz-Security-Token").map(str::to_owned),
        signed_headers: signed_header_names(need("X-Amz-SignedHeaders")?),
        signature: need("X-Amz-Signature")?.to_owned(),
        time: time(need("X-Amz-Date")?)?,
        expires: Some(expires),
        unsigned_payload: content.as_deref() == Some("UNSIGNED-PAYLOAD"),
        access_key_id: scope.access_key_id,
        scope_date: scope.date,
        region: scope.region,
        service: scope.service,
        terminator: scope.terminator,
    })
}

/// `<access key id>/<date>/<region>/<service>/aws4_request`
struct Scope {
    access_key_id: String,
    date: String,
    region: String,
    service: String,
    terminator: String,
}

impl Scope {
    fn parse(credential: &str) -> Result<Self, SigError> {
        let parts: Vec<&str> = credential.split('/').collect();
        let [access_key_id, date, region, service, terminator] = parts[..] else {
            return Err(SigError::Incomplete(format!(
                "Credential must have exactly 5 slash-delimited elements, e.g. \
                 keyid/date/region/service/term, got '{}'",
                printable(credential),
            )));
        };
        Ok(Self {
            access_key_id: access_key_id.into(),
            date: date.into(),
            region: region.into(),
            service: service.into(),
            terminator: terminator.into(),
        })
    }
}

fn signed_header_names(list: &str) -> Vec<String> {
    list.split(';').map(|name| name.trim().to_ascii_lowercase()).collect()
}

/// ISO 8601 basic format, or what HTTP's `Date` has.
fn time(date: &str) -> Result<OffsetDateTime, SigError> {
    PrimitiveDateTime::parse(date, BASIC_FORMAT)
        .map(PrimitiveDateTime::assume_utc)
        .or_else(|_| OffsetDateTime::parse(&date.replace("GMT", "+0000"), &Rfc2822))
        .ok()
        // Far from both ends of the calendar, so that adding a week cannot overflow.
        .filter(|time| (1970..=9000).contains(&time.year()))
        .map(|time| time.to_offset(time::UtcOffset::UTC))
        .ok_or_else(|| {
            SigError::Incomplete(format!(
                "Date must be in ISO-8601 'basic format'. Got '{}'. See http://en.wikipedia.org/wiki/ISO_8601",
                printable(date),
            ))
        })
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// A header that may hold a valid signature is named in a message only by its hash.
fn hashed(authorization: &str) -> String {
    format!(
        "(Hashed with SHA-256 and encoded with Base64) Authorization={}",
        STANDARD.encode(Sha256::digest(authorization.as_bytes()))
    )
}
