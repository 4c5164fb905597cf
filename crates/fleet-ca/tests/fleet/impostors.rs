//! Servers that are not the fleet's: none of them gets to see the secret.

use std::sync::Arc;

use fleet_ca::{Ca, ClientError, MemberKey, Token, join};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{Fleet, HOUR, der, issue, now, options, provider, tls_key};

/// Stands between, takes one connection, and says how many bytes came after the handshake.
async fn between(
    token: &mut Token,
    chain: Vec<CertificateDer<'static>>,
    key: &MemberKey,
) -> tokio::task::JoinHandle<usize> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, tls_key(key))
        .unwrap();
    // To answer before the client's last word of the handshake, as a server may.
    config.send_half_rtt_data = true;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    token.address = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else { return 0 };
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        heard.len()
    })
}

#[tokio::test]
async fn the_secret_is_for_the_join_server_alone() {
    let fleet = Fleet::start().await;
    let ca = fleet.ca();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Ca::create(elsewhere.path(), "test", now()).unwrap();
    let (foreign, foreign_key) = issue(&other, "f", "frontend", &["127.0.0.1"], now(), HOUR);
    let (member, member_key) = issue(&ca, "f", "frontend", &["127.0.0.1"], now(), HOUR);
    let fleets = ca.certificate().clone();
    let attempts = [
        ("another CA", vec![der(&foreign), other.certificate().clone()], &foreign_key),
        ("another CA, with the fleet's beside", vec![der(&foreign), fleets.clone()], &foreign_key),
        ("no CA", vec![der(&member)], &member_key),
        ("a member of the fleet", vec![der(&member), fleets], &member_key),
    ];
    for (what, chain, key) in attempts {
        let mut token = fleet.token("worker", 1).await;
        let heard = between(&mut token, chain, key).await;
        let dir = fleet.member_dir(what);
        let error = join(&token, options("w"), &dir).await.unwrap_err();
        let told = error.to_string();
        assert!(
            matches!(error, ClientError::NotTheFleet { .. }) && told.contains("nothing secret was sent"),
            "{what}: {told}"
        );
        assert_eq!(heard.await.unwrap(), 0, "{what}");
        assert!(dir.load().is_err());
        // And it was not used up: nobody saw it.
        token.address = fleet.address.to_string().parse().unwrap();
        join(&token, options("w"), &dir).await.unwrap();
    }
    fleet.stop().await;
}

#[tokio::test]
async fn no_server_or_no_tls_is_told_apart() {
    let fleet = Fleet::start().await;
    let mut token = fleet.token("worker", 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    token.address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let plain = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 1024];
        let n = stream.read(&mut heard).await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        heard[..n].to_vec()
    });
    let error = join(&token, options("w"), &fleet.member_dir("w")).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(plain.await.unwrap().starts_with(&[22]), "a TLS record and nothing else");
    let error = join(&token, options("w"), &fleet.member_dir("w")).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }) && error.to_string().contains("Is it running"), "{error}");
    fleet.stop().await;
}
