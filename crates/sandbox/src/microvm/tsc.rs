//! How a guest tells the time under software emulation.
//!
//! An emulated processor's time stamp counter is the host's. A guest that does not know how fast that counts tries to find
//! out by timers, which are too coarse under emulation; it then counts interrupts, of which it misses some whenever the
//! host is busy, and all while it is paused. So it is told. (Under KVM the guest asks KVM.)

use std::time::{Duration, Instant};

/// The clock is compared with the counter over at least this time.
const LONG_ENOUGH: Duration = Duration::from_millis(50);

/// The host's counter, since when it was first looked at.
#[derive(Debug)]
pub struct Counter {
    begin: (u64, Instant),
}

impl Counter {
    /// `None` where the processor's counter does not count evenly.
    pub fn start() -> Option<Self> {
        let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has = |flag: &str| processors.split_whitespace().any(|word| word == flag);
        let even = has("constant_tsc") && has("nonstop_tsc");
        Some(Self { begin: even.then(now).flatten()? })
    }

    /// What the guest's kernel is to be told. The longer the counter was watched, the more exact; milliseconds are enough
    /// for an error of seconds in a day.
    pub async fn kernel_options(&self) -> String {
        let watched = self.begin.1.elapsed();
        if watched < LONG_ENOUGH {
            tokio::time::sleep(LONG_ENOUGH - watched).await;
        }
        let end = now().unwrap_or(self.begin);
        khz(self.begin, end).map_or_else(String::new, |khz| format!(" tsc=reliable tsc_early_khz={khz}"))
    }
}

fn khz(begin: (u64, Instant), end: (u64, Instant)) -> Option<u64> {
    let microseconds = (end.1 - begin.1).as_micros();
    let counted = u128::from(end.0.checked_sub(begin.0)?);
    u64::try_from((counted * 1000).checked_div(microseconds)?).ok().filter(|khz| *khz > 0)
}

/// The counter and the clock at the same time: of several pairs, that with the least time between.
fn now() -> Option<(u64, Instant)> {
    let pairs = (0..5).map(|_| {
        let before = Instant::now();
        let counter = counter();
        (before.elapsed(), counter, before)
    });
    let (between, counter, before) = pairs.min_by_key(|(between, ..)| *between)?;
    Some((counter?, before + between / 2))
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction; it touches no memory.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_is_counts_by_time() {
        let begin = Instant::now();
        let at = |counter: u64, milliseconds: u64| (counter, begin + Duration::from_millis(milliseconds));
        assert_eq!(khz(at(1000, 0), at(1000 + 250_000_000, 100)), Some(2_500_000));
        assert_eq!(khz(at(1000, 0), at(1000, 0)), None);
        assert_eq!(khz(at(1000, 0), at(999, 10)), None);
    }

    #[tokio::test]
    async fn the_guest_is_told_the_same_whenever_it_is_started() {
        let Some(counter) = Counter::start() else { return eprintln!("SKIPPED: needs an even time stamp counter") };
        let value = |options: String| options.rsplit('=').next().and_then(|khz| khz.parse::<f64>().ok()).unwrap();
        let first = value(counter.kernel_options().await);
        let second = value(counter.kernel_options().await);
        assert!((first / second - 1.0).abs() < 1e-3, "{first} kHz, {second} kHz");
    }
}
