//! The service through its public API, with a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use domain::Clock;
use serde_json::{Value, json};
use sqs::{FileError, SqsService};

const ACCOUNT: &str = "123456789012";
const REGION: &str = "eu-west-1";
const BASE: &str = "http://queue.test:9001";

/// Wall-clock time in milliseconds.
struct TestClock(AtomicU64);

impl TestClock {
    fn pass(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + self.monotonic()
    }
}

struct Sqs {
    service: SqsService,
    clock: Arc<TestClock>,
    folder: tempfile::TempDir,
}

impl Sqs {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(AtomicU64::new(1_800_000_000_000)));
        let service = open(&folder, &clock).await.unwrap();
        Self { service, clock, folder }
    }

    async fn reopen(&mut self) {
        self.service.close().await;
        self.service = open(&self.folder, &self.clock).await.unwrap();
    }

    async fn call(&self, operation: &str, body: Value) -> Result<Value, (String, Value)> {
        call(&self.service, ACCOUNT, operation, body).await
    }

    async fn ok(&self, operation: &str, body: Value) -> Value {
        self.call(operation, body).await.unwrap_or_else(|error| panic!("{operation}: {error:?}"))
    }

    /// The code of the error.
    async fn code(&self, operation: &str, body: Value) -> String {
        match self.call(operation, body).await {
            Ok(answer) => panic!("{operation} succeeded: {answer}"),
            Err((code, _)) => code,
        }
    }

    async fn queue(&self, name: &str, attributes: Value) -> String {
        let answer = self.ok("CreateQueue", json!({"QueueName": name, "Attributes": attributes})).await;
        answer["QueueUrl"].as_str().unwrap().to_owned()
    }

    async fn send(&self, url: &str, body: &str) -> Value {
        self.ok("SendMessage", json!({"QueueUrl": url, "MessageBody": body})).await
    }

    async fn receive(&self, url: &str) -> Vec<Value> {
        let request = json!({"QueueUrl": url, "MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"]});
        self.ok("ReceiveMessage", request).await["Messages"].as_array().cloned().unwrap_or_default()
    }

    /// (visible, in flight, delayed)
    async fn counts(&self, url: &str) -> (u64, u64, u64) {
        let answer = self.ok("GetQueueAttributes", json!({"QueueUrl": url, "AttributeNames": ["All"]})).await;
        let count = |name: &str| answer["Attributes"][name].as_str().unwrap().parse().unwrap();
        (
            count("ApproximateNumberOfMessages"),
            count("ApproximateNumberOfMessagesNotVisible"),
            count("ApproximateNumberOfMessagesDelayed"),
        )
    }
}

async fn open(folder: &tempfile::TempDir, clock: &Arc<TestClock>) -> Result<SqsService, FileError> {
    SqsService::open(folder.path().join("sqs.db"), Arc::clone(clock) as Arc<dyn Clock>).await
}

async fn call(service: &SqsService, account: &str, operation: &str, body: Value) -> Result<Value, (String, Value)> {
    let target = format!("AmazonSQS.{operation}");
    let response = service.handle(account, REGION, BASE, &target, None, body.to_string().into()).await;
    assert_eq!(response.headers()["content-type"], "application/x-amz-json-1.0");
    assert!(response.headers().contains_key("x-amzn-requestid"));
    let body = serde_json::from_slice(response.body()).unwrap();
    if response.status() == 200 {
        return Ok(body);
    }
    let code = response.headers()["x-amzn-query-error"].to_str().unwrap().split(';').next().unwrap().to_owned();
    Err((code, body))
}

