//! Messages of a queue, and the event that a function gets.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::QueueArn;
use serde::Serialize;

/// A received message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// `MessageId`.
    pub id: String,
    /// `ReceiptHandle` of this receipt.
    pub receipt: String,
    /// `Body`.
    pub body: String,
    /// `MD5OfBody`.
    pub md5_of_body: String,
    /// `MD5OfMessageAttributes`.
    pub md5_of_attributes: Option<String>,
    /// System attributes: `ApproximateReceiveCount`, `SentTimestamp`, `MessageGroupId` and so on.
    pub attributes: BTreeMap<String, String>,
    /// The sender's attributes.
    pub message_attributes: BTreeMap<String, Attribute>,
}

/// An attribute that the sender gave.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attribute {
    /// `String`, `Number` or `Binary`, maybe with a custom label.
    pub data_type: String,
    /// For `String` and `Number`.
    pub string: Option<String>,
    /// For `Binary`.
    pub binary: Option<Bytes>,
}

impl Message {
    /// The FIFO group that it belongs to.
    pub(crate) fn group(&self) -> Option<&str> {
        self.attributes.get("MessageGroupId").map(String::as_str)
    }

    /// The trace that it was sent in.
    pub(crate) fn trace_header(&self) -> Option<&str> {
        self.attributes.get("AWSTraceHeader").map(String::as_str)
    }

    /// One element of the event's `Records`, as AWS writes it.
    pub(crate) fn record(&self, queue: &QueueArn) -> Vec<u8> {
        let attributes = self.message_attributes.iter().map(|(name, attribute)| (name.as_str(), attribute.into()));
        let record = Record {
            message_id: &self.id,
            receipt_handle: &self.receipt,
            body: &self.body,
            attributes: &self.attributes,
            message_attributes: attributes.collect(),
            md5_of_message_attributes: self.md5_of_attributes.as_deref(),
            md5_of_body: &self.md5_of_body,
            event_source: "aws:sqs",
            event_source_arn: queue.to_string(),
            aws_region: &queue.region,
        };
        serde_json::to_vec(&record).expect("texts and maps with text keys have a JSON form")
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    message_id: &'a str,
    receipt_handle: &'a str,
    body: &'a str,
    attributes: &'a BTreeMap<String, String>,
    message_attributes: BTreeMap<&'a str, RecordAttribute<'a>>,
    /// As recorded: there, and null if the message has none.
    md5_of_message_attributes: Option<&'a str>,
    md5_of_body: &'a str,
    event_source: &'a str,
    #[serde(rename = "eventSourceARN")]
    event_source_arn: String,
    aws_region: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordAttribute<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    string_value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary_value: Option<String>,
    /// SQS has no lists yet; AWS shows them empty.
    string_list_values: [&'static str; 0],
    binary_list_values: [&'static str; 0],
    data_type: &'a str,
}

impl<'a> From<&'a Attribute> for RecordAttribute<'a> {
    fn from(attribute: &'a Attribute) -> Self {
        Self {
            string_value: attribute.string.as_deref(),
            binary_value: attribute.binary.as_ref().map(|bytes| STANDARD.encode(bytes)),
            string_list_values: [],
            binary_list_values: [],
            data_type: &attribute.data_type,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Recorded: test_sqs_event_source_mapping_update; attributes as in "Using Lambda with Amazon SQS".
    #[test]
    fn records_are_as_aws_writes_them() {
        let queue = QueueArn::parse("arn:aws:sqs:us-east-2:123456789012:my-queue").unwrap();
        let attribute = |data_type: &str, string: Option<&str>, binary: Option<&'static [u8]>| Attribute {
            data_type: data_type.into(),
            string: string.map(Into::into),
            binary: binary.map(Bytes::from_static),
        };
        let message = Message {
            id: "059f36b4".into(),
            receipt: "AQEB".into(),
            body: "{\"a\": \"ü\"}".into(),
            md5_of_body: "e4e6".into(),
            md5_of_attributes: None,
            attributes: [
                ("ApproximateReceiveCount".into(), "1".into()),
                ("SentTimestamp".into(), "1545082649183".into()),
            ]
            .into(),
            message_attributes: [
                ("text".to_owned(), attribute("String", Some("v"), None)),
                ("bytes".to_owned(), attribute("Binary.png", None, Some(b"\x00\xff"))),
            ]
            .into(),
        };
        let record: Value = serde_json::from_slice(&message.record(&queue)).unwrap();
        let expected = json!({
            "messageId": "059f36b4",
            "receiptHandle": "AQEB",
            "body": "{\"a\": \"ü\"}",
            "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1545082649183"},
            "messageAttributes": {
                "text": {"stringValue": "v", "stringListValues": [], "binaryListValues": [], "dataType": "String"},
                "bytes": {"binaryValue": "AP8=", "stringListValues": [], "binaryListValues": [], "dataType": "Binary.png"},
            },
            "md5OfMessageAttributes": null,
            "md5OfBody": "e4e6",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:my-queue",
            "awsRegion": "us-east-2",
        });
        assert_eq!(record, expected);
    }
}
