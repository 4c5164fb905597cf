//! Constraints of the service model, in AWS's words.

use serde_json::{Map, Value};

use crate::deviations;
use crate::error::{ApiError, ErrorCode};
use crate::schema::{Location, Shape, Structure};

/// Checks an input whose values already have the JSON types of their shapes. `payload_size` is that of the raw body.
pub fn validate(structure: &Structure, input: &Map<String, Value>, payload_size: usize) -> Result<(), ApiError> {
    let mut errors = Errors::default();
    for member in structure.members.iter().filter(|member| member.location == Location::RawPayload) {
        if let Shape::Blob { min, max } = member.shape {
            for constraint in broken_sizes(payload_size, *min, *max) {
                errors.add("", member.path, &constraint);
            }
        }
    }
    errors.structure(structure, input, "");
    errors.into_result()
}

/// Whether a text fulfils all constraints of its shape.
pub fn is_valid_text(shape: &Shape, text: &str) -> bool {
    broken_text(shape, text).is_empty()
}

#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    /// `value` as printed, quotes included; empty for values that must not be printed.
    fn add(&mut self, value: &str, path: &str, constraint: &str) {
        let space = if value.is_empty() { "" } else { " " };
        self.0.push(format!("Value{space}{value} at '{path}' failed to satisfy constraint: {constraint}"));
    }

    fn into_result(self) -> Result<(), ApiError> {
        let plural = match self.0.len() {
            0 => return Ok(()),
            1 => "error",
            _ => "errors",
        };
        let message = format!("{} validation {plural} detected: {}", self.0.len(), self.0.join("; "));
        Err(ApiError::new(ErrorCode::ValidationException, message))
    }

    fn structure(&mut self, structure: &Structure, object: &Map<String, Value>, prefix: &str) {
        for member in structure.members.iter().filter(|member| member.location != Location::RawPayload) {
            match object.get(member.name) {
                None if member.required => {
                    self.add("null", &format!("{prefix}{}", member.path), "Member must not be null");
                }
                None => {}
                // The path is put together for nested values and for errors only: most inputs are flat and fine.
                Some(value) if is_plain(member.shape) && broken(member.shape, value).is_empty() => {}
                Some(value) => self.value(member.shape, value, &format!("{prefix}{}", member.path)),
            }
        }
    }

    fn value(&mut self, shape: &Shape, value: &Value, path: &str) {
        let shown = if is_sensitive(shape) { String::new() } else { format!("'{}'", printed(value)) };
        for constraint in broken(shape, value) {
            self.add(&shown, path, &constraint);
        }
        match (shape, value) {
            (Shape::Structure(structure), Value::Object(object)) => {
                self.structure(structure, object, &format!("{path}."));
            }
            (Shape::List { name, member, .. }, Value::Array(elements)) => {
                if is_plain(member) {
                    if elements.iter().any(|element| !element.is_null() && !broken(member, element).is_empty())
                        || (elements.contains(&Value::Null) && !deviations::elements_may_be_null(name))
                    {
                        let described = described(member, !deviations::elements_may_be_null(name));
                        self.add(&shown, path, &format!("Member must satisfy constraint: [{described}]"));
                    }
                } else {
                    for (index, element) in elements.iter().enumerate() {
                        self.nested(member, element, &format!("{path}.{}.member", index + 1));
                    }
                }
            }
            (Shape::Map { key, value, .. }, Value::Object(entries)) => {
                if entries.keys().any(|entry| !broken_text(key, entry).is_empty()) {
                    let described = described(key, false);
                    self.add(&shown, path, &format!("Map keys must satisfy constraint: [{described}]"));
                }
                if is_plain(value) {
                    if entries.values().any(|entry| entry.is_null() || !broken(value, entry).is_empty()) {
                        let described = described(value, true);
                        self.add(&shown, path, &format!("Map value must satisfy constraint: [{described}]"));
                    }
                } else {
                    for (name, entry) in entries {
                        self.nested(value, entry, &format!("{path}.{name}.member"));
                    }
                }
            }
            _ => {}
        }
    }

    fn nested(&mut self, shape: &Shape, value: &Value, path: &str) {
        match value {
            Value::Null => self.add("null", path, "Member must not be null"),
            value => self.value(shape, value, path),
        }
    }
}

/// Whether a shape has no values inside.
fn is_plain(shape: &Shape) -> bool {
    !matches!(shape, Shape::Structure(_) | Shape::List { .. } | Shape::Map { .. })
}

fn is_sensitive(shape: &Shape) -> bool {
    matches!(shape, Shape::String { sensitive: true, .. } | Shape::Map { sensitive: true, .. } | Shape::Blob { .. })
}

