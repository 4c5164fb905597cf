//! What a function's answer says about the messages that it got.

use std::collections::BTreeSet;

use serde_json::Value;

/// What became of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// All messages are done.
    Succeeded,
    /// All but these, by id.
    Partly(BTreeSet<String>),
    /// None are done; the text says why.
    Failed(String),
}

/// The verdict on the answer of a function that did not fail, with `ReportBatchItemFailures`.
///
/// As documented ("Implementing partial batch responses") and recorded: null, an empty text, list or object, and an
/// empty or missing `batchItemFailures` are a success; what cannot be read, and a name that is empty, null, missing or
/// not of the batch, fail the whole batch.
pub(crate) fn judge(answer: &[u8], in_batch: impl Fn(&str) -> bool) -> Verdict {
    let failed = |why: &str| Verdict::Failed(format!("The function's response to the batch is invalid: {why}."));
    let failures = match serde_json::from_slice(answer) {
        Err(_) if answer.is_empty() => return Verdict::Succeeded,
        Err(_) => return failed("it is not JSON"),
        Ok(Value::Null) => return Verdict::Succeeded,
        Ok(Value::String(text)) if text.is_empty() => return Verdict::Succeeded,
        Ok(Value::Array(list)) if list.is_empty() => return Verdict::Succeeded,
        Ok(Value::Object(mut object)) => object.remove("batchItemFailures").unwrap_or_default(),
        Ok(_) => return failed("it is not an object"),
    };
    let list = match failures {
        Value::Null => return Verdict::Succeeded,
        Value::Array(list) => list,
        _ => return failed("batchItemFailures is not a list"),
    };
    let mut ids = BTreeSet::new();
    for failure in &list {
        match failure.get("itemIdentifier") {
            Some(Value::String(id)) if in_batch(id) => drop(ids.insert(id.clone())),
            Some(Value::String(id)) => return failed(&format!("'{id}' is no message of the batch")),
            _ => return failed("an element of batchItemFailures has no itemIdentifier"),
        }
    }
    if ids.is_empty() { Verdict::Succeeded } else { Verdict::Partly(ids) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdict(answer: &str) -> Verdict {
        judge(answer.as_bytes(), |id| ["a", "b"].contains(&id))
    }

    /// Recorded: test_*_report_batch_item_success_scenarios, test_*_report_batch_item_failure_scenarios.
    #[test]
    fn answers_as_recorded() {
        for answer in [
            "",
            "null",
            r#""""#,
            "[]",
            "{}",
            r#"{"batchItemFailures": []}"#,
            r#"{"batchItemFailures": null}"#,
            r#"{"ok": 1}"#,
        ] {
            assert_eq!(verdict(answer), Verdict::Succeeded, "{answer}");
        }
        for answer in [
            "{",
            "5",
            r#""done""#,
            r#"{"batchItemFailures": {}}"#,
            r#"{"batchItemFailures": [{"foo": "a"}]}"#,
            r#"{"batchItemFailures": [{"foo": null}]}"#,
            r#"{"batchItemFailures": [{"itemIdentifier": null}]}"#,
            r#"{"batchItemFailures": [{"itemIdentifier": ""}]}"#,
            r#"{"batchItemFailures": [{"itemIdentifier": "a"}, {"itemIdentifier": "z"}]}"#,
            r#"{"batchItemFailures": ["a"]}"#,
        ] {
            assert!(matches!(verdict(answer), Verdict::Failed(_)), "{answer}");
        }
        let partly = |ids: &[&str]| Verdict::Partly(ids.iter().map(|id| (*id).to_owned()).collect());
        assert_eq!(
            verdict(r#"{"batchItemFailures": [{"itemIdentifier": "b"}, {"itemIdentifier": "b"}]}"#),
            partly(&["b"])
        );
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer in ".{0,40}") {
            verdict(&answer);
        }
    }
}