fn bodies(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["Body"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_message_lives_until_it_is_deleted() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({"VisibilityTimeout": "10"})).await;
    assert_eq!(url, format!("{BASE}/{ACCOUNT}/q"));
    sqs.send(&url, "hello").await;
    assert_eq!(sqs.counts(&url).await, (1, 0, 0));
    let first = sqs.receive(&url).await;
    assert_eq!(bodies(&first), ["hello"]);
    assert_eq!(first[0]["Attributes"]["ApproximateReceiveCount"], "1");
    assert_eq!(sqs.counts(&url).await, (0, 1, 0));
    assert_eq!(sqs.receive(&url).await, Vec::<Value>::new());
    sqs.clock.pass(Duration::from_secs(10));
    let second = sqs.receive(&url).await;
    assert_eq!(second[0]["Attributes"]["ApproximateReceiveCount"], "2");
    assert_ne!(first[0]["ReceiptHandle"], second[0]["ReceiptHandle"]);
    let delete = |message: &Value| json!({"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]});
    // An old handle succeeds and deletes nothing.
    sqs.ok("DeleteMessage", delete(&first[0])).await;
    assert_eq!(sqs.counts(&url).await, (0, 1, 0));
    sqs.ok("DeleteMessage", delete(&second[0])).await;
    assert_eq!(sqs.counts(&url).await, (0, 0, 0));
    sqs.ok("DeleteMessage", delete(&second[0])).await;
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let mut sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({"VisibilityTimeout": "100"})).await;
    let fifo = sqs.queue("q.fifo", json!({"FifoQueue": "true", "ContentBasedDeduplication": "true"})).await;
    sqs.ok("TagQueue", json!({"QueueUrl": url, "Tags": {"team": "a"}})).await;
    sqs.send(&url, "in flight").await;
    let message = sqs.receive(&url).await.remove(0);
    sqs.send(&url, "visible").await;
    sqs.ok("SendMessage", json!({"QueueUrl": url, "MessageBody": "delayed", "DelaySeconds": 60})).await;
    let send = json!({"QueueUrl": fifo, "MessageBody": "once", "MessageGroupId": "g"});
    let sent = sqs.ok("SendMessage", send.clone()).await;
    sqs.reopen().await;
    assert_eq!(sqs.counts(&url).await, (1, 1, 1));
    assert_eq!(sqs.ok("ListQueueTags", json!({"QueueUrl": url})).await, json!({"Tags": {"team": "a"}}));
    // The handle from before, the duplicate of before, and no number twice.
    sqs.ok("DeleteMessage", json!({"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]})).await;
    assert_eq!(sqs.counts(&url).await, (1, 0, 1));
    assert_eq!(sqs.ok("SendMessage", send).await, sent);
    assert_eq!(sqs.counts(&fifo).await, (1, 0, 0));
    sqs.clock.pass(Duration::from_secs(60));
    assert_eq!(bodies(&sqs.receive(&url).await), ["visible", "delayed"]);
}

#[tokio::test]
async fn a_receive_waits_for_a_message_and_no_longer() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    let start = Instant::now();
    let request = json!({"QueueUrl": url, "WaitTimeSeconds": 20});
    let (received, ()) = tokio::join!(sqs.ok("ReceiveMessage", request), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        sqs.send(&url, "late").await;
    });
    assert_eq!(received["Messages"][0]["Body"], "late");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(sqs.ok("ReceiveMessage", json!({"QueueUrl": url, "WaitTimeSeconds": 1})).await, json!({}));
}

#[tokio::test]
async fn messages_go_to_those_who_wait_in_turn() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    let receive = || sqs.ok("ReceiveMessage", json!({"QueueUrl": url, "WaitTimeSeconds": 20}));
    let (first, second, ()) = tokio::join!(biased; receive(), receive(), async {
        sqs.send(&url, "1").await;
        sqs.send(&url, "2").await;
    });
    assert_eq!((&first["Messages"][0]["Body"], &second["Messages"][0]["Body"]), (&json!("1"), &json!("2")));
}

#[tokio::test]
async fn a_receiver_that_left_does_not_keep_messages() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({"VisibilityTimeout": "43200"})).await;
    let request = json!({"QueueUrl": url, "WaitTimeSeconds": 20});
    tokio::time::timeout(Duration::from_millis(50), sqs.call("ReceiveMessage", request)).await.unwrap_err();
    sqs.send(&url, "x").await;
    assert_eq!(bodies(&sqs.receive(&url).await), ["x"]);
}

#[tokio::test]
async fn deleting_the_queue_ends_the_wait() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    let request = json!({"QueueUrl": url, "WaitTimeSeconds": 20});
    let (received, _) =
        tokio::join!(biased; sqs.call("ReceiveMessage", request), sqs.ok("DeleteQueue", json!({"QueueUrl": url})));
    assert_eq!(received.unwrap_err().0, "AWS.SimpleQueueService.NonExistentQueue");
    assert_eq!(sqs.ok("ListQueues", json!({})).await, json!({}));
}

