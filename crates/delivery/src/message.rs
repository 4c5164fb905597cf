//! What each service is sent.

use std::borrow::Cow;

use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use pollers::{AsyncEvent, Message, Target};
use time::OffsetDateTime;
use time::macros::format_description;
use uuid::Uuid;

/// A message for SQS or SNS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Text<'a> {
    pub body: Cow<'a, str>,
    pub attributes: Vec<Attribute>,
}

/// One attribute beside the body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Attribute {
    pub name: &'static str,
    /// `String` or `Number`.
    pub kind: &'static str,
    pub value: String,
}

/// A record as it is; a dead letter with its attributes.
pub(crate) fn text(message: &Message) -> Text<'_> {
    match message {
        Message::Record { body, .. } => Text { body: escaped(Cow::Borrowed(body)), attributes: Vec::new() },
        Message::DeadLetter { body, attributes } => {
            // no service takes an empty message; an event without payload is `{}` for the function, too
            let body = if body.is_empty() { Cow::Borrowed("{}") } else { String::from_utf8_lossy(body) };
            let attribute = |name, kind, value| Attribute { name, kind, value };
            let mut sent = vec![
                attribute("RequestID", "String", attributes.request_id.clone()),
                attribute("ErrorCode", "Number", attributes.error_code.to_string()),
            ];
            if !attributes.error_message.is_empty() {
                sent.push(attribute("ErrorMessage", "String", printable(&attributes.error_message)));
            }
            Text { body: escaped(body), attributes: sent }
        }
    }
}

/// SQS and SNS take the characters of XML 1.0 only. JSON has two more that are not escaped, and only in its strings,
/// where their escapes mean the same.
fn escaped(json: Cow<'_, str>) -> Cow<'_, str> {
    if json.contains(['\u{fffe}', '\u{ffff}']) {
        Cow::Owned(json.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff"))
    } else {
        json
    }
}

/// A function's error message may have colours and zeros; it must not cost the dead letter.
fn printable(text: &str) -> String {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{fffd}' | '\u{10000}'..);
    text.chars().map(|c| if allowed(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// A record for an event bus.
pub(crate) fn entry(
    bus: &Target,
    event: &AsyncEvent,
    record: &str,
    success: bool,
    trace: Option<&str>,
) -> PutEventsRequestEntry {
    let result = if success { "Success" } else { "Failure" };
    PutEventsRequestEntry::builder()
        .event_bus_name(&bus.arn)
        .source("lambda")
        .detail_type(format!("Lambda Function Invocation Result - {result}"))
        .detail(record)
        .resources(&bus.arn)
        .resources(event.function.qualified(event.qualifier.as_deref().unwrap_or("$LATEST")))
        .set_trace_header(trace.map(str::to_owned))
        .build()
}

/// Key of a record in a bucket, as the Lambda developer guide has it.
pub(crate) fn key(function: &str, now: OffsetDateTime, id: Uuid) -> String {
    let time = now
        .format(format_description!("[year]/[month]/[day]/[year]-[month]-[day]T[hour].[minute].[second]"))
        .expect("a UTC time has all the parts of this format");
    format!("aws/lambda/async/{function}/{time}-{id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{AccountId, FunctionArn, RequestId};
    use pollers::record::DeadLetterAttributes;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;
    use time::macros::datetime;

    fn dead_letter(body: &str, error_message: &str) -> Message {
        let attributes =
            DeadLetterAttributes { request_id: "id".into(), error_code: 200, error_message: error_message.into() };
        Message::DeadLetter { body: body.to_owned().into(), attributes }
    }

    #[test]
    fn a_dead_letter_has_three_attributes() {
        let message = dead_letter(r#"{"a": 1}"#, "boom");
        let text = text(&message);
        assert_eq!(text.body, r#"{"a": 1}"#);
        let attributes: Vec<_> = text.attributes.iter().map(|a| (a.name, a.kind, a.value.as_str())).collect();
        assert_eq!(
            attributes,
            [("RequestID", "String", "id"), ("ErrorCode", "Number", "200"), ("ErrorMessage", "String", "boom")]
        );
    }

    #[test]
    fn nothing_empty_is_sent() {
        let message = dead_letter("", "");
        let text = text(&message);
        assert_eq!((text.body.as_ref(), text.attributes.len()), ("{}", 2));
    }

    #[test]
    fn keys_are_as_documented() {
        assert_eq!(
            key("f", datetime!(2024-03-05 06:07:08 UTC), Uuid::nil()),
            "aws/lambda/async/f/2024/03/05/2024-03-05T06.07.08-00000000-0000-0000-0000-000000000000"
        );
    }

    #[test]
    fn an_entry_says_whose_result_it_is() {
        let bus = Target::parse("arn:aws:events:us-east-1:000000000000:event-bus/b").expect("a bus");
        let function = FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() };
        let event = AsyncEvent::new(function, RequestId(Uuid::nil()), "{}".into(), UNIX_EPOCH);
        let entry = entry(&bus, &event, "{}", false, Some("Root=1"));
        assert_eq!(entry.source(), Some("lambda"));
        assert_eq!(entry.detail_type(), Some("Lambda Function Invocation Result - Failure"));
        assert_eq!(entry.resources(), [&bus.arn, "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST"]);
        assert_eq!(entry.trace_header(), Some("Root=1"));
    }

    proptest! {
        #[test]
        fn all_that_is_sent_is_xml(body: String, error_message: String, odd in "[\u{fffe}\u{ffff}]?") {
            let body = serde_json::to_string(&(body + &odd)).expect("a string becomes JSON");
            let message = dead_letter(&body, &error_message);
            let text = text(&message);
            let xml = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
            prop_assert!(text.body.chars().all(xml));
            prop_assert!(text.attributes.iter().all(|attribute| attribute.value.chars().all(xml)));
            let (before, after): (serde_json::Value, serde_json::Value) =
                (serde_json::from_str(&body).expect("JSON"), serde_json::from_str(&text.body).expect("still JSON"));
            prop_assert_eq!(before, after);
        }
    }
}
