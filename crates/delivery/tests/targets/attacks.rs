//! Endpoints that are down, slow, broken or not what they should be: an error that says so, in time, and no harm to
//! what comes after.

use std::sync::Arc;
use std::time::{Duration, Instant};

use delivery::{Credentials, Delivery, DeliveryConfig, Endpoint};
use pollers::{Deliver, DeliveryError};
use tokio::net::TcpListener;

use crate::server::{Answer, Server};
use crate::*;

const REMOTE: [&str; 4] = [QUEUE, TOPIC, BUS, BUCKET];

/// `setting` must be named by the error of the target.
fn setting(arn: &str) -> &'static str {
    match arn {
        QUEUE => "events.sqs_endpoint",
        TOPIC => "events.sns_endpoint",
        BUS => "events.eventbridge_endpoint",
        _ => "events.s3_endpoint",
    }
}

async fn fails(delivery: &Delivery, arn: &str) -> DeliveryError {
    delivery.deliver(&target(arn), &event(), &record()).await.expect_err(arn)
}

#[tokio::test]
async fn refused_connections_are_temporary() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let delivery = delivery(&url, &Arc::default());
    for arn in REMOTE {
        let error = fails(&delivery, arn).await;
        assert!(error.retryable, "{error}");
        assert!(error.cause.contains(&url) && error.cause.contains(setting(arn)), "{error}");
    }
}

#[tokio::test]
async fn hanging_endpoints_are_given_up_in_time() {
    let silent = Server::start(|_, _| Answer::Hang).await;
    let stuck = Server::start(|_, _| Answer::HangWithin).await;
    for url in [&silent.url, &stuck.url] {
        let endpoint = || Endpoint::at(url);
        let config = DeliveryConfig {
            sqs: endpoint(),
            sns: endpoint(),
            eventbridge: endpoint(),
            s3: endpoint(),
            call_timeout: Duration::from_millis(300),
            ..DeliveryConfig::default()
        };
        let delivery = Delivery::new(config, Arc::<Functions>::default());
        for arn in REMOTE {
            let began = Instant::now();
            let error = fails(&delivery, arn).await;
            assert!(error.retryable && error.cause.contains("did not answer in time"), "{error}");
            assert!(error.cause.contains(setting(arn)), "{error}");
            assert!(began.elapsed() < Duration::from_secs(5), "{arn}: {:?}", began.elapsed());
        }
    }
}

