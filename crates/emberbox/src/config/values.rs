//! Values that are checked while they are read, so that the error points at their line.

use std::net::IpAddr;
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

/// An address in `allow`: `10.0.0.5`, `10.0.0.0/24`, either with `:port`; IPv6 in brackets when a port follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Address or network.
    pub address: IpAddr,
    /// Bits of the network; all of them for one address.
    pub prefix: u8,
    /// One port; `None`: every port.
    pub port: Option<u16>,
}

impl Allowed {
    /// Parses one.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']')?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None if text.matches(':').count() == 1 => text.split_once(':').map(|(host, port)| (host, Some(port)))?,
            None => (text, None),
        };
        let port = match port {
            Some(port) => Some(port.parse().ok().filter(|p| *p != 0)?),
            None => None,
        };
        let (address, prefix) = match host.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (host, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        (prefix <= bits).then_some(Self { address, prefix, port })
    }
}

impl<'de> Deserialize<'de> for Allowed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is no address; write an IP address or network with or without a port, such as 10.0.0.5:5432, \
                 192.168.1.0/24 or [fd00::5]:6379 (names are not resolved)"
            ))
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_addresses() {
        let parse = |text| Allowed::parse(text).map(|a| (a.address.to_string(), a.prefix, a.port));
        assert_eq!(parse("10.0.0.5:5432"), Some(("10.0.0.5".into(), 32, Some(5432))));
        assert_eq!(parse("10.0.0.0/8"), Some(("10.0.0.0".into(), 8, None)));
        assert_eq!(parse("10.0.0.0/8:80"), Some(("10.0.0.0".into(), 8, Some(80))));
        assert_eq!(parse("fd00::5"), Some(("fd00::5".into(), 128, None)));
        assert_eq!(parse("[fd00::/64]:6379"), Some(("fd00::".into(), 64, Some(6379))));
        for bad in
            ["", "host:80", "10.0.0.5:", "10.0.0.5:0", "10.0.0.5:99999", "10.0.0.0/33", "[::1", "[::1]80", "10.0.0"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
