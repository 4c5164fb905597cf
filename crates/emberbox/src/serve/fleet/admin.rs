//! `[cluster] admin`: health and metrics of one process, whatever its roles, for probes and Prometheus.
//!
//! | path | answers |
//! | --- | --- |
//! | `/healthz` | 200 as long as the process serves at all |
//! | `/readyz` | 200 while the fleet gives it work; 503 before, while it stops, when it is out of the fleet, and when it does not follow the metadata any more |
//! | `/metrics` | its figures, in Prometheus's format |
//!
//! The database's absence is no reason for 503: without it functions go on running, and a load balancer or Kubernetes that
//! took all processes out at once for it would be the outage. The same is true of metadata that cannot be read. Each is a
//! figure, and stands in the answer's text.

mod figures;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use control_plane::ControlPlane;
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

use super::super::tasks::Tasks;

pub use figures::register;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 32;
/// How long a client may take for the head of its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may be there, from accept to close: one request, and the way of its answer.
const LIFE: Duration = Duration::from_secs(30);
/// Most bytes of a request's head.
const HEAD: usize = 16 << 10;
/// Most lines of it.
const HEADERS: usize = 64;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What Prometheus takes for the format that the registry writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The listener. It answers until this is dropped.
pub struct Admin {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

/// What the pages show; it comes as the process starts.
#[derive(Default)]
struct State {
    membership: OnceLock<Membership>,
    /// Of a process with a copy of the metadata.
    metadata: OnceLock<ControlPlane>,
    registry: OnceLock<Arc<Registry>>,
    stopping: AtomicBool,
}

impl Admin {
    /// Listens, and answers that the process is starting.
    ///
    /// # Errors
    /// If the address is taken or not this host's.
    pub async fn start(address: SocketAddr, tasks: &Tasks) -> Result<Self> {
        let wrong = || format!("listen on {address}, which cluster.admin names; port 0 takes a free one");
        let listener = TcpListener::bind(address).await.with_context(wrong)?;
        let address = listener.local_addr().with_context(wrong)?;
        let state = Arc::new(State::default());
        let task = tasks.spawn("serve cluster.admin", accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, task })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process runs, and is ready when this member is active. What comes a second time is ignored.
    pub fn running(&self, membership: Membership, metadata: Option<ControlPlane>, registry: Arc<Registry>) {
        if let Some(metadata) = metadata {
            let _ = self.state.metadata.set(metadata);
        }
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
                    if tokio::time::timeout(LIFE, serve(stream, state)).await.is_err() {
                        tracing::debug!("a connection to cluster.admin took too long");
                    }
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
    // Everybody who reaches the address may ask, and everything is bounded. A request for each connection, whose body nobody reads.
    http.timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .keep_alive(false);
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
        let metadata = self.metadata.get();
        if metadata.is_some_and(|metadata| !metadata.follows()) {
            return no("the metadata are not followed any more");
        }
        match membership.view().member(membership.id()).map(|member| member.state) {
            Some(MemberState::Active) => {
                let mut page = "ok".to_owned();
                if let Some(trouble) = membership.trouble() {
                    page += &format!(", without the database: {trouble}");
                }
                if let Some(trouble) = metadata.and_then(ControlPlane::trouble) {
                    page += &format!(", but {trouble}");
                }
                text(StatusCode::OK, page + "\n")
            }
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn admin() -> Admin {
        Admin::start(([127, 0, 0, 1], 0).into(), &Tasks::new()).await.unwrap()
    }

    /// What is answered to these bytes, until the connection is closed.
    async fn say(admin: &Admin, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(admin.address()).await.unwrap();
        // What is too much may be refused before all of it was sent.
        let _ = stream.write_all(bytes).await;
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        String::from_utf8(heard).unwrap()
    }

    #[tokio::test]
    async fn a_connection_has_one_request() {
        let admin = admin().await;
        let twice = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2);
        let heard = say(&admin, twice.as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 200") && heard.matches("HTTP/1.1").count() == 1, "{heard}");
        assert!(
            say(&admin, b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 503"),
            "it is starting"
        );
    }

    #[tokio::test]
    async fn heads_are_bounded_and_bodies_are_not_read() {
        let admin = admin().await;
        let long = format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(2 * HEAD));
        assert!(say(&admin, long.as_bytes()).await.starts_with("HTTP/1.1 431"));
        let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(HEADERS + 1));
        assert!(say(&admin, many.as_bytes()).await.starts_with("HTTP/1.1 431"));
        let mut stream = TcpStream::connect(admin.address()).await.unwrap();
        stream.write_all(b"POST /metrics HTTP/1.1\r\ncontent-length: 1000000\r\n\r\nx").await.unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        assert!(heard.starts_with(b"HTTP/1.1 405"), "at once, with the body still to come");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_makes_room_again() {
        let admin = admin().await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(admin.address()).await.unwrap());
        }
        assert!(say(&admin, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    }
}
