//! The authority: its key, and the certificates that it makes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration as StdDuration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::address::Host;
use crate::csr::Csr;
use crate::files::{self, FileError, PUBLIC, SECRET};
use crate::identity::{Identity, JOIN_SERVER};
use crate::show_time;
use crate::token::{Fingerprint, random};

/// The CA's certificate, in its directory.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// The CA's private key, in its directory.
pub const CA_KEY: &str = "ca.key";
/// How long a member's certificate is good.
pub const MEMBER_LIFE: StdDuration = StdDuration::from_secs(30 * 86_400);
/// The longest that one may be made for.
pub const MAX_LIFE: StdDuration = StdDuration::from_secs(366 * 86_400);
/// How long the CA itself is good: ten years with their leap days. There is no way to change a fleet's CA without a new fleet.
const CA_LIFE: Duration = Duration::days(3652);
/// How far back a certificate begins, for machines whose clocks are behind.
const BACKDATED: Duration = Duration::minutes(5);
/// How long the join server's own certificate is good, which is in memory only.
const SERVER_LIFE: Duration = Duration::days(7);

/// A fleet's certificate authority, with its private key.
pub struct Ca {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: OffsetDateTime,
}

/// Whom a certificate is for.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it proves.
    pub identity: Identity,
    /// Names and addresses that it carries besides; they prove nothing.
    pub hosts: Vec<Host>,
}

impl Ca {
    /// Makes a new authority, and writes it into a directory (made if missing, for this user alone): [`CA_CERTIFICATE`], and
    /// [`CA_KEY`] with mode 0600. `name` is for people: it stands in the certificate, as `<name> fleet CA`.
    ///
    /// # Errors
    /// There is one in the directory, which is never overwritten; the name is empty, longer than 50 bytes or has control
    /// characters; the directory cannot be written.
    pub fn create(dir: &Path, name: &str, now: OffsetDateTime) -> Result<Self, CaError> {
        if name.is_empty() || name.len() > 50 || name.contains(char::is_control) {
            return Err(CaError::Name(name.to_owned()));
        }
        let (key_path, pem_path) = (dir.join(CA_KEY), dir.join(CA_CERTIFICATE));
        files::make_dir(dir)?;
        if let Some(path) = [&key_path, &pem_path].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(CaError::Exists(path.clone()));
        }
        let key = KeyPair::generate()?;
        let mut params = params(&format!("{name} fleet CA"), now, now + CA_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let exists = |path: &Path| {
            let path = path.to_owned();
            move |error: FileError| match error.cause.kind() {
                std::io::ErrorKind::AlreadyExists => CaError::Exists(path),
                _ => CaError::File(error),
            }
        };
        // The key first: a certificate whose key was never written would look like an authority.
        files::create(&key_path, key.serialize_pem().as_bytes(), SECRET).map_err(exists(&key_path))?;
        files::create(&pem_path, certificate.pem().as_bytes(), PUBLIC).map_err(exists(&pem_path))?;
        Self::load(dir)
    }

