//! A message's content: what AWS refuses of it, and its digests.

use std::collections::BTreeMap;

use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use sqs_api::types::{
    MessageAttributeValue, MessageSystemAttributeValue, SendMessageBatchRequestEntry, SendMessageRequest,
};
use sqs_api::{ApiError, ErrorCode};

use crate::attributes::Attributes;
use crate::queue::{DedupKey, Millis};

/// User attributes that a message may have.
const MAX_ATTRIBUTES: usize = 10;
/// The one system attribute that a sender may set.
const TRACE_HEADER: &str = "AWSTraceHeader";

/// What a caller wants to send.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub body: String,
    pub delay_seconds: Option<i32>,
    pub attributes: BTreeMap<String, MessageAttributeValue>,
    pub system: BTreeMap<String, MessageSystemAttributeValue>,
    pub dedup_id: Option<String>,
    pub group: Option<String>,
}

impl From<SendMessageRequest> for Draft {
    fn from(request: SendMessageRequest) -> Self {
        Self {
            body: request.message_body,
            delay_seconds: request.delay_seconds,
            attributes: request.message_attributes.unwrap_or_default(),
            system: request.message_system_attributes.unwrap_or_default(),
            dedup_id: request.message_deduplication_id,
            group: request.message_group_id,
        }
    }
}

impl From<SendMessageBatchRequestEntry> for Draft {
    fn from(entry: SendMessageBatchRequestEntry) -> Self {
        Self {
            body: entry.message_body,
            delay_seconds: entry.delay_seconds,
            attributes: entry.message_attributes.unwrap_or_default(),
            system: entry.message_system_attributes.unwrap_or_default(),
            dedup_id: entry.message_deduplication_id,
            group: entry.message_group_id,
        }
    }
}

/// What is kept of a message besides what the queue decides by.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Content {
    pub body: String,
    pub details: Details,
}

/// The content without the body.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Details {
    /// The account that sent it.
    pub sender: String,
    pub attributes: BTreeMap<String, MessageAttributeValue>,
    pub trace_header: Option<String>,
    pub dedup_id: Option<String>,
    /// The ARN of the queue that it died in.
    pub dead_of: Option<String>,
}

/// A message that the queue can take.
#[derive(Debug)]
pub(crate) struct Checked {
    pub content: Content,
    pub delay: Millis,
    pub group: Option<String>,
    pub dedup: Option<DedupKey>,
    pub digests: Digests,
}

/// The MD5 digests by which a sender checks that its message arrived whole.
#[derive(Debug, Clone)]
pub(crate) struct Digests {
    pub body: String,
    pub attributes: Option<String>,
    pub system: Option<String>,
}

impl Draft {
    /// The bytes that count for the size limits.
    pub(crate) fn size(&self) -> usize {
        let value = |text: Option<&String>, blob: Option<&bytes::Bytes>| {
            text.map_or(0, String::len) + blob.map_or(0, |blob| blob.len())
        };
        let attributes = self.attributes.iter().map(|(name, attribute)| {
            let value = value(attribute.string_value.as_ref(), attribute.binary_value.as_ref());
            name.len() + attribute.data_type.len() + value
        });
        self.body.len() + attributes.sum::<usize>()
    }

    /// Checks it against AWS's rules and the queue's attributes.
    pub(crate) fn check(self, queue: &Attributes, sender: &str) -> Result<Checked, ApiError> {
        check_body(&self.body)?;
        if self.attributes.len() > MAX_ATTRIBUTES {
            let count = self.attributes.len();
            return Err(invalid(format!(
                "Number of message attributes [{count}] exceeds the allowed maximum [{MAX_ATTRIBUTES}]."
            )));
        }
        for (name, attribute) in &self.attributes {
            check_attribute(name, attribute)?;
        }
        let trace_header = check_system(&self.system)?;
        if self.size() > queue.max_message_bytes() {
            let limit = queue.max_message_bytes();
            return Err(invalid(format!(
                "One or more parameters are invalid. Reason: Message must be shorter than {limit} bytes."
            )));
        }
        let delay = self.delay(queue)?;
        let digests = Digests {
            body: md5_hex(self.body.as_bytes()),
            attributes: md5_of_attributes(&self.attributes),
            system: trace_header.as_deref().map(md5_of_trace_header),
        };
        let dedup = self.dedup(queue)?;
        let details = Details {
            sender: sender.to_owned(),
            attributes: self.attributes,
            trace_header,
            dedup_id: dedup.as_ref().map(|key| key.id.clone()),
            dead_of: None,
        };
        Ok(Checked { content: Content { body: self.body, details }, delay, group: self.group, dedup, digests })
    }

