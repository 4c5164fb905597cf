//! What an operator can choose about process sandboxes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Kinds of sandboxes with a standby that are kept ready: as many runtimes as a host uses at a time.
pub const STANDBY_KINDS: usize = 3;

/// Settings of a [`ProcessEngine`](super::ProcessEngine).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessConfig {
    /// Directory for the backing files of `/tmp`s; made if missing. They are unlinked from the start, so that none is
    /// left after a crash.
    pub state_dir: PathBuf,
    /// The program that calls [`maybe_run_helper`](super::maybe_run_helper) first of all; `None`: this one.
    pub helper: Option<PathBuf>,
    /// Where functions can connect to.
    pub network: Network,
    /// How many blank sandboxes are kept ready.
    pub pool: usize,
    /// How many sandboxes are kept in which a process already stands by, for each of the [`STANDBY_KINDS`] kinds last
    /// asked for. None for what nobody asked for in the last 5 minutes.
    pub standbys: usize,
    /// Most sandboxes at once, the blank ones included. A multiple of 64 is taken, from a range of 16,384 that all
    /// instances on the host share.
    pub max_sandboxes: u32,
    /// Memory that all sandboxes together can use, in MB: their own limits may add up to more than the host has.
    /// `None`: no bound but their own.
    pub memory_mb: Option<u64>,
}

impl ProcessConfig {
    /// Four blank sandboxes, two standing by, a thousand at most, no network.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            helper: None,
            network: Network::None,
            pool: 4,
            standbys: 2,
            max_sandboxes: 1024,
            memory_mb: None,
        }
    }
}

/// Where functions can connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Nowhere: loopback only.
    None,
    /// The internet, and what is allowed besides.
    Egress(Egress),
}

/// Settings of [`Network::Egress`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// Addresses for the links between host and sandboxes, four for each; at most a /16 is used.
    pub pool: Range,
    /// What can be reached though it is private or the host's own.
    pub allow: Vec<Destination>,
    /// Name servers; empty: the host's.
    pub dns: Vec<IpAddr>,
}

impl Default for Egress {
    fn default() -> Self {
        Self { pool: Range { address: Ipv4Addr::new(100, 96, 0, 0), prefix: 16 }, allow: Vec::new(), dns: Vec::new() }
    }
}

/// A range of IPv4 addresses, `10.0.0.0/8`; a single address without `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    /// Its first address.
    pub address: Ipv4Addr,
    /// How many bits are the same for all.
    pub prefix: u8,
}

/// A range of addresses, with a port or all of them: `192.168.1.7:5432`, `10.20.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    /// The addresses.
    pub range: Range,
    /// The TCP or UDP port; `None`: every port and protocol.
    pub port: Option<u16>,
}

/// A text that is no range or destination.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an address: write it as 10.1.2.3, 10.1.0.0/16 or 10.1.2.3:5432")]
pub struct BadAddress(String);

impl FromStr for Range {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(bad)?),
            None => (text, 32),
        };
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        if u32::from(address) & host_bits != 0 {
            return Err(bad());
        }
        Ok(Self { address, prefix })
    }
}

impl FromStr for Destination {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (range, port) = match text.split_once(':') {
            Some((range, port)) => (range, Some(port.parse().map_err(|_| BadAddress(text.to_owned()))?)),
            None => (text, None),
        };
        Ok(Self { range: range.parse()?, port })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.range),
            None => self.range.fmt(f),
        }
    }
}

impl TryFrom<String> for Range {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

impl TryFrom<String> for Destination {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses() {
        let range: Range = "10.20.0.0/16".parse().unwrap();
        assert_eq!(range.to_string(), "10.20.0.0/16");
        let destination: Destination = "192.168.1.7:5432".parse().unwrap();
        assert_eq!((destination.range.prefix, destination.port), (32, Some(5432)));
        for bad in ["", "10.0.0.1/8", "10.0.0.0/33", "x", "10.0.0.0/8:99999", "::1"] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }
}
