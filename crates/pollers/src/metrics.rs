//! Figures for `/metrics`, named after Lambda's: `AsyncEventsReceived` is `async_events_received_total`, and so on.

use std::fmt::{self, Write as _};
use std::time::Duration;

use domain::FunctionArn;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Labels {
    function: Arn,
}

/// Becomes text only when the figures are read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Arn(FunctionArn);

impl EncodeLabelValue for Arn {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{}", self.0)
    }
}

type Counters = Family<Labels, Counter>;

/// The pollers' figures, by function. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    received: Counters,
    age: Family<Labels, Histogram>,
    succeeded: Counters,
    dropped: Counters,
    dead_lettered: Counters,
    dead_letter_errors: Counters,
    destination_errors: Counters,
    undelivered: Counters,
    unreadable: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        // 1 ms to 6 h.
        let buckets = || {
            Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1., 5., 30., 60., 300., 1800., 21600.])
        };
        Self {
            received: Family::default(),
            age: Family::new_with_constructor(buckets),
            succeeded: Family::default(),
            dropped: Family::default(),
            dead_lettered: Family::default(),
            dead_letter_errors: Family::default(),
            destination_errors: Family::default(),
            undelivered: Family::default(),
            unreadable: Counter::default(),
        }
    }
}

/// Counts of one function since the process started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub received: u64,
    pub succeeded: u64,
    pub dropped: u64,
    pub dead_lettered: u64,
    pub delivery_errors: u64,
    pub undelivered: u64,
}

impl Metrics {
    /// Adds the figures to a registry. Each has the label `function`, an ARN.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            ("async_events_received", "Events put into the queue", &self.received),
            ("async_events_succeeded", "Events whose function succeeded", &self.succeeded),
            (
                "async_events_dropped",
                "Events given up: retries exhausted, too old, reserved concurrency 0, recursive, or function gone",
                &self.dropped,
            ),
            (
                "async_events_dead_lettered",
                "Messages about dropped events that a dead letter queue or destination took",
                &self.dead_lettered,
            ),
            ("dead_letter_errors", "Failed tries to deliver to a dead letter queue", &self.dead_letter_errors),
            ("destination_delivery_failures", "Failed tries to deliver to a destination", &self.destination_errors),
            ("async_messages_undelivered", "Messages that no try could deliver", &self.undelivered),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("async_event_age_seconds", "From acceptance to each attempt", self.age.clone());
        registry.register(
            "async_events_unreadable",
            "Times that a queue entry could not be read; it stays in the queue",
            self.unreadable.clone(),
        );
    }

    pub(crate) fn received(&self, function: &FunctionArn) {
        count(&self.received, function);
    }

    pub(crate) fn attempt(&self, function: &FunctionArn, age: Duration) {
        self.age.get_or_create(&labels(function)).observe(age.as_secs_f64());
    }

    pub(crate) fn succeeded(&self, function: &FunctionArn) {
        count(&self.succeeded, function);
    }

    pub(crate) fn dropped(&self, function: &FunctionArn) {
        count(&self.dropped, function);
    }

    pub(crate) fn dead_lettered(&self, function: &FunctionArn) {
        count(&self.dead_lettered, function);
    }

    pub(crate) fn dead_letter_error(&self, function: &FunctionArn) {
        count(&self.dead_letter_errors, function);
    }

    pub(crate) fn destination_error(&self, function: &FunctionArn) {
        count(&self.destination_errors, function);
    }

    pub(crate) fn undelivered(&self, function: &FunctionArn) {
        count(&self.undelivered, function);
    }

    pub(crate) fn unreadable(&self) {
        self.unreadable.inc();
    }

    pub(crate) fn counts(&self, function: &FunctionArn) -> Counts {
        let labels = labels(function);
        let of = |counters: &Counters| counters.get(&labels).map_or(0, |counter| counter.get());
        Counts {
            received: of(&self.received),
            succeeded: of(&self.succeeded),
            dropped: of(&self.dropped),
            dead_lettered: of(&self.dead_lettered),
            delivery_errors: of(&self.dead_letter_errors) + of(&self.destination_errors),
            undelivered: of(&self.undelivered),
        }
    }
}

fn labels(function: &FunctionArn) -> Labels {
    Labels { function: Arn(function.clone()) }
}

fn count(counters: &Counters, function: &FunctionArn) {
    counters.get_or_create(&labels(function)).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_names_and_functions() {
        let mut registry = Registry::default();
        let metrics = Metrics::default();
        metrics.register(&mut registry);
        let function = FunctionArn { region: "r".into(), account: domain::AccountId::local(), name: "f".into() };
        metrics.received(&function);
        metrics.attempt(&function, Duration::from_millis(3));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "async_events_received_total{function=\"arn:aws:lambda:r:000000000000:function:f\"} 1",
            "async_event_age_seconds_count{function=\"arn:aws:lambda:r:000000000000:function:f\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }
}