    fn delay(&self, queue: &Attributes) -> Result<Millis, ApiError> {
        let Some(seconds) = self.delay_seconds else { return Ok(queue.delay()) };
        if !(0..=900).contains(&seconds) {
            return Err(invalid_value(&seconds.to_string(), "DelaySeconds", "DelaySeconds must be >= 0 and <= 900."));
        }
        // A FIFO queue delays all its messages alike.
        if queue.fifo && seconds > 0 {
            return Err(invalid_value(
                &seconds.to_string(),
                "DelaySeconds",
                "The request include parameter that is not valid for this queue type.",
            ));
        }
        Ok(if queue.fifo { queue.delay() } else { Millis::from(seconds) * 1000 })
    }

    fn dedup(&self, queue: &Attributes) -> Result<Option<DedupKey>, ApiError> {
        if let Some(group) = &self.group {
            check_token("MessageGroupId", group)?;
        }
        if let Some(id) = &self.dedup_id {
            check_token("MessageDeduplicationId", id)?;
        }
        match (queue.fifo, &self.group, &self.dedup_id) {
            (false, _, None) => Ok(None),
            (false, _, Some(id)) => Err(invalid_value(
                id,
                "MessageDeduplicationId",
                "The request includes a parameter that is not valid for this queue type.",
            )),
            (true, None, _) => Err(ApiError::missing("MessageGroupId")),
            (true, Some(group), id) => {
                let id = match id {
                    Some(id) => id.clone(),
                    None if queue.dedup_by_content() => {
                        hex::encode(<Sha256 as sha2::Digest>::digest(self.body.as_bytes()))
                    }
                    None => {
                        return Err(invalid(
                            "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId \
                             provided explicitly",
                        ));
                    }
                };
                let scope = if queue.dedup_per_group() { group.clone() } else { String::new() };
                Ok(Some(DedupKey { scope, id }))
            }
        }
    }
}

/// The characters that XML 1.0 allows, and at least one.
fn check_body(body: &str) -> Result<(), ApiError> {
    if body.is_empty() {
        return Err(ApiError::missing("MessageBody"));
    }
    let allowed =
        |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..);
    match body.chars().find(|c| !allowed(*c)) {
        None => Ok(()),
        Some(c) => Err(ApiError::new(
            ErrorCode::InvalidMessageContents,
            format!(
                "Invalid binary character '#x{:X}' was found in the message body, the set of allowed characters is #x9 | #xA | \
                 #xD | [#x20 to #xD7FF] | [#xE000 to #xFFFD] | [#x10000 to #x10FFFF]",
                u32::from(c)
            ),
        )),
    }
}

/// A group, a deduplication id, or an id of a receive attempt.
pub(crate) fn check_token(parameter: &str, value: &str) -> Result<(), ApiError> {
    if (1..=128).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(invalid_value(
        value,
        parameter,
        &format!("{parameter} can only include alphanumeric and punctuation characters. 1 to 128 in length."),
    ))
}

