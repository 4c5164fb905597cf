//! Sockets: accepting, TLS, HTTP versions, bounds on slow clients, and the orderly end.

mod activity;
mod tls;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::service::{Deps, Service};
use activity::Activity;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most bytes that are buffered of a request's head, and the size of the read buffer.
const HEAD_BYTES: usize = 128 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 256;
/// After `limits.drain` nothing is accepted any more; who connected just before has this long for a request, if `limits.drain`
/// is not shorter.
const LAST_REQUESTS: Duration = Duration::from_secs(1);
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It would let anyone in.
    #[error(
        "refusing to listen on {0} without credentials: anyone who can reach it could run code here. Add \
         [[credentials]] to the configuration, or listen on 127.0.0.1"
    )]
    OpenWithoutCredentials(SocketAddr),
    /// The address is taken or not ours.
    #[error(
        "listen on {0}: {1}. Another Emberbox may be running there; --listen names another address, port 0 takes a free one"
    )]
    Listen(SocketAddr, io::Error),
    /// Certificate or key cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
}

/// The address of the API, taken: clients that connect wait until there is a [`Server`].
pub struct Listener {
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<TlsAcceptor>,
    config: Config,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// [`BindError`], which says what to do.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        if config.credentials.is_empty() && !config.listen.ip().is_loopback() {
            return Err(BindError::OpenWithoutCredentials(config.listen));
        }
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let listen = |e| BindError::Listen(config.listen, e);
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, local_addr, tls, config })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// e.g. `http://127.0.0.1:4566`.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.local_addr)
    }
}

/// The public API, listening.
pub struct Server {
    listener: TcpListener,
    parts: Connections,
}

/// What all connections have in common.
struct Connections {
    tls: Option<TlsAcceptor>,
    service: Arc<Service>,
    config: Config,
    /// Closes the connections that are left at the end.
    closing: CancellationToken,
}

impl Server {
    /// Nothing is answered before [`Server::run`].
    pub fn new(listener: Listener, deps: Deps) -> Self {
        let Listener { listener, local_addr, tls, config } = listener;
        let service = Arc::new(Service::new(&config, local_addr, deps));
        Self { listener, parts: Connections { tls, service, config, closing: CancellationToken::new() } }
    }

    /// Serves until `shutdown` and for `limits.drain` after it, then stops accepting, lets requests and invocations in flight finish (for
    /// `limits.shutdown` at most) and closes all connections. While it drains, each answer over HTTP/1 ends its connection, and
    /// who connected before the end has time for a request: a proxy that knows nothing of `/readyz`, but turns elsewhere where
    /// it is not let in, loses nothing.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let connections = Arc::new(Semaphore::new(self.parts.config.limits.connections));
        let graceful = GracefulShutdown::new();
        let http = Arc::new(self.parts.http());
        let accepting = async {
            loop {
                // A connection is accepted only when there is room for it: the others wait in the kernel's queue.
                let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
                match self.listener.accept().await {
                    Ok((stream, peer)) => self.parts.spawn(stream, peer, permit, &http, graceful.watcher()),
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        let drained = async {
            shutdown.await;
            self.parts.service.drain();
            tokio::time::sleep(self.parts.config.limits.drain).await;
        };
        tokio::select! {
            () = drained => {}
            () = accepting => {}
        }
        let Self { listener, parts } = self;
        // What waits in the kernel's queue would be reset with the listener. It accepts without blocking, as tokio's does.
        let waiting = listener.into_std().inspect_err(|error| tracing::debug!(%error, "the listener is lost")).ok();
        while let Some(Ok((stream, peer))) = waiting.as_ref().map(std::net::TcpListener::accept) {
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { break };
            match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                Ok(stream) => parts.spawn(stream, peer, permit, &http, graceful.watcher()),
                Err(error) => tracing::debug!(%peer, %error, "a connection was lost"),
            }
        }
        drop(waiting);
        tokio::time::sleep(parts.config.limits.drain.min(LAST_REQUESTS)).await;
        let Connections { service, config, closing, .. } = parts;
        let finish = async {
            graceful.shutdown().await;
            service.finished().await;
        };
        if tokio::time::timeout(config.limits.shutdown, finish).await.is_err() {
            tracing::warn!(limit = ?config.limits.shutdown, "requests still ran at the end of the shutdown limit");
        }
        closing.cancel();
    }
}

impl Connections {
    fn http(&self) -> auto::Builder<TokioExecutor> {
        let idle = self.config.limits.idle;
        let mut http = auto::Builder::new(TokioExecutor::new());
        // At most 100 header fields, as hyper has it: with another number it would allocate room for them anew for every
        // request.
        // A head that takes too long is noticed by `Activity`, with one timer for a connection instead of one for a request.
        http.http1().header_read_timeout(None).max_buf_size(HEAD_BYTES);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEAD_BYTES as u32)
            .keep_alive_interval(idle / 2)
            .keep_alive_timeout(idle / 2);
        http
    }

    fn spawn(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
        http: &Arc<auto::Builder<TokioExecutor>>,
        watcher: Watcher,
    ) {
        let _ = stream.set_nodelay(true);
        let connection = Connection {
            peer,
            service: Arc::clone(&self.service),
            http: Arc::clone(http),
            watcher,
            closing: self.closing.clone(),
            idle: self.config.limits.idle,
        };
        let tls = self.tls.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match tls {
                None => connection.serve(stream).await,
                Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => connection.serve(stream).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
                },
            }
        });
    }
}

/// What serving one connection takes.
struct Connection {
    peer: SocketAddr,
    service: Arc<Service>,
    http: Arc<auto::Builder<TokioExecutor>>,
    watcher: Watcher,
    closing: CancellationToken,
    idle: Duration,
}

impl Connection {
    /// Until the client goes or stalls, or shutdown.
    async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { peer, service, http, watcher, closing, idle } = self;
        let activity = Activity::default();
        let stream = TokioIo::new(activity.watch(stream));
        let answer = service_fn(|request| {
            let running = activity.request();
            let service = Arc::clone(&service);
            async move {
                let response = service.handle(peer, request).await;
                drop(running);
                Ok::<_, Infallible>(response)
            }
        });
        // The first, as all that happens is for it, but when the connection ends.
        tokio::select! {
            biased;
            result = watcher.watch(http.serve_connection(stream, answer)) => {
                if let Err(error) = result {
                    tracing::debug!(%peer, %error, "connection ended");
                }
            }
            () = activity.stalled(idle) => tracing::debug!(%peer, "connection was idle for too long"),
            () = closing.cancelled() => {}
        }
    }
}
