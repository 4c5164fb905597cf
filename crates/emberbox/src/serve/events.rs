//! Asynchronous invocation in this process: the queue, the pollers that work it off, and what they work with.
//!
//! ```text
//!  frontend ──accept──► pollers ──► queue (events.db)
//!                         ├──► adapters::Attempts: resolve, synchronous path
//!                         ├──► adapters::EventSettings: control plane
//!                         └──► delivery: SQS, SNS, EventBridge, S3; adapters::Records: functions
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use control_plane::ControlPlane;
use delivery::{Delivery, DeliveryConfig};
use domain::Clock;
use domain::trace::Traces;
use event_queue::EventQueue;
use event_queue::sqlite::SqliteQueue;
use pollers::Deliver;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;

use super::settings;
use super::tasks::Tasks;
use crate::adapters::{Attempts, Direct, EventSettings, Events, Records, Timelines, TracedDelivery};
use crate::config::{Config, EventEngine};

/// The queue and its pollers, running.
pub struct Asynchronous {
    queue: Arc<dyn EventQueue>,
    pollers: pollers::Service,
    /// `None` of a process that only puts events into the queue.
    running: Option<JoinHandle<()>>,
    timelines: Arc<Timelines>,
    clock: Arc<dyn Clock>,
    traces: Option<Arc<dyn Traces>>,
}

impl Asynchronous {
    /// Takes up the events that an earlier process left, if it is to work them off.
    pub async fn start(
        config: &Config,
        dir: &Path,
        control_plane: &ControlPlane,
        direct: Direct,
        delivery: DeliveryConfig,
        polling: Option<&Tasks>,
        registry: &mut Registry,
    ) -> Result<Self> {
        let clock = Arc::clone(&direct.clock);
        let queue = open(config, dir, &clock).await?;
        let timelines = Arc::new(Timelines::default());
        let attempts = Attempts { direct: direct.clone(), timelines: Arc::clone(&timelines) };
        let traces = direct.sync_path.traces().cloned();
        let records = Arc::new(Records::new(direct));
        let mut deliver: Arc<dyn Deliver> = Arc::new(Delivery::new(delivery, Arc::clone(&records) as _));
        if let Some(traces) = &traces {
            deliver = Arc::new(TracedDelivery { deliver, traces: Arc::clone(traces), clock: Arc::clone(&clock) });
        }
        let metrics = pollers::Metrics::default();
        metrics.register(registry);
        let pollers = pollers::Service::new(
            settings::pollers(config),
            Arc::clone(&queue),
            Arc::new(attempts),
            Arc::new(EventSettings(control_plane.clone())),
            deliver,
            Arc::clone(&clock),
            metrics,
        );
        records.connect(pollers.clone());
        let running = polling.map(|tasks| tasks.spawn("run events", pollers.clone().run()));
        Ok(Self { queue, pollers, running, timelines, clock, traces })
    }

    /// Where the events wait.
    #[cfg(feature = "cluster")]
    pub fn queue(&self) -> Arc<dyn EventQueue> {
        Arc::clone(&self.queue)
    }

    /// For the Frontend.
    pub fn port(&self) -> Events {
        Events {
            pollers: self.pollers.clone(),
            timelines: Arc::clone(&self.timelines),
            clock: Arc::clone(&self.clock),
            traces: self.traces.clone(),
        }
    }

    /// Takes no more events from the queue, and waits `limit` for those that run. New ones can still be put in.
    pub async fn stop(&self, limit: Duration) {
        if self.running.is_some() {
            self.pollers.stop(limit).await;
        }
    }

    /// What is in the queue waits for the next start.
    pub async fn close(self) {
        if let Some(running) = &self.running {
            running.abort();
        }
        self.queue.close().await;
    }
}

async fn open(config: &Config, dir: &Path, clock: &Arc<dyn Clock>) -> Result<Arc<dyn EventQueue>> {
    match config.events.engine {
        EventEngine::Sqlite => Ok(Arc::new(SqliteQueue::open(dir.join("events.db"), Arc::clone(clock)).await?)),
        EventEngine::Postgres => open_postgres(config).await,
        EventEngine::Sqs => open_sqs(config, clock).await,
    }
}

#[cfg(feature = "postgres")]
async fn open_postgres(config: &Config) -> Result<Arc<dyn EventQueue>> {
    use anyhow::Context as _;

    let url = config.events.postgres_url.as_deref().unwrap_or_default();
    // By the database's own time, which all servers share.
    let queue = event_queue::postgres::PgQueue::connect(url, None).await;
    Ok(Arc::new(queue.context("events.postgres_url names a database that cannot be used; start or correct it")?))
}

#[cfg(not(feature = "postgres"))]
async fn open_postgres(_: &Config) -> Result<Arc<dyn EventQueue>> {
    built_without("postgres")
}

#[cfg(feature = "sqs")]
async fn open_sqs(config: &Config, clock: &Arc<dyn Clock>) -> Result<Arc<dyn EventQueue>> {
    use event_queue::sqs::{Settings, SqsQueue};
    Ok(Arc::new(SqsQueue::connect(&settings::event_queue(config), Settings::default(), Arc::clone(clock)).await?))
}

#[cfg(not(feature = "sqs"))]
async fn open_sqs(_: &Config, _: &Arc<dyn Clock>) -> Result<Arc<dyn EventQueue>> {
    built_without("sqs")
}

#[cfg(not(all(feature = "postgres", feature = "sqs")))]
fn built_without(engine: &str) -> Result<Arc<dyn EventQueue>> {
    anyhow::bail!(
        "events.engine is {engine}, but this Emberbox was built without it; build it with `cargo build --release -p \
         emberbox --features {engine}`, or set the engine to sqlite"
    )
}
