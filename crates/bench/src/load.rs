//! The load generator: clients that each send the next request when the answer to the last one is there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::client::Client;

/// An answer that takes longer than this is an error.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before what counts of a round. What is done a little later (Emberbox writes logs 40 ms after, and freezes sandboxes
/// after 50) is over then if it is the other's, and is as much within what counts as it is after it if it is one's own.
pub const LEAD_IN: Duration = Duration::from_millis(70);

/// Where requests go. Every answer must be the event itself, or 202 for one that is only accepted.
#[derive(Clone, Debug)]
pub struct Target {
    /// Loopback.
    pub address: SocketAddr,
    /// Path of the POST.
    pub path: String,
}

/// How the function is invoked.
#[derive(Clone, Copy)]
pub enum Kind {
    /// The answer is the function's.
    RequestResponse,
    /// The answer says that the event is kept.
    Event,
}

/// The event that every echo function is sent: small, so that the path and not the copy is measured.
pub const EVENT: &str = r#"{"key1":"value1","key2":"value2","key3":"value3"}"#;

/// When a closed loop ends: at whichever comes first.
#[derive(Clone, Copy)]
pub struct Until {
    /// Requests in all.
    pub requests: u64,
    /// Time.
    pub time: Duration,
}

/// What a closed loop saw.
#[derive(Clone)]
pub struct Outcome {
    /// Latencies in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Requests without the right answer, and the first such answer.
    pub errors: u64,
    /// What the first of them was.
    pub first_error: Option<String>,
    /// Time in which requests were made.
    pub busy: Duration,
}

impl Default for Outcome {
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, 120_000_000_000, 3).expect("the bounds are valid");
        Self { latencies, errors: 0, first_error: None, busy: Duration::ZERO }
    }
}

impl Outcome {
    /// A quantile of the latencies.
    pub fn quantile(&self, q: f64) -> Duration {
        Duration::from_nanos(self.latencies.value_at_quantile(q))
    }

    /// Answers per second.
    pub fn throughput(&self) -> f64 {
        self.latencies.len() as f64 / self.busy.as_secs_f64()
    }

    /// Adds a later round.
    pub fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies).expect("all have the same bounds");
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.busy += other.busy;
    }

    /// Adds a later round, which it returns.
    pub fn with(&mut self, other: Self) -> Self {
        self.add(other.clone());
        other
    }

    /// Fails on errors: numbers of a run with errors mean nothing.
    pub fn check(&self, of: &str) -> Result<()> {
        ensure!(
            self.errors == 0,
            "{of}: {} errors, the first: {}",
            self.errors,
            self.first_error.as_deref().unwrap_or("")
        );
        Ok(())
    }
}

