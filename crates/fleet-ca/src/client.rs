//! The side of a newcomer, and of a member that renews.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::address::{Address, Host};
use crate::identity::{Identity, MemberId, Roles, identity_of, show_roles};
use crate::member::{Fleet, Member, MemberDir, MemberError, MemberKey};
use crate::protocol::{
    DENIED, Denied, DeniedRequest, Issued, JOIN, JoinRequest, MAX_BODY, MAX_DENIED, RENEW, Refused, RenewRequest,
};
use crate::show_time;
use crate::tls;
use crate::token::{Fingerprint, Token};

/// How long a connection, with its handshake, may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// As what to join.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The member's id, its own in the fleet.
    pub id: MemberId,
    /// Some of the token's roles; `None` for all of them.
    pub roles: Option<Roles>,
    /// Names and addresses by which others reach this machine; `None` for the address that it reaches the join server from.
    pub hosts: Option<Vec<Host>>,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// Who this machine is now.
    pub identity: Identity,
    /// Until when.
    pub not_after: OffsetDateTime,
}

/// Joins a fleet: makes a key, has it certified, and writes all of it into the directory, which must hold no member yet. The secret is
/// sent only to a server that has proved to be the fleet's.
///
/// # Errors
/// [`ClientError`]. Where the server has accepted the token and its answer was lost, the token may be used up.
pub async fn join(token: &Token, options: JoinOptions, dir: &MemberDir) -> Result<Joined, ClientError> {
    let roles = options.roles.unwrap_or_else(|| token.roles.clone());
    if !roles.is_subset(&token.roles) || roles.is_empty() {
        let (wanted, allowed) = (show_roles(&roles), show_roles(&token.roles));
        return Err(ClientError::Roles { wanted, allowed });
    }
    if OffsetDateTime::now_utc() >= token.expires {
        return Err(ClientError::Expired(token.expires));
    }
    let key = MemberKey::generate()?;
    dir.prepare(&key)?;
    let csr = key.csr(options.id.as_str())?;
    let config = tls::client(token.fingerprint, None).map_err(ClientError::Tls)?;
    let server = Connection::open(&token.address, config).await?;
    let hosts = options.hosts.unwrap_or_else(|| vec![Host::Ip(server.local.ip().to_canonical())]);
    let identity = Identity { id: options.id.clone(), roles: roles.clone() };
    let request = JoinRequest { secret: token.secret.clone(), csr, id: options.id, roles, hosts: hosts.clone() };
    let issued: Issued = server.post(JOIN, &request).await?;
    let ca = check(&issued, token.fingerprint, &key, &identity)?;
    let fleet = Fleet { join_server: token.address.clone(), hosts };
    dir.write(&issued.certificate, &issued.ca, &fleet)?;
    Ok(Joined { identity, not_after: ca })
}

/// Gets a new certificate for the same key, id and roles with the one that is there, and puts it in its place. See
/// [`Member::due`] for when.
///
/// # Errors
/// [`ClientError`]; the certificate that is there stays. One that has ended cannot be renewed: join again.
pub async fn renew(dir: &MemberDir) -> Result<Joined, ClientError> {
    let member = dir.load()?;
    if OffsetDateTime::now_utc() >= member.not_after {
        return Err(ClientError::Ended(member.not_after));
    }
    let Member { identity, key, fleet, .. } = &member;
    let config = tls::client(member.fingerprint(), Some(&member)).map_err(ClientError::Tls)?;
    let server = Connection::open(&fleet.join_server, config).await?;
    let request = RenewRequest { csr: key.csr(identity.id.as_str())?, hosts: fleet.hosts.clone() };
    let issued: Issued = server.post(RENEW, &request).await?;
    let not_after = check(&issued, member.fingerprint(), key, identity)?;
    dir.renew(&issued.certificate)?;
    Ok(Joined { identity: member.identity, not_after })
}

/// Who is no member any more, although it may have a certificate that is good.
///
/// # Errors
/// [`ClientError`]; [`ClientError::Refused`] also for one that was denied itself.
pub async fn denied(dir: &MemberDir) -> Result<BTreeSet<MemberId>, ClientError> {
    let member = dir.load()?;
    let config = tls::client(member.fingerprint(), Some(&member)).map_err(ClientError::Tls)?;
    let server = Connection::open(&member.fleet.join_server, config).await?;
    let Denied { denied } = server.post(DENIED, &DeniedRequest {}).await?;
    Ok(denied)
}

/// Whether the answer is what was asked for; its last moment.
fn check(issued: &Issued, pin: Fingerprint, key: &MemberKey, wanted: &Identity) -> Result<OffsetDateTime, ClientError> {
    let wrong = |why: &str| ClientError::Answer(why.to_owned());
    let read = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| wrong("no certificate in PEM"));
    let (certificate, ca) = (read(&issued.certificate)?, read(&issued.ca)?);
    if Fingerprint::of(&ca) != pin {
        return Err(wrong("its certificate authority is another one than that of the connection"));
    }
    tls::verify(&certificate, &ca, UnixTime::now())
        .map_err(|error| ClientError::Answer(format!("the certificate is not good: {error}")))?;
    if identity_of(&certificate).ok().as_ref() != Some(wanted) {
        return Err(wrong("the certificate is for somebody else"));
    }
    let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| wrong("the certificate cannot be read"))?;
    if parsed.public_key().raw != key.public_key() {
        return Err(wrong("the certificate is for another key"));
    }
    Ok(parsed.validity().not_after.to_datetime())
}

