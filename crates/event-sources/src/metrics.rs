//! Figures for `/metrics`, named after the metrics of event source mappings: `PolledEventCount` is
//! `event_source_polled_events_total`, and so on.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Labels {
    /// UUID of the mapping.
    mapping: String,
    /// Name of its function.
    function: String,
}

type Counters = Family<Labels, Counter>;

/// Figures of all mappings. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    polled: Counters,
    filtered_out: Counters,
    invoked: Counters,
    failed: Counters,
    deleted: Counters,
    source_errors: Counters,
    pollers: Family<Labels, Gauge>,
}

impl Metrics {
    /// Registers the families, under the prefix that the registry has.
    pub fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        let mut counters = |name: &str, help: &str, family: &Counters| {
            registry.register(format!("event_source_{name}"), help, family.clone());
        };
        counters("polled_events", "Records that were read from sources", &all.polled);
        counters("filtered_out_events", "Records that no filter matched", &all.filtered_out);
        counters("invoked_events", "Records that functions were invoked with", &all.invoked);
        counters("failed_invoke_events", "Records that functions failed with, or did not get", &all.failed);
        counters("deleted_events", "Records that were deleted after functions had succeeded with them", &all.deleted);
        counters("errors", "Requests to sources that failed", &all.source_errors);
        registry.register("event_source_pollers", "Pollers at the moment", all.pollers.clone());
        all
    }

    pub(crate) fn of(&self, uuid: &str, function: &str) -> MappingMetrics {
        let labels = Labels { mapping: uuid.to_owned(), function: function.to_owned() };
        MappingMetrics {
            polled: self.polled.get_or_create_owned(&labels),
            filtered_out: self.filtered_out.get_or_create_owned(&labels),
            invoked: self.invoked.get_or_create_owned(&labels),
            failed: self.failed.get_or_create_owned(&labels),
            deleted: self.deleted.get_or_create_owned(&labels),
            source_errors: self.source_errors.get_or_create_owned(&labels),
            pollers: self.pollers.get_or_create_owned(&labels),
        }
    }
}

/// Those of one mapping.
#[derive(Clone, Debug)]
pub(crate) struct MappingMetrics {
    pub polled: Counter,
    pub filtered_out: Counter,
    pub invoked: Counter,
    pub failed: Counter,
    pub deleted: Counter,
    pub source_errors: Counter,
    pub pollers: Gauge,
}

/// Many at once.
pub(crate) fn count(counter: &Counter, n: usize) {
    counter.inc_by(n.try_into().unwrap_or(u64::MAX));
}
