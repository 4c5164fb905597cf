//! A request for a certificate, as far as it is believed: one public key whose private half the sender has.

use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// A checked PKCS #10 request (RFC 2986). Names, usages and extensions that it asks for are not even kept: the CA decides.
#[derive(Debug)]
pub struct Csr(pub(crate) SubjectPublicKeyInfo);

impl Csr {
    /// Reads one request in PEM, and checks that it is signed with the key that it holds.
    ///
    /// # Errors
    /// It is none, is not signed by its own key, or the key is not ECDSA on P-256.
    pub fn parse(pem: &str) -> Result<Self, InvalidCsr> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| InvalidCsr::NoRequest)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| InvalidCsr::NoRequest)?;
        if !rest.is_empty() {
            return Err(InvalidCsr::NoRequest);
        }
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw);
        let key = key.ok().filter(|key| key.algorithm() == &PKCS_ECDSA_P256_SHA256).ok_or(InvalidCsr::Key)?;
        request.verify_signature().map_err(|_| InvalidCsr::Signature)?;
        Ok(Self(key))
    }

    /// The public key, in DER.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

/// Why a request gets no certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidCsr {
    /// Something else.
    #[error("it is not one PKCS #10 request in PEM")]
    NoRequest,
    /// Another algorithm.
    #[error("its key is not ECDSA on the curve P-256")]
    Key,
    /// Whoever sent it may not have the private key.
    #[error("it is not signed by its own key")]
    Signature,
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pem(der: &[u8]) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
    }

    #[test]
    fn only_a_key_of_ones_own_is_taken() {
        let key = KeyPair::generate().unwrap();
        let der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        assert_eq!(Csr::parse(&pem(&der)).unwrap().public_key(), key.subject_public_key_info());
        let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let ed = CertificateParams::default().serialize_request(&ed).unwrap().der().to_vec();
        assert_eq!(Csr::parse(&pem(&ed)).unwrap_err(), InvalidCsr::Key);
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let p384 = CertificateParams::default().serialize_request(&p384).unwrap().der().to_vec();
        assert_eq!(Csr::parse(&pem(&p384)).unwrap_err(), InvalidCsr::Key);
        // Somebody else's key in a request of one's own.
        let other = KeyPair::generate().unwrap();
        let own = key.der_bytes();
        let at = der.windows(own.len()).position(|window| window == own).unwrap();
        let mut swapped = der.clone();
        swapped[at..at + own.len()].copy_from_slice(other.der_bytes());
        assert_eq!(Csr::parse(&pem(&swapped)).unwrap_err(), InvalidCsr::Signature);
        let mut longer = der.clone();
        longer.push(0);
        for bad in [pem(&longer), pem(b""), pem(&der[..der.len() - 1]), String::new(), key.serialize_pem()] {
            assert_eq!(Csr::parse(&bad).unwrap_err(), InvalidCsr::NoRequest, "{bad}");
        }
    }

    #[test]
    fn no_changed_byte_changes_the_key() {
        let key = KeyPair::generate().unwrap();
        let der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            // Around what is signed a parser may be lenient.
            let taken = Csr::parse(&pem(&changed)).map(|csr| csr.public_key());
            assert!(taken.is_err() || taken == Ok(key.subject_public_key_info()), "byte {at}");
        }
    }
}
