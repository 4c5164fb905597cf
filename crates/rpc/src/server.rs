//! Listens for the other members, and gives each request to its service.

use std::collections::{BTreeSet, HashSet};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service as _;

use crate::access::{Refusal, Target, admit};
use crate::failure::chain;
use crate::frontend::FrontendServer;
use crate::identity::Peer;
use crate::logs::{self, LogsServer};
use crate::manager::server::{ManagerServer, Undelivered};
use crate::net::{Io, Listen};
use crate::pb::frontend_server::FrontendServer as FrontendGrpc;
use crate::pb::logs_server::LogsServer as LogsGrpc;
use crate::pb::placement_server::PlacementServer as PlacementGrpc;
use crate::pb::quota_server::QuotaServer as QuotaGrpc;
use crate::pb::status_server::StatusServer as StatusGrpc;
use crate::pb::worker_manager_server::WorkerManagerServer as ManagerGrpc;
use crate::pb::worker_server::WorkerServer as WorkerGrpc;
use crate::placement::PlacementServer;
use crate::quota::QuotaServer;
use crate::status::StatusServer;
use crate::tls::{Credentials, ends, members};
use crate::worker::server::WorkerServer;

/// For the handshake of TLS.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// After an accept that failed (mostly: no file descriptor is left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Handshakes at once: of strangers, who all of these may be. More are closed at once; a member that meets this tries again.
const HANDSHAKES: usize = 256;
/// Connections of members at once. Each member has one for each process, and operators come and go.
const CONNECTIONS: usize = 8192;
/// The head of one call, in bytes: a path, and a few lines of gRPC's.
const HEAD: u32 = 16 << 10;
/// How long calls may go on on a connection whose certificate has ended, or whose member has left: longer than the longest call.
const LINGER: Duration = Duration::from_secs(16 * 60);
/// Calls at once on one connection: sandboxes that one member can have in use at one other.
const CALLS: u32 = 100_000;
/// Calls that were cancelled before they were looked at; a member that goes down cancels all of its own at once.
const CANCELLED_CALLS: usize = 10_000;

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Without certificates.
    #[error(
        "listen for other roles on {0}: without certificates only loopback addresses are allowed, since any machine that reaches this one \
         could run functions; run `emberbox fleet join`, or listen on 127.0.0.1"
    )]
    PlainText(SocketAddr),
    /// The system refused.
    #[error("listen for other roles on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
}

/// What a process serves, by its roles.
#[derive(Clone, Default)]
pub struct Services {
    /// It is a worker.
    pub worker: Option<WorkerServer>,
    /// It is a worker manager.
    pub manager: Option<ManagerServer>,
    /// And the home of accounts.
    pub quota: Option<QuotaServer>,
    /// It has a copy of the metadata.
    pub frontend: Option<FrontendServer>,
    /// It is a worker: what was written there.
    pub logs: Option<LogsServer>,
    /// It decides where sandboxes go.
    pub placement: Option<PlacementServer>,
    /// Every process says how it is.
    pub status: Option<StatusServer>,
}

/// A socket that listens.
pub struct Server {
    listener: Listener,
    address: SocketAddr,
    credentials: Option<Credentials>,
    present: Option<watch::Receiver<Arc<HashSet<String>>>>,
}

