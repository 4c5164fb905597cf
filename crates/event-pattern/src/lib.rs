//! EventBridge event patterns, as the filters of event source mappings use them.
//!
//! A pattern is an object shaped like the events that it selects. Its leaves are lists of conditions, one of which must
//! hold for the value at that place; all fields of an object must match; `$or` lists objects of which one must match.
//!
//! ```text
//! {"body": {"state": ["open", {"prefix": "re"}], "n": [{"numeric": [">", 0, "<=", 5]}], "note": [{"exists": false}]}}
//! ```
//!
//! Rules from "Comparison operators for use in event patterns" (EventBridge User Guide). Pure: no IO.
#![forbid(unsafe_code)]

mod condition;
mod parse;
mod wildcard;

pub use parse::PatternError;

use condition::Condition;
use serde_json::Value;

/// A parsed pattern.
#[derive(Clone, PartialEq, Debug)]
pub struct Pattern {
    root: Node,
}

/// An object of the pattern: all of `fields`, and one alternative of each `$or`.
#[derive(Clone, PartialEq, Debug, Default)]
struct Node {
    fields: Vec<(String, Field)>,
    alternatives: Vec<Vec<Node>>,
}

#[derive(Clone, PartialEq, Debug)]
enum Field {
    Object(Node),
    Conditions(Vec<Condition>),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// It is not JSON, or breaks a rule; the error names the place.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        parse::parse(text).map(|root| Self { root })
    }

    /// Whether the event is one of those that the pattern selects.
    pub fn matches(&self, event: &Value) -> bool {
        self.root.matches(Some(event))
    }

    /// Whether the pattern wants the field `name` of the event's root to be an object (`Some(true)`) or a plain value
    /// (`Some(false)`); `None` if it does not speak of the field, or says different things in different alternatives.
    pub fn wants_object(&self, name: &str) -> Option<bool> {
        let mut wants = Vec::new();
        self.root.wants_object(name, &mut wants);
        let first = *wants.first()?;
        wants.iter().all(|want| *want == first).then_some(first)
    }
}

impl Node {
    /// `None`: there is nothing at this place of the event, so only `{"exists": false}` can hold below it.
    fn matches(&self, event: Option<&Value>) -> bool {
        match event {
            // The elements of an array are alternatives, each of which has to match as a whole.
            Some(Value::Array(elements)) if !elements.is_empty() => elements.iter().any(|e| self.matches(Some(e))),
            Some(Value::Object(object)) => {
                let field = |(name, field): &(String, Field)| field.matches(object.get(name));
                self.fields.iter().all(field) && self.one_alternative_each(event)
            }
            _ => self.fields.iter().all(|(_, field)| field.matches(None)) && self.one_alternative_each(None),
        }
    }

    fn one_alternative_each(&self, event: Option<&Value>) -> bool {
        self.alternatives.iter().all(|nodes| nodes.iter().any(|node| node.matches(event)))
    }

    fn wants_object(&self, name: &str, wants: &mut Vec<bool>) {
        let own = self.fields.iter().filter(|(field, _)| field == name);
        wants.extend(own.map(|(_, field)| matches!(field, Field::Object(_))));
        for node in self.alternatives.iter().flatten() {
            node.wants_object(name, wants);
        }
    }
}

impl Field {
    fn matches(&self, event: Option<&Value>) -> bool {
        match self {
            Self::Object(node) => node.matches(event),
            Self::Conditions(conditions) => {
                let mut values = Vec::new();
                event.into_iter().for_each(|value| leaves(value, &mut values));
                conditions.iter().any(|condition| condition.holds(&values))
            }
        }
    }
}

/// The plain values at a place: one, or those of an array. An object is none, as conditions work on leaves only.
fn leaves<'a>(value: &'a Value, all: &mut Vec<&'a Value>) {
    match value {
        Value::Object(_) => {}
        Value::Array(elements) => elements.iter().for_each(|element| leaves(element, all)),
        leaf => all.push(leaf),
    }
}

#[cfg(test)]
mod tests;
