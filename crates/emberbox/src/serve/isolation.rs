//! Which kind of sandbox.

#[cfg(feature = "microvm")]
mod microvm;
#[cfg(not(feature = "microvm"))]
#[path = "isolation/no_microvm.rs"]
mod microvm;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
#[cfg(not(feature = "microvm"))]
use microvm::EngineKind;
pub use microvm::verdict;
use sandbox::SandboxEngine;
#[cfg(feature = "microvm")]
use sandbox::microvm::EngineKind;
use sandbox::process::ProcessEngine;

use super::settings;
use crate::config::{Config, Isolation};

/// MicroVMs work here.
#[derive(Debug)]
pub struct Verdict {
    /// By this, with KVM.
    pub engine: EngineKind,
    /// How that was found out.
    pub words: String,
}

/// Starts the engine that the operator asked for, or the better one that works here.
pub async fn engine(config: &Config, dir: &Path) -> Result<Arc<dyn SandboxEngine>> {
    match config.sandbox.isolation {
        Isolation::Process => process(config, dir).await,
        Isolation::Microvm => microvm::engine(config, dir).await,
        Isolation::Auto => match verdict(config, dir).await {
            Ok(verdict) => {
                tracing::info!("isolation = \"auto\": microVMs, since {}", verdict.words);
                microvm::of(&verdict, config, dir).await
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