/// To a server that has proved who it is.
struct Connection {
    address: Address,
    local: SocketAddr,
    stream: TlsStream<TcpStream>,
}

impl Connection {
    async fn open(address: &Address, config: ClientConfig) -> Result<Self, ClientError> {
        let open = async {
            let stream = TcpStream::connect((address.host.to_string(), address.port)).await?;
            let local = stream.local_addr()?;
            let stream = TlsConnector::from(Arc::new(config)).connect(address.host.server_name(), stream).await?;
            Ok((local, stream))
        };
        let unreachable = |cause| ClientError::Unreachable { address: address.clone(), cause };
        match tokio::time::timeout(CONNECT, open).await {
            Ok(Ok((local, stream))) => Ok(Self { address: address.clone(), local, stream }),
            Ok(Err(error)) => Err(match tls_error(&error) {
                Some(rustls::Error::InvalidCertificate(why)) => {
                    ClientError::NotTheFleet { address: address.clone(), why: why.to_string() }
                }
                _ => unreachable(error),
            }),
            Err(_) => Err(unreachable(io::Error::new(io::ErrorKind::TimedOut, "no connection within 10 s"))),
        }
    }

    /// One request. Its answer is read to a bounded size.
    async fn post<T: DeserializeOwned>(self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let Self { address, stream, .. } = self;
        let body = serde_json::to_vec(body).expect("a request is plain data");
        let limit = if path == DENIED { MAX_DENIED } else { MAX_BODY };
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("constant names and an address make a request");
        let lost = |error: String| ClientError::Lost { address: address.clone(), cause: error };
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost(chain(&e)))?;
            let answer = async {
                let response = sender.send_request(request).await.map_err(|e| lost(chain(&e)))?;
                let (status, body) = (response.status(), Limited::new(response.into_body(), limit));
                let body = body.collect().await.map_err(|e| lost(e.to_string()))?.to_bytes();
                Ok::<_, ClientError>((status, body))
            };
            let mut answer = std::pin::pin!(answer);
            tokio::select! {
                // What was answered counts, also where the connection has ended with it.
                biased;
                answer = &mut answer => answer,
                ended = connection => match ended {
                    Ok(()) => answer.await,
                    Err(error) => Err(lost(chain(&error))),
                },
            }
        };
        let (status, body) = tokio::time::timeout(ANSWER, exchange)
            .await
            .unwrap_or_else(|_| Err(lost("no answer within 30 s".to_owned())))?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|e| ClientError::Answer(e.to_string()));
        }
        match serde_json::from_slice::<Refused>(&body) {
            Ok(Refused { code, message }) => Err(ClientError::Refused { code, message }),
            Err(_) => Err(ClientError::Answer(format!("HTTP status {status}"))),
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// An error with its causes: hyper's own words do not name them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// More, or none, of what the token is for.
    #[error("the token is for the roles {allowed}, not for {wanted}")]
    Roles {
        /// What was asked for.
        wanted: String,
        /// What may be.
        allowed: String,
    },
    /// By this machine's clock.
    #[error("the token ended at {at}; make another with `emberbox fleet token`", at = show_time(.0))]
    Expired(OffsetDateTime),
    /// The certificate to renew has.
    #[error(
        "the certificate ended at {at} and cannot be renewed: remove the directory, and join again with a new token", at = show_time(.0)
    )]
    Ended(OffsetDateTime),
    /// Nobody there, or it does not speak TLS 1.3. Nothing secret was sent.
    #[error("connect to the join server {address}: {cause}. Is it running, and can this machine reach it?")]
    Unreachable {
        /// Where.
        address: Address,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Somebody else is there. Nothing secret was sent.
    #[error(
        "the server at {address} is not the join server of this fleet: {why}. Another fleet is there, or somebody stands between; \
         nothing secret was sent"
    )]
    NotTheFleet {
        /// Where.
        address: Address,
        /// What is wrong with its certificate.
        why: String,
    },
    /// The connection ended.
    #[error(
        "no answer from the join server {address}: {cause}. If it has accepted the token, the token may be used up"
    )]
    Lost {
        /// Where.
        address: Address,
        /// Why.
        cause: String,
    },
    /// The server said no.
    #[error("the join server refused: {message} ({code})")]
    Refused {
        /// For programs, such as `TokenExpired`.
        code: String,
        /// For people.
        message: String,
    },
    /// The server said something else.
    #[error("the join server's answer cannot be used: {0}")]
    Answer(String),
    /// The directory, or the making of a key.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// TLS could not be set up.
    #[error("set up TLS: {0}")]
    Tls(#[source] rustls::Error),
}
