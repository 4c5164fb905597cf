//! From request to response: whose request it is, which part of the API it is for, and what every response carries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use domain::{Clock, RequestId};
use http::header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::Full;
use lambda_api::{ApiError, ErrorCode, OperationId, route};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::auth::Authenticator;
use crate::body::{self, ReadError};
use crate::code_url::{self, CodeUrls};
use crate::config::{Config, Limits};
use crate::metrics::Metrics;
use crate::ports::{Call, Code, Events, Functions, Logs, Sqs};
use crate::sigv4::{SigError, SignedParts};
use crate::sync_path::SyncPath;
use crate::{events_api, invoke, logs_api, loopback};

/// Largest body of CreateFunction and UpdateFunctionCode, in bytes, as recorded from AWS: 50 MB in base64, and a little.
const CODE_LIMIT: usize = 70_167_211;
/// Largest body of any other operation, in bytes.
const BODY_LIMIT: usize = 6_291_456;

/// Bodies up to this size are read at once; room for larger ones is given out in units of it. In bytes.
const ROOM: usize = 64 << 10;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const TARGET: &str = "x-amz-target";
/// What the target of SQS's operations begins with.
const SQS_TARGET: &[u8] = b"AmazonSQS.";

/// The parts that the Frontend works with.
pub struct Deps {
    /// Management, and lookup for invocations.
    pub functions: Arc<dyn Functions>,
    /// Runs functions, with the metrics below.
    pub sync_path: SyncPath,
    /// Takes events of asynchronous invocations.
    pub events: Arc<dyn Events>,
    /// Packages for download.
    pub code: Arc<dyn Code>,
    /// Logs for reading.
    pub logs: Arc<dyn Logs>,
    /// Queues.
    pub sqs: Arc<dyn Sqs>,
    /// Time; the clock that the other parts' timelines are made with.
    pub clock: Arc<dyn Clock>,
    /// Made by [`Metrics::register`].
    pub metrics: Metrics,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
}

/// The API, shared by all connections.
pub struct Service {
    pub(crate) functions: Arc<dyn Functions>,
    pub(crate) sync_path: SyncPath,
    pub(crate) events: Arc<dyn Events>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    /// What goes on without its connection.
    pub(crate) tasks: TaskTracker,
    code: Arc<dyn Code>,
    logs: Arc<dyn Logs>,
    sqs: Arc<dyn Sqs>,
    registry: Arc<Registry>,
    authenticator: Authenticator,
    code_urls: CodeUrls,
    allowed_hosts: Vec<String>,
    limits: Limits,
    /// In units of [`ROOM`].
    body_room: Semaphore,
    scheme: &'static str,
    local_addr: SocketAddr,
    draining: AtomicBool,
}

/// One request on its way through: its head, and what is learned of it.
struct Exchange {
    parts: Parts,
    peer: SocketAddr,
    id: RequestId,
    /// For metrics and the log.
    operation: &'static str,
}

impl Service {
    pub(crate) fn new(config: &Config, local_addr: SocketAddr, deps: Deps) -> Self {
        Self {
            functions: deps.functions,
            sync_path: deps.sync_path,
            events: deps.events,
            clock: deps.clock,
            metrics: deps.metrics,
            tasks: TaskTracker::new(),
            code: deps.code,
            logs: deps.logs,
            sqs: deps.sqs,
            registry: deps.registry,
            authenticator: Authenticator::new(config),
            code_urls: CodeUrls::new(config.code_url_key.clone()),
            allowed_hosts: config.allowed_hosts.clone(),
            limits: config.limits.clone(),
            body_room: Semaphore::new(config.limits.body_memory.div_ceil(ROOM)),
            scheme: if config.tls.is_some() { "https" } else { "http" },
            local_addr,
            draining: AtomicBool::new(false),
        }
    }

