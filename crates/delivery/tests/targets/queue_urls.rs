//! A queue's URL is asked for once, and again when the queue has gone.

use std::sync::Arc;

use pollers::Deliver;

use crate::server::{Answer, Server};
use crate::*;

const GONE: &str =
    r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does not exist."}"#;

#[tokio::test]
async fn is_asked_for_once() {
    let server = Server::start(|_, request| match request.contains("GetQueueUrl") {
        true => Answer::Respond(200, r#"{"QueueUrl":"http://h/000000000000/q"}"#),
        false => Answer::Respond(200, r#"{"MessageId":"1"}"#),
    })
    .await;
    let delivery = delivery(&server.url, &Arc::default());
    for _ in 0..3 {
        delivery.deliver(&target(QUEUE), &event(), &record()).await.expect("delivered");
    }
    assert_eq!((server.count("AmazonSQS.GetQueueUrl"), server.count("AmazonSQS.SendMessage")), (1, 3));
    assert_eq!(server.count(r#""QueueOwnerAWSAccountId":"000000000000""#), 1);
    assert_eq!(server.count("http://h/000000000000/q"), 3);
    assert_eq!(server.count("AWSTraceHeader"), 3);
    assert_eq!(server.count("Lineage="), 3);
}

#[tokio::test]
async fn is_asked_for_again_when_the_queue_has_moved() {
    let server = Server::start(|number, request| {
        if request.contains("GetQueueUrl") {
            Answer::Respond(
                200,
                if number == 0 { r#"{"QueueUrl":"http://h/old"}"# } else { r#"{"QueueUrl":"http://h/new"}"# },
            )
        } else if number > 1 && request.contains("http://h/old") {
            Answer::Respond(400, GONE)
        } else {
            Answer::Respond(200, r#"{"MessageId":"1"}"#)
        }
    })
    .await;
    let delivery = delivery(&server.url, &Arc::default());
    for _ in 0..3 {
        delivery.deliver(&target(QUEUE), &event(), &record()).await.expect("delivered");
    }
    assert_eq!((server.count("GetQueueUrl"), server.count("http://h/old"), server.count("http://h/new")), (2, 2, 2));
}

#[tokio::test]
async fn that_is_missing_or_of_a_deleted_queue_is_an_error() {
    let server = Server::start(|_, _| Answer::Respond(200, "{}")).await;
    let delivery = delivery(&server.url, &Arc::default());
    let error = delivery.deliver(&target(QUEUE), &event(), &record()).await.expect_err("no URL");
    assert!(error.retryable && error.cause.contains("without a URL"), "{error}");

    let server = Server::start(|_, request| match request.contains("GetQueueUrl") {
        true => Answer::Respond(200, r#"{"QueueUrl":"http://h/q"}"#),
        false => Answer::Respond(400, GONE),
    })
    .await;
    let delivery = crate::delivery(&server.url, &Arc::default());
    let error = delivery.deliver(&target(QUEUE), &event(), &record()).await.expect_err("no queue");
    assert!(!error.retryable && error.cause.contains("create it"), "{error}");
}
