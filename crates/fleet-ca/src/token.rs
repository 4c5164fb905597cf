//! The line of text with which a machine joins.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;

use crate::address::Address;
use crate::identity::Roles;

/// What every token begins with. The number is that of the format.
pub const TOKEN_PREFIX: &str = "emberbox-join-1.";
/// A token is a few hundred bytes; nothing longer is looked at.
const MAX_BYTES: usize = 2048;

/// Random bytes from the system, by way of the one cryptography provider.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut bytes).expect("the system has random bytes");
    bytes
}

/// 256 random bits that let their holder join. Shown by [`Token::to_line`] and on the way to a verified server, nowhere else.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(#[serde(with = "text32")] [u8; 32]);

impl Secret {
    /// A new one.
    pub fn new() -> Self {
        Self(random())
    }

    /// What may be kept.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0).into())
    }
}

impl Default for Secret {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

/// SHA-256 of a [`Secret`]. Compared in constant time. A slow hash would add nothing: 256 random bits cannot be tried out.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(#[serde(with = "text32")] [u8; 32]);

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", hex::encode(&self.0[..4]))
    }
}

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(#[serde(with = "text32")] [u8; 32]);

impl Fingerprint {
    /// Of this one.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a newcomer needs: where to ask, whom to believe, and the right to ask.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// A join server.
    #[serde(rename = "a")]
    pub address: Address,
    /// Of the fleet's CA certificate. No server with another one gets the secret.
    #[serde(rename = "f")]
    pub fingerprint: Fingerprint,
    /// The right to join.
    #[serde(rename = "s")]
    pub secret: Secret,
    /// What may be asked for. (What the server has recorded counts; this tells the newcomer.)
    #[serde(rename = "r")]
    pub roles: Roles,
    /// When it ends. In whole seconds.
    #[serde(rename = "e", with = "time::serde::timestamp")]
    pub expires: OffsetDateTime,
}

impl Token {
    /// The text for the newcomer, on one line. It is a secret.
    pub fn to_line(&self) -> String {
        let json = serde_json::to_vec(self).expect("a token is plain data");
        format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads what [`Token::to_line`] wrote; white space around it is passed over.
    ///
    /// # Errors
    /// It is no token, of another format, or damaged. The error names nothing of what was in it.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        let Some(body) = text.strip_prefix(TOKEN_PREFIX) else {
            return Err(if text.starts_with("emberbox-join-") { InvalidToken::Version } else { InvalidToken::NoToken });
        };
        if text.len() > MAX_BYTES {
            return Err(InvalidToken::Damaged);
        }
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| InvalidToken::Damaged)?;
        let token: Self = serde_json::from_slice(&json).map_err(|_| InvalidToken::Damaged)?;
        // There is one way to write a token: where a letter is another (of a host's name, say), it was changed.
        let is_whole = !token.roles.is_empty() && token.to_line() == text;
        if is_whole { Ok(token) } else { Err(InvalidToken::Damaged) }
    }
}

/// Why a text is no token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidToken {
    /// Something else.
    #[error("this is no token: one begins with {TOKEN_PREFIX}; `emberbox fleet token` makes it where the CA is")]
    NoToken,
    /// A future format.
    #[error("the token is of a format that this version of Emberbox does not know; use the version that made it")]
    Version,
    /// Cut off or changed.
    #[error("the token is damaged: copy the whole line that `emberbox fleet token` printed")]
    Damaged,
}

/// 32 bytes as base64url.
mod text32 {
    use super::{Engine, URL_SAFE_NO_PAD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| D::Error::custom("not 32 bytes of base64url"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{ROLES, Role};

    fn tokens() -> impl Strategy<Value = Token> {
        let hosts = prop_oneof![Just("10.0.0.1"), Just("join.example.org"), Just("[fd00::1]")];
        let roles = proptest::sample::subsequence(ROLES.to_vec(), 1..=ROLES.len());
        (hosts, 1..=u16::MAX, any::<[u8; 32]>(), any::<[u8; 32]>(), roles, 0..=253_402_300_799_i64).prop_map(
            |(host, port, secret, ca, roles, expires)| Token {
                address: format!("{host}:{port}").parse().unwrap(),
                fingerprint: Fingerprint(ca),
                secret: Secret(secret),
                roles: roles.into_iter().map(|role| role.parse::<Role>().unwrap()).collect(),
                expires: OffsetDateTime::from_unix_timestamp(expires).unwrap(),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(token in tokens()) {
            let line = token.to_line();
            prop_assert!(line.len() < MAX_BYTES && !line.contains(char::is_whitespace));
            prop_assert_eq!(Token::parse(&format!(" {line}\n")), Ok(token));
        }

        #[test]
        fn what_is_cut_or_changed_is_refused_or_another_token(token in tokens(), at in any::<prop::sample::Index>(), byte in "[A-Za-z0-9_-]") {
            let line = token.to_line();
            let at = at.index(line.len());
            prop_assert!(Token::parse(&line[..at]).is_err());
            let mut changed = line.clone();
            changed.replace_range(at..=at, &byte);
            if let Ok(other) = Token::parse(&changed) {
                prop_assert!(changed == line || other != token);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}", json in "[{}\":,a-z0-9\\[\\]]{0,80}") {
            prop_assert!(Token::parse(&text).is_err());
            for body in [text, URL_SAFE_NO_PAD.encode(json)] {
                let line = format!("{TOKEN_PREFIX}{body}");
                prop_assert!(Token::parse(&line).is_err());
            }
        }

        #[test]
        fn secrets_are_not_shown(token in tokens()) {
            let shown = format!("{token:?} {:?} {:?}", token.secret, token.secret.hash());
            let secret = URL_SAFE_NO_PAD.encode(token.secret.0);
            prop_assert!(!shown.contains(&secret) && !shown.contains(&hex::encode(token.secret.0)));
        }
    }

    #[test]
    fn the_error_says_what_to_do() {
        assert_eq!(Token::parse("emberbox-join-2.abc"), Err(InvalidToken::Version));
        assert_eq!(Token::parse("hello"), Err(InvalidToken::NoToken));
        assert_eq!(Token::parse(&format!("{TOKEN_PREFIX}{}", "A".repeat(1 << 20))), Err(InvalidToken::Damaged));
        assert_ne!(Secret::new(), Secret::new());
    }
}
