//! Counting: how many invocations run at once, and how fast a function may grow.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Running invocations of one account's functions that have no reserved concurrency. Shared by all their pools, so it
/// is a compare-and-swap rather than a lock.
#[derive(Debug, Default)]
pub struct AccountUse(AtomicU32);

impl AccountUse {
    /// Counts one more, unless `limit` is reached.
    pub fn acquire(&self, limit: u32) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then(|| n + 1)).is_ok()
    }

    /// Counts one more that runs already, whatever the limit.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one less. Every [`Self::count`] and successful [`Self::acquire`] is released exactly once.
    pub fn release(&self) {
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "released more than was acquired");
    }

    /// How many run now.
    pub fn in_use(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

/// A function's "+1,000 sandboxes per 10 s": refilled continuously, what is unused is not accumulated.
#[derive(Debug)]
pub struct ScalingRate {
    burst: f64,
    per_second: f64,
    left: f64,
    at: Duration,
}

impl ScalingRate {
    /// Full at the start.
    pub fn new(burst: u32, per_10s: u32, now: Duration) -> Self {
        Self { burst: f64::from(burst), per_second: f64::from(per_10s) / 10.0, left: f64::from(burst), at: now }
    }

    /// Whether a sandbox may start now.
    pub fn available(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
        self.left >= 1.0
    }

    /// One starts. Call only when [`Self::available`].
    pub fn take(&mut self) {
        self.left -= 1.0;
    }

    /// As good as new: forgetting it changes nothing.
    pub fn is_full(&mut self, now: Duration) -> bool {
        self.available(now) && self.left >= self.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_limit_is_exact_under_contention() {
        let account = AccountUse::default();
        let highest = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if account.acquire(3) {
                            highest.fetch_max(account.in_use(), Ordering::Relaxed);
                            account.release();
                        }
                    }
                });
            }
        });
        assert!(highest.into_inner() <= 3);
        assert_eq!(account.in_use(), 0);
    }

    #[test]
    fn scaling_refills_continuously_and_accumulates_nothing() {
        let s = Duration::from_secs;
        let mut rate = ScalingRate::new(1000, 1000, s(0));
        let mut started = |now: Duration| {
            let mut n = 0;
            while rate.available(now) {
                rate.take();
                n += 1;
            }
            n
        };
        assert_eq!(started(s(0)), 1000);
        assert_eq!(started(s(1)), 100);
        assert_eq!(started(s(1)), 0);
        assert_eq!(started(s(11)), 1000);
        assert_eq!(started(s(1000)), 1000);
    }
}