    /// From now on `/readyz` says no, so that a load balancer looks elsewhere.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.tasks.close();
    }

    /// After [`Service::drain`]: waits for what goes on without its connection.
    pub(crate) async fn finished(&self) {
        self.tasks.wait().await;
    }

    /// Answers one request; never fails.
    pub(crate) async fn handle<B>(self: &Arc<Self>, peer: SocketAddr, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let begun = self.clock.monotonic();
        let (parts, body) = request.into_parts();
        let mut exchange = Exchange { parts, peer, id: RequestId(Uuid::new_v4()), operation: "Unknown" };
        let answer = self.answer(&mut exchange, body).await;
        let mut response = answer.unwrap_or_else(|error| match exchange.parts.headers.contains_key(TARGET) {
            true => json_refusal(&error),
            false => error.to_response(),
        });
        let mut id = Uuid::encode_buffer();
        let id = exchange.id.0.as_hyphenated().encode_lower(&mut id);
        response.headers_mut().insert(REQUEST_ID, HeaderValue::from_str(id).expect("a UUID is a valid header value"));
        // HTTP/2 has no such header; its connections are told by the server's end.
        if self.draining.load(Ordering::Relaxed) && exchange.parts.version < Version::HTTP_2 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let status = response.status().as_u16();
        self.metrics.request(exchange.operation, status);
        tracing::debug!(
            target: "emberbox::access",
            request_id = %exchange.id, %peer, method = %exchange.parts.method, path = exchange.parts.uri.path(),
            operation = exchange.operation, status,
            us = self.clock.monotonic().saturating_sub(begun).as_micros() as u64,
        );
        response.map(Full::new)
    }

    async fn answer<B>(self: &Arc<Self>, exchange: &mut Exchange, body: B) -> Result<Response<Bytes>, ApiError>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        if self.authenticator.trusts_loopback() {
            self.check_loopback(exchange)?;
        }
        let (method, path) = (&exchange.parts.method, exchange.parts.uri.path());
        if method == Method::GET || method == Method::HEAD {
            if let Some((name, response)) = self.operator_page(path) {
                exchange.operation = name;
                return Ok(response);
            }
            if path.starts_with(code_url::PREFIX) {
                exchange.operation = "DownloadCode";
                return self.download(&exchange.parts).await;
            }
        }
        if path.starts_with(events_api::PREFIX) {
            return self.event_stats(exchange, body).await;
        }
        match exchange.parts.headers.get(TARGET) {
            Some(target) if target.as_bytes().starts_with(SQS_TARGET) => self.sqs(exchange, body).await,
            Some(_) => self.logs(exchange, body).await,
            None => self.lambda(exchange, body).await,
        }
    }

    async fn sqs<B>(&self, exchange: &mut Exchange, body: B) -> Result<Response<Bytes>, ApiError>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let parts = &exchange.parts;
        let signed = SignedParts::of(parts);
        let admitted = self.authenticator.admit(&signed, "sqs", self.clock.wall()).map_err(denied)?;
        let target = parts.headers.get(TARGET).and_then(|target| target.to_str().ok()).unwrap_or_default();
        exchange.operation = self.sqs.label(target);
        let too_large = || {
            let message = format!("Request must be smaller than {BODY_LIMIT} bytes for SQS");
            ApiError::new(ErrorCode::RequestEntityTooLargeException, message)
        };
        let body = self.body(parts, body, BODY_LIMIT, too_large).await?;
        let caller = admitted.prove(&signed, &body).map_err(denied)?;
        let trace = parts.headers.get(invoke::TRACE_ID).and_then(|trace| trace.to_str().ok());
        Ok(self.sqs.answer(&caller, &self.endpoint(parts), target, trace, body).await)
    }

    fn check_loopback(&self, exchange: &Exchange) -> Result<(), ApiError> {
        let denied = |message| ApiError::new(ErrorCode::AccessDeniedException, message);
        if !exchange.peer.ip().to_canonical().is_loopback() {
            return Err(denied("Emberbox has no credentials configured and answers only to this machine.".to_owned()));
        }
        let authority = exchange.parts.uri.authority().map(http::uri::Authority::as_str);
        loopback::check(&exchange.parts.headers, authority, &self.allowed_hosts).map_err(denied)
    }

    /// What cannot be read is no reason for no: all frontends may meet it at once, and everything else goes on.
    fn ready(&self) -> Response<Bytes> {
        match self.functions.unreadable() {
            None => text(StatusCode::SERVICE_UNAVAILABLE, "the metadata are not followed any more\n"),
            Some(0) => text(StatusCode::OK, "ok\n"),
            // Which is for the operator, not for whoever asks here.
            Some(count) => {
                let records = if count == 1 { "record" } else { "records" };
                let page = format!("ok, but {count} {records} of the metadata cannot be read; the log says which\n");
                text(StatusCode::OK, page)
            }
        }
    }

    /// Health and metrics: for probes, which cannot sign.
    fn operator_page(&self, path: &str) -> Option<(&'static str, Response<Bytes>)> {
        match path {
            "/healthz" => Some(("Health", text(StatusCode::OK, "ok\n"))),
            "/readyz" if self.draining.load(Ordering::Relaxed) => {
                Some(("Health", text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")))
            }
            "/readyz" => Some(("Health", self.ready())),
            "/metrics" => {
                let mut page = String::new();
                prometheus_client::encoding::text::encode(&mut page, &self.registry).expect("a string takes any text");
                let mut response = text(StatusCode::OK, page);
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                Some(("Metrics", response))
            }
            _ => None,
        }
    }

    async fn download(&self, parts: &Parts) -> Result<Response<Bytes>, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let sha256 = self.code_urls.check(parts.uri.path(), query, self.clock.wall()).ok_or_else(|| {
            let message = "This address is not valid or has expired. GetFunction gives a new one.";
            ApiError::new(ErrorCode::AccessDeniedException, message)
        })?;
        match self.code.zip(&sha256).await {
            Ok(Some(zip)) => {
                let mut response = Response::new(zip);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/zip"));
                Ok(response)
            }
            Ok(None) => {
                let message = "The package is not in storage any more.";
                Err(ApiError::new(ErrorCode::ResourceNotFoundException, message))
            }
            Err(cause) => {
                tracing::error!(sha256, cause, "package cannot be read");
                Err(ApiError::new(ErrorCode::ServiceException, format!("read package {sha256}: {cause}")))
            }
        }
    }

    async fn logs<B>(&self, exchange: &mut Exchange, body: B) -> Result<Response<Bytes>, ApiError>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let signed = SignedParts::of(&exchange.parts);
        let admitted = self.authenticator.admit(&signed, logs_api::SERVICE, self.clock.wall()).map_err(denied)?;
        let operation = exchange.parts.headers.get(TARGET).and_then(logs_api::operation).ok_or_else(|| {
            ApiError::new(ErrorCode::UnknownOperationException, "X-Amz-Target names no operation of CloudWatch Logs.")
        })?;
        exchange.operation = logs_api::label(operation);
        let body = self.body(&exchange.parts, body, logs_api::BODY_LIMIT, || {
            let limit = logs_api::BODY_LIMIT;
            let message = format!("Request must be smaller than {limit} bytes for CloudWatch Logs");
            ApiError::new(ErrorCode::RequestEntityTooLargeException, message)
        });
        let body = body.await?;
        let caller = admitted.prove(&signed, &body).map_err(denied)?;
        Ok(logs_api::answer(&*self.logs, &caller, operation, &body).await)
    }

    async fn lambda<B>(self: &Arc<Self>, exchange: &mut Exchange, body: B) -> Result<Response<Bytes>, ApiError>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let parts = &exchange.parts;
        let signed = SignedParts::of(parts);
        let admitted = self.authenticator.admit(&signed, "lambda", self.clock.wall()).map_err(denied)?;
        let query = parts.uri.query();
        let routed = route(&parts.method, parts.uri.path(), query).map_err(|error| {
            let message = format!("Lambda has no such operation: {error}.");
            ApiError::new(ErrorCode::UnknownOperationException, message)
        })?;
        let operation = routed.operation;
        exchange.operation = operation.name();
        let body = self.body(parts, body, limit(operation), || too_large(operation)).await?;
        let caller = admitted.prove(&signed, &body).map_err(denied)?;
        let received = self.clock.monotonic();
        let code_url = |sha256: &str| self.code_urls.make(&self.endpoint(parts), sha256, self.clock.wall());
        let call = Call { caller: &caller, routed: &routed, query, headers: &parts.headers, body, code_url: &code_url };
        if operation == OperationId::Invoke {
            exchange.id = invoke::chosen_request_id(&parts.headers)?.unwrap_or(exchange.id);
            return invoke::invoke(self, call, exchange.id, received).await;
        }
        if operation == OperationId::InvokeAsync {
            return invoke::event::invoke_async(self, call, exchange.id, received).await;
        }
        self.functions.manage(call).await.unwrap_or_else(|| {
            let message = format!("Emberbox does not implement {operation} yet.");
            Err(ApiError::new(ErrorCode::NotImplemented, message))
        })
    }

    /// An operation of Emberbox's own: signed as Lambda's are.
    async fn event_stats<B>(&self, exchange: &mut Exchange, body: B) -> Result<Response<Bytes>, ApiError>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        exchange.operation = "EventStats";
        let signed = SignedParts::of(&exchange.parts);
        let admitted = self.authenticator.admit(&signed, "lambda", self.clock.wall()).map_err(denied)?;
        let too_large = || ApiError::new(ErrorCode::RequestEntityTooLargeException, "This operation takes no body.");
        let body = self.body(&exchange.parts, body, 0, too_large).await?;
        let caller = admitted.prove(&signed, &body).map_err(denied)?;
        events_api::answer(self, &caller, &exchange.parts).await
    }

    /// Reads the body. A client that sends too much is answered at once, and what it still sends is thrown away.
    async fn body<B>(
        &self,
        parts: &Parts,
        body: B,
        limit: usize,
        too_large: impl Fn() -> ApiError,
    ) -> Result<Bytes, ApiError>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let unread = |message: String| ApiError::new(ErrorCode::InvalidRequestContentException, message);
        let size = body.size_hint().exact().map_or(limit, |size| usize::try_from(size).unwrap_or(limit).min(limit));
        let _room = if size > ROOM {
            // No more than there is in all, or it would never be had.
            let units = size.min(self.limits.body_memory).div_ceil(ROOM).max(1) as u32;
            Some(self.body_room.acquire_many(units).await.expect("the semaphore is never closed"))
        } else {
            None
        };
        match body::read(body, limit, &self.limits).await {
            Ok(body) => Ok(body),
            Err(ReadError::TooLarge(rest)) => {
                // A client that waits for "100 Continue" has sent nothing, and will not.
                if !parts.headers.contains_key(EXPECT) {
                    tokio::spawn(body::drain(rest));
                }
                Err(too_large())
            }
            Err(ReadError::Slow) => Err(unread("The body of the request did not arrive in time.".into())),
            Err(ReadError::Broken(cause)) => Err(unread(format!("The body of the request cannot be read: {cause}"))),
        }
    }

    /// This server as the client addressed it.
    fn endpoint(&self, parts: &Parts) -> String {
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str));
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        match host.filter(|host| !host.is_empty() && host.bytes().all(plain)) {
            Some(host) => format!("{}://{host}", self.scheme),
            None => format!("{}://{}", self.scheme, self.local_addr),
        }
    }
}

