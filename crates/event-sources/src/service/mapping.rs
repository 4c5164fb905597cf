//! One mapping: as many pollers as its load asks for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use domain::{Clock, EventSourceMapping, QueueArn};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::poller;
use crate::filter::Filters;
use crate::metrics::MappingMetrics;
use crate::ports::{Invoker, Mappings, QueueSource, SourceError};
use crate::scaling::{Load, Scaler};

/// How often the number of pollers is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the queue's visibility timeout is asked for.
const DESCRIBE: Duration = Duration::from_secs(60);
/// SQS's default.
const VISIBILITY: Duration = Duration::from_secs(30);

/// What the pollers of a mapping share.
pub(super) struct Shared {
    pub parts: Parts,
    pub load: Counters,
    stop: watch::Receiver<bool>,
    /// Pollers from this index on end.
    target: AtomicU32,
    visibility_millis: AtomicU64,
    problem: Mutex<Option<String>>,
}

pub(super) struct Parts {
    pub mapping: EventSourceMapping,
    pub queue: QueueArn,
    pub filters: Filters,
    /// Pollers at most.
    pub ceiling: u32,
    pub source: Arc<dyn QueueSource>,
    pub mappings: Arc<dyn Mappings>,
    pub invoker: Arc<dyn Invoker>,
    pub clock: Arc<dyn Clock>,
    pub metrics: MappingMetrics,
}

/// For the [`Scaler`].
#[derive(Default)]
pub(super) struct Counters {
    pub busy: AtomicU32,
    pub filled: AtomicU32,
    pub empty: AtomicU32,
    pub failed: AtomicU32,
}

impl Counters {
    /// What happened since the last call.
    fn take(&self) -> Load {
        Load {
            busy: self.busy.load(Relaxed),
            filled: self.filled.swap(0, Relaxed),
            empty: self.empty.swap(0, Relaxed),
            failed: self.failed.swap(0, Relaxed),
        }
    }
}

impl Shared {
    pub fn new(parts: Parts, stop: watch::Receiver<bool>) -> Self {
        Self {
            parts,
            load: Counters::default(),
            stop,
            target: AtomicU32::new(0),
            visibility_millis: AtomicU64::new(VISIBILITY.as_millis() as u64),
            problem: Mutex::default(),
        }
    }

    pub fn now(&self) -> Duration {
        self.parts.clock.monotonic()
    }

    /// Whether the poller with this index goes on.
    pub fn wants(&self, index: u32) -> bool {
        !*self.stop.borrow() && index < self.target.load(Relaxed)
    }

    /// Returns when the mapping is not served any more.
    pub async fn stopped(&self) {
        // An error says the same: the owner is gone.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
    }

    /// How long a received message stays hidden.
    pub fn visibility(&self) -> Duration {
        Duration::from_millis(self.visibility_millis.load(Relaxed))
    }

    /// Says what is wrong, or that nothing is any more.
    pub fn report(&self, problem: Option<String>) {
        let mut last = self.problem.lock();
        if *last != problem {
            self.parts.mappings.report(&self.parts.mapping.uuid, problem.clone());
            *last = problem;
        }
    }

    /// The same for the source, whose troubles the log tells of as well, once.
    pub fn source_failed(&self, error: &SourceError) {
        self.parts.metrics.source_errors.inc();
        let text = error.to_string();
        if self.problem.lock().as_ref() != Some(&text) {
            tracing::warn!(mapping = self.parts.mapping.uuid, error = text, "an event source fails; trying again");
        }
        self.report(Some(text));
    }

    async fn describe(&self) {
        match self.parts.source.visibility_timeout(&self.parts.queue).await {
            Ok(timeout) => {
                let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                self.visibility_millis.store(millis, Relaxed);
            }
            // The pollers will say so, too.
            Err(error) => tracing::debug!(%error, "ask for the visibility timeout"),
        }
    }
}

/// Serves the mapping until it is stopped and its invocations have ended.
pub(super) async fn serve(shared: Arc<Shared>) {
    // What an earlier runner reported is of the past.
    shared.parts.mappings.report(&shared.parts.mapping.uuid, None);
    let mut scaler = Scaler::new(shared.parts.ceiling, shared.now());
    let mut pollers = JoinSet::new();
    let mut indexes = HashMap::new();
    let mut look = interval(LOOK);
    let mut describe = interval(DESCRIBE);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    describe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let _described = AbortOnDrop(tokio::spawn({
        let shared = Arc::clone(&shared);
        async move {
            loop {
                describe.tick().await;
                shared.describe().await;
            }
        }
    }));
    loop {
        shared.target.store(scaler.target(), Relaxed);
        let missing: Vec<u32> =
            (0..scaler.target()).filter(|i| !indexes.values().any(|running| running == i)).collect();
        for index in missing {
            let task = pollers.spawn(poller::run(Arc::clone(&shared), index));
            indexes.insert(task.id(), index);
        }
        shared.parts.metrics.pollers.set(i64::try_from(pollers.len()).unwrap_or(i64::MAX));
        tokio::select! {
            () = shared.stopped() => break,
            _ = look.tick() => scaler.observe(shared.now(), shared.load.take()),
            Some(ended) = pollers.join_next_with_id() => {
                let id = ended.as_ref().map_or_else(|error| error.id(), |(id, ())| *id);
                indexes.remove(&id);
                if let Err(error) = ended {
                    tracing::error!(%error, mapping = shared.parts.mapping.uuid, "a poller ended");
                }
            }
        }
    }
    while pollers.join_next().await.is_some() {}
    shared.parts.metrics.pollers.set(0);
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
