//! The join server: one small HTTPS server beside the CA.
//!
//! Everybody can connect, so everything is bounded: connections, the time of each (from accept to close), the sizes of head and
//! body, failures per address. One connection serves one request.

mod answer;
mod failures;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::ca::{Ca, IssueError, MEMBER_LIFE};
use crate::ledger::Ledger;
use crate::member::due;
use crate::tls;
use failures::Failures;

/// Most bytes of a request's head, and the size of the read buffer; hyper takes no less.
const HEAD_BYTES: usize = 8 << 10;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What an operator can choose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long members' certificates are good.
    pub member_life: Duration,
    /// How long a connection may take, from accept to close.
    pub time_limit: Duration,
    /// Connections at once; others wait in the kernel's queue.
    pub connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { member_life: MEMBER_LIFE, time_limit: Duration::from_secs(15), connections: 256 }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or not this machine's.
    #[error("listen for newcomers on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The server's own certificate.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// TLS could not be set up.
    #[error("set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Listens for newcomers and for members that renew.
pub struct JoinServer {
    listener: TcpListener,
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    identity: OwnCertificate,
}

/// What all connections use.
struct Shared {
    ca: Ca,
    ledger: Arc<dyn Ledger>,
    settings: Settings,
    failures: Mutex<Failures>,
}

impl JoinServer {
    /// Takes the address. Who connects before [`JoinServer::run`] waits.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(
        ca: Ca,
        ledger: Arc<dyn Ledger>,
        listen: SocketAddr,
        settings: Settings,
    ) -> Result<Self, BindError> {
        let identity = OwnCertificate::new(&ca)?;
        let listener = TcpListener::bind(listen).await.map_err(|error| BindError::Listen(listen, error))?;
        let local_addr = listener.local_addr().map_err(|error| BindError::Listen(listen, error))?;
        let shared = Arc::new(Shared { ca, ledger, settings, failures: Mutex::default() });
        Ok(Self { listener, local_addr, shared, identity })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown`; then it takes no more connections, and those that are open have what is left of their time limit.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let room = Arc::new(Semaphore::new(self.shared.settings.connections));
        let connections = TaskTracker::new();
        let accepting = async {
            loop {
                let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
                let (stream, peer) = match self.listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let tls = self.identity.acceptor(&self.shared.ca);
                let shared = Arc::clone(&self.shared);
                connections.spawn(async move {
                    let limit = shared.settings.time_limit;
                    if tokio::time::timeout(limit, shared.serve(stream, peer.ip(), tls)).await.is_err() {
                        tracing::debug!(%peer, "a newcomer's connection took too long");
                    }
                    drop(permit);
                });
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = accepting => {}
        }
        drop(self.listener);
        connections.close();
        connections.wait().await;
    }
}

/// The certificate that this server shows. It is made when the server starts, and anew when two thirds of its life are over.
struct OwnCertificate {
    acceptor: TlsAcceptor,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl OwnCertificate {
    fn new(ca: &Ca) -> Result<Self, BindError> {
        let identity = ca.server(OffsetDateTime::now_utc())?;
        let (not_before, not_after) = (identity.not_before, identity.not_after);
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(tls::server(identity)?)), not_before, not_after })
    }

    fn acceptor(&mut self, ca: &Ca) -> TlsAcceptor {
        if due(OffsetDateTime::now_utc(), self.not_before, self.not_after) {
            match Self::new(ca) {
                Ok(new) => *self = new,
                Err(error) => tracing::error!(%error, "the join server's certificate was not renewed"),
            }
        }
        self.acceptor.clone()
    }
}

impl Shared {
    /// One connection, which has one request.
    async fn serve(self: Arc<Self>, stream: TcpStream, peer: IpAddr, tls: TlsAcceptor) {
        let _ = stream.set_nodelay(true);
        let stream = match tls.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                // Not counted: what a load balancer does to see whether somebody listens looks like this.
                tracing::debug!(%peer, %error, "TLS handshake failed");
                return;
            }
        };
        let certificate = stream.get_ref().1.peer_certificates().map(|chain| chain[0].clone().into_owned());
        let limit = self.settings.time_limit;
        let answer = service_fn(|request| {
            let (shared, certificate) = (Arc::clone(&self), certificate.clone());
            async move { Ok::<_, Infallible>(shared.answer(request, peer, certificate).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limit)
            .max_buf_size(HEAD_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer);
        if let Err(error) = connection.await {
            tracing::debug!(%peer, %error, "a newcomer's connection ended");
        }
    }
}
