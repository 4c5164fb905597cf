//! Event source mappings in this process: pollers that invoke functions with what they find in queues.

use std::sync::Arc;
use std::time::Duration;

use ::event_sources::{Metrics, Service, SqsConfig, SqsQueues};
use control_plane::ControlPlane;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;

use super::tasks::Tasks;
use crate::adapters::{Direct, Mappings, Queues, SourceInvoker};

/// The pollers of event sources, running.
pub struct EventSources {
    service: Arc<Service>,
    running: JoinHandle<()>,
}

impl EventSources {
    /// Serves the mappings that there are, and follows their changes.
    pub fn start(
        queues: SqsConfig,
        control_plane: &ControlPlane,
        direct: Direct,
        registry: &mut Registry,
        tasks: &Tasks,
    ) -> Self {
        let own = queues.http_client.is_some();
        let queues = Arc::new(SqsQueues::new(queues));
        control_plane.check_event_sources_with(Arc::new(Queues { queues: Arc::clone(&queues), own }));
        let clock = Arc::clone(&direct.clock);
        let service = Arc::new(Service::new(
            event_sources::Config::default(),
            queues,
            Arc::new(Mappings { control_plane: control_plane.clone(), own_queues: own }),
            Arc::new(SourceInvoker(direct)),
            clock,
            Metrics::register(registry),
        ));
        let running = tasks.spawn("poll event sources", {
            let service = Arc::clone(&service);
            async move { service.run().await }
        });
        Self { service, running }
    }

    /// Has the mappings that are made held against the queues, in a process that does not serve them.
    #[cfg(feature = "cluster")]
    pub fn check(queues: SqsConfig, control_plane: &ControlPlane) {
        let own = queues.http_client.is_some();
        let queues = Arc::new(SqsQueues::new(queues));
        control_plane.check_event_sources_with(Arc::new(Queues { queues, own }));
    }

    /// Receives nothing more, and waits `limit` for the batches that run.
    pub async fn stop(&self, limit: Duration) {
        self.service.stop(limit).await;
    }
}

impl Drop for EventSources {
    /// For a stop that does not wait.
    fn drop(&mut self) {
        self.running.abort();
    }
}
