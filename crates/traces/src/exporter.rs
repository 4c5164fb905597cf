//! The queue, and the task that empties it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use domain::trace::{Traced, Traces};
use prometheus_client::registry::Registry;
use prost::Message as _;
use prost::bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url, redirect};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::encode;
use crate::metrics::Metrics;
use crate::otlp::ExportTraceServiceResponse;
use crate::sampler::Sampler;

/// Records that may wait; each takes one or two KiB.
const QUEUE: usize = 4096;
/// Records of one request.
const BATCH: usize = 256;
/// How long they are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// How long a collector may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long after a try that failed the next one is made; after the last, the batch is given up.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// The longest pause that a collector may ask for.
const LONGEST: Duration = Duration::from_secs(30);
/// Of an answer, in bytes; what is longer is not read.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// The roles of a member by its id, if it is known.
pub type RolesOf = Arc<dyn Fn(&str) -> Option<Arc<str>> + Send + Sync>;

/// Where traces go, and whose they are.
#[derive(Clone)]
pub struct Config {
    /// Of the collector, e.g. `http://127.0.0.1:4318`; `/v1/traces` is added.
    pub endpoint: String,
    /// The share of the traces that is taken whose callers left it open.
    pub sample: f64,
    /// `service.name`.
    pub service: Arc<str>,
    /// `service.instance.id`: this process, as other members call it.
    pub instance: Arc<str>,
    /// `service.version`.
    pub version: Arc<str>,
    /// `emberbox.roles` of this process.
    pub roles: Arc<str>,
    /// That of another member, if it is known.
    pub roles_of: RolesOf,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("endpoint", &self.endpoint).field("sample", &self.sample).finish_non_exhaustive()
    }
}

/// Why there can be no traces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is no address.
    #[error("{0:?} is no http:// or https:// address of a collector, such as http://127.0.0.1:4318")]
    Endpoint(String),
    /// It has more than that, maybe a secret: so it is not repeated.
    #[error("the address of a collector has {0}, which is not sent, and would be logged with it; leave that out")]
    Extra(&'static str),
    /// The client could not be made.
    #[error("make the client of the collector")]
    Client(#[source] reqwest::Error),
}

/// Takes traces.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Sender<Traced>,
    sampler: Sampler,
    metrics: Metrics,
}

impl Traces for Exporter {
    fn samples(&self, low: u64) -> bool {
        self.sampler.takes(low)
    }

    fn take(&self, traced: Traced) {
        if self.queue.try_send(traced).is_err() {
            self.metrics.dropped.inc();
        }
    }
}

/// Sends what was taken.
pub struct Service {
    queue: mpsc::Receiver<Traced>,
    client: Client,
    url: Url,
    config: Arc<Config>,
    metrics: Metrics,
    /// The last batch was not taken: said once.
    failing: bool,
}

/// How one try went.
enum Sent {
    /// But for so many spans, which the collector refused.
    Taken { refused: u64 },
    /// It may work later.
    Again { cause: String, after: Option<Duration> },
    /// It will not.
    Refused { cause: String },
}

impl Exporter {
    /// An exporter and its other half, which must [`Service::run`]. Connects to nothing yet.
    ///
    /// # Errors
    /// The endpoint is no address, or one with credentials, a query or a fragment.
    pub fn new(config: Config, registry: &mut Registry) -> Result<(Self, Service), Error> {
        let wrong = || match config.endpoint.contains(['@', '?', '#']) {
            // No address at all, and yet a password may be in it.
            true => Error::Extra("a user, a password, a query or a fragment"),
            false => Error::Endpoint(config.endpoint.clone()),
        };
        // By itself first: without a host, the path would become one.
        let base = Url::parse(&config.endpoint).map_err(|_| wrong())?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong());
        }
        if let Some(extra) = extra(&base) {
            return Err(Error::Extra(extra));
        }
        let url = Url::parse(&format!("{}/v1/traces", config.endpoint.trim_end_matches('/'))).map_err(|_| wrong())?;
        let client = Client::builder()
            .timeout(ANSWER)
            // What is said of functions goes to the collector and nowhere else.
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(Error::Client)?;
        let metrics = Metrics::register(registry);
        let (sender, queue) = mpsc::channel(QUEUE);
        let exporter = Self { queue: sender, sampler: Sampler::new(config.sample), metrics: metrics.clone() };
        Ok((exporter, Service { queue, client, url, config: Arc::new(config), metrics, failing: false }))
    }
}

impl Service {
    /// Sends batches until `stop`; then what waits, with one try each, and returns.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            tokio::select! {
                // What waits is sent, also after the stop.
                biased;
                got = self.queue.recv_many(&mut batch, BATCH) => if got == 0 { return },
                () = stop.cancelled() => return,
            }
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH && !stop.is_cancelled() {
                let room = BATCH - batch.len();
                tokio::select! {
                    got = self.queue.recv_many(&mut batch, room) => if got == 0 { break },
                    () = tokio::time::sleep_until(until) => break,
                    () = stop.cancelled() => break,
                }
            }
            self.send(batch, &stop).await;
        }
    }

    async fn send(&mut self, batch: Vec<Traced>, stop: &CancellationToken) {
        let config = Arc::clone(&self.config);
        // Off the threads that serve requests.
        let encoded = tokio::task::spawn_blocking(move || {
            let spans: Vec<_> = batch.iter().flat_map(crate::convert::spans).collect();
            let count = spans.len() as u64;
            (Bytes::from(encode::request(spans, &config).encode_to_vec()), count)
        });
        let Ok((body, count)) = encoded.await else { return };
        let mut pauses = PAUSES.into_iter();
        loop {
            match self.attempt(body.clone()).await {
                Sent::Taken { refused } => {
                    self.metrics.spans("exported", count.saturating_sub(refused));
                    self.metrics.spans("refused", refused.min(count));
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(url = %self.url, "the collector takes traces again");
                    }
                    return;
                }
                Sent::Refused { cause } => {
                    self.metrics.spans("refused", count);
                    return self.say(&cause);
                }
                Sent::Again { cause, after } => {
                    let pause = pauses.next().filter(|_| !stop.is_cancelled());
                    let Some(pause) = pause else {
                        self.metrics.spans("undelivered", count);
                        return self.say(&cause);
                    };
                    tokio::select! {
                        () = tokio::time::sleep(after.map_or(pause, |after| after.min(LONGEST))) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    fn say(&mut self, cause: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(url = %self.url, cause, "the collector takes no traces; they are dropped and counted");
        }
    }

    async fn attempt(&self, body: Bytes) -> Sent {
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/x-protobuf").body(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Sent::Again { cause: chain(&error), after: None },
        };
        let status = response.status();
        if status.is_success() {
            // Most say nothing.
            let short = response.content_length().is_some_and(|length| (1..=LONGEST_ANSWER).contains(&length));
            let body = if short { response.bytes().await.unwrap_or_default() } else { Default::default() };
            let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
            let refused = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
            return Sent::Taken { refused: u64::try_from(refused).unwrap_or(0) };
        }
        let cause = format!("it answered {status}");
        // As OTLP's specification has it: these may be sent again, and no others.
        let later = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ];
        if !later.contains(&status) {
            return Sent::Refused { cause };
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Sent::Again { cause, after: after.map(Duration::from_secs) }
    }
}

/// What an endpoint has and no endpoint may have.
fn extra(url: &Url) -> Option<&'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Some("a user or a password");
    }
    url.query().map(|_| "a query").or_else(|| url.fragment().map(|_| "a fragment"))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
