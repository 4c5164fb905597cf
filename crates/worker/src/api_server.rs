//! The HTTP server that a sandbox sees at `$AWS_LAMBDA_RUNTIME_API`: Runtime API, Extensions API, and the answer of a
//! platform without Telemetry API.
//!
//! The other side is the customer's code and may lie. It is bounded in connections, in the size of a request's head
//! and body, and in how many bodies are read at once; beyond that it can only keep itself waiting. There are no read
//! timeouts, as a frozen sandbox is silent for hours.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::listener::{Listener, Stream};
use crate::machine::ApiError;
use crate::slot::Slot;

#[cfg(any(test, fuzzing))]
pub(crate) mod anything;
mod extensions;
mod runtime;

/// The port of the Runtime API in a sandbox.
pub(crate) const PORT: u16 = 9001;
/// Largest answer of a function: 6 MiB and room for the envelope, as RAPID has it.
pub(crate) const MAX_PAYLOAD: usize = 6 * 1024 * 1024 + 100;

/// Bodies up to this size, in bytes, are copied out of the connection's buffer, which is larger.
const SMALL: usize = 2 << 10;
const MAX_CONNECTIONS: usize = 64;
const MAX_HEAD: usize = 64 << 10;
/// Bodies that are read at once: the runtime's and a few of extensions.
const MAX_BODIES: usize = 4;
/// What is read and thrown away of a body that is too large, so that its sender gets to read the refusal.
const MAX_DISCARD: usize = 64 << 20;

type Reply = Response<Full<Bytes>>;

/// The server of one sandbox.
pub(crate) struct ApiServer {
    resets: mpsc::Sender<oneshot::Sender<()>>,
}

struct Context {
    slot: Arc<Slot>,
    bodies: Semaphore,
}

impl ApiServer {
    /// Serves on the listener from the sandbox until the value is dropped.
    pub(crate) fn start(listener: Listener, slot: Arc<Slot>) -> Self {
        let (resets, requests) = mpsc::channel(1);
        let context = Arc::new(Context { slot, bodies: Semaphore::new(MAX_BODIES) });
        // Ends by itself when `resets` is dropped.
        tokio::spawn(serve(listener, context, requests));
        Self { resets }
    }

    /// Cuts all connections, also those that nobody has accepted yet.
    pub(crate) async fn reset(&self) {
        let (done, wait) = oneshot::channel();
        if self.resets.send(done).await.is_ok() {
            // The server outlives `self`, so it answers.
            let _ = wait.await;
        }
    }
}

