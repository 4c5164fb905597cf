//! A queue's attributes: which there are, which values they may have, and what they mean.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqs_api::{ApiError, ErrorCode};

use crate::queue::Millis;

/// The largest message that a queue can be told to take, and what it takes unless told otherwise: 1 MiB.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1_048_576;
/// Queues that a `byQueue` permission may name.
const MAX_SOURCES: usize = 10;

/// Attributes with a whole number: name, least, most, default.
const NUMBERS: &[(&str, u64, u64, u64)] = &[
    ("DelaySeconds", 0, 900, 0),
    ("MaximumMessageSize", 1024, MAX_MESSAGE_BYTES as u64, MAX_MESSAGE_BYTES as u64),
    ("MessageRetentionPeriod", 60, 1_209_600, 345_600),
    ("ReceiveMessageWaitTimeSeconds", 0, 20, 0),
    ("VisibilityTimeout", 0, 43_200, 30),
];

/// Attributes with one of a few values: name, values (the default first), only for FIFO queues.
const CHOICES: &[(&str, &[&str], bool)] = &[
    ("SqsManagedSseEnabled", &["false", "true"], false),
    ("ContentBasedDeduplication", &["false", "true"], true),
    ("DeduplicationScope", &["queue", "messageGroup"], true),
    ("FifoThroughputLimit", &["perQueue", "perMessageGroupId"], true),
];

/// Attributes with a text; an empty one takes the attribute away.
const TEXTS: &[&str] =
    &["KmsDataKeyReusePeriodSeconds", "KmsMasterKeyId", "Policy", "RedriveAllowPolicy", "RedrivePolicy"];

/// What was set; the other attributes have their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    pub fifo: bool,
    set: BTreeMap<String, String>,
}

/// Where a queue's dead messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redrive {
    pub target: String,
    pub max_receives: u32,
}

impl Attributes {
    /// Of a queue that was kept.
    pub(crate) fn kept(fifo: bool, set: BTreeMap<String, String>) -> Self {
        Self { fifo, set }
    }

    /// Of a new queue.
    pub(crate) fn new(fifo: bool, attributes: &BTreeMap<String, String>) -> Result<Self, ApiError> {
        let mut new = Self { fifo, ..Self::default() };
        let mut attributes = attributes.clone();
        match attributes.remove("FifoQueue").as_deref() {
            Some("true") if fifo => {}
            None if !fifo => {}
            Some("true") => {
                return Err(invalid_parameter(
                    "The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end \
                     with .fifo suffix and be 1 to 80 in length.",
                ));
            }
            // AWS knows the attribute for FIFO queues only.
            Some("false") if !fifo => return Err(unknown("FifoQueue")),
            None | Some("false") => {
                return Err(invalid_parameter(
                    "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length",
                ));
            }
            Some(_) => return Err(invalid_value("FifoQueue")),
        }
        new.change(&attributes)?;
        Ok(new)
    }

    /// Sets some; the others stay. All or none.
    pub(crate) fn change(&mut self, attributes: &BTreeMap<String, String>) -> Result<(), ApiError> {
        let mut changed = self.clone();
        for (name, value) in attributes {
            let value = changed.checked(name, value)?;
            if value.is_empty() {
                changed.set.remove(name);
            } else {
                changed.set.insert(name.clone(), value);
            }
        }
        if changed.text("FifoThroughputLimit") == "perMessageGroupId" && !changed.dedup_per_group() {
            return Err(invalid_value("FifoThroughputLimit"));
        }
        *self = changed;
        Ok(())
    }

    /// The value as it is kept.
    fn checked(&self, name: &str, value: &str) -> Result<String, ApiError> {
        if let Some((_, least, most, _)) = NUMBERS.iter().find(|(known, ..)| *known == name) {
            let number = value.parse::<u64>().ok().filter(|number| (*least..=*most).contains(number));
            return number.map(|number| number.to_string()).ok_or_else(|| invalid_value(name));
        }
        if let Some((_, values, _)) = CHOICES.iter().find(|(known, _, fifo)| *known == name && (self.fifo || !fifo)) {
            let value = values.iter().find(|known| **known == value).ok_or_else(|| invalid_value(name))?;
            return Ok((*value).to_owned());
        }
        match (name, value) {
            // It may be said again, as infrastructure as code does, but not changed.
            ("FifoQueue", "true") if self.fifo => Ok(String::new()),
            ("FifoQueue", _) if self.fifo => Err(invalid_value(name)),
            ("RedrivePolicy" | "RedriveAllowPolicy" | "Policy", "") => Ok(String::new()),
            ("RedrivePolicy", value) => redrive(value).map(|redrive| {
                json!({"deadLetterTargetArn": redrive.target, "maxReceiveCount": redrive.max_receives}).to_string()
            }),
            ("RedriveAllowPolicy", value) => {
                permission(value)?;
                Ok(value.to_owned())
            }
            ("KmsDataKeyReusePeriodSeconds", value) => match value.parse::<u32>() {
                Ok(60..=86_400) => Ok(value.to_owned()),
                _ => Err(invalid_value(name)),
            },
            ("Policy", value) => match serde_json::from_str::<Value>(value) {
                Ok(Value::Object(_)) => Ok(value.to_owned()),
                _ => Err(invalid_value(name)),
            },
            (name, value) if TEXTS.contains(&name) => Ok(value.to_owned()),
            _ => Err(unknown(name)),
        }
    }

