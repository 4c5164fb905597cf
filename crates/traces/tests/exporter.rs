//! The exporter before a collector that answers, refuses, is silent, or is not there.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::trace::{Delivered, Moment, SpanId, TraceId, Traced, Traces};
use domain::{AccountId, FunctionArn, RequestId};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use traces::{Config, Error, Exporter};

/// Answers the first requests with these statuses, and all others with 200.
struct Collector {
    address: SocketAddr,
    got: Arc<Mutex<Vec<(String, String, usize)>>>,
    came: Arc<Notify>,
}

impl Collector {
    async fn start(statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (got, came): (Arc<Mutex<Vec<_>>>, Arc<Notify>) = Default::default();
        let (into, told) = (Arc::clone(&got), Arc::clone(&came));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (into, told) = (Arc::clone(&into), Arc::clone(&told));
                tokio::spawn(async move {
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let (into, told) = (Arc::clone(&into), Arc::clone(&told));
                        async move {
                            let (parts, body) = request.into_parts();
                            let kind = parts.headers["content-type"].to_str().unwrap().to_owned();
                            let body = body.collect().await.unwrap().to_bytes();
                            let number = {
                                let mut all = into.lock().unwrap();
                                all.push((parts.uri.path().to_owned(), kind, body.len()));
                                all.len() - 1
                            };
                            told.notify_one();
                            let status = statuses.get(number).copied().unwrap_or(200);
                            let response = Response::builder().status(status).header("retry-after", "0");
                            Ok::<_, Infallible>(response.body(Full::new(Bytes::new())).unwrap())
                        }
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { address, got, came }
    }

    fn requests(&self) -> Vec<(String, String, usize)> {
        self.got.lock().unwrap().clone()
    }
}

struct Running {
    exporter: Exporter,
    registry: Registry,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn config(endpoint: &str) -> Config {
    Config {
        endpoint: endpoint.into(),
        sample: 0.5,
        service: "emberbox".into(),
        instance: "one".into(),
        version: "0".into(),
        roles: "frontend".into(),
        roles_of: Arc::new(|_| None),
    }
}

fn start(endpoint: &str) -> Running {
    let mut registry = Registry::default();
    let (exporter, service) = Exporter::new(config(endpoint), &mut registry).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(service.run(stop.clone()));
    Running { exporter, registry, stop, task }
}

impl Running {
    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    fn count(&self, name: &str) -> u64 {
        let text = self.metrics();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    fn spans(&self, outcome: &str) -> u64 {
        self.count(&format!("trace_spans_total{{outcome=\"{outcome}\"}}"))
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        tokio::time::timeout(Duration::from_secs(60), async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("not in time: {}", self.metrics()));
    }
}

/// One span.
fn delivery() -> Traced {
    let now = Moment { monotonic: Duration::from_secs(2), wall: std::time::UNIX_EPOCH + Duration::from_secs(1000) };
    Traced::Delivered(Box::new(Delivered {
        trace: TraceId([1; 16]),
        span: SpanId([2; 8]),
        parent: None,
        function: FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() },
        request_id: RequestId(uuid::Uuid::nil()),
        target: "arn".into(),
        dead_letter: false,
        began: Duration::from_secs(1),
        ended: Duration::from_secs(2),
        error: None,
        now,
    }))
}

#[tokio::test]
async fn what_was_taken_is_sent_in_one_request() {
    let collector = Collector::start(&[]).await;
    let running = start(&format!("http://{}/", collector.address));
    for _ in 0..100 {
        running.exporter.take(delivery());
    }
    running.until(|running| running.spans("exported") == 100).await;
    let requests = collector.requests();
    assert_eq!(requests.len(), 1, "they came within a second");
    assert_eq!((requests[0].0.as_str(), requests[0].1.as_str()), ("/v1/traces", "application/x-protobuf"));
    assert_eq!((running.spans("refused"), running.spans("undelivered")), (0, 0));
    assert_eq!(running.count("trace_records_dropped_total"), 0);
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let collector = Collector::start(&[503, 429, 200, 400]).await;
    let running = start(&format!("http://{}", collector.address));
    running.exporter.take(delivery());
    running.until(|running| running.spans("exported") == 1).await;
    running.exporter.take(delivery());
    running.until(|running| running.spans("refused") == 1).await;
    assert_eq!(collector.requests().len(), 4);
}

#[tokio::test]
async fn without_a_collector_what_comes_is_dropped_and_counted_and_nobody_waits() {
    // Bound and never accepted from: a collector that is silent.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = start(&format!("http://{}", silent.local_addr().unwrap()));
    // No call waits, or this would not end: far more than may wait in all, and nothing of it was sent.
    for _ in 0..20_000 {
        running.exporter.take(delivery());
    }
    assert!(running.count("trace_records_dropped_total") >= 20_000 - 4096 - 256);
    running.stop.cancel();
    running.task.abort();
}

#[tokio::test]
async fn what_cannot_be_sent_is_given_up_and_counted() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let running = start(&format!("http://{gone}"));
    running.exporter.take(delivery());
    running.until(|running| running.spans("undelivered") == 1).await;
    // And it goes on.
    running.exporter.take(delivery());
    running.until(|running| running.spans("undelivered") == 2).await;
}

#[tokio::test]
async fn what_waits_is_sent_before_the_end() {
    let collector = Collector::start(&[]).await;
    let running = start(&format!("http://{}", collector.address));
    for _ in 0..1000 {
        running.exporter.take(delivery());
    }
    running.stop.cancel();
    collector.came.notified().await;
    tokio::time::timeout(Duration::from_secs(60), running.task).await.expect("it ends").unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &running.registry).unwrap();
    assert!(text.contains("trace_spans_total{outcome=\"exported\"} 1000"), "{text}");
}

#[test]
fn an_endpoint_is_an_address() {
    for bad in ["", "127.0.0.1:4318", "ftp://a", "http://", "grpc://127.0.0.1:4317"] {
        let error = Exporter::new(config(bad), &mut Registry::default()).err();
        assert!(matches!(error, Some(Error::Endpoint(_))), "{bad}: {error:?}");
    }
}

#[test]
fn an_endpoint_with_a_secret_is_refused_and_not_repeated() {
    for bad in [
        "http://me:s3cr3t@127.0.0.1:4318",
        "http://s3cr3t@127.0.0.1:4318",
        "https://:s3cr3t@collector",
        "https://collector/otlp?key=s3cr3t",
        "https://collector/otlp#s3cr3t",
        "me:s3cr3t@collector:4318",
        "ftp://me:s3cr3t@collector",
        "http://me:s3cr3t@collector:port",
    ] {
        let error = Exporter::new(config(bad), &mut Registry::default()).err().expect(bad);
        assert!(matches!(error, Error::Extra(_)), "{bad}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
    }
    for good in ["http://127.0.0.1:4318", "https://collector/otlp/", "http://[::1]:4318"] {
        assert!(Exporter::new(config(good), &mut Registry::default()).is_ok(), "{good}");
    }
}
