//! From text to a pattern, with AWS's rules on what a pattern may be.

use serde_json::{Map, Value};

use crate::condition::{Case, Comparison, Condition, Network, Test};
use crate::wildcard::Wildcard;
use crate::{Field, Node};

/// Numbers that a pattern can compare with are within this of zero (EventBridge: -5e9 to 5e9).
const NUMERIC_LIMIT: f64 = 5e9;

/// The text is no pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// Not even JSON.
    #[error("the event pattern is not valid JSON: {0}")]
    Json(String),
    /// A rule is broken.
    #[error("event pattern at {path}: {reason}")]
    Rule {
        /// Names from the root, with dots between; `the root` for the root itself.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

type Parsed<T> = Result<T, PatternError>;

/// The names that lead to the place that is being read.
#[derive(Clone, Copy)]
struct Place<'a> {
    above: Option<&'a Place<'a>>,
    name: &'a str,
}

impl Place<'_> {
    fn wrong<T>(&self, reason: impl Into<String>) -> Parsed<T> {
        let path = if self.above.is_none() { "the root".to_owned() } else { self.path() };
        Err(PatternError::Rule { path, reason: reason.into() })
    }

    fn path(&self) -> String {
        match self.above {
            Some(above) if above.above.is_some() => format!("{}.{}", above.path(), self.name),
            _ => self.name.to_owned(),
        }
    }
}

pub(crate) fn parse(text: &str) -> Parsed<Node> {
    let value: Value = serde_json::from_str(text).map_err(|error| PatternError::Json(error.to_string()))?;
    let root = Place { above: None, name: "" };
    match &value {
        Value::Object(object) => node(object, root),
        _ => root.wrong("the pattern must be an object"),
    }
}

fn node(object: &Map<String, Value>, place: Place<'_>) -> Parsed<Node> {
    if object.is_empty() {
        return place.wrong("empty objects are not allowed");
    }
    let mut node = Node::default();
    for (name, value) in object {
        let below = Place { above: Some(&place), name };
        match value {
            Value::Array(alternatives) if name == "$or" => {
                node.alternatives.push(or(alternatives, below)?);
            }
            Value::Object(object) => node.fields.push((name.clone(), Field::Object(self::node(object, below)?))),
            Value::Array(list) if list.is_empty() => return below.wrong("empty arrays are not allowed"),
            Value::Array(list) => {
                let conditions = list.iter().map(|value| condition(value, below)).collect::<Parsed<_>>()?;
                node.fields.push((name.clone(), Field::Conditions(conditions)));
            }
            _ => return below.wrong("must be an object or an array"),
        }
    }
    Ok(node)
}

fn or(alternatives: &[Value], place: Place<'_>) -> Parsed<Vec<Node>> {
    if alternatives.len() < 2 {
        return place.wrong("needs at least two alternatives");
    }
    let read = |alternative: &Value| match alternative {
        Value::Object(object) => node(object, place),
        _ => place.wrong("alternatives must be objects"),
    };
    alternatives.iter().map(read).collect()
}

fn condition(value: &Value, place: Place<'_>) -> Parsed<Condition> {
    let Value::Object(object) = value else { return plain(value, place).map(Condition::Value) };
    let (operator, argument) = only(object, place)?;
    match operator {
        "exists" => match argument {
            Value::Bool(wanted) => Ok(Condition::Exists(*wanted)),
            _ => place.wrong("'exists' takes true or false"),
        },
        "anything-but" => anything_but(argument, place).map(Condition::AnythingBut),
        _ => test(operator, argument, place).map(Condition::Value),
    }
}

fn only<'a>(object: &'a Map<String, Value>, place: Place<'_>) -> Parsed<(&'a str, &'a Value)> {
    let mut members = object.iter();
    match (members.next(), members.next()) {
        (Some((operator, argument)), None) => Ok((operator, argument)),
        _ => place.wrong("a condition has exactly one operator"),
    }
}

fn plain(value: &Value, place: Place<'_>) -> Parsed<Test> {
    match value {
        Value::String(text) => Ok(Test::Text(text.clone())),
        Value::Number(number) => Ok(Test::Number(number.clone())),
        Value::Bool(bool) => Ok(Test::Bool(*bool)),
        Value::Null => Ok(Test::Null),
        Value::Array(_) | Value::Object(_) => place.wrong("must be a text, a number, true, false, null or a condition"),
    }
}

