//! Counting: how many invocations run at once, and how fast a function may grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::quota::{plan, slack};

/// Running invocations of one account's functions that have no reserved concurrency. Shared by all their pools, so it
/// is a compare-and-swap rather than a lock.
///
/// With several managers, each lets run only what it was granted of the limit: see [`crate::quota`].
#[derive(Debug)]
pub struct AccountUse {
    /// How many run, and below that how many may.
    state: AtomicU64,
    /// The limit of the last request.
    limit: AtomicU32,
    /// How often a request found the grant too small since that was asked about.
    short: AtomicU32,
    /// The account's home, when it was asked last, gave less than was asked for.
    refused: AtomicBool,
    /// Told when more is wanted.
    more: Arc<Notify>,
}

const fn pack(in_use: u32, grant: u32) -> u64 {
    (in_use as u64) << 32 | grant as u64
}

const fn unpack(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}

impl Default for AccountUse {
    /// Of the only manager.
    fn default() -> Self {
        Self::new(u32::MAX, Arc::default())
    }
}

impl AccountUse {
    /// With a grant of the limit; `more` is told when more is wanted.
    pub fn new(grant: u32, more: Arc<Notify>) -> Self {
        let (limit, short) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { state: AtomicU64::new(pack(0, grant)), limit, short, refused: AtomicBool::new(false), more }
    }

    /// Counts one more, unless `limit` or the grant is reached.
    pub fn acquire(&self, limit: u32) -> bool {
        let more = |state| {
            let (in_use, grant) = unpack(state);
            (in_use < limit.min(grant)).then(|| pack(in_use + 1, grant))
        };
        let acquired = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        if let Ok(before) = acquired {
            let (in_use, grant) = unpack(before);
            // Asked before it is used up, and told of a limit that is another by now.
            let short = grant < limit && grant - in_use <= slack(limit) / 2;
            if grant != u32::MAX && (short || self.limit.load(Ordering::Relaxed) != limit) {
                self.limit.store(limit, Ordering::Relaxed);
                self.more.notify_one();
            }
        }
        acquired.is_ok()
    }

    /// Counts one more that runs already, whatever the limit.
    pub fn count(&self) {
        self.state.fetch_add(pack(1, 0), Ordering::AcqRel);
    }

    /// Counts one less. Every [`Self::count`] and successful [`Self::acquire`] is released exactly once.
    pub fn release(&self) {
        let before = self.state.fetch_sub(pack(1, 0), Ordering::AcqRel);
        debug_assert!(unpack(before).0 > 0, "released more than was acquired");
    }

    /// How many run now.
    pub fn in_use(&self) -> u32 {
        unpack(self.state.load(Ordering::Acquire)).0
    }

    /// Whether no more can run under this limit.
    pub fn is_full(&self, limit: u32) -> bool {
        let (in_use, grant) = unpack(self.state.load(Ordering::Acquire));
        in_use >= limit.min(grant)
    }

    /// Whether what runs may go on to count under this limit.
    pub fn fits(&self, limit: u32) -> bool {
        let (in_use, grant) = unpack(self.state.load(Ordering::Acquire));
        in_use <= limit.min(grant)
    }

    /// Whether the limit may have room that this manager has asked for and not heard of: its home has not answered yet, does not answer,
    /// or gave all that was asked for before.
    pub fn is_unanswered(&self, limit: u32) -> bool {
        let (in_use, grant) = unpack(self.state.load(Ordering::Acquire));
        in_use < limit && grant < limit && !self.refused.load(Ordering::Relaxed)
    }

    /// It says nothing. `missing` is what was asked for beyond what is held: still wanted.
    pub fn no_answer(&self, missing: u32) {
        self.refused.store(false, Ordering::Relaxed);
        self.short.fetch_max(missing, Ordering::Relaxed);
    }

    /// Whether only the grant is in the way, so that it is worth waiting for more of it; which is then asked for.
    pub fn may_grow(&self, limit: u32) -> bool {
        let (in_use, grant) = unpack(self.state.load(Ordering::Acquire));
        let short = in_use < limit && grant < limit;
        if short {
            self.limit.store(limit, Ordering::Relaxed);
            self.short.fetch_add(1, Ordering::Relaxed);
            self.more.notify_one();
        }
        short
    }

    /// From now on this manager is one of several, and holds what it uses.
    pub fn share(&self) {
        let hold = |state| {
            let (in_use, grant) = unpack(state);
            (grant == u32::MAX).then(|| pack(in_use, in_use))
        };
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, hold);
    }

    /// What this manager holds: never below what it uses.
    pub fn held(&self) -> u32 {
        let (in_use, grant) = unpack(self.state.load(Ordering::Acquire));
        grant.max(in_use)
    }

    /// What to ask the account's home: limit, hold and want, if there is anything to ask. From here on this manager keeps to `hold`.
    pub fn ask(&self, scarce: bool) -> Option<(u32, u32, u32)> {
        let limit = self.limit.load(Ordering::Relaxed);
        let short = self.short.swap(0, Ordering::Relaxed);
        let mut asked = None;
        let lower = |state| {
            let (in_use, grant) = unpack(state);
            let (hold, want) = plan(in_use, short, grant, limit, scarce);
            asked = (hold != grant || want > hold).then_some((limit, hold, want));
            Some(pack(in_use, hold))
        };
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, lower);
        asked
    }

    /// The answer to a question for `want`. `true` if who waits has to look again: more can run than before, or there is no more.
    pub fn granted(&self, want: u32, grant: u32) -> bool {
        let refused = grant < want;
        self.refused.store(refused, Ordering::Relaxed);
        let set = |state| Some(pack(unpack(state).0, grant));
        let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, set);
        refused || before.is_ok_and(|before| unpack(before).1 < grant)
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
    fn a_grant_is_a_limit_that_moves() {
        let account = AccountUse::new(0, Arc::default());
        assert!(!account.acquire(32) && account.is_full(32) && account.may_grow(32));
        assert_eq!(account.ask(false), Some((32, 0, 1)));
        assert!(account.is_unanswered(32) && account.granted(1, 1) && account.acquire(32) && !account.acquire(32));
        // What runs has some room around it.
        assert_eq!(account.ask(false), Some((32, 1, 3)));
        assert!(account.granted(3, 3) && account.acquire(32));
        assert_eq!(account.ask(false), Some((32, 3, 4)));
        // All that there is.
        assert!(account.is_unanswered(32) && account.granted(4, 3) && !account.is_unanswered(32));
        account.release();
        account.release();
        // And is given up when it is not used.
        assert_eq!((account.ask(false), account.held()), (Some((32, 0, 0)), 0));
        assert_eq!(account.ask(false), None);
        // What is taken over runs, whatever was granted.
        account.count();
        assert_eq!((account.held(), account.ask(true)), (1, Some((32, 1, 1))));
        let alone = AccountUse::default();
        assert!(alone.acquire(1) && !alone.may_grow(1) && !alone.is_unanswered(1) && alone.held() == u32::MAX);
        alone.share();
        assert_eq!(alone.held(), 1);
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
