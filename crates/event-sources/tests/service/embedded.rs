//! Against Emberbox's own SQS endpoint, which is strict where others are not: no message is with two at once.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use domain::SystemClock;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde_json::json;
use sqs::SqsService;

use crate::client::*;
use crate::support::*;

/// The endpoint, with its file in a directory of its own.
struct Endpoint {
    url: String,
    _dir: tempfile::TempDir,
}

impl Endpoint {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = SqsService::open(dir.path().join("sqs.db"), Arc::new(SystemClock::default())).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (service, base) = (Arc::new(service), url.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (service, base) = (service.clone(), base.clone());
                let answer = service_fn(move |request: Request<Incoming>| {
                    let (service, base) = (service.clone(), base.clone());
                    async move { Ok::<_, Infallible>(answer(&service, &base, request).await) }
                });
                tokio::spawn(async move {
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { url, _dir: dir }
    }
}

async fn answer(service: &SqsService, base: &str, request: Request<Incoming>) -> Response<Full<bytes::Bytes>> {
    let target = request.headers()["x-amz-target"].to_str().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    service.handle("000000000000", "us-east-1", base, &target, None, body).await.map(Full::new)
}

/// Of 500 messages in batches of 50 some fail once; nothing else goes wrong, and so each is done once, or twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_done_exactly() {
    let endpoint = Endpoint::start().await;
    let sqs = client(&endpoint.url);
    let url = create_queue(&sqs, "q", 5).await;
    for tens in 0..50 {
        let mut request = sqs.send_message_batch().queue_url(&url);
        for i in 0..10 {
            let entry = aws_sdk_sqs::types::SendMessageBatchRequestEntry::builder().id(i.to_string());
            request = request.entries(entry.message_body(format!("{}", tens * 10 + i)).build().expect("complete"));
        }
        request.send().await.expect("sent");
    }
    let gathering = Mapping {
        batch_size: 50,
        batching_window: Duration::from_secs(1),
        report_batch_item_failures: true,
        ..mapping("m")
    };
    let (service, _, function) = serve(queues(&endpoint.url), gathering);
    function.on(|call| {
        let records = call.event["Records"].as_array().unwrap();
        let first = |r: &&serde_json::Value| r["attributes"]["ApproximateReceiveCount"] == "1";
        let unlucky = |r: &&serde_json::Value| r["body"].as_str().unwrap().ends_with('7');
        let failed = records.iter().filter(first).filter(unlucky);
        Ok(json!({"batchItemFailures": failed.map(|r| json!({"itemIdentifier": r["messageId"]})).collect::<Vec<_>>()}))
    });
    until(async || left(&sqs, &url).await == 0).await;
    let bodies: Vec<usize> = function.bodies().concat().iter().map(|body| body.parse().unwrap()).collect();
    for i in 0..500 {
        let times = bodies.iter().filter(|body| **body == i).count();
        assert_eq!(times, if i % 10 == 7 { 2 } else { 1 }, "{i}");
    }
    assert!(function.bodies().iter().any(|batch| batch.len() > 10), "more than one receipt brings");
    service.stop(Duration::from_secs(10)).await;
}

/// A message that waits for nobody is with the function at once: the long poll ends with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_mapping_is_awake_at_once() {
    let endpoint = Endpoint::start().await;
    let sqs = client(&endpoint.url);
    let url = create_queue(&sqs, "q", 30).await;
    let (service, _, function) = serve(queues(&endpoint.url), mapping("m"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    for i in 1..=5 {
        let start = std::time::Instant::now();
        sqs.send_message().queue_url(&url).message_body("x").send().await.expect("sent");
        until(async || function.calls().len() == i).await;
        // Far less than a poll takes, and enough for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    service.stop(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_keep_their_order_with_failures() {
    let endpoint = Endpoint::start().await;
    let sqs = client(&endpoint.url);
    let url = create_queue(&sqs, "q.fifo", 1).await;
    for i in 0..60 {
        let request =
            sqs.send_message().queue_url(&url).message_body(i.to_string()).message_deduplication_id(i.to_string());
        request.message_group_id(["a", "b", "c"][i % 3]).send().await.expect("sent");
    }
    let fifo = Mapping { source: sqs_source("q.fifo"), report_batch_item_failures: true, ..mapping("m") };
    let (service, _, function) = serve(queues(&endpoint.url), fifo);
    let done = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = done.clone();
    // Now and then a message fails on its first receipt, and the function stops there, as it should.
    function.on(move |call| {
        let records = call.event["Records"].as_array().unwrap();
        let number = |r: &serde_json::Value| r["body"].as_str().unwrap().parse::<usize>().unwrap();
        let fails = |r: &serde_json::Value| number(r) % 7 == 3 && r["attributes"]["ApproximateReceiveCount"] == "1";
        let from = records.iter().position(fails).unwrap_or(records.len());
        seen.lock().extend(records[..from].iter().map(number));
        let failed = records[from..].iter().map(|r| json!({"itemIdentifier": r["messageId"]}));
        Ok(json!({"batchItemFailures": failed.collect::<Vec<_>>()}))
    });
    until(async || left(&sqs, &url).await == 0).await;
    let done = done.lock().clone();
    assert_eq!(done.len(), 60);
    for group in 0..3 {
        assert!(done.iter().filter(|i| *i % 3 == group).is_sorted(), "{done:?}");
    }
    service.stop(Duration::from_secs(10)).await;
}