fn test(operator: &str, argument: &Value, place: Place<'_>) -> Parsed<Test> {
    match (operator, argument) {
        ("prefix", argument) => cased(argument, Test::Prefix, operator, place),
        ("suffix", argument) => cased(argument, Test::Suffix, operator, place),
        ("equals-ignore-case", Value::String(text)) => Ok(Test::EqualsIgnoreCase(text.clone())),
        ("wildcard", Value::String(text)) => Wildcard::parse(text).map(Test::Wildcard).or_else(|e| place.wrong(e)),
        ("numeric", Value::Array(list)) => numeric(list, place),
        ("cidr", Value::String(text)) => match Network::parse(text) {
            Some(network) => Ok(Test::Cidr(network)),
            None => place.wrong(format!("'{text}' is not an address range such as 10.0.0.0/24")),
        },
        ("equals-ignore-case" | "wildcard" | "cidr", _) => place.wrong(format!("'{operator}' takes a text")),
        ("numeric", _) => place.wrong("'numeric' takes a list of comparisons"),
        _ => place.wrong(format!("unknown operator '{operator}'")),
    }
}

/// `"text"` or `{"equals-ignore-case": "text"}`.
fn cased(argument: &Value, make: fn(String, Case) -> Test, operator: &str, place: Place<'_>) -> Parsed<Test> {
    match argument {
        Value::String(text) => return Ok(make(text.clone(), Case::Matters)),
        Value::Object(object) => {
            if let ("equals-ignore-case", Value::String(text)) = only(object, place)? {
                return Ok(make(text.clone(), Case::Ignored));
            }
        }
        _ => {}
    }
    place.wrong(format!("'{operator}' takes a text or {{\"equals-ignore-case\": text}}"))
}

/// One or two comparisons: `["=", 1]`, `[">", 0, "<=", 5]`.
fn numeric(list: &[Value], place: Place<'_>) -> Parsed<Test> {
    let mut comparisons = Vec::new();
    for pair in list.chunks(2) {
        let [Value::String(operator), Value::Number(bound)] = pair else {
            return place.wrong("'numeric' takes pairs of an operator and a number");
        };
        let comparison = match operator.as_str() {
            "<" => Comparison::Less,
            "<=" => Comparison::AtMost,
            "=" => Comparison::Equal,
            ">=" => Comparison::AtLeast,
            ">" => Comparison::Greater,
            _ => return place.wrong(format!("unknown comparison '{operator}'")),
        };
        match bound.as_f64() {
            Some(bound) if bound.abs() <= NUMERIC_LIMIT => comparisons.push((comparison, bound)),
            _ => return place.wrong(format!("{bound} is not between -5e9 and 5e9")),
        }
    }
    match comparisons.as_slice() {
        [_] => {}
        [(Comparison::Greater | Comparison::AtLeast, low), (Comparison::Less | Comparison::AtMost, high)] => {
            if low >= high {
                return place.wrong("the bottom of a range must be less than its top");
            }
        }
        _ => return place.wrong("'numeric' takes one comparison, or a range from '>' or '>=' to '<' or '<='"),
    }
    Ok(Test::Numeric(comparisons))
}

/// Values, or one operator on texts; either may be a list.
fn anything_but(argument: &Value, place: Place<'_>) -> Parsed<Vec<Test>> {
    if let Value::Object(object) = argument {
        let (operator, argument) = only(object, place)?;
        if !matches!(operator, "prefix" | "suffix" | "equals-ignore-case" | "wildcard") {
            return place.wrong(format!("'anything-but' does not take the operator '{operator}'"));
        }
        return each(argument, place, |argument| test(operator, argument, place));
    }
    let tests = each(argument, place, |argument| plain(argument, place))?;
    let texts = tests.iter().filter(|test| matches!(test, Test::Text(_))).count();
    let numbers = tests.iter().filter(|test| matches!(test, Test::Number(_))).count();
    // AWS takes lists of texts or of numbers; a single value may also be true, false or null.
    if tests.len() > 1 && texts != tests.len() && numbers != tests.len() {
        return place.wrong("a list in 'anything-but' holds either texts or numbers");
    }
    Ok(tests)
}

fn each(argument: &Value, place: Place<'_>, read: impl Fn(&Value) -> Parsed<Test>) -> Parsed<Vec<Test>> {
    match argument {
        Value::Array(list) if list.is_empty() => place.wrong("empty arrays are not allowed"),
        Value::Array(list) => list.iter().map(read).collect(),
        one => Ok(vec![read(one)?]),
    }
}
