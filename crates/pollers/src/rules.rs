//! When an event is tried again, and when it is given up.
//!
//! ```text
//! accepted ──► attempt ──┬─ success ─────────────────────────────► Done
//!                 ▲      ├─ function error ─ retries left ─┐
//!                 │      ├─ throttle, system error ────────┤
//!                 │      │                                 ├─ would be too old ──► Failed(EventAgeExceeded)
//!                 └──────┼────────── delay ◄───────────────┘
//!                        └─ function error ─ no retries ──────────► Failed(RetriesExhausted)
//! ```
//!
//! The delays and limits are those of the Lambda developer guide ("How Lambda handles errors and retries with
//! asynchronous invocation"). The age counts at the *next* attempt: an event that may be 60 s old runs once, since its
//! retry would come at 60 s.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Shortest pause after a throttle or a system error.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest pause after a throttle or a system error.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// What `PutFunctionEventInvokeConfig` and `PutFunctionConcurrency` say about a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `MaximumRetryAttempts`, 0 to 2; more counts as 2.
    pub maximum_retry_attempts: u32,
    /// `MaximumEventAgeInSeconds`, 60 s to 6 h.
    pub maximum_event_age: Duration,
    /// Reserved concurrency, if any; 0: nothing may run.
    pub reserved_concurrency: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { maximum_retry_attempts: 2, maximum_event_age: Duration::from_secs(21_600), reserved_concurrency: None }
    }
}

/// How one attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The function returned.
    Success,
    /// The function failed, timed out or ran out of memory.
    FunctionError,
    /// 429.
    Throttled,
    /// 5xx: the platform failed.
    SystemError,
}

/// `requestContext.condition` of a failed event's record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Condition {
    /// The function failed as often as it may.
    RetriesExhausted,
    /// The event is too old, or would be at its next attempt.
    EventAgeExceeded,
    /// Reserved concurrency is 0.
    ZeroReservedConcurrency,
    /// Its chain of invocations came through the function too often. AWS documents that such an event goes to the
    /// targets of a failed one, but not under which condition: the word is ours.
    RecursiveInvocation,
}

impl Condition {
    /// As in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RetriesExhausted => "RetriesExhausted",
            Self::EventAgeExceeded => "EventAgeExceeded",
            Self::ZeroReservedConcurrency => "ZeroReservedConcurrency",
            Self::RecursiveInvocation => "RecursiveInvocation",
        }
    }
}

/// Where an event stands: what [`crate::AsyncEvent`] keeps of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Time since it was accepted.
    pub age: Duration,
    /// Earlier attempts that ended in a function error.
    pub attempts: u32,
    /// Earlier throttles and system errors.
    pub throttle_attempts: u32,
}

/// What to do with an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It ran: tell the OnSuccess destination.
    Done,
    /// Put it back.
    Retry {
        /// For how long.
        delay: Duration,
        /// Its new count of function errors.
        attempts: u32,
        /// Its new count of throttles and system errors.
        throttle_attempts: u32,
    },
    /// Give it up: tell the OnFailure destination and the dead letter queue.
    Failed {
        /// Why.
        condition: Condition,
        /// How often the function ran.
        approximate_invoke_count: u32,
    },
}

/// Before an attempt: `Some` when there must be none.
pub fn before(settings: &Settings, progress: Progress) -> Option<Verdict> {
    let failed = |condition| Verdict::Failed { condition, approximate_invoke_count: progress.attempts };
    if settings.reserved_concurrency == Some(0) {
        return Some(failed(Condition::ZeroReservedConcurrency));
    }
    (progress.age > settings.maximum_event_age).then(|| failed(Condition::EventAgeExceeded))
}

