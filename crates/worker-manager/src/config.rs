//! Settings.

use std::time::Duration;

/// How long sandboxes live and requests wait. The defaults suit one host and are safe to keep.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Config {
    /// An idle sandbox goes after this long. AWS does not document its own (minutes to hours).
    pub idle_timeout: Duration,
    /// A sandbox goes after this long, at the end of the invocation that it serves then.
    pub max_age: Duration,
    /// While a sandbox of the version is finishing (its answer is out, its runtime has not asked for the next event), a
    /// request waits this long for it before another one is started.
    pub finishing_grace: Duration,
    /// The same, where the alternative is to throttle the request.
    pub limit_grace: Duration,
    /// Sandboxes that one function may start at once.
    pub scaling_burst: u32,
    /// Sandboxes that one function may start in the long run, per 10 s. Refilled continuously up to the burst.
    pub scaling_per_10s: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(10 * 60),
            max_age: Duration::from_secs(2 * 60 * 60),
            finishing_grace: Duration::from_millis(20),
            limit_grace: Duration::from_millis(100),
            scaling_burst: 1000,
            scaling_per_10s: 1000,
        }
    }
}