#[tokio::test]
async fn a_service_that_recovers_gets_the_message() {
    for arn in REMOTE {
        let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let is_down = down.clone();
        let server = Server::start(move |_, request| match is_down.load(std::sync::atomic::Ordering::SeqCst) {
            true => Answer::Respond(500, "<html>oh no</html>"),
            false if request.contains("GetQueueUrl") => Answer::Respond(200, r#"{"QueueUrl":"http://h/q"}"#),
            false if request.contains("Action=Publish") => Answer::Respond(
                200,
                "<PublishResponse><PublishResult><MessageId>1</MessageId></PublishResult></PublishResponse>",
            ),
            false if request.starts_with("PUT ") => Answer::Respond(200, ""),
            false => Answer::Respond(200, r#"{"MessageId":"1","FailedEntryCount":0,"Entries":[{"EventId":"1"}]}"#),
        })
        .await;
        let delivery = delivery(&server.url, &Arc::default());
        for _ in 0..3 {
            let error = fails(&delivery, arn).await;
            assert!(error.retryable, "{error}");
        }
        down.store(false, std::sync::atomic::Ordering::SeqCst);
        delivery.deliver(&target(arn), &event(), &record()).await.expect(arn);
    }
}

#[tokio::test]
async fn a_connection_that_closes_is_tried_once_more_at_once() {
    let server = Server::start(|number, request| match number {
        0 => Answer::Close,
        _ if request.contains("GetQueueUrl") => Answer::Respond(200, r#"{"QueueUrl":"http://h/q"}"#),
        _ => Answer::Respond(200, r#"{"MessageId":"1"}"#),
    })
    .await;
    delivery(&server.url, &Arc::default()).deliver(&target(QUEUE), &event(), &record()).await.expect("second try");
}

#[tokio::test]
async fn answers_of_something_else_are_temporary() {
    let server = Server::start(|_, _| Answer::Respond(200, "<html>Welcome to the router</html>")).await;
    let delivery = delivery(&server.url, &Arc::default());
    for arn in [QUEUE, TOPIC, BUS] {
        let error = fails(&delivery, arn).await;
        assert!(error.retryable && error.cause.contains(setting(arn)), "{error}");
    }
}

#[tokio::test]
async fn throttles_are_temporary_and_refusals_are_not() {
    for (status, body, retryable) in [
        (400, r#"{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slow down"}"#, true),
        (400, r#"{"__type":"ThrottlingException","message":"slow down"}"#, true),
        (503, "", true),
        (429, "", true),
        (403, r#"{"__type":"AccessDeniedException","message":"no"}"#, false),
        (403, r#"{"__type":"UnrecognizedClientException","message":"who?"}"#, false),
        (400, r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"none"}"#, false),
        (404, "<html>no such page</html>", true),
    ] {
        let server = Server::start(move |_, _| Answer::Respond(status, body)).await;
        let error = fails(&delivery(&server.url, &Arc::default()), QUEUE).await;
        assert_eq!(error.retryable, retryable, "{status} {body}: {error}");
    }
    for (status, body, retryable) in [
        (503, "<Error><Code>SlowDown</Code></Error>", true),
        (404, "<html>no such page</html>", true),
        (403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>", false),
    ] {
        let server = Server::start(move |_, _| Answer::Respond(status, body)).await;
        let error = fails(&delivery(&server.url, &Arc::default()), BUCKET).await;
        assert_eq!(error.retryable, retryable, "{status} {body}: {error}");
    }
}

#[tokio::test]
async fn an_entry_that_a_bus_does_not_take_is_an_error() {
    for (code, retryable) in [("ThrottlingException", true), ("InternalFailure", true), ("InvalidArgument", false)] {
        let body: &'static str = match code {
            "ThrottlingException" => r#"{"FailedEntryCount":1,"Entries":[{"ErrorCode":"ThrottlingException"}]}"#,
            "InternalFailure" => r#"{"FailedEntryCount":1,"Entries":[{"ErrorCode":"InternalFailure"}]}"#,
            _ => r#"{"FailedEntryCount":1,"Entries":[{"ErrorCode":"InvalidArgument","ErrorMessage":"bad"}]}"#,
        };
        let server = Server::start(move |_, _| Answer::Respond(200, body)).await;
        let error = fails(&delivery(&server.url, &Arc::default()), BUS).await;
        assert!(error.retryable == retryable && error.cause.contains(code), "{error}");
    }
}

#[tokio::test]
async fn what_no_try_can_change_is_said_at_once() {
    let delivery = delivery("no url", &Arc::default());
    for arn in REMOTE {
        let error = fails(&delivery, arn).await;
        assert!(error.cause.contains(setting(arn)), "{error}");
    }
    for arn in ["arn:aws:sqs:us-east-1:000000000000:q.fifo", "arn:aws:sns:us-east-1:000000000000:t.fifo"] {
        let error = fails(&delivery, arn).await;
        assert!(!error.retryable && error.cause.contains("FIFO"), "{error}");
    }
    for arn in [BUS, BUCKET, FUNCTION] {
        let error = delivery.deliver(&target(arn), &event(), &dead_letter()).await.expect_err(arn);
        assert!(!error.retryable && error.cause.contains("DeadLetterConfig"), "{error}");
    }
}

#[tokio::test]
async fn own_credentials_sign() {
    let server = Server::start(|_, request| match request.contains("GetQueueUrl") {
        true => Answer::Respond(200, r#"{"QueueUrl":"http://h/q"}"#),
        false => Answer::Respond(200, r#"{"MessageId":"1"}"#),
    })
    .await;
    let credentials = Credentials {
        access_key: "AKIDEXAMPLE".into(),
        secret_key: "secret".into(),
        session_token: Some("session".into()),
    };
    let own = Endpoint { credentials: Some(credentials), ..Endpoint::at(&server.url) };
    let config = DeliveryConfig { sqs: own.clone(), s3: own, ..DeliveryConfig::default() };
    let delivery = Delivery::new(config, Arc::<Functions>::default());
    for arn in [QUEUE, BUCKET] {
        delivery.deliver(&target(arn), &event(), &record()).await.expect(arn);
    }
    assert_eq!(server.requests.lock().len(), 3);
    assert_eq!((server.count("Credential=AKIDEXAMPLE/"), server.count("x-amz-security-token: session")), (3, 3));
}

#[tokio::test]
async fn functions_get_the_record_and_the_lineage() {
    let functions = Arc::<Functions>::default();
    let delivery = delivery("http://127.0.0.1:1", &functions);
    delivery.deliver(&target(FUNCTION), &event(), &record()).await.expect("enqueued");
    let got = functions.0.lock().clone();
    let [(arn, trace, body)] = &got[..] else { panic!("one record, not {got:?}") };
    assert_eq!((arn.as_str(), body.as_ref()), (FUNCTION, RECORD.as_bytes()));
    let trace = trace.as_deref().expect("a trace header");
    assert!(trace.starts_with("Root=1-5759e988") && trace.contains("Lineage="), "{trace}");
    let error = fails(&delivery, "arn:aws:lambda:us-east-1:000000000000:function:gone").await;
    assert!(!error.retryable && error.cause == "Function not found", "{error}");
}
