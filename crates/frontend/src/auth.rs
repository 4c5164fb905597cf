//! Who is calling, and whether that is true.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use domain::AccountId;
use http::header::AUTHORIZATION;

use crate::config::{Config, Credential};
use crate::sigv4::{self, Claim, SigError, SignedParts};

/// Whose request it is and where it is to be served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The caller's account.
    pub account: AccountId,
    /// The region of the credential scope, or the configured one.
    pub region: Arc<str>,
}

/// A caller whose head of request is in order; the proof may need the body.
#[derive(Debug)]
pub struct Admitted<'a> {
    /// Believed only after [`Admitted::prove`].
    pub identity: Identity,
    proof: Option<(Claim, &'a Credential)>,
}

impl Admitted<'_> {
    /// Checks the signature over the whole request.
    ///
    /// # Errors
    /// The signature is not that of the credential it names.
    pub fn prove(self, request: &SignedParts<'_>, body: &[u8]) -> Result<Identity, SigError> {
        if let Some((claim, credential)) = &self.proof {
            claim.verify(request, &credential.secret_access_key, body)?;
        }
        Ok(self.identity)
    }
}

/// Knows the credentials.
#[derive(Debug)]
pub struct Authenticator {
    credentials: HashMap<String, Credential>,
    region: Arc<str>,
}

impl Authenticator {
    /// With the credentials and default region of `config`.
    pub fn new(config: &Config) -> Self {
        let credentials = config.credentials.iter().map(|c| (c.access_key_id.clone(), c.clone())).collect();
        Self { credentials, region: config.region.as_str().into() }
    }

    /// Whether no credentials are configured, and being on this machine is all that a caller needs.
    pub fn trusts_loopback(&self) -> bool {
        self.credentials.is_empty()
    }

    /// Checks everything that needs no body.
    ///
    /// # Errors
    /// As AWS's common errors.
    pub fn admit(&self, request: &SignedParts<'_>, service: &str, now: SystemTime) -> Result<Admitted<'_>, SigError> {
        if self.trusts_loopback() {
            return Ok(Admitted { identity: self.unchecked(request), proof: None });
        }
        let claim = Claim::parse(request)?;
        let credential = self.credentials.get(&claim.access_key_id).ok_or(SigError::Unrecognized)?;
        if claim.session_token != credential.session_token {
            return Err(SigError::Unrecognized);
        }
        claim.check_scope(service)?;
        claim.check_time(now)?;
        let identity = Identity { account: credential.account.clone(), region: claim.region.as_str().into() };
        Ok(Admitted { identity, proof: Some((claim, credential)) })
    }

    /// Takes account and region from a credential scope, if there is one; proves nothing.
    fn unchecked(&self, request: &SignedParts<'_>) -> Identity {
        let header = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let scope = match header.split_once("Credential=") {
            Some((_, rest)) => rest.split([',', ' ']).next().map(str::to_owned),
            None => sigv4::parameter(request.query, "X-Amz-Credential"),
        };
        let scope = scope.unwrap_or_default();
        let mut parts = scope.split('/');
        let account = parts.next().and_then(AccountId::parse).unwrap_or_else(AccountId::local);
        let region = parts.nth(1).filter(|region| **region != *self.region && sigv4::is_region(region));
        Identity { account, region: region.map_or_else(|| Arc::clone(&self.region), Into::into) }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::config::CodeUrlKey;

    fn local() -> Authenticator {
        Authenticator::new(&Config::local("127.0.0.1:0".parse().unwrap(), CodeUrlKey([0; 32])))
    }

    fn identify(query: &str, authorization: Option<&str>) -> (String, String) {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        let parts = SignedParts { method: &Method::GET, path: "/", query, headers: &headers, authority: None };
        let local = local();
        let admitted = local.admit(&parts, "lambda", SystemTime::UNIX_EPOCH).unwrap();
        let identity = admitted.prove(&parts, b"").unwrap();
        (identity.account.to_string(), identity.region.to_string())
    }

    #[test]
    fn without_credentials_any_signature_or_none_will_do() {
        let default = ("000000000000".to_owned(), "us-east-1".to_owned());
        assert_eq!(identify("", None), default);
        assert_eq!(identify("", Some("garbage")), default);
        assert_eq!(identify("", Some("AWS4-HMAC-SHA256 Credential=///")), default);
        assert_eq!(
            identify("", Some("AWS4-HMAC-SHA256 Credential=test/20200101/../lambda/aws4_request, S=x")),
            default
        );
    }

    #[test]
    fn a_twelve_digit_key_is_an_account_and_the_scope_names_the_region() {
        let expected = ("123456789012".to_owned(), "eu-west-1".to_owned());
        let header =
            "AWS4-HMAC-SHA256 Credential=123456789012/20200101/eu-west-1/lambda/aws4_request, SignedHeaders=host";
        assert_eq!(identify("", Some(header)), expected);
        let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=123456789012%2F20200101%2Feu-west-1%2Flambda";
        assert_eq!(identify(query, None), expected);
    }
}
