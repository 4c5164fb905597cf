//! Points in time as the engines store them: whole milliseconds since 1970.

use std::time::{Duration, SystemTime};

/// Milliseconds since 1970; times before are 0.
pub(crate) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The first whole millisecond at which `span` has passed since `now`.
pub(crate) fn after(now: i64, span: Duration) -> i64 {
    now.saturating_add(span_millis(span))
}

/// A span in whole milliseconds, rounded up: nothing is handed out early.
pub(crate) fn span_millis(span: Duration) -> i64 {
    i64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

/// The inverse of [`millis`].
pub(crate) fn system_time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis.max(0).cast_unsigned())
}

/// How long ago `then` was; zero if the clock was set back since.
pub(crate) fn age(now: i64, then: i64) -> Duration {
    Duration::from_millis(now.saturating_sub(then).max(0).cast_unsigned())
}
