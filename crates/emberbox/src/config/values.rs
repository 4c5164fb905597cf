//! Values that are checked while they are read, so that the error points at their line.

use std::time::Duration;

use domain::AccountId;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::units::{parse_duration, parse_size};

/// `isolation`.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Namespaces, cgroups, seccomp, Landlock.
    Process,
    /// Virtual machines.
    Microvm,
    /// Virtual machines where the processor can run them, or else processes.
    Auto,
}

/// `network`.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The internet, but nothing private.
    Egress,
    /// Loopback only.
    None,
}

/// `[cluster]` of an Emberbox for one machine.
#[cfg(not(feature = "cluster"))]
pub fn no_fleet<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom(crate::commands::WITHOUT_FLEETS))
}

/// `engine` of `[events]`.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum EventEngine {
    /// A file in the data directory.
    #[default]
    Sqlite,
    /// A database, which several servers may share.
    Postgres,
    /// Queues of SQS, which several servers may share.
    Sqs,
}

/// A duration such as `90s`.
pub fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    parse_duration(&text(d)?).map_err(D::Error::custom)
}

/// A size such as `64 MB`.
pub fn size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    parse_size(&text(d)?).map_err(D::Error::custom)
}

/// Text, or a bare number, whose missing unit the parser then explains.
fn text<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Text(String),
        Number(u64),
    }
    Ok(
        match Value::deserialize(d)
            .map_err(|_| D::Error::custom("write text with a number and a unit, such as \"90s\" or \"64 MB\""))?
        {
            Value::Text(text) => text,
            Value::Number(number) => number.to_string(),
        },
    )
}

/// An account id.
pub fn account<'de, D: Deserializer<'de>>(d: D) -> Result<AccountId, D::Error> {
    let text = String::deserialize(d)?;
    AccountId::parse(&text).ok_or_else(|| {
        D::Error::custom(format!(
            "`{text}` is no account id; write exactly 12 digits in quotes, such as \"123456789012\""
        ))
    })
}

/// A region as it appears in ARNs.
pub fn region<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    let valid = text.matches('-').count() >= 2
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.ends_with(|c: char| c.is_ascii_digit());
    if valid {
        Ok(text)
    } else {
        Err(D::Error::custom(format!("`{text}` is no region; write one as in ARNs, such as us-east-1 or eu-central-1")))
    }
}