/// After an attempt; `progress` is as it was before, but for the age.
pub fn after(settings: &Settings, progress: Progress, outcome: Outcome) -> Verdict {
    let (delay, attempts, throttle_attempts) = match outcome {
        Outcome::Success => return Verdict::Done,
        Outcome::FunctionError => {
            let attempts = progress.attempts + 1;
            if attempts > settings.maximum_retry_attempts.min(2) {
                return Verdict::Failed { condition: Condition::RetriesExhausted, approximate_invoke_count: attempts };
            }
            (Duration::from_secs(60) * attempts, attempts, progress.throttle_attempts)
        }
        Outcome::Throttled | Outcome::SystemError => {
            (backoff(progress.throttle_attempts), progress.attempts, progress.throttle_attempts.saturating_add(1))
        }
    };
    // An attempt just at the limit would be late by the time it runs: age 60 s and a delay of 60 s is too old.
    if progress.age + delay >= settings.maximum_event_age {
        return Verdict::Failed { condition: Condition::EventAgeExceeded, approximate_invoke_count: attempts };
    }
    Verdict::Retry { delay, attempts, throttle_attempts }
}

/// 1 s, 2 s, 4 s … 5 min.
pub(crate) fn backoff(earlier: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << earlier.min(16)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fresh() -> Progress {
        Progress { age: Duration::ZERO, attempts: 0, throttle_attempts: 0 }
    }

    fn failed(condition: Condition, approximate_invoke_count: u32) -> Verdict {
        Verdict::Failed { condition, approximate_invoke_count }
    }

    #[test]
    fn function_errors_wait_one_then_two_minutes() {
        let first = after(&Settings::default(), fresh(), Outcome::FunctionError);
        assert_eq!(first, Verdict::Retry { delay: Duration::from_secs(60), attempts: 1, throttle_attempts: 0 });
        let progress = Progress { attempts: 1, ..fresh() };
        let second = after(&Settings::default(), progress, Outcome::FunctionError);
        assert_eq!(second, Verdict::Retry { delay: Duration::from_secs(120), attempts: 2, throttle_attempts: 0 });
        let progress = Progress { attempts: 2, ..fresh() };
        let third = after(&Settings::default(), progress, Outcome::FunctionError);
        assert_eq!(third, failed(Condition::RetriesExhausted, 3));
    }

    #[test]
    fn the_next_retry_must_be_within_the_age() {
        let settings = Settings { maximum_event_age: Duration::from_secs(60), ..Settings::default() };
        assert_eq!(after(&settings, fresh(), Outcome::FunctionError), failed(Condition::EventAgeExceeded, 1));
    }

    #[test]
    fn reserved_zero_fails_unseen() {
        let settings = Settings { reserved_concurrency: Some(0), ..Settings::default() };
        assert_eq!(before(&settings, fresh()), Some(failed(Condition::ZeroReservedConcurrency, 0)));
    }

    proptest! {
        #[test]
        fn every_event_ends_in_time(
            retries in 0u32..=2,
            age in 60u64..=21_600,
            outcomes in proptest::collection::vec((0u8..3, 0u64..900), 1..40),
        ) {
            let settings = Settings {
                maximum_retry_attempts: retries, maximum_event_age: Duration::from_secs(age), reserved_concurrency: None,
            };
            let (mut progress, mut last_backoff, mut runs, mut steps) = (fresh(), Duration::ZERO, 0, 0);
            for (outcome, took) in outcomes.iter().cycle() {
                steps += 1;
                prop_assert!(steps < 1_000, "an event must end");
                prop_assert!(before(&settings, progress).is_none(), "put back only to run within its age");
                progress.age += Duration::from_secs(*took);
                let outcome = [Outcome::FunctionError, Outcome::Throttled, Outcome::SystemError][*outcome as usize];
                runs += u32::from(outcome == Outcome::FunctionError);
                match after(&settings, progress, outcome) {
                    Verdict::Done => prop_assert!(false, "it failed"),
                    Verdict::Failed { approximate_invoke_count, .. } => {
                        prop_assert_eq!(approximate_invoke_count, runs);
                        break;
                    }
                    Verdict::Retry { delay, attempts, throttle_attempts } => {
                        if outcome != Outcome::FunctionError {
                            prop_assert!(delay >= last_backoff && delay <= BACKOFF_MAX);
                            last_backoff = delay;
                        }
                        progress = Progress { age: progress.age + delay, attempts, throttle_attempts };
                        prop_assert!(progress.age < settings.maximum_event_age);
                    }
                }
            }
            prop_assert!(runs <= retries + 1);
        }
    }
}
