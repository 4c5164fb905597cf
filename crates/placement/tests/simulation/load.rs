//! Functions as they were measured in production.
//!
//! From Shahrad et al., "Serverless in the Wild: Characterizing and Optimizing the Serverless Workload at a Large Cloud Provider",
//! USENIX ATC 2020 (Azure Functions, July 2019; arXiv 2003.03423, trace at github.com/Azure/AzurePublicDataset):
//!
//! - Invocations a day span 8 orders of magnitude (section 3.3, figure 5). 45 % of the applications are invoked once an hour or less,
//!   81 % once a minute or less; the other 18.6 % make 99.6 % of all invocations.
//! - Half of the invocations are the same all day, the other half follow day and night (figure 4).
//! - Average execution times are log-normal, log mean -0.38, σ 2.36, in seconds (section 3.4, figure 7).
//! - Average memory is a Burr distribution, c = 11.652, k = 0.221, λ = 107.083, in MB (section 3.5, figure 8).
//! - What AWS kept then: a sandbox that was idle for 10 minutes goes (section 2).
//!
//! Joosen et al., "How Does It Function? Characterizing Long-term Trends in Production Serverless Workloads", SoCC 2023 (Huawei, arXiv
//! 2312.10127), agree on the shape: 9 orders of magnitude of requests between functions.

use std::f64::consts::{PI, TAU};

use fastrand::Rng;

/// Idle for so many minutes, a sandbox goes.
pub const KEPT_MINUTES: usize = 10;

/// Lambda's default limit of an account; keeps the product of the two long tails finite.
const MOST_AT_ONCE: f64 = 1000.0;

/// What is known of a function.
pub struct Shape {
    pub per_minute: f64,
    pub seconds: f64,
    pub memory_mb: u32,
}

/// One function, drawn at random.
pub fn function(rng: &mut Rng) -> Shape {
    // Between the figures above, evenly on a logarithmic scale; from the upper end, 99.6 % follow.
    let points = [(0.0, 0.01), (0.45, 24.0), (0.814, 1440.0), (1.0, 1e6)];
    let share = rng.f64();
    let above = points.iter().position(|(upto, _)| share < *upto).unwrap_or(3).max(1);
    let ((from, low), (upto, high)): ((f64, f64), (f64, f64)) = (points[above - 1], points[above]);
    let per_day = low * (high / low).powf((share - from) / (upto - from));
    // Lambda ends an invocation after 15 minutes.
    let seconds = (-0.38 + 2.36 * normal(rng)).exp().min(900.0);
    let burr = 107.083 * ((1.0 - rng.f64()).powf(-1.0 / 0.221) - 1.0).powf(1.0 / 11.652);
    // MemorySize has a range.
    Shape { per_minute: per_day / 1440.0, seconds, memory_mb: burr.ceil().clamp(128.0, 10_240.0) as u32 }
}

impl Shape {
    /// How many sandboxes it needs at once in this minute. In a queue without waiting (M/G/∞), the invocations that run at one moment
    /// are Poisson distributed about rate × duration.
    pub fn sandboxes(&self, minute: usize, rng: &mut Rng) -> usize {
        let per_minute = self.per_minute * (1.0 + 0.5 * (TAU * minute as f64 / 1440.0).sin());
        let invoked = poisson(per_minute, rng) > 0.0;
        let at_once = poisson(per_minute * self.seconds / 60.0, rng).min(MOST_AT_ONCE);
        at_once.max(f64::from(u8::from(invoked))) as usize
    }
}

fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (2.0 * PI * rng.f64()).cos()
}

fn poisson(mean: f64, rng: &mut Rng) -> f64 {
    if mean > 30.0 {
        return (mean + mean.sqrt() * normal(rng)).round().max(0.0);
    }
    // By the time between events: how many fit.
    let mut events = 0.0;
    let mut left = mean;
    loop {
        left += (1.0 - rng.f64()).ln();
        if left < 0.0 {
            return events;
        }
        events += 1.0;
    }
}

#[test]
fn the_load_has_the_figures_it_was_made_of() {
    let mut rng = Rng::with_seed(1);
    let functions: Vec<_> = (0..200_000).map(|_| function(&mut rng)).collect();
    let share = |of: &dyn Fn(&Shape) -> bool| functions.iter().filter(|f| of(f)).count() as f64 / 200_000.0;
    let is = |value: f64, figure: f64| assert!((value - figure).abs() < 0.01, "{value} is not {figure}");
    is(share(&|f| f.per_minute <= 1.0 / 60.0), 0.45);
    is(share(&|f| f.per_minute <= 1.0), 0.814);
    let all: f64 = functions.iter().map(|f| f.per_minute).sum();
    let popular: f64 = functions.iter().map(|f| f.per_minute).filter(|rate| *rate >= 1.0).sum();
    is(popular / all, 0.996);
    // The paper's readings of its figures 7 and 8, where its fits meet them: half below 1 s, 96 % below 60 s; half below 170 MB.
    is(share(&|f| f.seconds < (-0.38f64).exp()), 0.5);
    assert!((0.94..0.98).contains(&share(&|f| f.seconds < 60.0)));
    assert!((0.5..0.8).contains(&share(&|f| f.memory_mb <= 170)));
    let mean = (0..10_000).map(|_| poisson(std::f64::consts::LN_2, &mut rng)).sum::<f64>() / 10_000.0;
    assert!((mean - std::f64::consts::LN_2).abs() < 0.05, "{mean}");
}
