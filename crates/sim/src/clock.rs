//! Simulated time: one for all, and what each host's clock says of it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use domain::Clock;
use tokio::time::Instant;

/// When a simulation begins, in seconds since 1970.
const BEGIN: u64 = 1_800_000_000;

#[derive(Clone, Copy)]
struct Running {
    start: Instant,
    booted: Duration,
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
    static WORLD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Simulated time since the beginning. In a host's runtime it is that host's own moment, otherwise the last one that all hosts have
/// reached.
pub fn now() -> Duration {
    match RUNNING.get() {
        Some(running) => running.booted + (Instant::now() - running.start),
        None => WORLD.get(),
    }
}

/// The moment in terms of the running host's runtime.
pub(crate) fn instant(at: Duration) -> Instant {
    let running = RUNNING.get().expect("called in a host");
    running.start + at.saturating_sub(running.booted)
}

/// The moment that all hosts have reached, with the years before the beginning.
pub(crate) fn world() -> Duration {
    Duration::from_secs(BEGIN) + WORLD.get()
}

pub(crate) fn set_world(now: Duration) {
    WORLD.set(now);
}

/// What runs until the guard goes runs in a host that booted at `booted`, when its runtime's time was `start`.
pub(crate) fn enter(start: Instant, booted: Duration) -> Entered {
    RUNNING.set(Some(Running { start, booted }));
    Entered
}

pub(crate) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        RUNNING.set(None);
    }
}

/// A host's clocks: its time of day may be wrong, and may jump.
#[derive(Clone, Debug, Default)]
pub struct HostClock {
    /// In milliseconds.
    skew: Arc<AtomicI64>,
}

impl HostClock {
    /// The time of day is wrong by so many milliseconds from now on.
    pub fn set_skew(&self, millis: i64) {
        self.skew.store(millis, Ordering::Relaxed);
    }
}

impl Clock for HostClock {
    fn monotonic(&self) -> Duration {
        now()
    }

    fn wall(&self) -> SystemTime {
        let right = SystemTime::UNIX_EPOCH + Duration::from_secs(BEGIN) + now();
        let skew = self.skew.load(Ordering::Relaxed);
        let off = Duration::from_millis(skew.unsigned_abs());
        if skew < 0 { right - off } else { right + off }
    }
}
