//! Function names and ARNs in every form that the API accepts.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::AccountId;

/// `arn:aws:lambda:<region>:<account>:function:<name>`, without qualifier. Cheap to clone: each invocation does, several
/// times.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FunctionArn {
    /// e.g. `us-east-1`.
    pub region: Arc<str>,
    /// Owner.
    pub account: AccountId,
    /// Function name.
    pub name: Arc<str>,
}

impl FunctionArn {
    /// The same as `to_string`, without the machinery of formatting: every invocation needs it.
    pub fn text(&self) -> String {
        self.parts().concat()
    }

    /// With `:qualifier` appended.
    pub fn qualified(&self, qualifier: &str) -> String {
        format!("{self}:{qualifier}")
    }

    /// What stands behind `:` in the ARN of one of the function's versions or aliases; `None` if `arn` is not one.
    pub fn qualifier_of<'a>(&self, arn: &'a str) -> Option<&'a str> {
        self.parts().iter().try_fold(arn, |rest, part| rest.strip_prefix(part))?.strip_prefix(':')
    }

    /// What the text is made of.
    pub(crate) fn parts(&self) -> [&str; 6] {
        ["arn:aws:lambda:", &self.region, ":", self.account.as_str(), ":function:", &self.name]
    }
}

impl fmt::Display for FunctionArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts().iter().try_for_each(|part| f.write_str(part))
    }
}

/// What a caller named: a name, `name:qualifier`, `account:function:name`, or a full ARN, each with or without
/// qualifier. The API's pattern was checked before.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FunctionRef {
    /// Region, if the caller gave one.
    pub region: Option<String>,
    /// Account, if the caller gave one.
    pub account: Option<String>,
    /// Function name.
    pub name: String,
    /// Qualifier, if the caller gave one.
    pub qualifier: Option<String>,
}

impl FunctionRef {
    /// Takes apart a `FunctionName` parameter that satisfies the API's pattern
    /// `(arn:(aws[a-zA-Z-]*)?:lambda:)?(region:)?(\d{12}:)?(function:)?(name)(:qualifier)?`; `None` if it does not.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts: Vec<&str> = text.split(':').collect();
        if parts.first() == Some(&"arn") {
            if parts.len() < 7 || !parts[1].starts_with("aws") || parts[2] != "lambda" || parts[5] != "function" {
                return None;
            }
            parts.drain(..3);
        }
        let mut rest = parts.as_slice();
        let mut take_if = |test: &dyn Fn(&str) -> bool| match rest {
            // The last part is the name (or the qualifier after it), whatever it looks like.
            [first, tail @ ..] if !tail.is_empty() && test(first) => {
                rest = tail;
                Some((*first).to_owned())
            }
            _ => None,
        };
        let region = take_if(&is_region);
        let account = take_if(&|s| AccountId::parse(s).is_some());
        take_if(&|s| s == "function");
        let (name, qualifier) = match rest {
            [name] => (*name, None),
            [name, qualifier] => (*name, Some((*qualifier).to_owned())),
            _ => return None,
        };
        let valid =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        valid.then(|| Self { region, account, name: name.to_owned(), qualifier })
    }
}

fn is_region(s: &str) -> bool {
    let mut parts = s.rsplit('-');
    let number = parts.next().is_some_and(|n| n.len() == 1 && n.bytes().all(|b| b.is_ascii_digit()));
    number
        && s.matches('-').count() >= 2
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Option<String>, Option<String>, String, Option<String>) {
        let r = FunctionRef::parse(text).expect(text);
        (r.region, r.account, r.name, r.qualifier)
    }

    fn s(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn accepts_every_documented_form() {
        assert_eq!(parse("f"), (None, None, "f".into(), None));
        assert_eq!(parse("f:1"), (None, None, "f".into(), s("1")));
        assert_eq!(parse("function:f"), (None, None, "f".into(), None));
        assert_eq!(parse("123456789012:f"), (None, s("123456789012"), "f".into(), None));
        assert_eq!(parse("123456789012:function:f:$LATEST"), (None, s("123456789012"), "f".into(), s("$LATEST")));
        assert_eq!(
            parse("arn:aws:lambda:eu-west-1:123456789012:function:f:live"),
            (s("eu-west-1"), s("123456789012"), "f".into(), s("live"))
        );
        assert_eq!(parse("123456789012"), (None, None, "123456789012".into(), None));
    }

    #[test]
    fn tells_the_qualifier_of_its_own_arns_only() {
        let arn = FunctionArn { region: "eu-west-1".into(), account: AccountId::local(), name: "f".into() };
        assert_eq!(arn.qualifier_of(&arn.qualified("live")), Some("live"));
        assert_eq!(arn.qualifier_of(&arn.text()), None);
        let other = FunctionArn { name: "f2".into(), ..arn.clone() };
        assert_eq!(arn.qualifier_of(&other.qualified("live")), None);
    }

    #[test]
    fn refuses_what_is_no_function() {
        for text in ["", ":", "a:b:c", "arn:aws:s3:::b", "arn:aws:lambda:us-east-1:1:function", "f g"] {
            assert_eq!(FunctionRef::parse(text), None, "{text}");
        }
    }
}
