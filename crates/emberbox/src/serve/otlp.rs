//! Traces to a collector, if there is one: the exporter, running.

use std::sync::Arc;

use anyhow::Result;
use domain::trace::Traces;
use prometheus_client::registry::Registry;

use crate::config::Otlp;

/// The roles of another member, if it is known.
pub type RolesOf = Arc<dyn Fn(&str) -> Option<Arc<str>> + Send + Sync>;

/// Whose traces they are.
#[cfg_attr(not(feature = "otlp"), allow(dead_code))]
pub struct Process {
    /// As other members call it.
    pub id: Arc<str>,
    /// What it does.
    pub roles: Arc<str>,
    /// What others do.
    pub roles_of: RolesOf,
}

#[cfg(feature = "otlp")]
pub use with::Tracing;
#[cfg(not(feature = "otlp"))]
pub use without::Tracing;

#[cfg(feature = "otlp")]
mod with {
    use std::time::Duration;

    use anyhow::Context as _;
    use tokio::task::JoinHandle;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// How long what waits may take at the end.
    const LAST_BATCH: Duration = Duration::from_secs(3);
    const SERVICE: &str = "emberbox";

    /// The exporter, or none.
    #[derive(Default)]
    pub struct Tracing(Option<Running>);

    struct Running {
        traces: Arc<dyn Traces>,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Tracing {
        /// Connects to nothing yet. Without an endpoint there is no exporter, and nothing is written down.
        pub fn start(otlp: &Otlp, process: Process, registry: &mut Registry) -> Result<Self> {
            let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            let Some(endpoint) = otlp.endpoint.clone().or_else(|| env("OTEL_EXPORTER_OTLP_ENDPOINT")) else {
                return Ok(Self::default());
            };
            let config = traces::Config {
                endpoint,
                sample: otlp.sample,
                service: env("OTEL_SERVICE_NAME").map_or_else(|| SERVICE.into(), Arc::from),
                instance: process.id,
                version: env!("CARGO_PKG_VERSION").into(),
                roles: process.roles,
                roles_of: process.roles_of,
            };
            let (exporter, service) = traces::Exporter::new(config, registry)
                .context("otlp.endpoint (or OTEL_EXPORTER_OTLP_ENDPOINT) cannot be used; correct it or leave it out")?;
            let stop = CancellationToken::new();
            let task = tokio::spawn(service.run(stop.clone()));
            Ok(Self(Some(Running { traces: Arc::new(exporter), stop, task })))
        }

        /// What takes traces, if there is an endpoint.
        pub fn traces(&self) -> Option<Arc<dyn Traces>> {
            self.0.as_ref().map(|running| Arc::clone(&running.traces))
        }

        /// Sends what waits, if the collector takes it at once.
        pub async fn stop(&mut self) {
            let Some(running) = &mut self.0 else { return };
            running.stop.cancel();
            if tokio::time::timeout(LAST_BATCH, &mut running.task).await.is_err() {
                tracing::warn!("the last traces were not sent: the collector does not answer");
                running.task.abort();
            }
            self.0 = None;
        }
    }

    impl Drop for Tracing {
        /// For a start that failed.
        fn drop(&mut self) {
            if let Some(running) = &self.0 {
                running.task.abort();
            }
        }
    }
}

#[cfg(not(feature = "otlp"))]
mod without {
    use super::*;

    /// No exporter.
    pub struct Tracing;

    impl Tracing {
        /// # Errors
        /// An endpoint is configured.
        pub fn start(otlp: &Otlp, _: Process, _: &mut Registry) -> Result<Self> {
            anyhow::ensure!(
                otlp.endpoint.is_none(),
                "otlp.endpoint is set, but this Emberbox was built without traces; build it with `cargo build --release \
                 -p emberbox --features otlp`, or leave the endpoint out"
            );
            Ok(Self)
        }

        /// None.
        pub fn traces(&self) -> Option<Arc<dyn Traces>> {
            None
        }

        /// Nothing to do.
        pub async fn stop(&mut self) {}
    }
}