/// The constraints that a value itself breaks, not those on the values inside it.
fn broken(shape: &Shape, value: &Value) -> Vec<String> {
    match (shape, value) {
        (_, Value::String(text)) => broken_text(shape, text),
        (Shape::Integer { min, max }, Value::Number(number)) => match number.as_i64() {
            Some(number) => broken_bounds(&number, min.as_ref(), max.as_ref(), i64::to_string),
            None => Vec::new(),
        },
        (Shape::Double { min, max }, Value::Number(number)) => match number.as_f64() {
            Some(number) => broken_bounds(&number, min.as_ref(), max.as_ref(), |bound| format!("{bound:?}")),
            None => Vec::new(),
        },
        (Shape::List { min, max, .. }, Value::Array(elements)) => broken_sizes(elements.len(), *min, *max),
        (Shape::Map { min, max, .. }, Value::Object(entries)) => broken_sizes(entries.len(), *min, *max),
        _ => Vec::new(),
    }
}

fn broken_text(shape: &Shape, text: &str) -> Vec<String> {
    match shape {
        Shape::String { min, max, pattern, .. } => {
            let mut broken = match (min, max) {
                (None, None) => Vec::new(),
                _ => broken_sizes(text.chars().count(), *min, *max),
            };
            if let Some(pattern) = pattern
                && !pattern.matches(text)
            {
                broken.push(must_match(pattern.source()));
            }
            broken
        }
        Shape::Enum { name, values } if !values.contains(&text) && !deviations::is_open_enum(name) => {
            vec![must_be_one_of(name, values)]
        }
        // Four characters of base64 are three bytes, less the padding.
        Shape::Blob { min, max } => broken_sizes(text.trim_end_matches('=').len() * 3 / 4, *min, *max),
        _ => Vec::new(),
    }
}

fn broken_sizes(size: usize, min: Option<u64>, max: Option<u64>) -> Vec<String> {
    let mut broken = Vec::new();
    if let Some(max) = max
        && size as u64 > max
    {
        broken.push(format!("Member must have length less than or equal to {max}"));
    }
    if let Some(min) = min
        && (size as u64) < min
    {
        broken.push(format!("Member must have length greater than or equal to {min}"));
    }
    broken
}

fn broken_bounds<T: PartialOrd>(number: &T, min: Option<&T>, max: Option<&T>, print: fn(&T) -> String) -> Vec<String> {
    let mut broken = Vec::new();
    if let Some(max) = max.filter(|max| number > *max) {
        broken.push(format!("Member must have value less than or equal to {}", print(max)));
    }
    if let Some(min) = min.filter(|min| number < *min) {
        broken.push(format!("Member must have value greater than or equal to {}", print(min)));
    }
    broken
}

fn must_match(pattern: &str) -> String {
    format!("Member must satisfy regular expression pattern: {pattern}")
}

fn must_be_one_of(name: &str, values: &[&str]) -> String {
    format!("Member must satisfy enum value set: [{}]", deviations::printed_order(name, values).join(", "))
}

/// All constraints on an element of a list or map, broken or not: AWS lists them all.
fn described(shape: &Shape, not_null: bool) -> String {
    let mut all = Vec::new();
    match shape {
        Shape::String { min, max, pattern, .. } => {
            all.extend(max.map(|max| format!("Member must have length less than or equal to {max}")));
            all.extend(min.map(|min| format!("Member must have length greater than or equal to {min}")));
            all.extend(pattern.map(|pattern| must_match(pattern.source())));
        }
        Shape::Enum { name, values } => all.push(must_be_one_of(name, values)),
        Shape::Integer { min, max } => {
            all.extend(max.map(|max| format!("Member must have value less than or equal to {max}")));
            all.extend(min.map(|min| format!("Member must have value greater than or equal to {min}")));
        }
        Shape::Double { min, max } => {
            all.extend(max.map(|max| format!("Member must have value less than or equal to {max:?}")));
            all.extend(min.map(|min| format!("Member must have value greater than or equal to {min:?}")));
        }
        _ => {}
    }
    if not_null {
        all.push("Member must not be null".to_owned());
    }
    all.join(", ")
}

/// A value as Java prints it: `[a, b]`, `{key=value}`, strings bare.
fn printed(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(elements) => format!("[{}]", elements.iter().map(printed).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            let entries: Vec<_> = entries.iter().map(|(name, value)| format!("{name}={}", printed(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// The order in which Java's `HashSet` yields strings, which is the order AWS prints the values of an enum in.
pub fn java_set_order<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut values: Vec<&str> = values.into_iter().collect();
    let mut slots: usize = 16;
    while values.len() * 4 > slots * 3 {
        slots *= 2;
    }
    values.sort_by_key(|value| {
        let hash = value.encode_utf16().fold(0u32, |hash, unit| hash.wrapping_mul(31).wrapping_add(unit.into()));
        (hash ^ (hash >> 16)) as usize & (slots - 1)
    });
    values
}
