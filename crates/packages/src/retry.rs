//! When a request that failed is sent again: a pure value, see [`Retry::delay`].

use std::time::Duration;

/// How patient the package storage is with its S3 service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retry {
    /// How often a request is sent at most; 1 for no second try.
    pub tries: u32,
    /// About the wait after the first failure; it doubles with each.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// Longest silence of the service within one try: for the connection, for the answer's head, for each next piece of it.
    pub patience: Duration,
}

impl Default for Retry {
    /// Outlasts about ten seconds of refusals, and a minute and a half of silence.
    fn default() -> Self {
        Self {
            tries: 7,
            first: Duration::from_millis(200),
            longest: Duration::from_secs(5),
            patience: Duration::from_secs(10),
        }
    }
}

impl Retry {
    /// The wait after `failed` failures in a row; `None` when that was the last try. `random` spreads the tries of many
    /// hosts over half of the wait.
    pub(crate) fn delay(&self, failed: u32, random: u64) -> Option<Duration> {
        if failed >= self.tries {
            return None;
        }
        let doubled = self.first.saturating_mul(1 << failed.saturating_sub(1).min(30)).min(self.longest);
        let half = doubled / 2;
        let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).saturating_add(1);
        Some(doubled - Duration::from_nanos(random % spread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_the_tries() {
        let retry = Retry {
            tries: 6,
            first: Duration::from_millis(100),
            longest: Duration::from_millis(500),
            ..Retry::default()
        };
        let waits: Vec<_> = (1..=6).map(|failed| retry.delay(failed, 0).map(|wait| wait.as_millis())).collect();
        assert_eq!(waits, [Some(100), Some(200), Some(400), Some(500), Some(500), None]);
        for random in [1, 77_777_777, u64::MAX] {
            let wait = retry.delay(3, random).unwrap().as_millis();
            assert!((200..=400).contains(&wait), "{wait}");
        }
        assert_eq!(Retry { tries: 1, ..retry }.delay(1, 0), None);
        let endless = Retry { tries: u32::MAX, longest: Duration::MAX, ..retry };
        assert!(endless.delay(u32::MAX - 1, u64::MAX).is_some());
    }
}
