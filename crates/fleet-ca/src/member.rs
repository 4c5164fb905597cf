//! What a member has on its disk: its key, its certificate, and whom it believes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::address::{Address, Host};
use crate::files::{self, FileError, PUBLIC, SECRET};
use crate::identity::{Identity, InvalidIdentity, MemberId, identity_of};
use crate::token::Fingerprint;

/// The fleet's CA certificate, in PEM.
pub const CA_FILE: &str = "ca.pem";
/// The member's certificate, in PEM.
pub const CERTIFICATE_FILE: &str = "member.pem";
/// The member's private key, in PEM (PKCS #8), mode 0600.
pub const KEY_FILE: &str = "member.key";
/// Where to renew, and with which names; JSON.
pub const FLEET_FILE: &str = "fleet.json";
/// Who was denied, as far as this member knows; JSON.
pub const DENIED_FILE: &str = "denied.json";

/// Whether a certificate is to be renewed: two thirds of its life are over. The last third is the time in which a join server may be
/// away; ask again every hour or so.
pub fn due(now: OffsetDateTime, not_before: OffsetDateTime, not_after: OffsetDateTime) -> bool {
    now >= not_before + (not_after - not_before) / 3 * 2
}

/// How long to wait before looking again whether a certificate is due: until it is, an hour at most; then a thirtieth of its life at
/// a time, a minute at least.
fn wait(now: OffsetDateTime, not_before: OffsetDateTime, not_after: OffsetDateTime) -> Duration {
    let life = not_after - not_before;
    let until_due: time::Duration = not_before + life / 3 * 2 - now;
    let wait = if until_due.is_positive() { until_due } else { life / 30 };
    // Of what is negative or out of range, the bound.
    Duration::try_from(wait).unwrap_or_default().clamp(Duration::from_secs(60), Duration::from_secs(3600))
}