#[tokio::test]
async fn what_is_received_too_often_goes_to_the_dead_letter_queue() {
    let sqs = Sqs::new().await;
    let dead = sqs.queue("dead", json!({})).await;
    let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:dead");
    let policy = json!({"deadLetterTargetArn": arn, "maxReceiveCount": 2}).to_string();
    let url = sqs.queue("q", json!({"RedrivePolicy": policy, "VisibilityTimeout": "1"})).await;
    let id = sqs.send(&url, "poison").await["MessageId"].clone();
    for _ in 0..2 {
        assert_eq!(sqs.receive(&url).await.len(), 1);
        sqs.clock.pass(Duration::from_secs(1));
    }
    assert_eq!(sqs.receive(&url).await, Vec::<Value>::new());
    assert_eq!(sqs.counts(&url).await, (0, 0, 0));
    let message = sqs.receive(&dead).await.remove(0);
    assert_eq!((&message["MessageId"], &message["Body"]), (&id, &json!("poison")));
    assert_eq!(message["Attributes"]["ApproximateReceiveCount"], "3");
    assert_eq!(message["Attributes"]["DeadLetterQueueSourceArn"], format!("arn:aws:sqs:{REGION}:{ACCOUNT}:q"));
    let sources = sqs.ok("ListDeadLetterSourceQueues", json!({"QueueUrl": dead})).await;
    assert_eq!(sources, json!({"queueUrls": [url]}));
}

#[tokio::test]
async fn a_redrive_policy_needs_a_fitting_and_willing_target() {
    let sqs = Sqs::new().await;
    sqs.queue("closed", json!({"RedriveAllowPolicy": r#"{"redrivePermission":"denyAll"}"#})).await;
    sqs.queue("dead.fifo", json!({"FifoQueue": "true"})).await;
    for target in ["closed", "dead.fifo", "nowhere"] {
        let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{target}");
        let policy = json!({"deadLetterTargetArn": arn, "maxReceiveCount": 1}).to_string();
        let request = json!({"QueueName": "q", "Attributes": {"RedrivePolicy": policy}});
        assert_eq!(sqs.code("CreateQueue", request).await, "InvalidParameterValue", "{target}");
    }
}

#[tokio::test]
async fn fifo_queues_keep_order_and_drop_duplicates() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q.fifo", json!({"FifoQueue": "true"})).await;
    let send = |body: &str, group: &str, id: &str| {
        let request =
            json!({"QueueUrl": url, "MessageBody": body, "MessageGroupId": group, "MessageDeduplicationId": id});
        sqs.ok("SendMessage", request)
    };
    let first = send("a1", "a", "1").await;
    let second = send("b1", "b", "2").await;
    send("a2", "a", "3").await;
    assert!(first["SequenceNumber"].as_str() < second["SequenceNumber"].as_str());
    assert_eq!(send("other", "c", "1").await["MessageId"], first["MessageId"]);
    let one = json!({"QueueUrl": url, "MaxNumberOfMessages": 1});
    let a1 = sqs.ok("ReceiveMessage", one.clone()).await["Messages"][0].clone();
    assert_eq!(a1["Body"], "a1");
    assert_eq!(bodies(&sqs.receive(&url).await), ["b1"]);
    sqs.ok("DeleteMessage", json!({"QueueUrl": url, "ReceiptHandle": a1["ReceiptHandle"]})).await;
    let a2 = sqs.receive(&url).await.remove(0);
    assert_eq!((&a2["Body"], &a2["Attributes"]["MessageGroupId"]), (&json!("a2"), &json!("a")));
    // Its handle ends with its timeout.
    sqs.clock.pass(Duration::from_secs(30));
    let delete = json!({"QueueUrl": url, "ReceiptHandle": a2["ReceiptHandle"]});
    assert_eq!(sqs.code("DeleteMessage", delete).await, "InvalidParameterValue");
    sqs.clock.pass(Duration::from_secs(270));
    assert_ne!(send("again", "c", "1").await["MessageId"], first["MessageId"]);
}

#[tokio::test]
async fn old_messages_vanish() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({"MessageRetentionPeriod": "60"})).await;
    sqs.send(&url, "old").await;
    sqs.clock.pass(Duration::from_secs(59));
    sqs.send(&url, "new").await;
    assert_eq!(sqs.counts(&url).await, (2, 0, 0));
    sqs.clock.pass(Duration::from_secs(1));
    assert_eq!(bodies(&sqs.receive(&url).await), ["new"]);
}

