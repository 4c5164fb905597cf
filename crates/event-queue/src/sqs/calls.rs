//! Calls of SQS and what their failures mean. The SDK tries each up to three times.

use std::fmt::Debug;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, DeleteMessageBatchRequestEntry, MessageSystemAttributeName, QueueAttributeName,
    SendMessageBatchRequestEntry,
};

use super::Settings;
use crate::api::QueueError;

/// Entries of one batch.
const BATCH: usize = 10;
/// How often what SQS has not taken out of a batch is sent again.
const ATTEMPTS: usize = 3;
/// SQS's longest, in seconds: 14 days.
const RETENTION: &str = "1209600";

/// The shards of an endpoint.
#[derive(Debug)]
pub(super) struct Calls {
    client: Client,
    urls: Vec<String>,
    max_message: usize,
}

/// A message that was handed out.
pub(super) struct Received {
    pub message: String,
    pub receipt: String,
    /// How often it was handed out.
    pub count: u32,
}

/// How many messages a shard has, about.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Lengths {
    pub ready: u64,
    pub in_flight: u64,
    pub delayed: u64,
}

impl Calls {
    pub(super) async fn connect(client: Client, settings: &Settings) -> Result<Self, QueueError> {
        let mut urls = Vec::new();
        for number in 0..settings.shards.max(1) {
            urls.push(url(&client, &format!("{}-{number}", settings.prefix)).await?);
        }
        Ok(Self { client, urls, max_message: settings.max_message })
    }

    pub(super) fn shards(&self) -> usize {
        self.urls.len()
    }

    pub(super) fn url(&self, shard: usize) -> &str {
        &self.urls[shard]
    }

    /// Sends messages, each with its delay in seconds.
    pub(super) async fn send(&self, shard: usize, messages: Vec<(String, i32)>) -> Result<(), QueueError> {
        let mut left = messages;
        while !left.is_empty() {
            // A batch is limited as a whole as well.
            let mut size = 0;
            let fits = left.iter().take(BATCH).take_while(|(message, _)| {
                size += message.len();
                size <= self.max_message
            });
            let rest = left.split_off(fits.count().max(1));
            self.send_batch(shard, left).await?;
            left = rest;
        }
        Ok(())
    }

    async fn send_batch(&self, shard: usize, messages: Vec<(String, i32)>) -> Result<(), QueueError> {
        let entries = messages.into_iter().enumerate().map(|(number, (message, delay))| {
            let entry = SendMessageBatchRequestEntry::builder().id(number.to_string()).message_body(message);
            entry.delay_seconds(delay).build().expect("id and body are set")
        });
        let mut entries: Vec<_> = entries.collect();
        for attempt in 1.. {
            let call = self.client.send_message_batch().queue_url(self.url(shard)).set_entries(Some(entries.clone()));
            let answer = call.send().await.map_err(|error| self.failed("send events to", shard, &error))?;
            let Some(refused) = answer.failed().first() else { break };
            if refused.sender_fault() || attempt == ATTEMPTS {
                return Err(self.refused("send events to", shard, refused));
            }
            entries.retain(|entry| answer.failed().iter().any(|failed| failed.id() == entry.id()));
        }
        Ok(())
    }

    /// Up to `most` messages (10 at most), hidden from others for `hidden` seconds.
    pub(super) async fn receive(&self, shard: usize, most: usize, hidden: i32) -> Result<Vec<Received>, QueueError> {
        let call = self
            .client
            .receive_message()
            .queue_url(self.url(shard))
            .max_number_of_messages(most.min(BATCH) as i32)
            .visibility_timeout(hidden)
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let answer = call.send().await.map_err(|error| self.failed("receive events from", shard, &error))?;
        let received = answer.messages.unwrap_or_default().into_iter().map(|message| {
            let count = message
                .attributes()
                .and_then(|all| all.get(&MessageSystemAttributeName::ApproximateReceiveCount)?.parse().ok());
            Received {
                count: count.unwrap_or(1),
                receipt: message.receipt_handle.unwrap_or_default(),
                message: message.body.unwrap_or_default(),
            }
        });
        Ok(received.collect())
    }

