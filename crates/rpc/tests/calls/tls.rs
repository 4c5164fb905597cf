//! Who may connect, and call what.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use domain::{InitRequest, Worker, WorkerError, WorkerEvents, WorkerId};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rpc::{Channels, Credentials, Member, RemoteManager, RemoteWorker, Role, Services, Tls};

use crate::support::*;

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Two authorities of one name would be told apart by their signatures only.
        params.distinguished_name.push(DnType::CommonName, uuid::Uuid::new_v4().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// For a member with these roles.
    pub fn tls(&self, roles: &[Role], id: &str) -> Tls {
        self.tls_for(roles, id, None)
    }

    /// The same for a time.
    pub fn tls_for(&self, roles: &[Role], id: &str, life: Option<Duration>) -> Tls {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let name = |role: &Role| SanType::URI(Member::new(*role, id).uri().try_into().unwrap());
        params.subject_alt_names = roles.iter().map(name).collect();
        if let Some(life) = life {
            params.not_after = (std::time::SystemTime::now() + life).into();
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Tls { ca: self.0.pem(), cert: cert.pem(), key: key.serialize_pem() }
    }

    pub fn credentials(&self, roles: &[Role], id: &str) -> Credentials {
        Credentials::new(&self.tls(roles, id)).unwrap()
    }
}

struct World {
    authority: Authority,
    bench: Arc<Bench>,
    server: Running,
}

async fn world() -> World {
    let authority = Authority::new();
    let bench = Arc::new(Bench::default());
    bench.put(id(1), &version("f"));
    let services = Services { worker: Some(served(&bench)), ..rpc::Services::default() };
    let server = Running::start(services, Some(authority.credentials(&[Role::Worker], "worker-1"))).await;
    World { authority, bench, server }
}

impl World {
    /// The worker, as somebody with these credentials reaches it.
    fn by(&self, credentials: Credentials) -> RemoteWorker {
        self.at(self.server.address, credentials, "worker-1")
    }

    fn at(&self, address: SocketAddr, credentials: Credentials, worker: &str) -> RemoteWorker {
        let channels = Channels::new(Some(credentials), clock());
        let channel = channels.channel(&address.to_string(), &Member::new(Role::Worker, worker));
        RemoteWorker::new(WorkerId(worker.into()), channel, "manager-1".into())
    }
}

fn cause(error: &WorkerError) -> String {
    match error {
        WorkerError::Unreachable { cause, .. } => cause.clone(),
        other => panic!("unreachable, not {other:?}"),
    }
}

#[tokio::test]
async fn each_role_may_call_what_is_for_it() {
    let w = world().await;
    let frontend = w.by(w.authority.credentials(&[Role::Frontend], "frontend-1"));
    assert_eq!(frontend.invoke(id(1), request("1")).await.unwrap().payload, "1");
    let init = || InitRequest { sandbox: id(2), version: version("f") };
    let refused = cause(&frontend.init(init()).await.unwrap_err());
    assert!(refused.contains("Init is for worker-manager, not for frontend frontend-1"), "{refused}");

    let manager = w.by(w.authority.credentials(&[Role::WorkerManager], "manager-1"));
    manager.init(init()).await.unwrap();
    let refused = cause(&manager.invoke(id(1), request("1")).await.unwrap_err());
    assert!(refused.contains("Invoke is for frontend and pollers, not for worker-manager manager-1"), "{refused}");
    let heard = Arc::new(Heard::default());
    let watched = manager.watch(claim("manager-1", 1, &["manager-1"]), Arc::clone(&heard) as Arc<dyn WorkerEvents>);
    tokio::select! {
        () = watched => unreachable!("a watch never ends"),
        () = heard.wait_for("claimed [1 f Idle, 2 f Idle]") => {}
    }

    let both = w.by(w.authority.credentials(&[Role::Frontend, Role::WorkerManager], "manager-1")).at_epoch(1);
    both.invoke(id(1), request("1")).await.unwrap();
    both.init(InitRequest { sandbox: id(3), version: version("f") }).await.unwrap();

    let other = w.by(w.authority.credentials(&[Role::WorkerManager], "manager-2"));
    let refused = cause(&other.init(init()).await.unwrap_err());
    assert!(refused.contains("worker-manager manager-2 speaks as worker-manager manager-1"), "{refused}");
    let worker = w.by(w.authority.credentials(&[Role::Worker], "worker-2"));
    assert!(worker.invoke(id(1), request("1")).await.is_err() && !worker.has_package("x"));
    let nobody = w.by(w.authority.credentials(&[], "x"));
    assert!(nobody.invoke(id(1), request("1")).await.is_err());
    assert_eq!(w.bench.sandboxes().len(), 3);
}

#[tokio::test]
async fn managers_serve_frontends_only() {
    let w = world().await;
    let desk = Arc::new(Desk::default());
    *desk.lease.lock() =
        Some((id(1), Arc::new(w.by(w.authority.credentials(&[Role::WorkerManager], "manager-1")).at_epoch(1))));
    let service = rpc::ManagerServer::new(Arc::clone(&desk) as Arc<dyn domain::WorkerManager>, clock());
    let credentials = w.authority.credentials(&[Role::WorkerManager], "manager-1");
    let server = Running::start(Services { manager: Some(service), ..Services::default() }, Some(credentials)).await;
    for (role, allowed) in [(Role::Frontend, true), (Role::Pollers, true), (Role::Worker, false)] {
        let channels = Channels::new(Some(w.authority.credentials(&[role], "x")), clock());
        let manager = RemoteManager::new("manager-1".into(), &server.address.to_string(), &channels);
        let ask = domain::AssignRequest { version: version("f"), limits: limits() };
        match domain::WorkerManager::assign(&manager, ask).await {
            Ok(lease) => {
                assert!(allowed);
                assert!(lease.worker.invoke(lease.sandbox, request("1")).await.is_ok());
            }
            Err(error) => assert!(!allowed && error.to_string().contains("for frontend and pollers"), "{error}"),
        }
    }
    assert_eq!(desk.asked.lock().len(), 2);
}

#[tokio::test]
async fn strangers_are_refused_on_both_sides() {
    let w = world().await;
    let stranger = Authority::new();
    // Its certificate authority is another: neither accepts the other.
    let error =
        w.by(stranger.credentials(&[Role::Frontend], "frontend-1")).invoke(id(1), request("1")).await.unwrap_err();
    assert!(cause(&error).contains("UnknownIssuer") && error.retryable(), "{error}");
    // It knows the fleet's authority, and has no certificate of it.
    let tls = Tls { ca: w.authority.0.pem(), ..stranger.tls(&[Role::Frontend], "frontend-1") };
    let error = w.by(Credentials::new(&tls).unwrap()).invoke(id(1), request("1")).await.unwrap_err();
    println!("a stranger's certificate: {error}");
    // A member of the fleet, but not the one that was meant.
    let frontend = || w.authority.credentials(&[Role::Frontend], "frontend-1");
    let error = w.at(w.server.address, frontend(), "worker-2").invoke(id(1), request("1")).await.unwrap_err();
    let meant =
        "emberbox://fleet/worker/worker-2 was meant, and the certificate is for emberbox://fleet/worker/worker-1";
    assert!(cause(&error).contains(meant) && error.retryable(), "{error}");
    // In plain text.
    let plain = RemoteWorker::new(WorkerId("worker-1".into()), channel_to(&channels(), w.server.address), "m".into());
    let error = within(plain.invoke(id(1), request("1")), "the error").await.unwrap_err();
    println!("plain text: {error}");
    // Without a certificate.
    let error = within(without_certificate(w.server.address), "the error").await;
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    assert!(w.by(frontend()).invoke(id(1), request("1")).await.is_ok(), "members are served all the while");
}

/// What a client without a certificate reads.
async fn without_certificate(address: SocketAddr) -> std::io::Error {
    use rustls::pki_types::CertificateDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[derive(Debug)]
    struct Anybody(Vec<rustls::SignatureScheme>);
    impl rustls::client::danger::ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.clone()
        }
    }

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(schemes)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("fleet.emberbox").unwrap();
    let mut tls = match tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(tls) => tls,
        Err(error) => return error,
    };
    // In TLS 1.3 the client is done before the server has looked for its certificate.
    let _ = tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    loop {
        let mut read = [0; 1024];
        match tls.read(&mut read).await {
            Ok(0) => return std::io::Error::other("closed without a word"),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_from_the_next_connection_on() {
    let w = world().await;
    // Joins with what another fleet gave it.
    let credentials = Authority::new().credentials(&[Role::Frontend], "frontend-1");
    let frontend = w.by(credentials.clone());
    assert!(frontend.invoke(id(1), request("1")).await.is_err());
    credentials.renew(&w.authority.tls(&[Role::Frontend], "frontend-1")).unwrap();
    assert!(frontend.invoke(id(1), request("1")).await.is_ok());
}

#[test]
fn texts_that_cannot_be_used() {
    let authority = Authority::new();
    let good = authority.tls(&[Role::Worker], "w");
    let other = authority.tls(&[Role::Worker], "w");
    let cases = [
        (
            Tls { ca: String::new(), ..good.clone() },
            "the certificate authority cannot be used: there is no certificate in it",
        ),
        (Tls { cert: "x".into(), ..good.clone() }, "the certificate cannot be used"),
        (Tls { key: good.cert.clone(), ..good.clone() }, "the private key cannot be used"),
        (Tls { key: other.key, ..good }, "the certificate with its key cannot be used"),
    ];
    for (tls, expected) in cases {
        let error = Credentials::new(&tls).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("emberbox fleet join"), "{error}");
    }
}
