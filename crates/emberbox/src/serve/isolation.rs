//! Which kind of sandbox.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
#[cfg(not(feature = "microvm"))]
use anyhow::bail;
use sandbox::SandboxEngine;
use sandbox::process::ProcessEngine;

use super::settings;
use crate::config::{Config, Isolation};

/// Starts the engine that the operator asked for, or the better one that works here.
pub async fn engine(config: &Config, dir: &Path) -> Result<Arc<dyn SandboxEngine>> {
    match config.sandbox.isolation {
        Isolation::Process => process(config, dir).await,
        Isolation::Microvm => microvm(config, dir).await,
        Isolation::Auto => match verdict(config, dir).await {
            Ok(words) => {
                tracing::info!("isolation = \"auto\": microVMs, since {words}");
                microvm(config, dir).await
            }
            Err(error) => {
                tracing::info!("isolation = \"auto\": process sandboxes, since {error:#}");
                process(config, dir).await
            }
        },
    }
}

async fn process(config: &Config, dir: &Path) -> Result<Arc<dyn SandboxEngine>> {
    Ok(Arc::new(ProcessEngine::start(settings::sandbox(config, dir)).await?))
}

/// The guest kernel, if the configuration names none.
pub fn kernel(config: &Config, dir: &Path) -> PathBuf {
    config.microvm.kernel.clone().unwrap_or_else(|| dir.join("guest-kernel/vmlinux"))
}

#[cfg(feature = "microvm")]
async fn microvm(config: &Config, dir: &Path) -> Result<Arc<dyn SandboxEngine>> {
    Ok(Arc::new(sandbox::microvm::MicrovmEngine::start(settings::microvm(config, dir)).await?))
}

#[cfg(not(feature = "microvm"))]
async fn microvm(_: &Config, _: &Path) -> Result<Arc<dyn SandboxEngine>> {
    bail!("this build of Emberbox has no microVMs; build it with the cargo feature `microvm`");
}

/// Whether microVMs work here, in words: found out by booting one, within seconds, and never by software emulation.
#[cfg(feature = "microvm")]
pub async fn verdict(config: &Config, dir: &Path) -> Result<String> {
    use std::time::Duration;

    use anyhow::Context;
    use sandbox::microvm::{Accel, MicrovmConfig, trial};

    /// Ten times what a boot takes where the processor runs the guest.
    const LIMIT: Duration = Duration::from_secs(5);

    let place = tempfile::Builder::new().prefix("microvm-trial-").tempdir_in(dir);
    let place = place.with_context(|| format!("make a directory in {}", dir.display()))?;
    let settings = MicrovmConfig {
        state_dir: place.path().to_owned(),
        accel: Accel::Kvm,
        boot_limit: LIMIT,
        ..settings::microvm(config, dir)
    };
    let trial = trial(settings).await?;
    Ok(format!("one booted in {} ms ({})", trial.took.as_millis(), trial.notes.first().cloned().unwrap_or_default()))
}

/// As above, in a build without microVMs.
#[cfg(not(feature = "microvm"))]
pub async fn verdict(_: &Config, _: &Path) -> Result<String> {
    bail!("this build of Emberbox has no microVMs (cargo feature `microvm`)");
}
