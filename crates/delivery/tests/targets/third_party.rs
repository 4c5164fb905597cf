//! Against `moto_server`, which is in the whole-system suite's Python environment or named by `EMBERBOX_TEST_MOTO`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use aws_sdk_sqs::types::Message as Received;
use pollers::Deliver;
use serde_json::{Value, json};

use crate::*;

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
    /// `None` where it is not installed.
    fn start() -> Option<Self> {
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
            .args(["-p", "0"])
            .env("MOTO_ACCOUNT_ID", "000000000000")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto_server starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let url = lines
            .find_map(|line| Some(format!("http://{}", line.split_once("Running on http://")?.1.trim())))
            .expect("moto_server says where it listens");
        // it logs each request, and must not block on that
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, url })
    }

    /// A client of each service, as the functions' owner has it.
    fn sqs(&self) -> aws_sdk_sqs::Client {
        aws_sdk_sqs::Client::from_conf(
            aws_sdk_sqs::Config::builder()
                .behavior_version_latest()
                .region(aws_sdk_sqs::config::Region::new("us-east-1"))
                .credentials_provider(credentials())
                .endpoint_url(&self.url)
                .build(),
        )
    }

    fn sns(&self) -> aws_sdk_sns::Client {
        aws_sdk_sns::Client::from_conf(
            aws_sdk_sns::Config::builder()
                .behavior_version_latest()
                .region(aws_sdk_sns::config::Region::new("us-east-1"))
                .credentials_provider(credentials())
                .endpoint_url(&self.url)
                .build(),
        )
    }

    fn eventbridge(&self) -> aws_sdk_eventbridge::Client {
        aws_sdk_eventbridge::Client::from_conf(
            aws_sdk_eventbridge::Config::builder()
                .behavior_version_latest()
                .region(aws_sdk_eventbridge::config::Region::new("us-east-1"))
                .credentials_provider(credentials())
                .endpoint_url(&self.url)
                .build(),
        )
    }

    /// The body of the answer to a plain request; this server looks at no signature, but wants one.
    fn http(&self, method: &str, path: &str) -> String {
        let host = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).expect("connected");
        let signature = "AWS4-HMAC-SHA256 Credential=000000000000/20260101/us-east-1/s3/aws4_request";
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: {signature}\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
    }
}

fn credentials() -> aws_credential_types::Credentials {
    aws_credential_types::Credentials::new("000000000000", "test", None, None, "test")
}

/// Takes all messages out of a queue.
async fn drain(sqs: &aws_sdk_sqs::Client, url: &str) -> Vec<Received> {
    let answer = sqs.receive_message().queue_url(url).max_number_of_messages(10).message_attribute_names("All");
    let messages = answer.send().await.expect("received").messages.unwrap_or_default();
    for message in &messages {
        let handle = message.receipt_handle().expect("a handle");
        sqs.delete_message().queue_url(url).receipt_handle(handle).send().await.expect("deleted");
    }
    messages
}

