//! What became of traces.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Handles to what is counted; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    spans: Family<OutcomeLabels, Counter>,
    /// There was no room in the queue.
    pub(crate) dropped: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        // From the start, so that a rate of them has a beginning.
        for outcome in ["exported", "refused", "undelivered"] {
            metrics.spans(outcome, 0);
        }
        registry.register("trace_spans", "Spans that were given to the collector, by outcome", metrics.spans.clone());
        registry.register(
            "trace_records_dropped",
            "Invocations, events and deliveries that are in no trace, since too many waited for the collector",
            metrics.dropped.clone(),
        );
        metrics
    }

    pub(crate) fn spans(&self, outcome: &'static str, count: u64) {
        self.spans.get_or_create(&OutcomeLabels { outcome }).inc_by(count);
    }
}
