//! `[cluster] admin`: health and metrics of one process, whatever its roles, for probes and Prometheus.
//!
//! | path | answers |
//! | --- | --- |
//! | `/healthz` | 200 as long as the process serves at all |
//! | `/readyz` | 200 while the fleet gives it work; 503 before, while it stops, and when it is out of the fleet |
//! | `/metrics` | its figures, in Prometheus's format |
//!
//! The database's absence is no reason for 503: without it functions go on running, and a load balancer or Kubernetes that
//! took all processes out at once for it would be the outage. It is a figure, and stands in the answer's text.

mod figures;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use membership::{MemberState, Membership};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub use figures::register;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 32;
/// How long a client may take for a request, and may be idle between two.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What Prometheus takes for the format that the registry writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The listener. It answers until this is dropped.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

/// What the pages show; it comes as the process starts.
#[derive(Debug, Default)]
struct State {
    membership: OnceLock<Membership>,
    registry: OnceLock<Arc<Registry>>,
    stopping: AtomicBool,
}

impl Admin {
    /// Listens, and answers that the process is starting.
    ///
    /// # Errors
    /// If the address is taken or not this host's.
    pub async fn start(address: SocketAddr) -> Result<Self> {
        let wrong = || format!("listen on {address}, which cluster.admin names; port 0 takes a free one");
        let listener = TcpListener::bind(address).await.with_context(wrong)?;
        let address = listener.local_addr().with_context(wrong)?;
        let state = Arc::new(State::default());
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, task })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process runs, and is ready when this member is active. What comes a second time is ignored.
    pub fn running(&self, membership: Membership, registry: Arc<Registry>) {
        let _ = self.state.membership.set(membership);
        let _ = self.state.registry.set(registry);
    }

    /// It is not ready any more, even if the fleet cannot be told.
    pub fn stopping(&self) {
        self.state.stopping.store(true, Ordering::Relaxed);
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    serve(stream, state).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed on cluster.admin");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let answer = service_fn(|request| {
        let response = state.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a connection to cluster.admin ended");
    }
}

impl State {
    fn answer<B>(&self, request: &Request<B>) -> Response<String> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET".to_owned());
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self.ready(),
            "/metrics" => self.metrics(),
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".to_owned()),
        }
    }

    fn ready(&self) -> Response<String> {
        let no = |why: &str| text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
        if self.stopping.load(Ordering::Relaxed) {
            return no("stopping");
        }
        let Some(membership) = self.membership.get() else { return no("starting") };
        match membership.view().member(membership.id()).map(|member| member.state) {
            Some(MemberState::Active) => match membership.trouble() {
                None => text(StatusCode::OK, "ok\n".to_owned()),
                Some(trouble) => text(StatusCode::OK, format!("ok, without the database: {trouble}\n")),
            },
            Some(MemberState::Joining) => no("starting"),
            Some(MemberState::Draining) => no("stopping"),
            None => no("not in the fleet"),
        }
    }

    fn metrics(&self) -> Response<String> {
        let Some(registry) = self.registry.get() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned());
        };
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, registry).expect("a string takes any text");
        let mut response = text(StatusCode::OK, page);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
        response
    }
}

fn text(status: StatusCode, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