    /// Deletes messages that this process was handed out.
    pub(super) async fn delete(&self, shard: usize, receipts: Vec<String>) -> Result<(), QueueError> {
        for batch in receipts.chunks(BATCH) {
            let entries = batch.iter().enumerate().map(|(number, receipt)| {
                let entry = DeleteMessageBatchRequestEntry::builder().id(number.to_string()).receipt_handle(receipt);
                entry.build().expect("id and handle are set")
            });
            let mut entries: Vec<_> = entries.collect();
            for attempt in 1.. {
                let call = self.client.delete_message_batch().queue_url(self.url(shard));
                let answer = call.set_entries(Some(entries.clone())).send().await;
                let answer = answer.map_err(|error| self.failed("acknowledge events of", shard, &error))?;
                // A handle that is no longer good is that of a lease that is over.
                let failed: Vec<_> = answer.failed().iter().filter(|failed| !failed.sender_fault()).collect();
                let Some(refused) = failed.first() else { break };
                if attempt == ATTEMPTS {
                    return Err(self.refused("acknowledge events of", shard, refused));
                }
                entries.retain(|entry| failed.iter().any(|failed| failed.id() == entry.id()));
            }
        }
        Ok(())
    }

    /// Hides a message for so many seconds from now; whether this process still had it.
    pub(super) async fn hide(&self, shard: usize, receipt: &str, seconds: i32) -> Result<bool, QueueError> {
        let call = self.client.change_message_visibility().queue_url(self.url(shard)).receipt_handle(receipt);
        match call.visibility_timeout(seconds).send().await {
            Ok(_) => Ok(true),
            Err(error) => match error.as_service_error() {
                Some(cause) if cause.is_message_not_inflight() || cause.is_receipt_handle_is_invalid() => Ok(false),
                _ => Err(self.failed("change a lease of", shard, &error)),
            },
        }
    }

    pub(super) async fn lengths(&self, shard: usize) -> Result<Lengths, QueueError> {
        use QueueAttributeName as Name;
        let names = [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
            Name::ApproximateNumberOfMessagesDelayed,
        ];
        let call = self.client.get_queue_attributes().queue_url(self.url(shard));
        let answer = call.set_attribute_names(Some(names.to_vec())).send().await;
        let answer = answer.map_err(|error| self.failed("count events of", shard, &error))?;
        let count = |name| answer.attributes().and_then(|all| all.get(name)?.parse().ok()).unwrap_or(0);
        let [ready, in_flight, delayed] = names.each_ref().map(count);
        Ok(Lengths { ready, in_flight, delayed })
    }

    fn failed<E: ProvideErrorMetadata + std::error::Error + 'static, R: Debug>(
        &self,
        operation: &str,
        shard: usize,
        error: &SdkError<E, R>,
    ) -> QueueError {
        unavailable(format!("{operation} SQS queue {}", self.url(shard)), error)
    }

    fn refused(&self, operation: &str, shard: usize, entry: &BatchResultErrorEntry) -> QueueError {
        QueueError::Unavailable {
            operation: format!("{operation} SQS queue {}", self.url(shard)),
            cause: format!("SQS answered {}: {}", entry.code(), entry.message().unwrap_or("no reason given")),
        }
    }
}

/// The queue's URL; it is made if it is not there.
async fn url(client: &Client, name: &str) -> Result<String, QueueError> {
    let operation = || format!("find SQS queue {name}");
    let found = match client.get_queue_url().queue_name(name).send().await {
        Ok(found) => found.queue_url,
        Err(error) if error.as_service_error().is_some_and(|cause| cause.is_queue_does_not_exist()) => {
            let create = client.create_queue().queue_name(name);
            let create = create.attributes(QueueAttributeName::MessageRetentionPeriod, RETENTION).send().await;
            create.map_err(|error| unavailable(format!("make SQS queue {name}"), &error))?.queue_url
        }
        Err(error) => return Err(unavailable(operation(), &error)),
    };
    let cause = "the endpoint answered without a URL; check that it speaks SQS".to_owned();
    found.ok_or_else(|| QueueError::Unavailable { operation: operation(), cause })
}

fn unavailable<E: ProvideErrorMetadata + std::error::Error + 'static, R: Debug>(
    operation: String,
    error: &SdkError<E, R>,
) -> QueueError {
    let cause = match error {
        SdkError::TimeoutError(_) => "the endpoint did not answer in time; check that it runs".to_owned(),
        SdkError::ServiceError(answer) => match answer.err().code() {
            Some(code) => format!("SQS answered {code}: {}", answer.err().message().unwrap_or("no reason given")),
            None => format!("the endpoint answered with an error that is none of SQS's: {:?}", answer.raw()),
        },
        _ => format!("{}; check the endpoint's address and that it runs", DisplayErrorContext(error)),
    };
    QueueError::Unavailable { operation, cause }
}
