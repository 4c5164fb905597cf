//! Mutual TLS of a fleet: whose certificate is accepted for what.
//!
//! Members have no host names that others could check, so a certificate has the member's roles and id as URIs instead (see
//! [`Member::uri`]). A client accepts of a server only the certificate of the member that it meant to reach; a server accepts any member
//! of the fleet, and `access` looks at the roles.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, version};
use tokio::sync::watch;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::Member;

/// What a member proves itself with, and what it checks others by; all in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The fleet's certificate authority; several while it is exchanged.
    pub ca: String,
    /// The member's certificate, and what stands between it and the authority.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A text is not what it should be.
    #[error("TLS between roles: {what} cannot be used: {cause}; `emberbox fleet join` writes a member's files")]
    Unusable {
        /// Which text.
        what: &'static str,
        /// Why.
        cause: String,
    },
}

/// [`Tls`], read, and who is none of the fleet's any more. Shared by all connections of a process; a renewed certificate is used by the
/// next one on.
#[derive(Clone)]
pub struct Credentials(Arc<Own>);

struct Own {
    keys: RwLock<Arc<Keys>>,
    /// Ids.
    denied: watch::Sender<BTreeSet<String>>,
}

struct Keys {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
    server: Arc<ServerConfig>,
}

impl Credentials {
    /// Reads the texts. Fails on any that cannot be used, here rather than with the first connection.
    pub fn new(tls: &Tls) -> Result<Self, TlsError> {
        let keys = RwLock::new(Arc::new(Keys::new(tls)?));
        Ok(Self(Arc::new(Own { keys, denied: watch::Sender::default() })))
    }

    /// These members are none of the fleet's any more, and no others: from now on nobody connects to them, nor they to this process, and
    /// what connections with them there are is cut off.
    pub fn deny(&self, members: impl IntoIterator<Item = String>) {
        let members = members.into_iter().collect();
        self.0.denied.send_if_modified(|denied| {
            let other = *denied != members;
            *denied = members;
            other
        });
    }

    /// Who was denied, and each change of that.
    pub(crate) fn denied(&self) -> watch::Receiver<BTreeSet<String>> {
        self.0.denied.subscribe()
    }

    /// Takes a renewed certificate. Connections that there are stay, at most until the end of the one before.
    pub fn renew(&self, tls: &Tls) -> Result<(), TlsError> {
        let keys = Arc::new(Keys::new(tls)?);
        *self.0.keys.write() = keys;
        Ok(())
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.keys.read().server)
    }

    /// For a connection to `peer`, and to nobody else.
    pub(crate) fn client(&self, peer: &Member) -> Result<Arc<ClientConfig>, TlsError> {
        let keys = Arc::clone(&self.0.keys.read());
        let algorithms = keys.provider.signature_verification_algorithms;
        let verifier = IsMember { roots: Arc::clone(&keys.roots), algorithms, uri: peer.uri() };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&keys.provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable("TLS 1.3"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(keys.chain.clone(), keys.key.clone_key())
            .map_err(unusable("the certificate with its key"))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // The name in the handshake would be a made-up one.
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

impl Keys {
    fn new(tls: &Tls) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(&tls.ca, "the certificate authority")? {
            roots.add(root).map_err(unusable("the certificate authority"))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&tls.cert, "the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes()).map_err(unusable("the private key"))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(unusable("the certificate authority"))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable("TLS 1.3"))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable("the certificate with its key"))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { roots, chain, key, provider, server: Arc::new(server) })
    }
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(unusable(what))?;
    if certificates.is_empty() {
        return Err(unusable(what)("there is no certificate in it"));
    }
    Ok(certificates)
}

fn unusable<E: ToString>(what: &'static str) -> impl Fn(E) -> TlsError {
    move |cause| TlsError::Unusable { what, cause: cause.to_string() }
}

/// The members that a certificate, which was checked before, is for.
pub(crate) fn members(certificate: &CertificateDer<'_>) -> Vec<Member> {
    webpki::EndEntityCert::try_from(certificate)
        .map(|certificate| certificate.valid_uri_names().filter_map(Member::parse).collect())
        .unwrap_or_default()
}

/// When a certificate ends, by this process' clock; now, if that cannot be read.
pub(crate) fn ends(certificate: &CertificateDer<'_>) -> Instant {
    let not_after = X509Certificate::from_der(certificate).map(|(_, read)| read.validity().not_after.timestamp());
    let not_after = Duration::from_secs(not_after.ok().and_then(|at| u64::try_from(at).ok()).unwrap_or(0));
    let left = (SystemTime::UNIX_EPOCH + not_after).duration_since(SystemTime::now()).unwrap_or_default();
    // A time that is centuries away is one that never comes.
    Instant::now() + left.min(Duration::from_secs(10 * 365 * 24 * 3600))
}

/// Accepts the certificate of one member.
#[derive(Debug)]
struct IsMember {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    uri: String,
}

impl ServerCertVerifier for IsMember {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        let names: Vec<String> = members(certificate).iter().map(Member::uri).collect();
        if names.contains(&self.uri) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!("{} was meant, and the certificate is for {}", self.uri, names.join(", "))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
