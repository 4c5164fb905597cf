//! What a leaf of a pattern asks of the values of an event.

use std::net::IpAddr;

use serde_json::{Number, Value};

use crate::wildcard::Wildcard;

/// One element of a leaf's list.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Condition {
    /// There is such a value.
    Value(Test),
    /// There is a value, and one of them passes none of these.
    AnythingBut(Vec<Test>),
    /// There is a value, or there is none.
    Exists(bool),
}

/// A test of one value.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Test {
    Text(String),
    Number(Number),
    Bool(bool),
    Null,
    Prefix(String, Case),
    Suffix(String, Case),
    EqualsIgnoreCase(String),
    Wildcard(Wildcard),
    /// All of one or two comparisons.
    Numeric(Vec<(Comparison, f64)>),
    Cidr(Network),
}

/// Whether upper and lower case are different.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Case {
    Matters,
    Ignored,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Comparison {
    Less,
    AtMost,
    Equal,
    AtLeast,
    Greater,
}

/// The addresses that share the first `bits` with `address`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Network {
    pub address: IpAddr,
    pub bits: u32,
}

impl Condition {
    /// `values`: all plain values at the place, none if there is nothing.
    pub fn holds(&self, values: &[&Value]) -> bool {
        match self {
            Self::Value(test) => values.iter().any(|value| test.passes(value)),
            Self::AnythingBut(tests) => values.iter().any(|value| !tests.iter().any(|test| test.passes(value))),
            Self::Exists(wanted) => values.is_empty() != *wanted,
        }
    }
}

impl Test {
    fn passes(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Text(wanted), Value::String(text)) => wanted == text,
            (Self::Number(wanted), Value::Number(number)) => equal(wanted, number),
            (Self::Bool(wanted), Value::Bool(bool)) => wanted == bool,
            (Self::Null, Value::Null) => true,
            (Self::Prefix(prefix, Case::Matters), Value::String(text)) => text.starts_with(prefix.as_str()),
            (Self::Prefix(prefix, Case::Ignored), Value::String(text)) => folded(text).starts_with(&folded(prefix)),
            (Self::Suffix(suffix, Case::Matters), Value::String(text)) => text.ends_with(suffix.as_str()),
            (Self::Suffix(suffix, Case::Ignored), Value::String(text)) => folded(text).ends_with(&folded(suffix)),
            (Self::EqualsIgnoreCase(wanted), Value::String(text)) => folded(text) == folded(wanted),
            (Self::Wildcard(wildcard), Value::String(text)) => wildcard.matches(text),
            (Self::Numeric(comparisons), Value::Number(number)) => {
                let number = number.as_f64();
                number.is_some_and(|n| comparisons.iter().all(|(comparison, bound)| comparison.holds(n, *bound)))
            }
            (Self::Cidr(network), Value::String(text)) => text.parse().is_ok_and(|address| network.contains(address)),
            _ => false,
        }
    }
}

fn folded(text: &str) -> String {
    text.to_lowercase()
}

/// As numbers, so that 300 and 3.0e2 are equal; whole numbers exactly, however large.
fn equal(a: &Number, b: &Number) -> bool {
    a == b || (!(whole(a) && whole(b)) && a.as_f64() == b.as_f64())
}

fn whole(number: &Number) -> bool {
    number.is_i64() || number.is_u64()
}

impl Comparison {
    fn holds(self, number: f64, bound: f64) -> bool {
        match self {
            Self::Less => number < bound,
            Self::AtMost => number <= bound,
            Self::Equal => number == bound,
            Self::AtLeast => number >= bound,
            Self::Greater => number > bound,
        }
    }
}

impl Network {
    /// `<address>/<bits>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let bits = bits.bytes().all(|b| b.is_ascii_digit()).then(|| bits.parse().ok()).flatten()?;
        (bits <= width(address)).then_some(Self { address, bits })
    }

    fn contains(self, address: IpAddr) -> bool {
        if width(address) != width(self.address) {
            return false;
        }
        // The highest bit of either form is at the same place.
        let differing = number(address) ^ number(self.address);
        self.bits == 0 || differing >> (128 - self.bits) == 0
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address in the high bits.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}
