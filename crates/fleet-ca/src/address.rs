//! Where a server is, and by which names a member can be reached.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls::pki_types::{DnsName, ServerName};
use serde::{Deserialize, Serialize};

/// A DNS name or an IP address, as it can stand in a certificate. No wildcards.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    /// In ASCII.
    Name(DnsName<'static>),
    /// Of either version.
    Ip(IpAddr),
}

impl Host {
    /// As TLS wants it.
    pub fn server_name(&self) -> ServerName<'static> {
        match self {
            Self::Name(name) => ServerName::DnsName(name.clone()),
            Self::Ip(ip) => ServerName::IpAddress((*ip).into()),
        }
    }
}

impl FromStr for Host {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        match DnsName::try_from(text) {
            Ok(name) if !text.contains('*') => Ok(Self::Name(name.to_owned())),
            _ => Err(InvalidAddress(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Host {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.to_string()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name.as_ref()),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// `HOST:PORT`; an IPv6 address stands in brackets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// Which machine.
    pub host: Host,
    /// Never 0.
    pub port: u16,
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let wrong = || InvalidAddress(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                Host::Ip(IpAddr::V6(rest.strip_suffix(']').and_then(|ip| ip.parse().ok()).ok_or_else(wrong)?))
            }
            None if host.contains(':') => return Err(wrong()),
            None => host.parse()?,
        };
        // Digits alone: `+1` is a number for Rust and none for people.
        match port.parse() {
            Ok(port) if port != 0 && text.ends_with(|c: char| c.is_ascii_digit()) && !text.contains('+') => {
                Ok(Self { host, port })
            }
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// Not what was expected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` is no address: write HOST:PORT, such as 10.0.0.1:4570, join.example.org:4570 or [fd00::1]:4570, or the host alone where no port is asked for"
)]
pub struct InvalidAddress(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["10.0.0.1:4570", "join.example.org:1", "localhost:65535", "[fd00::1]:4570"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            ":1",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "a b:1",
            "fd00::1:1",
            "[10.0.0.1]:1",
            "*.a:1",
            "[::1:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]:.a-z0-9*+-]{0,20}") {
            if let Ok(address) = text.parse::<Address>() {
                proptest::prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            }
        }
    }
}
