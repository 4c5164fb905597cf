//! Against `moto_server`, which is in the whole-system suite's Python environment or named by `EMBERBOX_TEST_MOTO`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_sdk_sqs::types::MessageAttributeValue;
use domain::QueueArn;
use event_sources::QueueSource as _;
use serde_json::json;

use crate::client::*;
use crate::support::*;

/// A process that ends with its test.
struct Moto {
    process: Child,
    url: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    /// `None` where it is not installed. Port 0: any.
    fn start(port: u16) -> Option<Self> {
        let program = std::env::var_os("EMBERBOX_TEST_MOTO").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin/moto_server")),
            PathBuf::from,
        );
        if !program.exists() {
            let message = format!("SKIPPED third_party: needs moto_server, which is not at {}", program.display());
            assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{message}, and EMBERBOX_REQUIRE_ALL is set");
            eprintln!("{message}");
            return None;
        }
        let mut process = Command::new(program)
            .args(["-p", &port.to_string()])
            .env("MOTO_ACCOUNT_ID", "000000000000")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto_server starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let url = lines
            .find_map(|line| Some(format!("http://{}", line.split_once("Running on http://")?.1.trim())))
            .expect("moto_server says where it listens");
        // It logs each request, and must not block on that.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, url })
    }

    fn client(&self) -> aws_sdk_sqs::Client {
        client(&self.url)
    }

    /// A queue whose messages are hidden for two seconds.
    async fn queue(&self, name: &str) -> String {
        create_queue(&self.client(), name, 2).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_queue() {
    let Some(moto) = Moto::start(0) else { return };
    let (sqs, url) = (moto.client(), moto.queue("q").await);
    let text = MessageAttributeValue::builder().data_type("String").string_value("v").build().expect("complete");
    let sent = sqs.send_message().queue_url(&url).message_body("ü").message_attributes("a", text).send().await;
    let sent = sent.expect("sent");
    let bytes = MessageAttributeValue::builder()
        .data_type("Binary")
        .binary_value(aws_sdk_sqs::primitives::Blob::new(*b"\x00\xff"))
        .build()
        .expect("complete");
    sqs.send_message().queue_url(&url).message_body("b").message_attributes("b", bytes).send().await.expect("sent");

    let (service, _, function) = serve(queues(&moto.url), mapping("m"));
    // The first time all fails.
    function.on(|call| {
        let records = call.event["Records"].as_array().unwrap();
        let first = records.iter().any(|r| r["attributes"]["ApproximateReceiveCount"] == "1");
        if first { Err(function_error()) } else { Ok(json!(null)) }
    });
    until(async || left(&sqs, &url).await == 0).await;
    let records: Vec<_> =
        function.calls().iter().flat_map(|c| c.event["Records"].as_array().unwrap().clone()).collect();
    let of = |body: &str| records.iter().filter(|r| r["body"] == body).cloned().collect::<Vec<_>>();
    let (text, bytes) = (of("ü"), of("b"));
    assert_eq!((text.len(), bytes.len()), (2, 2), "each failed once");
    let record = &text[0];
    assert_eq!(record["messageId"], json!(sent.message_id));
    assert_eq!(record["md5OfBody"], json!(sent.md5_of_message_body));
    assert_eq!(record["eventSourceARN"], QUEUE);
    assert!(!record["receiptHandle"].as_str().unwrap().is_empty());
    for name in ["ApproximateReceiveCount", "SentTimestamp", "SenderId", "ApproximateFirstReceiveTimestamp"] {
        assert!(record["attributes"][name].is_string(), "{name}: {record}");
    }
    let shape = |value: serde_json::Value| {
        let mut shape = json!({"stringListValues": [], "binaryListValues": []});
        shape.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        shape
    };
    assert_eq!(record["messageAttributes"]["a"], shape(json!({"stringValue": "v", "dataType": "String"})));
    assert_eq!(bytes[0]["messageAttributes"]["b"], shape(json!({"binaryValue": "AP8=", "dataType": "Binary"})));
    service.stop(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_queue() {
    let Some(moto) = Moto::start(0) else { return };
    // Long enough for a busy machine: what is seen twice is not what this is about.
    let sqs = moto.client();
    let url = create_queue(&sqs, "q.fifo", 60).await;
    for i in 0..30 {
        let request =
            sqs.send_message().queue_url(&url).message_body(i.to_string()).message_deduplication_id(i.to_string());
        request.message_group_id(["a", "b", "c"][i % 3]).send().await.expect("sent");
    }
    let fifo = Mapping { source: sqs_source("q.fifo"), batch_size: 4, ..mapping("m") };
    let (service, _, function) = serve(queues(&moto.url), fifo);
    until(async || left(&sqs, &url).await == 0).await;
    let bodies: Vec<usize> = function.bodies().concat().iter().map(|body| body.parse().unwrap()).collect();
    // Their order, and that each comes once, is what the test on queues in memory is about, and the system suite's on queues
    // of Emberbox's own: moto, asked by two at once, may give a message to one before it has marked it, or the one before it
    // in its group, as taken by the other.
    assert_eq!(bodies.iter().collect::<std::collections::BTreeSet<_>>().len(), 30, "{bodies:?}");
    let attributes = &function.calls()[0].event["Records"][0]["attributes"];
    for name in ["MessageGroupId", "MessageDeduplicationId", "SequenceNumber"] {
        assert!(attributes[name].is_string(), "{name}: {attributes}");
    }
    service.stop(Duration::from_secs(10)).await;
}

/// The words of AWS for a queue that is not there; and one that comes, and a server that goes and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn queues_and_servers_come_and_go() {
    let Some(moto) = Moto::start(0) else { return };
    let queues = queues(&moto.url);
    let arn = QueueArn::parse(QUEUE).unwrap();
    let error = queues.visibility_timeout(&arn).await.expect_err("there is none");
    assert_eq!(
        error.to_string(),
        "Error occurred while ReceiveMessage. SQS Error Code: AWS.SimpleQueueService.NonExistentQueue. SQS Error Message: \
         The specified queue does not exist."
    );
    let (service, mappings, function) = serve(queues.clone(), mapping("m"));
    until(async || mappings.problem("m") == Some(error.to_string())).await;
    let url = moto.queue("q").await;
    assert_eq!(queues.visibility_timeout(&arn).await, Ok(Duration::from_secs(2)));
    moto.client().send_message().queue_url(&url).message_body("a").send().await.expect("sent");
    until(async || function.bodies() == [["a"]] && mappings.problem("m").is_none()).await;

    let port: u16 = moto.url.rsplit(':').next().unwrap().parse().unwrap();
    drop(moto);
    until(async || mappings.problem("m").is_some_and(|problem| problem.contains("There is no answer"))).await;
    let moto = Moto::start(port).unwrap();
    let url = moto.queue("q").await;
    moto.client().send_message().queue_url(&url).message_body("b").send().await.expect("sent");
    until(async || function.bodies() == [["a"], ["b"]] && mappings.problem("m").is_none()).await;
    service.stop(Duration::from_secs(10)).await;
}

/// Many messages in large batches, with some that fail: each is done. (This server gives a message to two at once now
/// and then, as SQS may.)
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_in_large_batches() {
    let Some(moto) = Moto::start(0) else { return };
    let sqs = moto.client();
    let url = create_queue(&sqs, "q", 15).await;
    for tens in 0..20 {
        let mut request = sqs.send_message_batch().queue_url(&url);
        for i in 0..10 {
            let entry = aws_sdk_sqs::types::SendMessageBatchRequestEntry::builder().id(i.to_string());
            request = request.entries(entry.message_body(format!("{}", tens * 10 + i)).build().expect("complete"));
        }
        request.send().await.expect("sent");
    }
    let gathering = Mapping {
        batch_size: 100,
        batching_window: Duration::from_secs(1),
        report_batch_item_failures: true,
        ..mapping("m")
    };
    let (service, _, function) = serve(queues(&moto.url), gathering);
    function.on(|call| {
        let records = call.event["Records"].as_array().unwrap();
        let first = |r: &&serde_json::Value| r["attributes"]["ApproximateReceiveCount"] == "1";
        let unlucky = |r: &&serde_json::Value| r["body"].as_str().unwrap().ends_with('7');
        let failed = records.iter().filter(first).filter(unlucky);
        Ok(json!({"batchItemFailures": failed.map(|r| json!({"itemIdentifier": r["messageId"]})).collect::<Vec<_>>()}))
    });
    until(async || left(&sqs, &url).await == 0).await;
    let bodies: Vec<usize> = function.bodies().concat().iter().map(|body| body.parse().unwrap()).collect();
    for i in 0..200 {
        let times = bodies.iter().filter(|body| **body == i).count();
        assert!(times >= if i % 10 == 7 { 2 } else { 1 }, "{i}: {times}");
    }
    assert!(function.bodies().iter().any(|batch| batch.len() > 10), "more than one receipt brings");
    service.stop(Duration::from_secs(10)).await;
}