    /// Reads the authority that [`Ca::create`] wrote.
    ///
    /// # Errors
    /// It is not there, its key can be read by others, or key and certificate are damaged or do not belong together.
    pub fn load(dir: &Path) -> Result<Self, CaError> {
        let (key_path, pem_path) = (dir.join(CA_KEY), dir.join(CA_CERTIFICATE));
        let pem = match files::read(&pem_path) {
            Err(error) if error.cause.kind() == std::io::ErrorKind::NotFound => {
                return Err(CaError::Missing(dir.to_owned()));
            }
            other => other?,
        };
        let key = files::read_secret(&key_path)?;
        let broken = |path: &Path, why: String| CaError::Broken(path.to_owned(), why);
        let key = KeyPair::from_pem(&key).map_err(|_| broken(&key_path, "it is no private key in PEM".to_owned()))?;
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| broken(&pem_path, e.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|e| broken(&pem_path, e.to_string()))?;
        if !parsed.is_ca() || parsed.verify_signature(None).is_err() {
            return Err(broken(&pem_path, "it is not the certificate of an authority".to_owned()));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(broken(&pem_path, format!("it does not belong to the key in {}", key_path.display())));
        }
        let not_after = parsed.validity().not_after.to_datetime();
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, pem, issuer, not_after })
    }

    /// In DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Of the certificate: what tokens carry.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// When the authority ends, and with it the fleet.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Makes a member's certificate, in PEM: good from five minutes before `now` on, for `life` ([`MAX_LIFE`] at most) but not
    /// longer than the authority itself. What the request asks for besides its key is ignored.
    ///
    /// # Errors
    /// The authority has ended, or `life` is zero.
    pub fn issue(
        &self,
        csr: &Csr,
        subject: &Subject,
        now: OffsetDateTime,
        life: StdDuration,
    ) -> Result<String, IssueError> {
        let until = now + life.min(MAX_LIFE);
        let mut params = self.leaf(subject.identity.id.as_str(), now, until)?;
        let uris = subject.identity.uris().map(|uri| Ok(SanType::URI(Ia5String::try_from(uri)?)));
        let hosts = subject.hosts.iter().map(|host| {
            Ok(match host {
                Host::Name(name) => SanType::DnsName(Ia5String::try_from(name.as_ref())?),
                Host::Ip(ip) => SanType::IpAddress(*ip),
            })
        });
        params.subject_alt_names = uris.chain(hosts).collect::<Result<_, rcgen::Error>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&csr.0, &self.issuer)?.pem())
    }

    /// A certificate for the join server of this process, with its chain, its key, and its first and last moment.
    pub(crate) fn server(&self, now: OffsetDateTime) -> Result<ServerIdentity, IssueError> {
        let until = (now + SERVER_LIFE).min(self.not_after);
        let mut params = self.leaf("join server", now, until)?;
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(JOIN_SERVER)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Ok(ServerIdentity { chain, key, not_before: params.not_before, not_after: until })
    }

    fn leaf(&self, name: &str, now: OffsetDateTime, until: OffsetDateTime) -> Result<CertificateParams, IssueError> {
        let until = until.min(self.not_after);
        if now >= self.not_after {
            return Err(IssueError::Ended(self.not_after));
        }
        if until <= now {
            return Err(IssueError::NoLife);
        }
        let mut params = params(name, now, until);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// Without the key.
impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("fingerprint", &self.fingerprint()).field("not_after", &self.not_after).finish()
    }
}

/// What a join server shows.
pub(crate) struct ServerIdentity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

/// What all certificates have in common.
fn params(name: &str, now: OffsetDateTime, until: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = now - BACKDATED;
    params.not_after = until;
    // rcgen would make it of the key, and a renewed certificate would have the number of the one before. RFC 5280, 4.1.2.2:
    // positive, at most 20 bytes.
    let mut serial: [u8; 16] = random();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// One is there, or half of one.
    #[error(
        "{path} is there already, and an authority is never overwritten: whoever has it is a member by it. Name another \
         directory, or remove it if no fleet uses it", path = .0.display()
    )]
    Exists(PathBuf),
    /// None is there.
    #[error("there is no certificate authority in {path}; `emberbox fleet init` makes one, on one machine of the fleet", path = .0.display())]
    Missing(PathBuf),
    /// Not for a certificate.
    #[error("`{0}` cannot name a fleet: write 1 to 50 bytes without control characters")]
    Name(String),
    /// Damaged, or not what it should be.
    #[error("{path}: {1}. Bring it back from a backup", path = .0.display())]
    Broken(PathBuf, String),
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// The making of key or certificate.
    #[error("make the authority: {0}")]
    Make(#[from] rcgen::Error),
}

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The authority's own certificate is over.
    #[error("the fleet's authority ended at {at}; make a new fleet with `emberbox fleet init`", at = show_time(.0))]
    Ended(OffsetDateTime),
    /// Over before it began.
    #[error("a certificate has to be good for a while")]
    NoLife,
    /// Encoding or signing.
    #[error("make the certificate: {0}")]
    Make(#[from] rcgen::Error),
}
