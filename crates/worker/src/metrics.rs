//! Figures for `/metrics`.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// States of a sandbox, as [`crate::machine::Machine::state`] names them.
const STATES: [&str; 7] = ["init", "idle", "frozen", "busy", "down", "stopping", "dead"];

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ErrorLabels {
    r#type: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// A worker's figures. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    invocations: Counter,
    cold_starts: Counter,
    pooled: Counter,
    errors: Family<ErrorLabels, Counter>,
    duration: Histogram,
    init_duration: Histogram,
    sandboxes: Family<StateLabels, Gauge>,
    /// Handles into `sandboxes`, so that a change of state takes no lock.
    states: [Gauge; STATES.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        let sandboxes = Family::<StateLabels, Gauge>::default();
        let states = STATES.map(|state| sandboxes.get_or_create_owned(&StateLabels { state }));
        // 100 µs to 15 min.
        let buckets = || {
            [
                0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10.,
                60., 900.,
            ]
        };
        Self {
            invocations: Counter::default(),
            cold_starts: Counter::default(),
            pooled: Counter::default(),
            errors: Family::default(),
            duration: Histogram::new(buckets()),
            init_duration: Histogram::new(buckets()),
            sandboxes,
            states,
        }
    }
}

impl Metrics {
    /// Adds the figures to a registry, with names that begin `worker_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("worker");
        registry.register("invocations", "Invocations that are over", self.invocations.clone());
        registry.register("cold_starts", "Invocations that were the first of their sandbox", self.cold_starts.clone());
        registry.register(
            "sandboxes_from_pool",
            "Sandboxes made of a microVM that had booted before they were asked for",
            self.pooled.clone(),
        );
        registry.register("errors", "Failed invocations and Inits by error type", self.errors.clone());
        registry.register("duration_seconds", "From handing over the event to the last next", self.duration.clone());
        registry.register("init_duration_seconds", "Duration of successful Inits", self.init_duration.clone());
        registry.register("sandboxes", "Sandboxes by state", self.sandboxes.clone());
    }

    pub(crate) fn invocation(&self, duration: Duration, init: Option<Duration>, error: Option<&str>) {
        self.invocations.inc();
        self.duration.observe(duration.as_secs_f64());
        if let Some(init) = init {
            self.cold_starts.inc();
            self.init_duration.observe(init.as_secs_f64());
        }
        if let Some(error) = error {
            self.error(error);
        }
    }

    /// A sandbox was made of one that waited.
    pub(crate) fn sandbox_from_pool(&self) {
        self.pooled.inc();
    }

    pub(crate) fn error(&self, kind: &str) {
        self.errors.get_or_create(&ErrorLabels { r#type: bounded(kind) }).inc();
    }

    /// A sandbox changed from one state to another; `None`: did not exist, or does no more.
    pub(crate) fn state(&self, from: Option<&str>, to: Option<&str>) {
        let gauge = |state: &str| STATES.iter().position(|s| *s == state).map(|i| &self.states[i]);
        if let Some(gauge) = from.and_then(gauge) {
            gauge.dec();
        }
        if let Some(gauge) = to.and_then(gauge) {
            gauge.inc();
        }
    }
}

/// Error types come from functions, so they are folded into a fixed set of labels.
fn bounded(kind: &str) -> &'static str {
    const KNOWN: [&str; 13] = [
        "Sandbox.Timedout",
        "Sandbox.Failure",
        "Runtime.OutOfMemory",
        "Runtime.ExitError",
        "Runtime.InvalidEntrypoint",
        "Runtime.InvalidWorkingDir",
        "Runtime.InvalidResponseModeHeader",
        "Function.ResponseSizeTooLarge",
        "Extension.Crash",
        "Extension.LaunchError",
        "Extension.InitError",
        "Extension.ExitError",
        "Runtime.Unknown",
    ];
    if let Some(known) = KNOWN.iter().find(|k| **k == kind) {
        known
    } else if kind.starts_with("Function.") {
        "Function.Other"
    } else {
        "Runtime.Other"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_names_and_bounded_labels() {
        let mut registry = Registry::default();
        let metrics = Metrics::default();
        metrics.register(&mut registry);
        metrics.state(None, Some("init"));
        metrics.state(Some("init"), Some("idle"));
        metrics.invocation(Duration::from_millis(2), Some(Duration::from_millis(90)), Some("Function.Whatever"));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "worker_invocations_total 1",
            "worker_cold_starts_total 1",
            "worker_errors_total{type=\"Function.Other\"} 1",
            "worker_sandboxes{state=\"idle\"} 1",
            "worker_sandboxes{state=\"init\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }
}
