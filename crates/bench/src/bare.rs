//! The reference: an HTTP server that hands a request to a `lambda_runtime` process with nothing between.
//!
//! No sandbox, no authentication, no logs, no function table: `POST /` waits for a runtime that asks for
//! `/2018-06-01/runtime/invocation/next`, and is answered with what that posts to `…/response`.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::load::{Connection, Target};
use crate::process::Child;

const RUNTIME_API: &str = "/2018-06-01/runtime/invocation/";

/// Serves until it is killed; prints its address.
pub fn serve(listen: SocketAddr, threads: usize) -> Result<()> {
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
    };
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
        println!("LISTENING={}", listener.local_addr()?);
        accept(listener).await
    })
}

async fn accept(listener: TcpListener) -> Result<()> {
    let desk = Arc::new(Desk::default());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let desk = Arc::clone(&desk);
        tokio::spawn(async move {
            let service = service_fn(move |request| handle(Arc::clone(&desk), request));
            // A connection that breaks concerns its client only.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Where requests and runtimes meet.
#[derive(Default)]
struct Desk(Mutex<State>);

#[derive(Default)]
struct State {
    last_id: u64,
    waiting: VecDeque<Event>,
    idle: Vec<oneshot::Sender<Event>>,
    answers: HashMap<String, oneshot::Sender<Bytes>>,
}

/// An event with what the Runtime API has for each one anew. The trace must not be the same every time: the runtime sets
/// it as an environment variable, which costs glibc more for a value that it has not seen before.
struct Event {
    id: String,
    attempt: String,
    trace: String,
    body: Bytes,
}

async fn handle(desk: Arc<Desk>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(answer(&desk, request).await.unwrap_or_else(|error| status(StatusCode::BAD_REQUEST, error.to_string())))
}

async fn answer(desk: &Desk, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let path = request.uri().path().to_owned();
    if *request.method() == Method::GET && path.strip_prefix(RUNTIME_API) == Some("next") {
        let event = desk.next().await?;
        return Ok(Response::builder()
            .header("Content-Type", "application/json")
            .header("Lambda-Runtime-Aws-Request-Id", event.id)
            .header("Lambda-Runtime-Invocation-Id", event.attempt)
            .header("Lambda-Runtime-Deadline-Ms", "4102444800000")
            .header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:000000000000:function:echo")
            .header("Lambda-Runtime-Trace-Id", event.trace)
            .body(Full::new(event.body))?);
    }
    let body = request.into_body().collect().await?.to_bytes();
    if let Some(id) = path.strip_prefix(RUNTIME_API).and_then(|rest| rest.strip_suffix("/response")) {
        let waiting = desk.0.lock().answers.remove(id).with_context(|| format!("no request {id} waits"))?;
        // A client that went away needs no answer.
        let _ = waiting.send(body);
        return Ok(status(StatusCode::ACCEPTED, String::new()));
    }
    let answer = desk.invoke(body).await.context("the runtime failed")?;
    Ok(Response::builder().header("Content-Type", "application/json").body(Full::new(answer))?)
}

fn status(status: StatusCode, message: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(message.into()));
    *response.status_mut() = status;
    response
}

impl Desk {
    fn invoke(&self, body: Bytes) -> oneshot::Receiver<Bytes> {
        let (sender, answer) = oneshot::channel();
        let mut state = self.0.lock();
        state.last_id += 1;
        let id = format!("00000000-0000-4000-8000-{:012x}", state.last_id);
        state.answers.insert(id.clone(), sender);
        let attempt = format!("00000000-0000-4000-9000-{:012x}", state.last_id);
        // Spread as random ones are.
        let random = state.last_id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let trace = format!("Root=1-6743f2a0-00000000{random:016x};Parent={random:016x};Sampled=0");
        let mut event = Event { id, attempt, trace, body };
        while let Some(runtime) = state.idle.pop() {
            match runtime.send(event) {
                Ok(()) => return answer,
                Err(back) => event = back,
            }
        }
        state.waiting.push_back(event);
        answer
    }

    async fn next(&self) -> Result<Event> {
        let event = {
            let mut state = self.0.lock();
            if let Some(event) = state.waiting.pop_front() {
                return Ok(event);
            }
            let (sender, event) = oneshot::channel();
            state.idle.push(sender);
            event
        };
        event.await.context("stopping")
    }
}

/// The reference server in a process of its own, with runtime processes. All end when it is dropped.
pub struct Bare {
    /// Where it answers.
    pub target: Target,
    /// Ended first: they have nobody to ask once the server is gone.
    functions: Vec<Child>,
    _server: Child,
}

impl Bare {
    /// Starts it with `functions` processes of `bootstrap`, and waits until they answer.
    pub async fn start(bootstrap: &Path, functions: usize, threads: usize) -> Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let mut server =
            Child::spawn(std::process::Command::new(own).args(["bare", "--threads", &threads.to_string()]))?;
        let line = server.wait_for_line("LISTENING=", Duration::from_secs(10))?;
        let address: SocketAddr = line.parse().context("the reference server's address")?;
        let mut bare = Self { target: Target { address, path: "/".into() }, _server: server, functions: vec![] };
        for _ in 0..functions {
            bare.start_function(bootstrap)?;
        }
        let mut connection = Connection::open(address).await?;
        for _ in 0..2 * functions {
            connection.echo("/").await?;
        }
        Ok(bare)
    }

    /// One more runtime process.
    pub fn start_function(&mut self, bootstrap: &Path) -> Result<()> {
        let child = Child::spawn(
            std::process::Command::new(bootstrap)
                .env("AWS_LAMBDA_RUNTIME_API", self.target.address.to_string())
                .env("AWS_LAMBDA_FUNCTION_NAME", "echo")
                .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
                .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1769")
                .env("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/echo")
                .env("AWS_LAMBDA_LOG_STREAM_NAME", "bench"),
        )?;
        self.functions.push(child);
        Ok(())
    }

    /// Ends the runtime process that was started last.
    pub fn stop_function(&mut self) {
        self.functions.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{EVENT, Until, closed_loop};

    /// A runtime that echoes `events` events and then leaves.
    async fn runtime(address: SocketAddr, events: usize) {
        let mut api = Connection::open(address).await.unwrap();
        for _ in 0..events {
            let (parts, event) = api.send(Method::GET, &format!("{RUNTIME_API}next"), Bytes::new()).await.unwrap();
            let id = parts.headers["Lambda-Runtime-Aws-Request-Id"].to_str().unwrap();
            let (parts, _) = api.send(Method::POST, &format!("{RUNTIME_API}{id}/response"), event).await.unwrap();
            assert_eq!(parts.status, StatusCode::ACCEPTED);
        }
    }

    #[tokio::test]
    async fn every_client_gets_its_own_event_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { address: listener.local_addr().unwrap(), path: "/".into() };
        tokio::spawn(accept(listener));
        for _ in 0..3 {
            tokio::spawn(runtime(target.address, 1000));
        }
        let outcome = closed_loop(&target, 8, Until { requests: 80, time: Duration::from_secs(60) }).await.unwrap();
        outcome.check("the bare server").unwrap();
        assert_eq!(outcome.latencies.len(), 80);
        assert!(outcome.quantile(0.5) <= outcome.quantile(0.99) && outcome.throughput() > 0.0);
    }

    #[tokio::test]
    async fn a_wrong_answer_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { address: listener.local_addr().unwrap(), path: "/".into() };
        tokio::spawn(accept(listener));
        tokio::spawn(async move {
            let mut api = Connection::open(target.address).await.unwrap();
            let (parts, event) = api.send(Method::GET, &format!("{RUNTIME_API}next"), Bytes::new()).await.unwrap();
            assert_eq!(event, EVENT);
            let id = parts.headers["Lambda-Runtime-Aws-Request-Id"].to_str().unwrap();
            api.send(Method::POST, &format!("{RUNTIME_API}{id}/response"), "{}".into()).await.unwrap();
        });
        let target = Target { address: target.address, path: "/".into() };
        let outcome = closed_loop(&target, 1, Until { requests: 1, time: Duration::from_secs(60) }).await.unwrap();
        assert_eq!(outcome.errors, 1);
        assert!(outcome.check("it").unwrap_err().to_string().contains("{}"));
    }
}
