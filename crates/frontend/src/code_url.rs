//! `Code.Location`: addresses from which a code package can be downloaded without a signature, for ten minutes.
//!
//! `<endpoint>/_emberbox/code/<sha-256 of the zip, hex>?Expires=<seconds since 1970>&Signature=<HMAC, hex>`

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::config::CodeUrlKey;
use crate::sigv4::parameter;

/// Where the paths of these addresses begin.
pub const PREFIX: &str = "/_emberbox/code/";
/// How long an address is good for; as on AWS.
const LIFE: Duration = Duration::from_secs(600);

/// Makes and checks such addresses.
#[derive(Debug)]
pub struct CodeUrls(CodeUrlKey);

impl CodeUrls {
    /// All frontends of an installation need the same key.
    pub fn new(key: CodeUrlKey) -> Self {
        Self(key)
    }

    /// The address of a package below `endpoint`; `None` if the hash is none.
    pub fn make(&self, endpoint: &str, sha256_base64: &str, now: SystemTime) -> Option<String> {
        let hash: [u8; 32] = STANDARD.decode(sha256_base64).ok()?.try_into().ok()?;
        let expires = seconds(now + LIFE);
        let signature = hex::encode(self.mac(&hash, expires).finalize().into_bytes());
        Some(format!("{endpoint}{PREFIX}{}?Expires={expires}&Signature={signature}", hex::encode(hash)))
    }

    /// The package that an address is for, as base64 of its SHA-256, if we made the address and it is still good.
    pub fn check(&self, path: &str, query: &str, now: SystemTime) -> Option<String> {
        let hash: [u8; 32] = hex::decode(path.strip_prefix(PREFIX)?).ok()?.try_into().ok()?;
        let expires: u64 = parameter(query, "Expires")?.parse().ok()?;
        let signature = hex::decode(parameter(query, "Signature")?).ok()?;
        self.mac(&hash, expires).verify_slice(&signature).ok()?;
        (seconds(now) <= expires).then(|| STANDARD.encode(hash))
    }

    fn mac(&self, hash: &[u8; 32], expires: u64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0.0).expect("HMAC takes keys of any length");
        mac.update(hash);
        mac.update(&expires.to_be_bytes());
        mac
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn an_address_is_good_for_ten_minutes_and_for_one_package() {
        let urls = CodeUrls::new(CodeUrlKey([7; 32]));
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let url = urls.make("http://127.0.0.1:4566", SHA, now).unwrap();
        let (path, query) = url.strip_prefix("http://127.0.0.1:4566").unwrap().split_once('?').unwrap();
        assert_eq!(urls.check(path, query, now).as_deref(), Some(SHA));
        assert_eq!(urls.check(path, query, now + LIFE).as_deref(), Some(SHA));
        assert_eq!(urls.check(path, query, now + LIFE + Duration::from_secs(1)), None);
        assert_eq!(CodeUrls::new(CodeUrlKey([8; 32])).check(path, query, now), None);
        let other = format!("{PREFIX}{}", "00".repeat(32));
        assert_eq!(urls.check(&other, query, now), None);
        assert_eq!(urls.check(path, &query.replace("Expires=1", "Expires=2"), now), None);
        for (path, query) in [(PREFIX, query), ("/x", query), (path, ""), (path, "Expires=1&Signature=zz")] {
            assert_eq!(urls.check(path, query, now), None, "{path}?{query}");
        }
    }
}