fn attribute(message: &Received, name: &str) -> (String, String) {
    let value = &message.message_attributes().expect("attributes")[name];
    (value.data_type().to_owned(), value.string_value().expect("a string").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_records_and_dead_letters() {
    let Some(moto) = Moto::start() else { return };
    let delivery = delivery(&moto.url, &Arc::default());
    for arn in [QUEUE, TOPIC, BUS, BUCKET] {
        let error = delivery.deliver(&target(arn), &event(), &record()).await.expect_err("it does not exist");
        assert!(!error.retryable && error.cause.contains("create it"), "{error}");
    }

    let sqs = moto.sqs();
    let url = sqs.create_queue().queue_name("q").send().await.expect("created").queue_url.expect("a URL");
    queue(&delivery, &sqs, &url).await;
    topic(&delivery, &moto.sns(), &sqs, &url).await;
    bus(&delivery, &moto.eventbridge(), &sqs, &url).await;
    moto.http("PUT", "/bucket");
    delivery.deliver(&target(BUCKET), &event(), &record()).await.expect("put");
    let listed = moto.http("GET", "/bucket");
    let key = listed.split_once("<Key>").expect("an object").1.split_once("</Key>").expect("closed").0;
    assert!(key.starts_with("aws/lambda/async/f/20"), "{key}");
    assert_eq!(moto.http("GET", &format!("/bucket/{key}")), RECORD);

    too_large(&delivery).await;
    sqs.delete_queue().queue_url(&url).send().await.expect("deleted");
    let error = delivery.deliver(&target(QUEUE), &event(), &record()).await.expect_err("deleted");
    assert!(!error.retryable, "{error}");
    sqs.create_queue().queue_name("q").send().await.expect("created again");
    delivery.deliver(&target(QUEUE), &event(), &record()).await.expect("taken again");
}

async fn queue(delivery: &Delivery, sqs: &aws_sdk_sqs::Client, url: &str) {
    delivery.deliver(&target(QUEUE), &event(), &record()).await.expect("sent");
    delivery.deliver(&target(QUEUE), &event(), &dead_letter()).await.expect("sent");
    let messages = drain(sqs, url).await;
    let [record, letter] = &messages[..] else { panic!("two messages, not {messages:?}") };
    assert_eq!(record.body(), Some(RECORD));
    assert!(record.message_attributes().is_none_or(|attributes| attributes.is_empty()));
    assert_eq!(letter.body(), Some(r#"{"a": 1}"#));
    assert_eq!(attribute(letter, "RequestID"), ("String".into(), uuid::Uuid::nil().to_string()));
    assert_eq!(attribute(letter, "ErrorCode"), ("Number".into(), "200".into()));
    assert_eq!(attribute(letter, "ErrorMessage"), ("String".into(), "\u{fffd}[31mboom\u{fffd}".into()));
}

async fn topic(delivery: &Delivery, sns: &aws_sdk_sns::Client, sqs: &aws_sdk_sqs::Client, url: &str) {
    sns.create_topic().name("t").send().await.expect("created");
    sns.subscribe().topic_arn(TOPIC).protocol("sqs").endpoint(QUEUE).send().await.expect("subscribed");
    for message in [record(), dead_letter()] {
        delivery.deliver(&target(TOPIC), &event(), &message).await.expect("published");
    }
    let notes: Vec<Value> = drain(sqs, url)
        .await
        .iter()
        .map(|message| serde_json::from_str(message.body().expect("a body")).expect("JSON"))
        .collect();
    let [record, letter] = &notes[..] else { panic!("two notifications, not {notes:?}") };
    assert_eq!((&record["Message"], record.get("MessageAttributes")), (&json!(RECORD), None));
    assert_eq!(letter["Message"], r#"{"a": 1}"#);
    assert_eq!(
        letter["MessageAttributes"],
        json!({
            "RequestID": {"Type": "String", "Value": uuid::Uuid::nil().to_string()},
            "ErrorCode": {"Type": "Number", "Value": "200"},
            "ErrorMessage": {"Type": "String", "Value": "\u{fffd}[31mboom\u{fffd}"},
        })
    );
}

async fn bus(delivery: &Delivery, events: &aws_sdk_eventbridge::Client, sqs: &aws_sdk_sqs::Client, url: &str) {
    events.create_event_bus().name("b").send().await.expect("created");
    let pattern = r#"{"source":["lambda"]}"#;
    events.put_rule().name("r").event_bus_name("b").event_pattern(pattern).send().await.expect("a rule");
    let queue = aws_sdk_eventbridge::types::Target::builder().id("1").arn(QUEUE).build().expect("a target");
    events.put_targets().rule("r").event_bus_name("b").targets(queue).send().await.expect("its target");
    let failure = Message::Record { body: RECORD.into(), success: false };
    for message in [record(), failure] {
        delivery.deliver(&target(BUS), &event(), &message).await.expect("put");
    }
    let events: Vec<Value> = drain(sqs, url)
        .await
        .iter()
        .map(|message| serde_json::from_str(message.body().expect("a body")).expect("JSON"))
        .collect();
    let [success, failure] = &events[..] else { panic!("two events, not {events:?}") };
    assert_eq!(success["source"], "lambda");
    assert_eq!(success["detail-type"], "Lambda Function Invocation Result - Success");
    assert_eq!(failure["detail-type"], "Lambda Function Invocation Result - Failure");
    assert_eq!(success["resources"], json!([BUS, "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST"]));
    assert_eq!(success["detail"], serde_json::from_str::<Value>(RECORD).expect("JSON"));
}

/// What is larger than the service takes is its to refuse, and no try changes it.
async fn too_large(delivery: &Delivery) {
    let body = format!(r#"{{"requestPayload":"{}"}}"#, "x".repeat(2 << 20));
    let message = Message::Record { body, success: true };
    for arn in [QUEUE, TOPIC, BUS] {
        let error = delivery.deliver(&target(arn), &event(), &message).await.expect_err(arn);
        assert!(!error.retryable, "{error}");
    }
    delivery.deliver(&target(BUCKET), &event(), &message).await.expect("a bucket takes it");
}
