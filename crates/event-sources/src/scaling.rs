//! How many pollers a mapping has. Each has one batch at a time, so this bounds the invocations at once.
//!
//! As documented ("Configuring scaling behavior for SQS event source mappings"): it starts with five; while all of them
//! have messages it adds up to 300 a minute, up to 1,000 or `MaximumConcurrency`; when the queue runs dry it goes back to
//! five, then to two. Function errors and throttles take away a tenth at a time.

use std::time::Duration;

/// With the first messages.
const START: u32 = 5;
/// Without messages for a long time.
const IDLE: u32 = 2;
/// After this time without messages.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// Pollers added in a minute at most.
const PER_MINUTE: u32 = 300;
/// Without growth after an error.
const CALM: Duration = Duration::from_secs(5);

/// What happened since the last look, and how it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Load {
    /// Pollers that have messages at the moment.
    pub busy: u32,
    /// Receipts that brought messages.
    pub filled: u32,
    /// Receipts that brought none.
    pub empty: u32,
    /// Invocations that failed or were throttled.
    pub failed: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Scaler {
    ceiling: u32,
    target: u32,
    /// When [`Self::observe`] was last called.
    seen: Duration,
    /// Growth that is due: 60,000ths of a poller.
    credit: u64,
    last_work: Duration,
    last_failure: Option<Duration>,
}

impl Scaler {
    pub fn new(ceiling: u32, now: Duration) -> Self {
        let ceiling = ceiling.max(1);
        Self { ceiling, target: START.min(ceiling), seen: now, credit: 0, last_work: now, last_failure: None }
    }

    /// How many pollers there are to be.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// Called about once a second.
    pub fn observe(&mut self, now: Duration, load: Load) {
        let elapsed = now.saturating_sub(self.seen);
        self.seen = now;
        if load.busy > 0 || load.filled > 0 {
            self.last_work = now;
        }
        if load.failed > 0 {
            self.last_failure = Some(now);
        }
        let calm = self.last_failure.is_none_or(|at| now.saturating_sub(at) >= CALM);
        let backlog = load.busy >= self.target && load.empty == 0;
        if !(backlog && calm) {
            // Growth is a rate, not an allowance to be saved up.
            self.credit = 0;
        }
        if load.failed > 0 {
            self.target = self.less(IDLE);
        } else if backlog && calm {
            self.target = self.more(elapsed);
        } else if now.saturating_sub(self.last_work) >= IDLE_AFTER {
            self.target = self.less(IDLE);
        } else if load.empty > 0 && load.busy < self.target && self.target > START {
            self.target = self.less(START);
        }
    }

    fn more(&mut self, elapsed: Duration) -> u32 {
        if self.target < START {
            return START.min(self.ceiling);
        }
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).min(60_000);
        self.credit += millis * u64::from(PER_MINUTE);
        let whole = u32::try_from(self.credit / 60_000).unwrap_or(u32::MAX);
        self.credit %= 60_000;
        self.target.saturating_add(whole).min(self.ceiling)
    }

    fn less(&self, floor: u32) -> u32 {
        let step = self.target.div_ceil(10);
        (self.target - step).max(floor.min(self.ceiling)).min(self.target)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn full(scaler: &Scaler) -> Load {
        Load { busy: scaler.target(), filled: 1, ..Load::default() }
    }

    #[test]
    fn grows_by_300_a_minute_to_its_ceiling() {
        let mut scaler = Scaler::new(1000, secs(0));
        assert_eq!(scaler.target(), 5);
        for second in 1..=60 {
            scaler.observe(secs(second), full(&scaler));
        }
        assert_eq!(scaler.target(), 305);
        for second in 61..=300 {
            scaler.observe(secs(second), full(&scaler));
        }
        assert_eq!(scaler.target(), 1000);
        let mut scaler = Scaler::new(2, secs(0));
        for second in 1..=60 {
            scaler.observe(secs(second), full(&scaler));
            assert_eq!(scaler.target(), 2, "MaximumConcurrency");
        }
    }

    #[test]
    fn a_dry_queue_has_five_then_two_pollers() {
        let mut scaler = Scaler::new(1000, secs(0));
        (1..=60).for_each(|second| scaler.observe(secs(second), full(&scaler)));
        let dry = Load { empty: 1, ..Load::default() };
        (61..=115).for_each(|second| scaler.observe(secs(second), dry));
        assert_eq!(scaler.target(), 5);
        (116..=130).for_each(|second| scaler.observe(secs(second), dry));
        assert_eq!(scaler.target(), 2);
        scaler.observe(secs(131), full(&scaler));
        assert_eq!(scaler.target(), 5, "as soon as both have messages");
    }

    #[test]
    fn errors_take_pollers_away_and_growth_waits() {
        let mut scaler = Scaler::new(1000, secs(0));
        (1..=60).for_each(|second| scaler.observe(secs(second), full(&scaler)));
        scaler.observe(secs(61), Load { failed: 3, ..full(&scaler) });
        assert_eq!(scaler.target(), 274);
        scaler.observe(secs(62), full(&scaler));
        assert_eq!(scaler.target(), 274);
        (63..=70).for_each(|second| scaler.observe(secs(second), full(&scaler)));
        assert!(scaler.target() > 274);
        (71..=200).for_each(|second| scaler.observe(secs(second), Load { failed: 1, ..full(&scaler) }));
        assert_eq!(scaler.target(), 2);
    }

    proptest! {
        #[test]
        fn always_within_its_bounds(
            ceiling in 1..40u32,
            steps in prop::collection::vec((0..90_000u64, 0..50u32, 0..5u32, 0..5u32, 0..3u32), 1..60),
        ) {
            let mut scaler = Scaler::new(ceiling, secs(0));
            let mut now = secs(0);
            for (millis, busy, filled, empty, failed) in steps {
                now += Duration::from_millis(millis);
                let before = scaler.target();
                scaler.observe(now, Load { busy, filled, empty, failed });
                let target = scaler.target();
                prop_assert!(target <= ceiling && target >= IDLE.min(ceiling));
                let growth = u64::from(target.saturating_sub(before));
                prop_assert!(growth <= (millis * 300).div_ceil(60_000).max(3));
                prop_assert!(failed == 0 || target <= before);
            }
        }
    }
}
