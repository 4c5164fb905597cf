//! The form of the generated tables: what the model says about each shape.

use std::sync::OnceLock;

/// A structure: an input, an output, or part of one.
#[derive(Debug)]
pub struct Structure {
    /// In the order of the model, which is the order of AWS's validation errors.
    pub members: &'static [Member],
    /// The member that is the whole body.
    pub payload: Option<&'static str>,
}

/// A member of a structure.
#[derive(Debug)]
pub struct Member {
    /// Its name in the model and in JSON.
    pub name: &'static str,
    /// Its name in validation messages.
    pub path: &'static str,
    pub shape: &'static Shape,
    pub required: bool,
    pub location: Location,
}

impl Member {
    pub const fn required(name: &'static str, path: &'static str, shape: &'static Shape, location: Location) -> Self {
        Self { name, path, shape, required: true, location }
    }

    pub const fn optional(name: &'static str, path: &'static str, shape: &'static Shape, location: Location) -> Self {
        Self { name, path, shape, required: false, location }
    }
}

/// Where a member of an input or output travels. Names are those on the wire; headers are in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    Body,
    Label(&'static str),
    Query(&'static str),
    Header(&'static str),
    StatusCode,
    /// The whole body, as it is.
    RawPayload,
    /// The whole body, as JSON.
    JsonPayload,
    /// The whole body, as a sequence of events, which the server writes one by one.
    EventStream,
}

/// The type of a value and its constraints. Sizes count characters, bytes or elements.
#[derive(Debug)]
pub enum Shape {
    String { min: Option<u64>, max: Option<u64>, pattern: Option<&'static Pattern>, sensitive: bool },
    Enum { name: &'static str, values: &'static [&'static str] },
    Integer { min: Option<i64>, max: Option<i64> },
    Double { min: Option<f64>, max: Option<f64> },
    Boolean,
    Timestamp,
    Blob { min: Option<u64>, max: Option<u64> },
    List { name: &'static str, member: &'static Shape, min: Option<u64>, max: Option<u64> },
    Map { key: &'static Shape, value: &'static Shape, min: Option<u64>, max: Option<u64>, sensitive: bool },
    Structure(&'static Structure),
}

/// A pattern that a whole string must match, compiled on first use.
#[derive(Debug)]
pub struct Pattern {
    source: &'static str,
    compiled: OnceLock<Option<fancy_regex::Regex>>,
}

impl Pattern {
    pub const fn new(source: &'static str) -> Self {
        Self { source, compiled: OnceLock::new() }
    }

    /// The pattern as the model has it, and as AWS prints it.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// Whether the whole text matches. A pattern that does not compile refuses nothing: a test holds that there is none.
    pub fn matches(&self, text: &str) -> bool {
        match self.compiled() {
            // An error means that matching took too many steps, which no acceptable value does.
            Some(regex) => regex.is_match(text).unwrap_or(false),
            None => true,
        }
    }

    fn compiled(&self) -> Option<&fancy_regex::Regex> {
        self.compiled.get_or_init(|| fancy_regex::Regex::new(&anchored(self.source)).ok()).as_ref()
    }
}

/// AWS matches with Java: against the whole string, and with ASCII meanings of `\d`, `\s` and `\S`.
fn anchored(source: &str) -> String {
    let ascii = source.replace(r"\d", "[0-9]").replace(r"\s", r"[\t\n\x0B\f\r ]").replace(r"\S", r"[^\t\n\x0B\f\r ]");
    format!(r"\A(?:{ascii})\z")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks everything below a shape; recursion would show here as an endless walk.
    fn patterns(shape: &'static Shape, found: &mut Vec<&'static Pattern>) {
        match shape {
            Shape::String { pattern: Some(pattern), .. } => found.push(pattern),
            Shape::List { member, .. } => patterns(member, found),
            Shape::Map { key, value, .. } => {
                patterns(key, found);
                patterns(value, found);
            }
            Shape::Structure(structure) => structure.members.iter().for_each(|member| patterns(member.shape, found)),
            _ => {}
        }
    }

    #[test]
    fn every_pattern_of_the_model_compiles() {
        let mut found = Vec::new();
        for structure in crate::generated::operations::structures() {
            structure.members.iter().for_each(|member| patterns(member.shape, &mut found));
        }
        assert!(found.len() > 100);
        for pattern in found {
            assert!(pattern.compiled().is_some(), "{}", pattern.source);
        }
    }

    #[test]
    fn patterns_match_the_whole_text_as_java_does() {
        static QUALIFIER: Pattern = Pattern::new(r"((?!^\d+$)^[0-9a-zA-Z-_]+$)");
        assert!(QUALIFIER.matches("live-1_x"));
        assert!(!QUALIFIER.matches("17"));
        assert!(!QUALIFIER.matches("$LATEST"));
        static BUCKET: Pattern = Pattern::new(r"[0-9A-Za-z\.\-_]*(?<!\.)");
        assert!(BUCKET.matches("a.b"));
        assert!(!BUCKET.matches("a.b."));
        static DIGIT: Pattern = Pattern::new(r"\d{2}");
        assert!(DIGIT.matches("12"));
        assert!(!DIGIT.matches("123"));
        assert!(!DIGIT.matches("١٢"));
    }
}
