//! HTTPS from certificate files.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::BindError;
use crate::config::TlsFiles;

pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, BindError> {
    let unreadable = |what, path: &std::path::Path, error: PemError| {
        BindError::Tls(match error {
            PemError::NoItemsFound => format!("no PEM {what} in {}", path.display()),
            other => format!("read {what} in {}: {other}", path.display()),
        })
    };
    let bad_certificate = |error| unreadable("certificate", &files.certificate, error);
    let certificates: Vec<_> = CertificateDer::pem_file_iter(&files.certificate)
        .map_err(bad_certificate)?
        .collect::<Result<_, _>>()
        .map_err(bad_certificate)?;
    if certificates.is_empty() {
        return Err(bad_certificate(PemError::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_file(&files.private_key)
        .map_err(|error| unreadable("private key", &files.private_key, error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|e| BindError::Tls(format!("certificate and key do not make a server: {e}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