impl Server {
    /// Listens; port 0 is any free one.
    pub async fn bind(address: SocketAddr, credentials: Option<Credentials>) -> Result<Self, ServeError> {
        if credentials.is_none() && !address.ip().is_loopback() {
            return Err(ServeError::PlainText(address));
        }
        let failed = |cause| ServeError::Listen { address, cause };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener: Listener::Tcp(listener), address, credentials, present: None })
    }

    /// Takes the connections of `listener`, in plain text and of anybody: for simulations.
    pub fn over(listener: Box<dyn Listen>, address: SocketAddr) -> Self {
        Self { listener: Listener::Other(listener), address, credentials: None, present: None }
    }

    /// From the one who knows: the ids of the members that are in the fleet. A connection of one that was, and is no more, takes no new
    /// calls. One that is not yet known may have joined a moment ago.
    #[must_use]
    pub fn with_members(self, present: watch::Receiver<Arc<HashSet<String>>>) -> Self {
        Self { present: Some(present), ..self }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`. Then takes no more calls, ends the streams of [`WorkerServer`], and returns when the last call has its
    /// answer, or after `limit`; what still runs then is cut off.
    pub async fn serve(mut self, services: Services, stop: CancellationToken, limit: Duration) {
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        let rooms = Rooms { handshakes: Semaphore::new(HANDSHAKES), connections: Semaphore::new(CONNECTIONS) };
        let rooms = Arc::new(rooms);
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((connection, from)) => {
                    let life = Life { present: self.present.clone(), stop: stop.clone() };
                    let (credentials, rooms) = (self.credentials.clone(), Arc::clone(&rooms));
                    let serving = serve_peer(connection, from, credentials, services.clone(), life, rooms);
                    connections.spawn(cut.clone().run_until_cancelled_owned(serving));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of another role; more in a moment");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Refused from here on, which is certain not to have been seen.
        drop(self.listener);
        if let Some(worker) = &services.worker {
            worker.end_streams();
        }
        connections.close();
        if tokio::time::timeout(limit, connections.wait()).await.is_err() {
            tracing::warn!(
                "calls of other roles still ran after the time that a stop waits for them; they are cut off"
            );
            cut.cancel();
            connections.wait().await;
        }
    }
}

/// How many may be there at once.
struct Rooms {
    handshakes: Semaphore,
    connections: Semaphore,
}

/// What ends a connection, besides its peer.
struct Life {
    present: Option<watch::Receiver<Arc<HashSet<String>>>>,
    stop: CancellationToken,
}

impl Life {
    /// Waits until the peer, which was among the members at some time, is not any more.
    async fn left(&mut self, peer: &Peer) {
        let Some(present) = &mut self.present else { return std::future::pending().await };
        let there = |members: &Arc<HashSet<String>>| peer.is_among(|id| members.contains(id));
        if present.wait_for(there).await.is_err() || present.wait_for(|members| !there(members)).await.is_err() {
            std::future::pending().await
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Other(Box<dyn Listen>),
}

enum Connection {
    Tcp(TcpStream),
    Other(Box<dyn Io>),
}

impl Listener {
    async fn accept(&mut self) -> std::io::Result<(Connection, SocketAddr)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(tcp, from)| (Connection::Tcp(tcp), from)),
            Self::Other(listener) => listener.accept().await.map(|(io, from)| (Connection::Other(io), from)),
        }
    }
}

async fn serve_peer(
    connection: Connection,
    from: SocketAddr,
    credentials: Option<Credentials>,
    services: Services,
    life: Life,
    rooms: Arc<Rooms>,
) {
    let tcp = match connection {
        Connection::Tcp(tcp) => tcp,
        Connection::Other(io) => return serve_http(io, Peer::Local, from, services, life, None).await,
    };
    let Ok(handshaking) = rooms.handshakes.try_acquire() else {
        tracing::debug!(%from, "closed a connection: {HANDSHAKES} others have not shown yet whose they are");
        return;
    };
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%from, %error, "connection ended before it began");
        return;
    }
    let Some(credentials) = credentials else {
        let Some(_room) = room(&rooms, handshaking, from) else { return };
        return serve_http(tcp, Peer::Local, from, services, life, None).await;
    };
    let handshake = TlsAcceptor::from(credentials.server()).accept(tcp);
    let tls = match tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await {
        Ok(Ok(tls)) => tls,
        // It went before it said anything: its caller did not wait.
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            tracing::debug!(%from, error = chain(&error), "connection ended in its handshake");
            return;
        }
        Ok(Err(error)) => {
            tracing::warn!(%from, error = chain(&error), "refused a connection: its other end is no member of this fleet");
            return;
        }
        Err(_) => {
            tracing::debug!(%from, "no handshake within {HANDSHAKE_LIMIT:?}");
            return;
        }
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let members = certificate.map(members).unwrap_or_default();
    let ends = certificate.map(ends);
    let peer = Peer::Members(members.into());
    let mut denied = credentials.denied();
    let is_denied = |denied: &BTreeSet<String>| peer.is_among(|id| denied.contains(id));
    if is_denied(&denied.borrow_and_update()) {
        tracing::warn!(%peer, %from, "refused a connection: this member was denied");
        return;
    }
    let Some(_room) = room(&rooms, handshaking, from) else { return };
    tokio::select! {
        () = serve_http(tls, peer.clone(), from, services, life, ends) => {}
        Ok(_) = denied.wait_for(is_denied) => {
            tracing::warn!(%peer, %from, "cut off a connection: this member was denied");
        }
    }
}

/// Room for a connection whose peer is known, in the place of that of its handshake.
fn room<'a>(rooms: &'a Rooms, handshaking: SemaphorePermit<'_>, from: SocketAddr) -> Option<SemaphorePermit<'a>> {
    drop(handshaking);
    let room = rooms.connections.try_acquire().ok();
    if room.is_none() {
        tracing::warn!(%from, "closed a connection of another role: there are {CONNECTIONS} already");
    }
    room
}

async fn serve_http<T>(io: T, peer: Peer, from: SocketAddr, services: Services, mut life: Life, ends: Option<Instant>)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let caller = peer.clone();
    let dispatch = Arc::new(Dispatch::new(services));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (dispatch, peer) = (Arc::clone(&dispatch), peer.clone());
        async move {
            let target = admit(&peer, request.uri().path());
            request.extensions_mut().insert(peer);
            Ok::<_, Infallible>(dispatch.call(target, request).await)
        }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(crate::STREAM_WINDOW)
        .initial_connection_window_size(crate::CONNECTION_WINDOW)
        .max_frame_size(crate::FRAME)
        .max_concurrent_streams(CALLS)
        .max_header_list_size(HEAD)
        .max_pending_accept_reset_streams(CANCELLED_CALLS)
        .keep_alive_interval(crate::PING_EVERY)
        .keep_alive_timeout(crate::PING_LIMIT)
        // Nobody reads it.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let stop = life.stop.clone();
    let over = async {
        match ends {
            Some(ends) => tokio::time::sleep_until(ends).await,
            None => std::future::pending().await,
        }
    };
    let why = tokio::select! {
        biased;
        ended = connection.as_mut() => Err(ended),
        () = stop.cancelled() => Ok(None),
        () = over => Ok(Some("its certificate has ended")),
        () = life.left(&caller) => Ok(Some("it has left the fleet")),
    };
    let ended = match why {
        Err(ended) => ended,
        Ok(why) => {
            if let Some(why) = why {
                tracing::info!(%caller, %from, why, "a connection takes no new calls");
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                // What is left are streams, which have no end.
                () = tokio::time::sleep(LINGER) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%caller, %from, error = chain(&error), "connection ended");
    }
}

struct Dispatch {
    worker: Option<WorkerGrpc<WorkerServer>>,
    manager: Option<ManagerGrpc<ManagerServer>>,
    frontend: Option<FrontendGrpc<FrontendServer>>,
    quota: Option<QuotaGrpc<QuotaServer>>,
    logs: Option<LogsGrpc<LogsServer>>,
    placement: Option<PlacementGrpc<PlacementServer>>,
    status: Option<StatusGrpc<StatusServer>>,
}

impl Dispatch {
    fn new(services: Services) -> Self {
        let limit = crate::MAX_MESSAGE;
        let worker = services
            .worker
            .map(|worker| WorkerGrpc::new(worker).max_decoding_message_size(limit).max_encoding_message_size(limit));
        let manager = services
            .manager
            .map(|manager| ManagerGrpc::new(manager).max_decoding_message_size(limit).max_encoding_message_size(limit));
        let logs = services.logs.map(|logs| LogsGrpc::new(logs).max_encoding_message_size(logs::MAX_ANSWER));
        let (frontend, quota) = (services.frontend.map(FrontendGrpc::new), services.quota.map(QuotaGrpc::new));
        let (placement, status) = (services.placement.map(PlacementGrpc::new), services.status.map(StatusGrpc::new));
        Self { worker, manager, frontend, quota, logs, placement, status }
    }

    async fn call(&self, target: Result<Target, Refusal>, request: Request<Incoming>) -> Response<Body> {
        let answered = match target {
            Ok(Target::Worker) => match &self.worker {
                Some(service) => service.clone().call(request).await,
                None => return Status::unimplemented("this process is no worker").into_http(),
            },
            Ok(Target::WorkerManager) => match &self.manager {
                Some(service) => service.clone().call(request).await.map(Delivery::watched),
                None => return Status::unimplemented("this process is no worker manager").into_http(),
            },
            Ok(Target::Quota) => match &self.quota {
                Some(service) => service.clone().call(request).await,
                None => return Status::unimplemented("this process is no worker manager").into_http(),
            },
            Ok(Target::Frontend) => match &self.frontend {
                Some(service) => service.clone().call(request).await,
                None => return Status::unimplemented("this process has no copy of the metadata").into_http(),
            },
            Ok(Target::Logs) => match &self.logs {
                Some(service) => service.clone().call(request).await,
                None => return Status::unimplemented("this process has no worker's logs").into_http(),
            },
            Ok(Target::Placement) => match &self.placement {
                Some(service) => service.clone().call(request).await,
                None => return Status::unimplemented("this process does not place").into_http(),
            },
            Ok(Target::Status) => match &self.status {
                Some(service) => service.clone().call(request).await,
                None => return Status::unimplemented("this process does not say how it is").into_http(),
            },
            Err(Refusal::Unknown(text)) => return Status::unimplemented(text).into_http(),
            Err(Refusal::Forbidden(text)) => {
                tracing::warn!("refused a call: {text}");
                return Status::permission_denied(text).into_http();
            }
        };
        answered.unwrap_or_else(|never| match never {})
    }
}

/// An answer that gives a lease: if it is dropped before its last part was taken to be sent, so is the lease.
struct Delivery {
    body: Body,
    lease: Option<Undelivered>,
}

impl Delivery {
    fn watched(mut response: Response<Body>) -> Response<Body> {
        match response.extensions_mut().remove::<Undelivered>() {
            None => response,
            lease => response.map(|body| Body::new(Self { body, lease })),
        }
    }
}

impl http_body::Body for Delivery {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers))
            && let Some(lease) = self.lease.take()
        {
            lease.delivered();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
