//! How often somebody may be wrong.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// From the first failure on, this long they are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Failures of one address in that time; then it is not listened to until the time is over.
pub(super) const MOST: u32 = 10;
/// Addresses that are remembered; the one that began first is forgotten for another.
const ADDRESSES: usize = 4096;

/// Counts failures by address. Secrets of 256 bits cannot be guessed: this keeps those who try from costing the server much.
#[derive(Default)]
pub(super) struct Failures(HashMap<IpAddr, (Instant, u32)>);

impl Failures {
    /// How long this address is not listened to.
    pub(super) fn blocked(&self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let (since, count) = self.0.get(&source(peer))?;
        let left = (*since + WINDOW).checked_duration_since(now).filter(|left| !left.is_zero())?;
        (*count >= MOST).then_some(left)
    }

    /// It was wrong.
    pub(super) fn failed(&mut self, peer: IpAddr, now: Instant) {
        let peer = source(peer);
        if !self.0.contains_key(&peer) && self.0.len() >= ADDRESSES {
            self.0.retain(|_, (since, _)| now < *since + WINDOW);
            if self.0.len() >= ADDRESSES {
                let first = self.0.iter().min_by_key(|(_, (since, _))| *since).map(|(peer, _)| *peer);
                self.0.remove(&first.expect("it is full"));
            }
        }
        let entry = self.0.entry(peer).or_insert((now, 0));
        if now >= entry.0 + WINDOW {
            *entry = (now, 0);
        }
        entry.1 += 1;
    }
}

/// Of IPv6, the network of 64 bits: who has one address there has all of them.
fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute() {
        let start = Instant::now();
        let (one, other) = ("fd00::1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut failures = Failures::default();
        for n in 0..MOST {
            assert_eq!(failures.blocked(one, start), None, "{n}");
            failures.failed(one, start);
        }
        assert_eq!(failures.blocked(one, start), Some(WINDOW));
        assert_eq!(failures.blocked("fd00::2".parse().unwrap(), start), Some(WINDOW), "the same network");
        assert_eq!(failures.blocked(other, start), None);
        assert_eq!(failures.blocked(one, start + WINDOW), None);
        failures.failed(one, start + WINDOW);
        assert_eq!(failures.blocked(one, start + WINDOW), None, "counted anew");
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut failures = Failures::default();
        for n in 0..5_000_u32 {
            failures.failed(std::net::Ipv4Addr::from_bits(n).into(), start + Duration::from_millis(n.into()));
        }
        assert!(failures.0.len() <= ADDRESSES);
    }
}