#[tokio::test]
async fn a_batch_answers_for_each_entry() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    let entries = json!([{"Id": "a", "MessageBody": "x"}, {"Id": "b", "MessageBody": "\u{0}"}]);
    let sent = sqs.ok("SendMessageBatch", json!({"QueueUrl": url, "Entries": entries})).await;
    assert_eq!(sent["Successful"][0]["Id"], "a");
    assert_eq!(sent["Failed"][0]["Code"], "InvalidMessageContents");
    assert_eq!(sent["Failed"][0]["SenderFault"], true);
    let handle = sqs.receive(&url).await[0]["ReceiptHandle"].clone();
    let entries =
        json!([{"Id": "a", "ReceiptHandle": handle, "VisibilityTimeout": 0}, {"Id": "b", "ReceiptHandle": "x"}]);
    let changed = sqs.ok("ChangeMessageVisibilityBatch", json!({"QueueUrl": url, "Entries": entries})).await;
    assert_eq!((changed["Successful"][0]["Id"].as_str(), changed["Failed"][0]["Id"].as_str()), (Some("a"), Some("b")));
    let handle = sqs.receive(&url).await[0]["ReceiptHandle"].clone();
    let entries = json!([{"Id": "a", "ReceiptHandle": handle}]);
    let deleted = sqs.ok("DeleteMessageBatch", json!({"QueueUrl": url, "Entries": entries})).await;
    assert_eq!(deleted, json!({"Successful": [{"Id": "a"}], "Failed": []}));
    let many: Vec<Value> = (0..11).map(|i| json!({"Id": i.to_string(), "MessageBody": "x"})).collect();
    let big = "x".repeat(600_000);
    for (entries, code) in [
        (json!([]), "EmptyBatchRequest"),
        (json!(many), "TooManyEntriesInBatchRequest"),
        (json!([{"Id": "a", "MessageBody": "x"}, {"Id": "a", "MessageBody": "y"}]), "BatchEntryIdsNotDistinct"),
        (json!([{"Id": "a b", "MessageBody": "x"}]), "InvalidBatchEntryId"),
        (json!([{"Id": "a", "MessageBody": big}, {"Id": "b", "MessageBody": big}]), "BatchRequestTooLong"),
    ] {
        let got = sqs.code("SendMessageBatch", json!({"QueueUrl": url, "Entries": entries})).await;
        assert_eq!(got, format!("AWS.SimpleQueueService.{code}"));
    }
}

#[tokio::test]
async fn accounts_and_regions_do_not_see_each_other() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    let other = |operation: &'static str, body| call(&sqs.service, "999999999999", operation, body);
    assert_eq!(other("ListQueues", json!({})).await, Ok(json!({})));
    let denied = other("SendMessage", json!({"QueueUrl": url, "MessageBody": "x"})).await;
    assert_eq!(denied.unwrap_err().0, "AccessDenied");
    let body = json!({"QueueName": "q"}).to_string();
    let elsewhere = sqs.service.handle(ACCOUNT, "us-east-1", BASE, "AmazonSQS.GetQueueUrl", None, body.into()).await;
    assert_eq!(elsewhere.status(), 400);
}

#[tokio::test]
async fn messages_keep_the_trace_of_their_request() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    let own = json!({"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=own"}});
    let entries = json!([{"Id": "a", "MessageBody": "batch"}]);
    let too_long = "x".repeat(1025);
    for (operation, trace, input, kept) in [
        ("SendMessage", Some("Root=1;Lineage=a:1"), json!({"MessageBody": "m"}), Some("Root=1;Lineage=a:1")),
        ("SendMessageBatch", Some("Root=2"), json!({"Entries": entries}), Some("Root=2")),
        ("SendMessage", Some("Root=3"), json!({"MessageBody": "m", "MessageSystemAttributes": own}), Some("Root=own")),
        ("SendMessage", Some(too_long.as_str()), json!({"MessageBody": "m"}), None),
        ("SendMessage", None, json!({"MessageBody": "m"}), None),
    ] {
        let mut body = input;
        body["QueueUrl"] = url.clone().into();
        let target = format!("AmazonSQS.{operation}");
        let sent = sqs.service.handle(ACCOUNT, REGION, BASE, &target, trace, body.to_string().into()).await;
        assert_eq!(sent.status(), 200);
        let wanted = json!({"QueueUrl": url, "MessageSystemAttributeNames": ["AWSTraceHeader"]});
        let received = call(&sqs.service, ACCOUNT, "ReceiveMessage", wanted).await.unwrap();
        assert_eq!(received["Messages"][0]["Attributes"]["AWSTraceHeader"].as_str(), kept);
    }
}

