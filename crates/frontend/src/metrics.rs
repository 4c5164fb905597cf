//! Counters of the Frontend. No lock that an invocation of one function could hold up another with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

/// Handles to what is counted; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    invoked: Counter,
    pub(crate) warm: Latencies,
    pub(crate) cold: Latencies,
    pub(crate) function_errors: Counter,
    pub(crate) in_flight: Gauge,
    throttles: Family<ReasonLabels, Counter>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RequestLabels {
    operation: &'static str,
    status: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl Metrics {
    /// Registers the Frontend's families, under the prefix that the registry has.
    pub fn register(registry: &mut Registry) -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let invoked = requests.get_or_create_owned(&RequestLabels { operation: "Invoke", status: 200 });
        let metrics = Self {
            requests,
            invoked,
            warm: Latencies::default(),
            cold: Latencies::default(),
            function_errors: Counter::default(),
            in_flight: Gauge::default(),
            throttles: Family::default(),
        };
        registry.register("requests", "Requests to the public API", metrics.requests.clone());
        registry.register(
            "invoke_warm_seconds",
            "From request to answer of synchronous invocations by an idle sandbox",
            metrics.warm.clone(),
        );
        registry.register(
            "invoke_cold_seconds",
            "From request to answer of synchronous invocations that waited for a new sandbox",
            metrics.cold.clone(),
        );
        registry.register("function_errors", "Invocations whose function failed", metrics.function_errors.clone());
        registry.register("invokes_in_flight", "Synchronous invocations now", metrics.in_flight.clone());
        registry.register("throttles", "Invocations refused with 429, by reason", metrics.throttles.clone());
        metrics
    }

    pub(crate) fn request(&self, operation: &'static str, status: u16) {
        if operation == "Invoke" && status == 200 {
            self.invoked.inc();
        } else {
            self.requests.get_or_create(&RequestLabels { operation, status }).inc();
        }
    }

    pub(crate) fn throttled(&self, reason: &'static str) {
        self.throttles.get_or_create(&ReasonLabels { reason }).inc();
    }
}

/// Upper bounds in microseconds: from a warm invocation of a compiled function to the longest timeout.
const BOUNDS: [u64; 18] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    3_000_000,
    10_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
];

/// A histogram that is written without a lock. (The library's own takes one.)
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

impl Latencies {
    pub(crate) fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < us);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl TypedMetric for Latencies {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latencies {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = BOUNDS.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_shown_in_the_text_format() {
        let mut registry = Registry::with_prefix("emberbox");
        let metrics = Metrics::register(&mut registry);
        metrics.request("Invoke", 200);
        metrics.request("GetFunction", 404);
        metrics.throttled("ConcurrentInvocationLimitExceeded");
        metrics.warm.observe(Duration::from_micros(100));
        metrics.warm.observe(Duration::from_micros(101));
        metrics.warm.observe(Duration::from_secs(2000));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "emberbox_requests_total{operation=\"Invoke\",status=\"200\"} 1",
            "emberbox_requests_total{operation=\"GetFunction\",status=\"404\"} 1",
            "emberbox_throttles_total{reason=\"ConcurrentInvocationLimitExceeded\"} 1",
            "emberbox_invoke_warm_seconds_bucket{le=\"0.0001\"} 1",
            "emberbox_invoke_warm_seconds_bucket{le=\"0.0002\"} 2",
            "emberbox_invoke_warm_seconds_bucket{le=\"+Inf\"} 3",
            "emberbox_invoke_warm_seconds_count 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
