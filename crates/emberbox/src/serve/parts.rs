//! What the roles of one process share, and what a worker is made of.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use domain::{Clock, WorkerId};
use prometheus_client::registry::Registry;
use runtimes::Runtimes;
use sandbox::SandboxEngine;

use super::{isolation, settings};
use crate::adapters;
use crate::config::Config;

/// What functions are made of.
#[derive(Clone)]
pub struct Content {
    /// Their code.
    pub packages: packages::Packages,
    /// Those that are container images.
    pub images: adapters::Images,
    /// Their languages.
    pub runtimes: Arc<Runtimes>,
}

impl Content {
    /// Opens what is kept of it on this host.
    pub fn open(config: &Config, dir: &Path) -> Result<Self> {
        let packages = packages::Packages::open(settings::packages(config, dir))?;
        #[cfg(feature = "oci")]
        let images = adapters::Images(images::oci::Store::open(settings::images(config, dir)?)?);
        #[cfg(not(feature = "oci"))]
        let images = adapters::Images;
        let runtimes = Arc::new(Runtimes::open(settings::runtimes(config, dir))?);
        Ok(Self { packages, images, runtimes })
    }
}

/// Starts what makes sandboxes.
pub async fn engine(config: &Config, dir: &Path) -> Result<Arc<dyn SandboxEngine>> {
    let engine = isolation::engine(config, dir).await?;
    for note in engine.describe() {
        tracing::info!("sandbox: {note}");
    }
    Ok(engine)
}

/// The worker of this host, and what its functions write.
pub fn worker(
    config: &Config,
    dir: &Path,
    id: WorkerId,
    engine: &Arc<dyn SandboxEngine>,
    content: &Content,
    clock: &Arc<dyn Clock>,
    registry: &mut Registry,
) -> Result<(worker::Service, worker::logs::LogStore)> {
    let logs = worker::logs::LogStore::open(settings::logs(config, dir))?;
    let metrics = worker::metrics::Metrics::default();
    metrics.register(registry);
    let sources = worker::sources::Sources {
        packages: Arc::new(content.packages.clone()),
        runtimes: content.runtimes.clone(),
        images: Arc::new(content.images.clone()),
    };
    let config = settings::worker(config, dir, id);
    let worker = worker::Service::new(config, Arc::clone(engine), sources, Arc::clone(clock), metrics, logs.clone())?;
    Ok((worker, logs))
}
