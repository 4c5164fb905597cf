//! What the tests against real endpoints share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_sqs::types::QueueAttributeName;
use event_sources::{Config, Metrics, Service, SqsConfig, SqsQueues};

use crate::support::*;

/// A queue owner's client.
pub fn client(url: &str) -> aws_sdk_sqs::Client {
    let credentials = aws_credential_types::Credentials::new("000000000000", "test", None, None, "test");
    aws_sdk_sqs::Client::from_conf(
        aws_sdk_sqs::Config::builder()
            .behavior_version_latest()
            .region(aws_sdk_sqs::config::Region::new("us-east-1"))
            .credentials_provider(credentials)
            .endpoint_url(url)
            .build(),
    )
}

/// A queue whose received messages are hidden for so long; returns its URL.
pub async fn create_queue(sqs: &aws_sdk_sqs::Client, name: &str, seconds: u32) -> String {
    let mut request =
        sqs.create_queue().queue_name(name).attributes(QueueAttributeName::VisibilityTimeout, seconds.to_string());
    if name.ends_with(".fifo") {
        request = request.attributes(QueueAttributeName::FifoQueue, "true");
    }
    request.send().await.expect("created").queue_url.expect("a URL")
}

pub fn queues(url: &str) -> Arc<SqsQueues> {
    Arc::new(SqsQueues::new(SqsConfig { endpoint: Some(url.to_owned()), ..SqsConfig::default() }))
}

/// The service with these queues; returns what it works with.
pub fn serve(queues: Arc<SqsQueues>, mapping: Mapping) -> (Arc<Service>, Arc<Table>, Arc<Function>) {
    let (mappings, function) = (Arc::new(Table::default()), Arc::new(Function::default()));
    mappings.set(vec![mapping]);
    let service = Arc::new(Service::new(
        Config::default(),
        queues,
        mappings.clone(),
        function.clone(),
        Arc::new(domain::SystemClock::default()),
        Metrics::default(),
    ));
    let running = service.clone();
    tokio::spawn(async move { running.run().await });
    (service, mappings, function)
}

pub async fn until(condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(60), "the condition should hold in the end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn left(sqs: &aws_sdk_sqs::Client, url: &str) -> u32 {
    let names =
        [QueueAttributeName::ApproximateNumberOfMessages, QueueAttributeName::ApproximateNumberOfMessagesNotVisible];
    let request = sqs.get_queue_attributes().queue_url(url).set_attribute_names(Some(names.to_vec()));
    let attributes = request.send().await.expect("attributes").attributes.unwrap_or_default();
    attributes.values().map(|n| n.parse::<u32>().expect("a number")).sum()
}

pub fn sqs_source(queue: &str) -> domain::EventSource {
    sqs(&format!("arn:aws:sqs:us-east-1:000000000000:{queue}"), None)
}