    /// The first attribute in which another queue's differ.
    pub(crate) fn difference(&self, wanted: &BTreeMap<String, String>) -> Option<String> {
        let all = self.all();
        wanted.iter().find(|(name, value)| all.get(name.as_str()) != Some(*value)).map(|(name, _)| name.clone())
    }

    /// What was set, as it is kept.
    pub(crate) fn set(&self) -> &BTreeMap<String, String> {
        &self.set
    }

    /// Every attribute that the queue was told or has by default.
    pub(crate) fn all(&self) -> BTreeMap<String, String> {
        let numbers = NUMBERS.iter().map(|(name, .., default)| ((*name).to_owned(), default.to_string()));
        let choices = CHOICES.iter().filter(|(.., fifo)| self.fifo || !fifo);
        let choices = choices.map(|(name, values, _)| ((*name).to_owned(), values[0].to_owned()));
        let mut all: BTreeMap<String, String> = numbers.chain(choices).collect();
        all.extend(self.set.clone());
        if self.fifo {
            all.insert("FifoQueue".to_owned(), "true".to_owned());
        }
        all
    }

    fn text(&self, name: &str) -> &str {
        self.set.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        let default = NUMBERS.iter().find(|(known, ..)| *known == name).map_or(0, |(.., default)| *default);
        self.set.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// An attribute in seconds, in milliseconds.
    fn millis(&self, name: &str) -> Millis {
        Millis::try_from(self.number(name) * 1000).unwrap_or(Millis::MAX)
    }

    pub(crate) fn delay(&self) -> Millis {
        self.millis("DelaySeconds")
    }

    pub(crate) fn visibility(&self) -> Millis {
        self.millis("VisibilityTimeout")
    }

    pub(crate) fn retention(&self) -> Millis {
        self.millis("MessageRetentionPeriod")
    }

    pub(crate) fn wait_seconds(&self) -> u64 {
        self.number("ReceiveMessageWaitTimeSeconds")
    }

    pub(crate) fn max_message_bytes(&self) -> usize {
        usize::try_from(self.number("MaximumMessageSize")).unwrap_or(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn dedup_by_content(&self) -> bool {
        self.text("ContentBasedDeduplication") == "true"
    }

    pub(crate) fn dedup_per_group(&self) -> bool {
        self.text("DeduplicationScope") == "messageGroup"
    }

    pub(crate) fn redrive(&self) -> Option<Redrive> {
        self.set.get("RedrivePolicy").and_then(|policy| redrive(policy).ok())
    }

    /// Whether the queue takes the dead messages of the queue with this ARN.
    pub(crate) fn takes_dead_of(&self, source: &str) -> bool {
        let Some(policy) = self.set.get("RedriveAllowPolicy") else { return true };
        match permission(policy) {
            Ok(Permission::All) => true,
            Ok(Permission::Of(sources)) => sources.iter().any(|arn| arn == source),
            Ok(Permission::None) | Err(_) => false,
        }
    }
}

/// Whose dead messages a queue takes.
enum Permission {
    All,
    None,
    Of(Vec<String>),
}

fn redrive(policy: &str) -> Result<Redrive, ApiError> {
    let invalid = |reason: &str| {
        invalid_parameter(&format!("Value {policy} for parameter RedrivePolicy is invalid. Reason: {reason}"))
    };
    let Ok(Value::Object(members)) = serde_json::from_str(policy) else {
        return Err(invalid("Redrive policy is not a valid JSON map."));
    };
    let target = match members.get("deadLetterTargetArn") {
        Some(Value::String(target)) => target.clone(),
        _ => return Err(invalid("Redrive policy does not contain mandatory attribute: deadLetterTargetArn.")),
    };
    let max_receives = match members.get("maxReceiveCount") {
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
        None => return Err(invalid("Redrive policy does not contain mandatory attribute: maxReceiveCount.")),
    };
    match max_receives.and_then(|count| u32::try_from(count).ok()).filter(|count| (1..=1000).contains(count)) {
        Some(max_receives) => Ok(Redrive { target, max_receives }),
        None => Err(invalid("Invalid value for maxReceiveCount: it must be a whole number from 1 to 1000.")),
    }
}

fn permission(policy: &str) -> Result<Permission, ApiError> {
    let invalid = |reason: &str| {
        invalid_parameter(&format!("Value {policy} for parameter RedriveAllowPolicy is invalid. Reason: {reason}"))
    };
    let Ok(Value::Object(members)) = serde_json::from_str(policy) else {
        return Err(invalid("Redrive allow policy is not a valid JSON map."));
    };
    let sources = members.get("sourceQueueArns");
    match (members.get("redrivePermission").and_then(Value::as_str), sources) {
        (Some("allowAll"), None) => Ok(Permission::All),
        (Some("denyAll"), None) => Ok(Permission::None),
        (Some("byQueue"), Some(Value::Array(arns))) if (1..=MAX_SOURCES).contains(&arns.len()) => {
            Ok(Permission::Of(arns.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
        }
        (Some("byQueue"), _) => Err(invalid("byQueue needs sourceQueueArns, a list of 1 to 10 ARNs.")),
        (Some("allowAll" | "denyAll"), Some(_)) => Err(invalid("sourceQueueArns is allowed with byQueue only.")),
        _ => Err(invalid("redrivePermission must be allowAll, denyAll or byQueue.")),
    }
}

fn invalid_value(name: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidAttributeValue, format!("Invalid value for the parameter {name}."))
}

pub(crate) fn unknown(name: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidAttributeName, format!("Unknown Attribute {name}."))
}

fn invalid_parameter(message: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidParameterValue, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn limits_are_kept() {
        for (name, bad) in [
            ("VisibilityTimeout", "43201"),
            ("VisibilityTimeout", "-1"),
            ("DelaySeconds", "901"),
            ("MaximumMessageSize", "1023"),
            ("MaximumMessageSize", "1048577"),
            ("MessageRetentionPeriod", "59"),
            ("ReceiveMessageWaitTimeSeconds", "21"),
            ("SqsManagedSseEnabled", "yes"),
            ("Policy", "[]"),
        ] {
            let error = Attributes::new(false, &map(&[(name, bad)])).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidAttributeValue, "{name}={bad}");
        }
        let fine = Attributes::new(false, &map(&[("VisibilityTimeout", "43200"), ("DelaySeconds", "900")])).unwrap();
        assert_eq!((fine.visibility(), fine.delay(), fine.retention()), (43_200_000, 900_000, 345_600_000));
    }

    #[test]
    fn attributes_of_fifo_queues_are_unknown_to_others() {
        for name in ["FifoQueue", "ContentBasedDeduplication", "DeduplicationScope", "QueueArn", "Nonsense"] {
            let error = Attributes::new(false, &map(&[(name, "false")])).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidAttributeName, "{name}");
        }
        assert_eq!(Attributes::new(true, &map(&[])).unwrap_err().code, ErrorCode::InvalidParameterValue);
        assert_eq!(
            Attributes::new(false, &map(&[("FifoQueue", "true")])).unwrap_err().code,
            ErrorCode::InvalidParameterValue
        );
        let fifo = map(&[("FifoQueue", "true"), ("ContentBasedDeduplication", "true")]);
        assert!(Attributes::new(true, &fifo).unwrap().dedup_by_content());
    }

    #[test]
    fn a_redrive_policy_is_kept_in_one_form_and_taken_away_by_an_empty_one() {
        let policy = r#"{"maxReceiveCount": "3", "deadLetterTargetArn": "arn:dead"}"#;
        let mut attributes = Attributes::new(false, &map(&[("RedrivePolicy", policy)])).unwrap();
        assert_eq!(attributes.redrive(), Some(Redrive { target: "arn:dead".to_owned(), max_receives: 3 }));
        assert_eq!(attributes.set()["RedrivePolicy"], r#"{"deadLetterTargetArn":"arn:dead","maxReceiveCount":3}"#);
        attributes.change(&map(&[("RedrivePolicy", "")])).unwrap();
        assert_eq!(attributes.redrive(), None);
        for bad in
            ["x", "{}", r#"{"deadLetterTargetArn": "a"}"#, r#"{"deadLetterTargetArn": "a", "maxReceiveCount": 0}"#]
        {
            let error = attributes.change(&map(&[("RedrivePolicy", bad)])).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParameterValue, "{bad}");
        }
    }

    #[test]
    fn permission_decides_whose_dead_messages_are_taken() {
        let allows = |policy: &str| Attributes::new(false, &map(&[("RedriveAllowPolicy", policy)]));
        assert!(allows(r#"{"redrivePermission": "allowAll"}"#).unwrap().takes_dead_of("a"));
        assert!(!allows(r#"{"redrivePermission": "denyAll"}"#).unwrap().takes_dead_of("a"));
        let by_queue = allows(r#"{"redrivePermission": "byQueue", "sourceQueueArns": ["a"]}"#).unwrap();
        assert!(by_queue.takes_dead_of("a") && !by_queue.takes_dead_of("b"));
        assert!(allows(r#"{"redrivePermission": "byQueue"}"#).is_err());
    }
}
