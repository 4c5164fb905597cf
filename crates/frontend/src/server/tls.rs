//! HTTPS from certificate files.

use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tokio_rustls::TlsAcceptor;

use super::BindError;
use crate::config::TlsFiles;

pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, BindError> {
    let open = |path: &std::path::Path| {
        File::open(path).map(BufReader::new).map_err(|e| BindError::Tls(format!("open {}: {e}", path.display())))
    };
    let certificates: Vec<_> = rustls_pemfile::certs(&mut open(&files.certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|e| BindError::Tls(format!("read certificates in {}: {e}", files.certificate.display())))?;
    if certificates.is_empty() {
        let path = files.certificate.display();
        return Err(BindError::Tls(format!(
            "no certificate in {path}: it must hold a PEM chain, the server's own first"
        )));
    }
    let key = rustls_pemfile::private_key(&mut open(&files.private_key)?)
        .map_err(|e| BindError::Tls(format!("read private key in {}: {e}", files.private_key.display())))?
        .ok_or_else(|| BindError::Tls(format!("no PEM private key in {}", files.private_key.display())))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|e| BindError::Tls(format!("certificate and key do not make a server: {e}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