async fn serve(listener: Listener, context: Arc<Context>, mut resets: mpsc::Receiver<oneshot::Sender<()>>) {
    let mut connections = JoinSet::new();
    loop {
        // Resets first: a connection accepted after the reset was asked for must be one of the cut ones.
        tokio::select! {
            biased;
            reset = resets.recv() => {
                connections.shutdown().await;
                let Some(done) = reset else { return };
                drop_backlog(&listener).await;
                // The driver waits for it.
                let _ = done.send(());
            }
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok(stream) => {
                    connections.spawn(connection(stream, Arc::clone(&context)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection from a sandbox");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// Closes connections that wait to be accepted.
async fn drop_backlog(listener: &Listener) {
    loop {
        // Accept first: the other branch is always ready.
        tokio::select! {
            biased;
            accepted = listener.accept() => if accepted.is_err() { return },
            () = std::future::ready(()) => return,
        }
    }
}

async fn connection(stream: Stream, context: Arc<Context>) {
    let service = hyper::service::service_fn(move |request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(context.handle(request).await) }
    });
    let served = protocol().serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection from a sandbox ended");
    }
}

/// HTTP as sandboxes speak it.
fn protocol() -> hyper::server::conn::http1::Builder {
    let mut protocol = hyper::server::conn::http1::Builder::new();
    protocol.max_buf_size(MAX_HEAD).keep_alive(true);
    protocol
}

impl Context {
    async fn handle(&self, request: Request<Incoming>) -> Reply {
        let (head, mut body) = request.into_parts();
        let reply = self.route(head, &mut body).await;
        // A refusal may have left the body unread, and with it the connection would be of no further use.
        let mut discarded = 0;
        while !body.is_end_stream() && discarded < MAX_DISCARD {
            match body.frame().await {
                Some(Ok(frame)) => discarded += frame.data_ref().map_or(0, Bytes::len),
                _ => break,
            }
        }
        reply
    }

    async fn route(&self, head: Parts, body: &mut Incoming) -> Reply {
        let path = head.uri.path();
        if let Some(rest) = path.strip_prefix("/2018-06-01/runtime/") {
            if head.method == Method::GET && rest == "invocation/next" {
                // It may wait for long, and the head is part of the connection's buffer.
                drop(head);
                return self.next().await;
            }
            return self.runtime(rest, &head, body).await;
        }
        if let Some(rest) = path.strip_prefix("/2020-01-01/extension/") {
            return self.extension(rest, &head, body).await;
        }
        match (&head.method, path) {
            (&Method::GET, "/2018-06-01/ping" | "/ping") => text(StatusCode::OK, "pong"),
            (&Method::PUT, "/2022-07-01/telemetry") => {
                error(StatusCode::ACCEPTED, "Telemetry.NotSupported", "Telemetry API is not supported")
            }
            (&Method::PUT, "/2020-08-15/logs") => {
                error(StatusCode::ACCEPTED, "Logs.NotSupported", "Logs API is not supported")
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    async fn body(&self, body: &mut Incoming, limit: usize) -> Result<(Bytes, HeaderMap), BodyError> {
        let _permit = self.bodies.acquire().await.map_err(|_| BodyError::Truncated)?;
        read_body(body, limit).await
    }
}

/// Reads a body of at most `limit` bytes, and its trailers.
async fn read_body(body: &mut Incoming, limit: usize) -> Result<(Bytes, HeaderMap), BodyError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(BodyError::TooLarge);
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        match frame.map_err(|_| BodyError::Truncated)?.into_data() {
            Ok(data) if first.len() + whole.len() + data.len() > limit => return Err(BodyError::TooLarge),
            Ok(data) if first.is_empty() && whole.is_empty() => first = data,
            Ok(data) => {
                // Most bodies come in one piece, which then needs no copy.
                if whole.is_empty() {
                    let rest = usize::try_from(body.size_hint().lower()).unwrap_or(0);
                    whole.reserve((first.len() + data.len() + rest).min(limit));
                    whole.extend_from_slice(&std::mem::take(&mut first));
                }
                whole.extend_from_slice(&data);
            }
            Err(frame) => {
                if let Ok(map) = frame.into_trailers() {
                    trailers = map;
                }
            }
        }
    }
    let body = match whole.is_empty() {
        // So that a small body does not keep the connection's buffer, in whose place another would be made.
        true if first.len() <= SMALL => Bytes::copy_from_slice(&first),
        true => first,
        false => whole.freeze(),
    };
    Ok((body, trailers))
}

enum BodyError {
    TooLarge,
    /// The connection broke; nobody reads the answer.
    Truncated,
}

/// A header's value as text.
fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

fn text(status: StatusCode, body: &'static str) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

fn accepted() -> Reply {
    reply(StatusCode::ACCEPTED, "application/json", Bytes::from_static(b"{\"status\":\"OK\"}\n"))
}

fn error(status: StatusCode, kind: &str, message: &str) -> Reply {
    let body = json!({ "errorMessage": message, "errorType": kind });
    reply(status, "application/json", format!("{body}\n"))
}

impl From<ApiError> for Reply {
    fn from(refusal: ApiError) -> Self {
        match refusal {
            ApiError::InvalidRequestId => error(StatusCode::BAD_REQUEST, "InvalidRequestID", "Invalid request ID"),
            ApiError::Transition { from, to } => {
                let message = format!(
                    "State transition from {from} to {to} failed for runtime. Error: State transition is not allowed"
                );
                error(StatusCode::FORBIDDEN, "InvalidStateTransition", &message)
            }
            ApiError::Extension { kind, message } => error(StatusCode::FORBIDDEN, kind, &message),
        }
    }
}