#[tokio::test]
async fn errors_have_the_codes_of_aws() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    let missing = format!("{BASE}/{ACCOUNT}/nope");
    for (operation, body, code) in [
        ("GetQueueUrl", json!({"QueueName": "nope"}), "AWS.SimpleQueueService.NonExistentQueue"),
        ("ReceiveMessage", json!({"QueueUrl": missing}), "AWS.SimpleQueueService.NonExistentQueue"),
        ("PurgeQueue", json!({"QueueUrl": missing}), "AWS.SimpleQueueService.NonExistentQueue"),
        ("PurgeQueue", json!({"QueueUrl": "q"}), "InvalidAddress"),
        ("CreateQueue", json!({"QueueName": "a b"}), "InvalidParameterValue"),
        ("CreateQueue", json!({"QueueName": "q", "Attributes": {"DelaySeconds": "1"}}), "QueueAlreadyExists"),
        ("CreateQueue", json!({"QueueName": "x", "Attributes": {"DelaySeconds": "901"}}), "InvalidAttributeValue"),
        ("CreateQueue", json!({}), "MissingParameter"),
        ("GetQueueAttributes", json!({"QueueUrl": url, "AttributeNames": ["Nope"]}), "InvalidAttributeName"),
        ("SendMessage", json!({"QueueUrl": url, "MessageBody": ""}), "MissingParameter"),
        ("SendMessage", json!({"QueueUrl": url, "MessageBody": "x", "DelaySeconds": 901}), "InvalidParameterValue"),
        ("SendMessage", json!({"QueueUrl": url, "MessageBody": "x".repeat(1_048_577)}), "InvalidParameterValue"),
        ("ReceiveMessage", json!({"QueueUrl": url, "MaxNumberOfMessages": 11}), "InvalidParameterValue"),
        ("ReceiveMessage", json!({"QueueUrl": url, "WaitTimeSeconds": 21}), "InvalidParameterValue"),
        ("DeleteMessage", json!({"QueueUrl": url, "ReceiptHandle": "x"}), "ReceiptHandleIsInvalid"),
        ("StartMessageMoveTask", json!({"SourceArn": "x"}), "NotImplemented"),
        ("Nonsense", json!({}), "UnknownOperationException"),
    ] {
        assert_eq!(sqs.code(operation, body.clone()).await, code, "{operation} {body}");
    }
}

#[tokio::test]
async fn lists_come_in_pages() {
    let sqs = Sqs::new().await;
    for name in ["a1", "a2", "a3", "b1"] {
        sqs.queue(name, json!({})).await;
    }
    let first = sqs.ok("ListQueues", json!({"QueueNamePrefix": "a", "MaxResults": 2})).await;
    assert_eq!(first["QueueUrls"].as_array().unwrap().len(), 2);
    let rest = json!({"QueueNamePrefix": "a", "MaxResults": 2, "NextToken": first["NextToken"]});
    assert_eq!(sqs.ok("ListQueues", rest).await, json!({"QueueUrls": [format!("{BASE}/{ACCOUNT}/a3")]}));
}

#[tokio::test]
async fn a_file_is_used_by_one_service_and_checked() {
    let sqs = Sqs::new().await;
    let error = open(&sqs.folder, &sqs.clock).await.unwrap_err();
    assert!(matches!(&error, FileError::Unavailable { cause, .. } if cause.contains("another Emberbox")), "{error}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("sqs.db"), "not a database, but long enough to have a header").unwrap();
    let error = open(&folder, &sqs.clock).await.unwrap_err();
    assert!(error.to_string().contains("move the file away"), "{error}");
}

#[tokio::test]
async fn a_failed_write_is_told_and_leaves_nothing_behind() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    // As a failing disk would: the next write of a content fails after the message's row is written.
    let other = rusqlite::Connection::open(sqs.folder.path().join("sqs.db")).unwrap();
    other.execute_batch("ALTER TABLE contents RENAME TO elsewhere").unwrap();
    let (waiting, code) = tokio::join!(
        biased;
        sqs.call("ReceiveMessage", json!({"QueueUrl": url, "WaitTimeSeconds": 20})),
        sqs.code("SendMessage", json!({"QueueUrl": url, "MessageBody": "lost"})),
    );
    assert_eq!((waiting.unwrap_err().0, code), ("InternalFailure".to_owned(), "InternalFailure".to_owned()));
    other.execute_batch("ALTER TABLE elsewhere RENAME TO contents").unwrap();
    assert_eq!(sqs.counts(&url).await, (0, 0, 0));
    sqs.send(&url, "kept").await;
    assert_eq!(bodies(&sqs.receive(&url).await), ["kept"]);
}

#[tokio::test]
async fn closing_ends_the_waits() {
    let sqs = Sqs::new().await;
    let url = sqs.queue("q", json!({})).await;
    let request = json!({"QueueUrl": url, "WaitTimeSeconds": 20});
    let (received, ()) = tokio::join!(biased; sqs.ok("ReceiveMessage", request), sqs.service.close());
    assert_eq!(received, json!({}));
    assert_eq!(sqs.code("ListQueues", json!({})).await, "InternalFailure");
}