fn limit(operation: OperationId) -> usize {
    match operation {
        OperationId::CreateFunction | OperationId::UpdateFunctionCode => CODE_LIMIT,
        OperationId::Invoke => invoke::PAYLOAD_LIMIT,
        _ => BODY_LIMIT,
    }
}

fn too_large(operation: OperationId) -> ApiError {
    // As recorded: AWS calls Invoke by an inner name, and has an exception of its own for it.
    let (code, name) = match operation {
        OperationId::Invoke => (ErrorCode::RequestTooLargeException, "InvokeFunction"),
        other => (ErrorCode::RequestEntityTooLargeException, other.name()),
    };
    ApiError::new(code, format!("Request must be smaller than {} bytes for the {name} operation", limit(operation)))
}

/// An error as services of the AWS JSON protocol tell it: with its name in the body.
fn json_refusal(error: &ApiError) -> Response<Bytes> {
    let body = serde_json::json!({ "__type": error.code.name(), "message": error.message });
    error.to_response().map(|_| body.to_string().into())
}

fn denied(error: SigError) -> ApiError {
    let code = match error {
        SigError::Missing => ErrorCode::MissingAuthenticationTokenException,
        SigError::Incomplete(_) => ErrorCode::IncompleteSignatureException,
        SigError::Invalid(_) => ErrorCode::InvalidSignatureException,
        SigError::Unrecognized => ErrorCode::UnrecognizedClientException,
    };
    ApiError::new(code, error.to_string())
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