fn check_attribute(name: &str, attribute: &MessageAttributeValue) -> Result<(), ApiError> {
    let name_ok = (1..=256).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..");
    if !name_ok {
        return Err(invalid(format!(
            "Message (user) attribute name '{name}' can contain only A-Z, a-z, 0-9, underscore (_), hyphen (-), and period (.), \
             neither at its start or end nor two in a row, up to 256 of them."
        )));
    }
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("aws.") || lower.starts_with("amazon.") {
        return Err(invalid(format!(
            "Message (user) attribute name '{name}' cannot start with the reserved prefixes AWS. or Amazon."
        )));
    }
    let empty = |kind: &str| {
        invalid(format!("Message (user) attribute '{name}' must contain a non-empty value of type '{kind}'."))
    };
    match attribute.data_type.split('.').next().unwrap_or_default() {
        "Binary" => match &attribute.binary_value {
            Some(value) if !value.is_empty() => Ok(()),
            _ => Err(empty("Binary")),
        },
        kind @ ("String" | "Number") => match attribute.string_value.as_deref() {
            None | Some("") => Err(empty(kind)),
            Some(value) if kind == "Number" && !value.parse::<f64>().is_ok_and(f64::is_finite) => {
                Err(invalid(format!("Can't cast the value of message (user) attribute '{name}' to a number.")))
            }
            Some(_) => Ok(()),
        },
        _ => Err(invalid(format!(
            "The type of message (user) attribute '{name}' is invalid. You must use only the following supported type \
             prefixes: Binary, Number, String."
        ))),
    }
}

fn check_system(system: &BTreeMap<String, MessageSystemAttributeValue>) -> Result<Option<String>, ApiError> {
    let mut header = None;
    for (name, attribute) in system {
        if name != TRACE_HEADER {
            return Err(invalid(format!(
                "Message system attribute name '{name}' is invalid. You must use only the following: {TRACE_HEADER}."
            )));
        }
        match attribute.string_value.as_deref() {
            Some(value) if !value.is_empty() && attribute.data_type == "String" => header = Some(value.to_owned()),
            _ => {
                return Err(invalid(format!(
                    "Message system attribute '{name}' must contain a non-empty value of type 'String'."
                )));
            }
        }
    }
    Ok(header)
}

