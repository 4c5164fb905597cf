//! TLS 1.3 of both sides: whom a newcomer believes, and how the join server knows a member.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::ca::ServerIdentity;
use crate::identity::{JOIN_SERVER, uris};
use crate::member::Member;
use crate::token::Fingerprint;

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn only(ca: &CertificateDer<'_>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    Ok(roots)
}

/// Whether a certificate was made by this CA for servers or members, and is good now.
pub(crate) fn verify(certificate: &CertificateDer<'_>, ca: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &only(ca)?, &[], now, algorithms)
}

/// For a join server: a newcomer shows no certificate; one that is shown has to be a member's.
pub(crate) fn server(identity: ServerIdentity) -> Result<ServerConfig, Error> {
    let ca = identity.chain.last().expect("the CA ends the chain");
    let members = WebPkiClientVerifier::builder_with_provider(Arc::new(only(ca)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(members)
        .with_single_cert(identity.chain, identity.key)?;
    // A session that is taken up again has the certificate of its first handshake, which may have ended since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For a newcomer, or with `member` for one that renews.
pub(crate) fn client(pin: Fingerprint, member: Option<&Member>) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OnlyTheFleet { pin, provider: provider() }));
    Ok(match member {
        None => builder.with_no_client_auth(),
        Some(member) => builder.with_client_auth_cert(vec![member.certificate.clone()], member.key.for_tls())?,
    })
}

/// Believes one server alone: its chain ends in the CA with the fingerprint, and the CA made its certificate for a join server.
/// Under which name it was reached does not matter, as with a load balancer or an address translation between.
#[derive(Debug)]
struct OnlyTheFleet {
    pin: Fingerprint,
    provider: Arc<CryptoProvider>,
}

/// Why a server is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotBelieved {
    #[error("it does not show the certificate authority with the SHA-256 fingerprint {0}")]
    Authority(Fingerprint),
    #[error("its certificate is one of the fleet, but not that of a join server")]
    NoJoinServer,
}

impl From<NotBelieved> for Error {
    fn from(why: NotBelieved) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
    }
}

impl ServerCertVerifier for OnlyTheFleet {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = chain.iter().find(|ca| Fingerprint::of(ca) == self.pin).ok_or(NotBelieved::Authority(self.pin))?;
        verify(certificate, ca, now)?;
        let names = uris(certificate).map_err(|_| CertificateError::BadEncoding)?;
        if names != [JOIN_SERVER] {
            return Err(NotBelieved::NoJoinServer.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