/// One keep-alive connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: address.to_string() })
    }

    /// One request, and its whole answer.
    pub async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<(http::response::Parts, Bytes)> {
        let exchange = self.exchange(method, path, &[], body);
        tokio::time::timeout(PATIENCE, exchange).await.with_context(|| format!("{path} took over {PATIENCE:?}"))?
    }

    /// As [`Connection::send`], with headers, and however long the answer takes.
    pub async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(http::response::Parts, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.sender.ready().await?;
        let (parts, body) = self.sender.send_request(request.body(Full::new(body))?).await?.into_parts();
        Ok((parts, body.collect().await?.to_bytes()))
    }

    /// Sends an event for later; its request id.
    pub async fn accept(&mut self, path: &str, event: Bytes, headers: &[(&str, &str)]) -> Result<String> {
        let headers = [&[("X-Amz-Invocation-Type", "Event")], headers].concat();
        let exchange = self.exchange(Method::POST, path, &headers, event);
        let (parts, body) = tokio::time::timeout(PATIENCE, exchange).await.context("no 202 in time")??;
        ensure!(parts.status == StatusCode::ACCEPTED, "{}: {}", parts.status, String::from_utf8_lossy(&body));
        let id = parts.headers.get("x-amzn-RequestId").context("the answer has no request id")?;
        Ok(id.to_str()?.to_owned())
    }

    /// Sends the event; the answer must be the event.
    pub async fn echo(&mut self, path: &str) -> Result<()> {
        let (parts, body) = self.send(Method::POST, path, Bytes::from_static(EVENT.as_bytes())).await?;
        let right = parts.status == StatusCode::OK && same_json(&body);
        ensure!(right, "{} {:?}: {}", parts.status, parts.headers, String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// Whether it is the event. Runtimes format JSON as they like.
pub fn same_json(body: &[u8]) -> bool {
    body == EVENT.as_bytes()
        || serde_json::from_slice::<serde_json::Value>(body)
            .is_ok_and(|v| v == serde_json::from_str::<serde_json::Value>(EVENT).expect("it is JSON"))
}

async fn invoke(client: &mut Client) -> Result<()> {
    tokio::time::timeout(PATIENCE, client.invoke()).await.with_context(|| format!("no answer in {PATIENCE:?}"))?
}

/// Clients of one target, whose connections stay open from one round to the next.
pub struct Clients<'a> {
    target: &'a Target,
    kind: Kind,
    clients: Vec<Client>,
}

impl<'a> Clients<'a> {
    /// Connects so many.
    pub async fn open(kind: Kind, target: &'a Target, connections: usize) -> Result<Self> {
        let clients = (0..connections).map(|_| Client::open(target.address, &target.path, kind));
        Ok(Self { target, kind, clients: try_join_all(clients).await? })
    }

    /// A closed loop of all of them at once.
    pub async fn run(&mut self, until: Until) -> Result<Outcome> {
        let Self { target, kind, clients } = self;
        let each = until.requests.div_ceil(clients.len() as u64);
        let started = Instant::now();
        let clients = clients.iter_mut().map(|client| async {
            let mut outcome = Outcome::default();
            for _ in 0..each {
                let sent = Instant::now();
                if sent - started >= until.time {
                    break;
                }
                match invoke(client).await {
                    Ok(()) => outcome.latencies.saturating_record(sent.elapsed().as_nanos() as u64),
                    Err(error) => {
                        outcome.errors += 1;
                        outcome.first_error.get_or_insert_with(|| format!("{error:#}"));
                        *client = Client::open(target.address, &target.path, *kind).await?;
                    }
                }
            }
            anyhow::Ok(outcome)
        });
        let mut all = Outcome::default();
        for outcome in try_join_all(clients).await? {
            all.add(outcome);
        }
        all.busy = started.elapsed();
        Ok(all)
    }

    /// One of the rounds of [`crate::paired`]: so long, after a [`LEAD_IN`].
    pub async fn round(&mut self, counted: Duration) -> Result<Outcome> {
        let all = |time| Until { requests: u64::MAX, time };
        let before = self.run(all(LEAD_IN)).await?;
        let mut outcome = self.run(all(counted)).await?;
        // What was not counted was right as well.
        outcome.errors += before.errors;
        outcome.first_error = before.first_error.or(outcome.first_error);
        Ok(outcome)
    }
}

/// `connections` clients at once that wait for the function.
pub async fn closed_loop(target: &Target, connections: usize, until: Until) -> Result<Outcome> {
    closed_loop_of(Kind::RequestResponse, target, connections, until).await
}

/// `connections` clients at once.
pub async fn closed_loop_of(kind: Kind, target: &Target, connections: usize, until: Until) -> Result<Outcome> {
    Clients::open(kind, target, connections).await?.run(until).await
}

/// Events that are sent at an even rate, by turns over `connections`. A latency counts from when the event was to be
/// sent: that the one before it was late is no excuse.
pub async fn events_at_rate(target: &Target, connections: usize, rate: f64, events: u64) -> Result<Outcome> {
    let clients = Clients::open(Kind::Event, target, connections).await?.clients;
    let started = Instant::now();
    let clients = clients.into_iter().zip(0_u64..).map(|(mut client, first)| async move {
        let mut outcome = Outcome::default();
        for number in (first..events).step_by(connections) {
            let due = started + Duration::from_secs_f64(number as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
            invoke(&mut client).await?;
            outcome.latencies.saturating_record(due.elapsed().as_nanos() as u64);
        }
        anyhow::Ok(outcome)
    });
    let mut all = Outcome::default();
    for outcome in try_join_all(clients).await? {
        all.add(outcome);
    }
    all.busy = started.elapsed();
    Ok(all)
}

/// Rounds over several targets in turn, so that whatever else the machine does meets all of them alike.
pub async fn interleaved(targets: &[&Target], connections: usize, rounds: u32, each: Until) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = targets.iter().map(|_| Outcome::default()).collect();
    for target in targets {
        // Not counted: connections, sandboxes and caches come up.
        closed_loop(target, connections, Until { requests: each.requests.min(200), ..each }).await?;
    }
    for _ in 0..rounds {
        for (target, outcome) in targets.iter().zip(&mut outcomes) {
            outcome.add(closed_loop(target, connections, each).await?);
        }
    }
    Ok(outcomes)
}
