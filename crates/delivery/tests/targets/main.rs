//! Delivery to servers: a third party's, and hostile ones.

mod attacks;
mod queue_urls;
mod server;
mod third_party;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use delivery::{Delivery, DeliveryConfig, Endpoint, EnqueueEvent, Failure};
use domain::{AccountId, FunctionArn, RequestId};
use pollers::record::DeadLetterAttributes;
use pollers::{AsyncEvent, Message, Target};

/// A record for tests; what it says does not matter to who sends it.
const RECORD: &str = r#"{"version":"1.0","requestContext":{"condition":"Success"},"requestPayload":{"é":1.0}}"#;

const QUEUE: &str = "arn:aws:sqs:us-east-1:000000000000:q";
const TOPIC: &str = "arn:aws:sns:us-east-1:000000000000:t";
const BUS: &str = "arn:aws:events:us-east-1:000000000000:event-bus/b";
const BUCKET: &str = "arn:aws:s3:::bucket";
const FUNCTION: &str = "arn:aws:lambda:us-east-1:000000000000:function:g:live";

/// Keeps what functions get.
#[derive(Default)]
struct Functions(parking_lot::Mutex<Vec<(String, Option<String>, Bytes)>>);

#[async_trait]
impl EnqueueEvent for Functions {
    async fn enqueue(&self, function: &Target, trace_header: Option<&str>, record: Bytes) -> Result<(), Failure> {
        if function.arn.ends_with(":gone") {
            return Err(Failure::refused("Function not found"));
        }
        self.0.lock().push((function.arn.clone(), trace_header.map(str::to_owned), record));
        Ok(())
    }
}

/// All services at `url`, with short limits.
fn delivery(url: &str, functions: &Arc<Functions>) -> Delivery {
    let endpoint = || Endpoint::at(url);
    let config = DeliveryConfig {
        sqs: endpoint(),
        sqs_client: None,
        sns: endpoint(),
        eventbridge: endpoint(),
        s3: endpoint(),
        connect_timeout: Duration::from_secs(1),
        call_timeout: Duration::from_secs(10),
    };
    Delivery::new(config, functions.clone())
}

fn target(arn: &str) -> Target {
    Target::parse(arn).expect(arn)
}

fn event() -> AsyncEvent {
    let function = FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() };
    AsyncEvent {
        trace_header: Some("Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1".into()),
        ..AsyncEvent::new(function, RequestId(uuid::Uuid::nil()), r#"{"a": 1}"#.into(), UNIX_EPOCH)
    }
}

fn record() -> Message {
    Message::Record { body: RECORD.into(), success: true }
}

fn dead_letter() -> Message {
    let attributes = DeadLetterAttributes {
        request_id: "00000000-0000-0000-0000-000000000000".into(),
        error_code: 200,
        error_message: "\u{1b}[31mboom\0".into(),
    };
    Message::DeadLetter { body: r#"{"a": 1}"#.into(), attributes }
}