pub(crate) fn md5_hex(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

/// AWS's digest of a message's attributes; nothing if there are none.
pub(crate) fn md5_of_attributes(attributes: &BTreeMap<String, MessageAttributeValue>) -> Option<String> {
    if attributes.is_empty() {
        return None;
    }
    let mut digest = Md5::new();
    for (name, attribute) in attributes {
        let blob = attribute.binary_value.as_deref().filter(|_| attribute.data_type.starts_with("Binary"));
        let text = attribute.string_value.as_deref().unwrap_or_default();
        digest_attribute(&mut digest, name, &attribute.data_type, blob.ok_or(text));
    }
    Some(hex::encode(digest.finalize()))
}

fn md5_of_trace_header(header: &str) -> String {
    let mut digest = Md5::new();
    digest_attribute(&mut digest, TRACE_HEADER, "String", Err(header));
    hex::encode(digest.finalize())
}

/// Each part with its length, and the value with a byte for its kind: bytes (`Ok`) or text (`Err`).
fn digest_attribute(digest: &mut Md5, name: &str, data_type: &str, value: Result<&[u8], &str>) {
    let mut part = |bytes: &[u8]| {
        digest.update(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        digest.update(bytes);
    };
    part(name.as_bytes());
    part(data_type.as_bytes());
    let (kind, bytes) = match value {
        Err(text) => (1, text.as_bytes()),
        Ok(bytes) => (2, bytes),
    };
    digest.update([kind]);
    digest.update(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    digest.update(bytes);
}

pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidParameterValue, message)
}

/// AWS's words for a value that a parameter must not have.
pub(crate) fn invalid_value(value: &str, parameter: &str, reason: &str) -> ApiError {
    invalid(format!("Value {value} for parameter {parameter} is invalid. Reason: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(attributes: &[(&str, &str)]) -> Attributes {
        let map = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Attributes::new(attributes.iter().any(|(name, _)| *name == "FifoQueue"), &map).unwrap()
    }

    fn text(data_type: &str, value: &str) -> MessageAttributeValue {
        MessageAttributeValue {
            data_type: data_type.to_owned(),
            string_value: Some(value.to_owned()),
            ..MessageAttributeValue::default()
        }
    }

    fn draft(body: &str) -> Draft {
        Draft { body: body.to_owned(), ..Draft::default() }
    }

    #[test]
    fn digests_are_those_of_aws() {
        // The example of the SQS developer guide's sample code, and a body everyone knows.
        assert_eq!(md5_hex(b"hello"), "5d41402abc4b2a76b9719d911017c592");
        let attributes = BTreeMap::from([("timestamp".to_owned(), text("Number", "1493147359900"))]);
        assert_eq!(md5_of_attributes(&attributes).unwrap(), "235c5c510d26fb653d073faed50ae77c");
        assert_eq!(md5_of_attributes(&BTreeMap::new()), None);
    }

    #[test]
    fn bodies_are_xml_characters() {
        assert!(draft("tab\t newline\n \u{FFFD} \u{1F600}").check(&queue(&[]), "1").is_ok());
        for bad in ["a\0", "\u{1b}", "\u{FFFE}"] {
            assert_eq!(draft(bad).check(&queue(&[]), "1").unwrap_err().code, ErrorCode::InvalidMessageContents);
        }
        assert_eq!(draft("").check(&queue(&[]), "1").unwrap_err().code, ErrorCode::MissingParameter);
    }

    #[test]
    fn the_size_counts_body_and_attributes() {
        let small = queue(&[("MaximumMessageSize", "1024")]);
        assert!(draft(&"x".repeat(1024)).check(&small, "1").is_ok());
        let mut with_attribute = draft(&"x".repeat(1024 - 8));
        with_attribute.attributes.insert("a".to_owned(), text("String", "b"));
        assert!(with_attribute.check(&small, "1").is_ok());
        let mut with_attribute = draft(&"x".repeat(1024 - 7));
        with_attribute.attributes.insert("a".to_owned(), text("String", "b"));
        assert!(with_attribute.check(&small, "1").is_err());
    }

    #[test]
    fn attributes_have_rules() {
        for (name, value) in [
            ("", text("String", "x")),
            ("a b", text("String", "x")),
            ("AWS.x", text("String", "x")),
            (".x", text("String", "x")),
            ("a", text("String", "")),
            ("a", text("Number", "one")),
            ("a", text("Strange", "x")),
            ("a", text("Binary", "x")),
        ] {
            let mut draft = draft("x");
            draft.attributes.insert(name.to_owned(), value);
            assert_eq!(draft.check(&queue(&[]), "1").unwrap_err().code, ErrorCode::InvalidParameterValue, "{name}");
        }
        let mut draft = draft("x");
        draft.attributes.insert("a".to_owned(), text("Number.int", "-1e3"));
        assert!(draft.check(&queue(&[]), "1").is_ok());
    }

    #[test]
    fn fifo_queues_want_a_group_and_a_deduplication_id() {
        let plain = queue(&[("FifoQueue", "true")]);
        let error = draft("x").check(&plain, "1").unwrap_err();
        assert_eq!(error, ApiError::missing("MessageGroupId"));
        let grouped = || Draft { group: Some("g".to_owned()), ..draft("x") };
        assert!(grouped().check(&plain, "1").unwrap_err().message.contains("ContentBasedDeduplication"));
        let by_content = queue(&[("FifoQueue", "true"), ("ContentBasedDeduplication", "true")]);
        let checked = grouped().check(&by_content, "1").unwrap();
        assert_eq!(checked.dedup.unwrap().id.len(), 64);
        assert!(Draft { delay_seconds: Some(1), ..grouped() }.check(&by_content, "1").is_err());
        assert!(Draft { dedup_id: Some("d".to_owned()), ..draft("x") }.check(&queue(&[]), "1").is_err());
    }
}