/// Renews a member's certificate whenever it is due, for as long as it is polled; hands over each new one, with its key, for the
/// connections from then on. Failures are logged, and it tries again.
pub async fn keep_renewed(dir: MemberDir, mut renewed: impl FnMut(Member) + Send) -> std::convert::Infallible {
    loop {
        let look = async {
            let member = dir.load()?;
            let mut life = (member.not_before, member.not_after);
            if member.due(OffsetDateTime::now_utc()) {
                crate::client::renew(&dir).await?;
                let member = dir.load()?;
                life = (member.not_before, member.not_after);
                renewed(member);
            }
            Ok::<_, crate::ClientError>(life)
        };
        let pause = match look.await {
            Ok((not_before, not_after)) => wait(OffsetDateTime::now_utc(), not_before, not_after),
            Err(error) => {
                tracing::error!(%error, directory = %dir.path().display(), "this member's certificate was not renewed");
                Duration::from_secs(60)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Asks the join server again and again who was denied, for as long as it is polled; hands over the list whenever it has grown, at
/// first the one that was known last. While the join server is away, that stays, and nobody is taken off it by a server that has
/// forgotten whom it denied: its ledger may be an older one. A join server that lies about it is trusted with more than that.
pub async fn keep_denied(
    dir: MemberDir,
    every: Duration,
    mut told: impl FnMut(&BTreeSet<MemberId>) + Send,
) -> std::convert::Infallible {
    let mut known = dir.denied();
    told(&known);
    let (mut away, mut forgotten) = (false, BTreeSet::new());
    loop {
        let directory = dir.path().display();
        match crate::client::denied(&dir).await {
            Ok(denied) => {
                away = false;
                let missing: BTreeSet<_> = known.difference(&denied).cloned().collect();
                if missing != forgotten && !missing.is_empty() {
                    tracing::warn!(
                        ?missing, %directory,
                        "the join server does not know of members that it denied; was its ledger lost, or restored from a copy? They stay \
                         denied here; deny them again, for those who did not hear of it"
                    );
                }
                forgotten = missing;
                let before = known.len();
                known.extend(denied);
                if known.len() > before {
                    tracing::info!(denied = ?known, "the members that were denied are others");
                    dir.write_denied(&known);
                    told(&known);
                }
            }
            Err(error) if !away => {
                away = true;
                tracing::warn!(%error, %directory, "cannot ask who was denied; what was known last stays");
            }
            Err(error) => tracing::debug!(%error, %directory, "still cannot ask who was denied"),
        }
        tokio::time::sleep(every).await;
    }
}

/// A member's private key. It is made where it is used, and leaves that machine never.
pub struct MemberKey(KeyPair);

impl MemberKey {
    /// A new one, ECDSA on P-256.
    ///
    /// # Errors
    /// The provider has no randomness.
    pub fn generate() -> Result<Self, MemberError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// Reads one.
    fn from_pem(pem: &str) -> Result<Self, MemberError> {
        Ok(Self(KeyPair::from_pem(pem)?))
    }

    /// Asks for a certificate for this key, in PEM. The name in it is for people who read requests.
    ///
    /// # Errors
    /// Encoding or signing failed.
    pub fn csr(&self, name: &str) -> Result<String, MemberError> {
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        params.distinguished_name = subject;
        Ok(params.serialize_request(&self.0)?.pem()?)
    }

    /// For the file. It is the secret itself.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    pub(crate) fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    pub(crate) fn for_tls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

impl std::fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[private key]")
    }
}

/// Beside the certificate, for its renewal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fleet {
    /// A join server.
    pub join_server: Address,
    /// The names that this member can be reached by.
    pub hosts: Vec<Host>,
}

/// Everything that is in a member's directory, checked.
#[derive(Debug)]
pub struct Member {
    /// Who it is.
    pub identity: Identity,
    /// In DER.
    pub certificate: CertificateDer<'static>,
    /// Of the fleet, in DER.
    pub ca: CertificateDer<'static>,
    /// To the certificate.
    pub key: MemberKey,
    /// Where to renew.
    pub fleet: Fleet,
    /// The certificate's first moment.
    pub not_before: OffsetDateTime,
    /// The certificate's last moment.
    pub not_after: OffsetDateTime,
}

impl Member {
    /// See [`due`].
    pub fn due(&self, now: OffsetDateTime) -> bool {
        due(now, self.not_before, self.not_after)
    }

    /// Of the fleet's CA.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.ca)
    }
}

/// A member's directory.
#[derive(Clone, Debug)]
pub struct MemberDir(PathBuf);

impl MemberDir {
    /// It need not be there yet.
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory where it is missing, makes sure that nobody has joined from it, and writes the key: a disk that takes
    /// nothing is found before the token is used.
    pub(crate) fn prepare(&self, key: &MemberKey) -> Result<(), MemberError> {
        files::make_dir(&self.0)?;
        let certificate = self.0.join(CERTIFICATE_FILE);
        if certificate.symlink_metadata().is_ok() {
            return Err(MemberError::Joined(certificate));
        }
        Ok(files::replace(&self.0.join(KEY_FILE), key.to_pem().as_bytes(), SECRET)?)
    }

    /// Writes what a newcomer got for the key of [`Self::prepare`]. The certificate comes last: where it is, everything is.
    pub(crate) fn write(&self, certificate: &str, ca: &str, fleet: &Fleet) -> Result<(), MemberError> {
        let fleet = serde_json::to_vec_pretty(fleet).expect("plain data");
        files::replace(&self.0.join(CA_FILE), ca.as_bytes(), PUBLIC)?;
        files::replace(&self.0.join(FLEET_FILE), &fleet, PUBLIC)?;
        let path = self.0.join(CERTIFICATE_FILE);
        files::create(&path, certificate.as_bytes(), PUBLIC).map_err(|error| match error.cause.kind() {
            std::io::ErrorKind::AlreadyExists => MemberError::Joined(path),
            _ => error.into(),
        })
    }

    /// Puts a renewed certificate in the place of the one before, which is for the same key.
    pub(crate) fn renew(&self, certificate: &str) -> Result<(), MemberError> {
        Ok(files::replace(&self.0.join(CERTIFICATE_FILE), certificate.as_bytes(), PUBLIC)?)
    }

    /// Who was denied, as it was known last: nobody where the file is missing. Whoever cannot read it begins with nobody as well, and
    /// says so: to serve, and ask, is better than to shut out all.
    fn denied(&self) -> BTreeSet<MemberId> {
        let path = self.0.join(DENIED_FILE);
        let read = match files::read(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| MemberError::Unknown(path, error.to_string())),
            Err(error) if error.cause.kind() == std::io::ErrorKind::NotFound => return BTreeSet::new(),
            Err(error) => Err(error.into()),
        };
        read.unwrap_or_else(|error| {
            tracing::error!(%error, "nobody is denied here until the join server has told who is");
            BTreeSet::new()
        })
    }

    fn write_denied(&self, denied: &BTreeSet<MemberId>) {
        let text = serde_json::to_vec(denied).expect("ids are plain data");
        if let Err(error) = files::replace(&self.0.join(DENIED_FILE), &text, PUBLIC) {
            tracing::error!(%error, "who was denied is not known after a restart without the join server");
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// Nobody has joined from it, others can read the key, or the files do not belong together. A certificate that has ended is no error.
    pub fn load(&self) -> Result<Member, MemberError> {
        let path = |name| self.0.join(name);
        if fs::symlink_metadata(path(CERTIFICATE_FILE)).is_err() {
            return Err(MemberError::Missing(self.0.clone()));
        }
        let read = |name| files::read(&path(name));
        let broken = |name, why: String| MemberError::Broken(path(name), why);
        let certificate = |name| {
            let pem = read(name)?;
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| broken(name, error.to_string()))
        };
        let (member, ca) = (certificate(CERTIFICATE_FILE)?, certificate(CA_FILE)?);
        let key = MemberKey::from_pem(&files::read_secret(&path(KEY_FILE))?)
            .map_err(|_| broken(KEY_FILE, "it is no private key in PEM".to_owned()))?;
        let fleet = serde_json::from_str(&read(FLEET_FILE)?).map_err(|error| broken(FLEET_FILE, error.to_string()))?;
        let identity = identity_of(&member)?;
        let (_, parsed) =
            X509Certificate::from_der(&member).map_err(|error| broken(CERTIFICATE_FILE, error.to_string()))?;
        if parsed.public_key().raw != key.public_key() {
            return Err(broken(CERTIFICATE_FILE, format!("it does not belong to {KEY_FILE}")));
        }
        let validity = parsed.validity();
        let (not_before, not_after) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        Ok(Member { identity, certificate: member, ca, key, fleet, not_before, not_after })
    }
}

/// What is wrong with a member's directory.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// Somebody has joined from here.
    #[error("{} is there already: this machine has joined a fleet. To join again, name another directory, or remove this one", .0.display())]
    Joined(PathBuf),
    /// Nobody has.
    #[error("no member's certificate is in {}; `emberbox fleet join TOKEN` gets one", .0.display())]
    Missing(PathBuf),
    /// Damaged.
    #[error("{path}: {1}. Remove the directory and join again", path = .0.display())]
    Broken(PathBuf, String),
    /// Who was denied is not to be read.
    #[error("{path}: {1}", path = .0.display())]
    Unknown(PathBuf, String),
    /// A certificate of something else.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// Key or request.
    #[error("make a key or a request: {0}")]
    Make(#[from] rcgen::Error),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    #[test]
    fn renewal_is_due_at_two_thirds() {
        let day = 86_400;
        assert!(!due(at(20 * day - 1), at(0), at(30 * day)));
        assert!(due(at(20 * day), at(0), at(30 * day)));
        assert!(due(at(31 * day), at(0), at(30 * day)), "and when it is over");
    }

    #[test]
    fn it_is_looked_at_when_it_is_due_and_often_enough_then() {
        let day = 86_400;
        let asked = |now| wait(at(now), at(0), at(30 * day)).as_secs();
        assert_eq!((asked(0), asked(20 * day - 600), asked(20 * day - 1)), (3600, 600, 60));
        assert_eq!((asked(20 * day), asked(29 * day)), (3600, 3600));
        assert_eq!(wait(at(50), at(0), at(60)).as_secs(), 60, "one of a minute");
        assert_eq!(wait(at(0), at(9), at(3)).as_secs(), 60, "nonsense");
    }

    proptest! {
        #[test]
        fn once_due_always_due(from in 0..4_000_000_000_i64, life in 0..400_000_000_i64, now in 0..5_000_000_000_i64) {
            let asked = |now| due(at(now), at(from), at(from + life));
            prop_assert!(!asked(now) || asked(now + 1));
            prop_assert!(asked(from + life), "before the end");
            prop_assert!(life < 3 || !asked(from), "not at the beginning");
        }
    }
}
