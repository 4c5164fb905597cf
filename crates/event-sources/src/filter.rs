//! Which messages a mapping takes.
//!
//! A pattern is matched against the record that the function would get, with a JSON body in its parsed form. As AWS
//! documents it ("Properly filtering Amazon SQS messages"), the forms of body and pattern have to agree: a pattern for a
//! JSON body drops plain texts, one for a plain text drops JSON, and one that does not speak of the body takes either.

use domain::QueueArn;
use event_pattern::{Pattern, PatternError};
use serde_json::Value;

use crate::message::Message;

/// The patterns of a mapping: one has to match, unless there are none.
#[derive(Clone, Debug)]
pub(crate) struct Filters {
    patterns: Vec<Pattern>,
}

impl Filters {
    pub fn parse(patterns: &[String]) -> Result<Self, PatternError> {
        Ok(Self { patterns: patterns.iter().map(|text| Pattern::parse(text)).collect::<Result<_, _>>()? })
    }

    /// Whether the function is to get the message.
    pub fn take(&self, message: &Message, queue: &QueueArn) -> bool {
        if self.patterns.is_empty() {
            return true;
        }
        let Ok(Value::Object(mut record)) = serde_json::from_slice(&message.record(queue)) else { return true };
        let json = serde_json::from_str(&message.body).ok().filter(|body: &Value| body.is_object() || body.is_array());
        let is_json = json.is_some();
        if let Some(body) = json {
            record.insert("body".to_owned(), body);
        }
        let record = Value::Object(record);
        let matches = |pattern: &Pattern| {
            let agrees = pattern.wants_object("body").is_none_or(|wants_json| wants_json == is_json);
            agrees && pattern.matches(&record)
        };
        self.patterns.iter().any(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(patterns: &[&str], body: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        let message = Message { body: body.into(), ..Message::default() };
        let queue = QueueArn::parse("arn:aws:sqs:us-east-1:000000000000:q").unwrap();
        Filters::parse(&patterns).unwrap().take(&message, &queue)
    }

    /// Recorded: test_sqs_event_filter.
    #[test]
    fn json_bodies() {
        assert!(takes(&[], "anything"));
        for (pattern, taken, dropped) in [
            (
                r#"{"body": {"testItem": ["test24", "test45"]}}"#,
                r#"{"testItem": "test24"}"#,
                r#"{"testItem": "tesWER"}"#,
            ),
            (
                r#"{"body": {"testItem": ["test24", "test45"], "test2": ["go"]}}"#,
                r#"{"testItem": "test45", "test2": "go"}"#,
                r#"{"testItem": "test67", "test2": "go"}"#,
            ),
            (r#"{"body": {"test2": [{"exists": true}]}}"#, r#"{"test2": "7411"}"#, r#"{"test5": "74545"}"#),
            (r#"{"body": {"test2": [{"numeric": [">", 100]}]}}"#, r#"{"test2": 105}"#, "this is a test string"),
            (r#"{"body": {"test2": [{"numeric": ["<", 100]}]}}"#, r#"{"test2": 93}"#, r#"{"test2": 107}"#),
            (r#"{"body": {"test2": [{"numeric": [">=", 100, "<", 200]}]}}"#, r#"{"test2": 105}"#, r#"{"test2": 200}"#),
            (r#"{"body": {"test2": [{"prefix": "us-1"}]}}"#, r#"{"test2": "us-1-48454"}"#, r#"{"test2": "eu-wert"}"#),
        ] {
            assert!(takes(&[pattern], taken), "{pattern} {taken}");
            assert!(!takes(&[pattern], dropped), "{pattern} {dropped}");
        }
        let either = [r#"{"body": {"a": [1]}}"#, r#"{"body": {"b": [2]}}"#];
        assert!(takes(&either, r#"{"b": 2}"#) && !takes(&either, r#"{"a": 2}"#));
    }

    #[test]
    fn the_forms_of_body_and_pattern_agree() {
        const TEXT: &str = r#"{"body": [{"prefix": "Result: "}]}"#;
        assert!(takes(&[TEXT], "Result: 1"));
        assert!(!takes(&[TEXT], "other") && !takes(&[TEXT], r#"{"Result": 1}"#));
        assert!(!takes(&[r#"{"body": [{"anything-but": "x"}]}"#], r#"{"a": 1}"#));
        // Without the check, "there is no a" would be true of a plain text.
        assert!(!takes(&[r#"{"body": {"a": [{"exists": false}]}}"#], "text"));
        assert!(takes(&[r#"{"body": {"a": [{"exists": false}]}}"#], r#"{"b": 1}"#));
        const OTHER: &str = r#"{"eventSource": ["aws:sqs"]}"#;
        assert!(takes(&[OTHER], "text") && takes(&[OTHER], r#"{"a": 1}"#));
        assert!(takes(&[r#"{"body": ["5"]}"#], "5"), "a number alone is a plain text");
    }
}
