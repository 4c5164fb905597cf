//! A fleet of one CA and one join server, and a client without manners.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use fleet_ca::{
    Ca, Host, Identity, JoinOptions, JoinServer, Ledger, MemberDir, MemberKey, MemoryLedger, Secret, Settings, Token,
    TokenRecord, parse_roles,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing_subscriber::fmt::MakeWriter;

pub const HOUR: Duration = Duration::from_secs(3600);

/// What all of these tests have logged, everything that there is to log.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

/// Begins to collect it.
pub fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone());
        tracing::subscriber::set_global_default(subscriber.with_ansi(false).finish()).unwrap();
        log
    })
}

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

pub fn identity(id: &str, roles: &str) -> Identity {
    Identity { id: id.parse().unwrap(), roles: parse_roles(roles).unwrap() }
}

pub fn options(id: &str) -> JoinOptions {
    JoinOptions { id: id.parse().unwrap(), roles: None, hosts: None }
}

/// A member's certificate and key made without a join server.
pub fn issue(
    ca: &Ca,
    id: &str,
    roles: &str,
    hosts: &[&str],
    now: OffsetDateTime,
    life: Duration,
) -> (String, MemberKey) {
    let key = MemberKey::generate().unwrap();
    let csr = fleet_ca::Csr::parse(&key.csr("whoever").unwrap()).unwrap();
    let hosts = hosts.iter().map(|host| host.parse::<Host>().unwrap()).collect();
    let subject = fleet_ca::Subject { identity: identity(id, roles), hosts };
    (ca.issue(&csr, &subject, now, life).unwrap(), key)
}

pub fn tls_key(key: &MemberKey) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(key.to_pem().as_bytes()).unwrap()
}

/// One fleet.
pub struct Fleet {
    pub dir: TempDir,
    pub ledger: MemoryLedger,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        log();
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::create(&dir.path().join("ca"), "test", now()).unwrap();
        let ledger = MemoryLedger::default();
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = JoinServer::bind(ca, Arc::new(ledger.clone()), listen, settings).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self { dir, ledger, address, stop: Some(stop), running }
    }

    /// The same authority once more.
    pub fn ca(&self) -> Ca {
        Ca::load(&self.dir.path().join("ca")).unwrap()
    }

    pub fn member_dir(&self, name: &str) -> MemberDir {
        MemberDir::new(&self.dir.path().join(name))
    }

    pub async fn token(&self, roles: &str, uses: u32) -> Token {
        self.token_until(roles, uses, now() + HOUR).await
    }

    pub async fn token_until(&self, roles: &str, uses: u32, expires: OffsetDateTime) -> Token {
        let roles = parse_roles(roles).unwrap();
        let secret = Secret::new();
        let record = TokenRecord { hash: secret.hash(), roles: roles.clone(), expires, uses_left: uses };
        self.ledger.add(record, now()).await.unwrap();
        let address = self.address.to_string().parse().unwrap();
        Token { address, fingerprint: self.ca().fingerprint(), secret, roles, expires: now() + HOUR }
    }

    /// Ends when all connections have.
    pub async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.running.await.unwrap();
    }
}

/// Connects without looking at the server's certificate, with the client's own if there is one.
pub async fn connect(address: SocketAddr, own: Option<(&str, &MemberKey)>) -> std::io::Result<TlsStream<TcpStream>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            // As it is: whether the key belongs to the certificate is for the server to find out.
            let key = aws_lc_rs::sign::any_supported_type(&tls_key(key)).unwrap();
            let own = CertifiedKey::new(vec![der(certificate)], key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        }
    };
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// Sends bytes, and reads until the server closes. What it said.
pub async fn say(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> String {
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    hear(stream).await
}

/// Reads until the server closes, cleanly or not.
pub async fn hear(stream: &mut TlsStream<TcpStream>) -> String {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        heard.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(heard).unwrap()
}

/// One request of its own connection.
pub async fn post(address: SocketAddr, path: &str, body: &str) -> String {
    let mut stream = connect(address, None).await.unwrap();
    say(&mut stream, http(path, body).as_bytes()).await
}

pub fn http(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Whether an answer has this status and code.
#[track_caller]
pub fn assert_refused(answer: &str, status: u16, code: &str) {
    let start = format!("HTTP/1.1 {status} ");
    assert!(answer.starts_with(&start) && answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
