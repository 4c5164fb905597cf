//! Event source mappings: what is polled for which function, and how its records are batched.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arn::FunctionArn;
use crate::ids::AccountId;

/// An event source mapping that is to be served, as the control plane gives it to the pollers. Immutable: a change
/// makes a new one with the same `uuid`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventSourceMapping {
    /// Its identifier in the API; also the id of the consumer that polls for it.
    pub uuid: String,
    /// What is invoked.
    pub function: FunctionArn,
    /// Version or alias; `None` for the function itself.
    pub qualifier: Option<String>,
    /// Where the records come from.
    pub source: EventSource,
    /// Records in one invocation at most: 1 to 10,000.
    pub batch_size: u32,
    /// How long records are gathered for one invocation; zero takes what there is.
    pub batching_window: Duration,
    /// EventBridge patterns, checked; a record that matches none of them is dropped. Empty: every record is taken.
    pub filters: Vec<String>,
    /// The function's response names the records that failed (`ReportBatchItemFailures`).
    pub report_batch_item_failures: bool,
}

/// A kind of source, with what only this kind has. Streams and Kafka become variants here.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EventSource {
    /// An SQS queue.
    Sqs {
        /// Which.
        queue: QueueArn,
        /// Invocations at once for this mapping at most (`ScalingConfig.MaximumConcurrency`): 2 to 1,000.
        maximum_concurrency: Option<u32>,
    },
}

/// `arn:aws:sqs:<region>:<account>:<name>`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct QueueArn {
    /// e.g. `us-east-1`.
    pub region: String,
    /// Owner.
    pub account: AccountId,
    /// Queue name; ends in `.fifo` for a FIFO queue.
    pub name: String,
}

impl QueueArn {
    /// `None` if the text is not the ARN of an SQS queue.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "sqs", region, account, name] = parts.as_slice() else { return None };
        let stem = name.strip_suffix(".fifo").unwrap_or(name);
        let valid = partition.starts_with("aws")
            && !region.is_empty()
            && !stem.is_empty()
            && name.len() <= 80
            && stem.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        let account = AccountId::parse(account)?;
        valid.then(|| Self { region: (*region).to_owned(), account, name: (*name).to_owned() })
    }

    /// Whether it keeps the order of the messages of each group.
    pub fn is_fifo(&self) -> bool {
        self.name.ends_with(".fifo")
    }
}

impl fmt::Display for QueueArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:aws:sqs:{}:{}:{}", self.region, self.account, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_arns() {
        let arn = "arn:aws:sqs:us-east-1:000000000000:orders.fifo";
        let queue = QueueArn::parse(arn).unwrap();
        assert!(queue.is_fifo());
        assert_eq!(queue.to_string(), arn);
        for wrong in [
            "",
            "arn:aws:sqs:us-east-1:1:q",
            "arn:aws:sns:us-east-1:000000000000:q",
            "arn:aws:sqs:us-east-1:000000000000:a.b",
        ] {
            assert_eq!(QueueArn::parse(wrong), None, "{wrong}");
        }
    }
}
