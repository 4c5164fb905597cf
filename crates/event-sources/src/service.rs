//! Keeps one runner for each mapping that is to be served, and follows the changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use domain::{Clock, EventSource, EventSourceMapping};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::filter::Filters;
use crate::metrics::Metrics;
use crate::ports::{Invoker, Mappings, QueueSource};

mod mapping;
mod poller;

use mapping::Shared;

/// Limits of this part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Pollers of one mapping at most, whatever its `MaximumConcurrency`. AWS has 1,000.
    pub max_pollers: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_pollers: 1000 }
    }
}

/// See the crate.
pub struct Service {
    config: Config,
    source: Arc<dyn QueueSource>,
    mappings: Arc<dyn Mappings>,
    invoker: Arc<dyn Invoker>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
    /// Whether [`Self::run`] is at work.
    active: watch::Sender<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Phase {
    Serving,
    /// No more messages; invocations end.
    Stopping,
    /// At once.
    Aborting,
}

/// A mapping that is served.
struct Runner {
    mapping: EventSourceMapping,
    /// Sent `true`, or dropped: stops.
    stop: watch::Sender<bool>,
}

impl Service {
    /// Does nothing before [`Self::run`].
    pub fn new(
        config: Config,
        source: Arc<dyn QueueSource>,
        mappings: Arc<dyn Mappings>,
        invoker: Arc<dyn Invoker>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        let (phase, active) = (watch::Sender::new(Phase::Serving), watch::Sender::new(false));
        Self { config, source, mappings, invoker, clock, metrics, phase, active }
    }

    /// Serves the mappings until [`Self::stop`]. To be called once.
    pub async fn run(&self) {
        self.active.send_replace(true);
        let _inactive = Inactive(&self.active);
        let mut changes = self.mappings.changes();
        let mut phase = self.phase.subscribe();
        let mut runners = HashMap::new();
        let mut tasks = JoinSet::new();
        while *phase.borrow_and_update() == Phase::Serving {
            changes.borrow_and_update();
            self.reconcile(&mut runners, &mut tasks);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                // Cannot fail: the sender is in `self`.
                _ = phase.changed() => {}
                Some(ended) = tasks.join_next() => log_panic(ended),
            }
        }
        // Tells all of them to stop.
        runners.clear();
        let ended = async {
            while let Some(ended) = tasks.join_next().await {
                log_panic(ended)
            }
        };
        tokio::select! {
            () = ended => {}
            _ = phase.wait_for(|phase| *phase == Phase::Aborting) => {}
        }
    }

    /// Ends [`Self::run`]: no more messages are received, and the invocations that are under way have up to `limit` to
    /// end and to have their messages deleted. The messages of those that do not become visible again by themselves.
    pub async fn stop(&self, limit: Duration) {
        self.phase.send_if_modified(|phase| {
            let before = *phase;
            *phase = Phase::Stopping;
            before == Phase::Serving
        });
        let mut active = self.active.subscribe();
        // Neither wait can fail otherwise: the sender is in `self`.
        if tokio::time::timeout(limit, active.wait_for(|active| !active)).await.is_err() {
            self.phase.send_replace(Phase::Aborting);
            let _ = active.wait_for(|active| !active).await;
        }
    }

    fn reconcile(&self, runners: &mut HashMap<String, Runner>, tasks: &mut JoinSet<()>) {
        let mut wanted: HashMap<String, EventSourceMapping> =
            self.mappings.served().into_iter().map(|mapping| (mapping.uuid.clone(), mapping)).collect();
        runners.retain(|uuid, runner| {
            let same = wanted.get(uuid) == Some(&runner.mapping);
            if same {
                wanted.remove(uuid);
            }
            same
        });
        for (uuid, mapping) in wanted {
            let (stop, stopped) = watch::channel(false);
            match self.shared(&mapping, stopped) {
                Ok(shared) => drop(tasks.spawn(mapping::serve(shared))),
                Err(problem) => self.mappings.report(&uuid, Some(problem)),
            }
            runners.insert(uuid, Runner { mapping, stop });
        }
    }

    fn shared(&self, mapping: &EventSourceMapping, stop: watch::Receiver<bool>) -> Result<Arc<Shared>, String> {
        let EventSource::Sqs { queue, maximum_concurrency } = &mapping.source else {
            return Err("This kind of event source is not supported.".to_owned());
        };
        let filters = Filters::parse(&mapping.filters).map_err(|error| error.to_string())?;
        Ok(Arc::new(Shared::new(
            mapping::Parts {
                mapping: mapping.clone(),
                queue: queue.clone(),
                filters,
                ceiling: maximum_concurrency.unwrap_or(u32::MAX).min(self.config.max_pollers),
                source: Arc::clone(&self.source),
                mappings: Arc::clone(&self.mappings),
                invoker: Arc::clone(&self.invoker),
                clock: Arc::clone(&self.clock),
                metrics: self.metrics.of(&mapping.uuid, &mapping.function.name),
            },
            stop,
        )))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// However [`Service::run`] ends.
struct Inactive<'a>(&'a watch::Sender<bool>);

impl Drop for Inactive<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a runner of an event source mapping ended");
    }
}
