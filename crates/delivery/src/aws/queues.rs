//! Queues have ARNs in configurations and URLs in calls.

use std::collections::HashMap;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::SdkError;
use aws_sdk_sqs::operation::get_queue_url::GetQueueUrlError;
use aws_sdk_sqs::operation::send_message::SendMessageError;
use aws_sdk_sqs::types::{MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue};
use parking_lot::Mutex;

use crate::message::Text;

/// This many URLs are kept at most.
const KEPT: usize = 4096;

/// A queue, as its ARN names it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Queue {
    pub region: String,
    pub account: String,
    pub name: String,
}

/// URLs that queues had when they last took a message.
#[derive(Default)]
pub(super) struct QueueUrls(Mutex<HashMap<Queue, String>>);

impl QueueUrls {
    pub fn known(&self, queue: &Queue) -> Option<String> {
        self.0.lock().get(queue).cloned()
    }

    pub fn learn(&self, queue: Queue, url: String) {
        let mut urls = self.0.lock();
        if urls.len() >= KEPT {
            urls.clear();
        }
        urls.insert(queue, url);
    }

    pub fn forget(&self, queue: &Queue) {
        self.0.lock().remove(queue);
    }
}

/// The queue's URL could not be had.
pub(super) enum LookUpError {
    Sdk(Box<SdkError<GetQueueUrlError, HttpResponse>>),
    NoUrl,
}

/// Asks for a queue's URL.
pub(super) async fn look_up(client: &Client, queue: &Queue) -> Result<String, LookUpError> {
    let request = client.get_queue_url().queue_name(&queue.name).queue_owner_aws_account_id(&queue.account);
    let answer = request.send().await.map_err(|error| LookUpError::Sdk(Box::new(error)))?;
    answer.queue_url.ok_or(LookUpError::NoUrl)
}

/// Sends one message.
pub(super) async fn send(
    client: &Client,
    url: &str,
    text: &Text<'_>,
    trace: Option<&str>,
) -> Result<(), SdkError<SendMessageError, HttpResponse>> {
    let mut request = client.send_message().queue_url(url).message_body(text.body.as_ref());
    for attribute in &text.attributes {
        let value = MessageAttributeValue::builder()
            .data_type(attribute.kind)
            .string_value(&attribute.value)
            .build()
            .expect("it has a type");
        request = request.message_attributes(attribute.name, value);
    }
    if let Some(trace) = trace {
        let value = MessageSystemAttributeValue::builder()
            .data_type("String")
            .string_value(trace)
            .build()
            .expect("it has a type");
        request = request.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, value);
    }
    request.send().await.map(drop)
}
