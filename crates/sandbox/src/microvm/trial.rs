//! Whether microVMs work here: found out by booting one, not by looking at `/dev/kvm`. There are hosts (virtual machines
//! themselves) where that opens and yet cannot run a guest.

use std::fs;
use std::time::{Duration, Instant};

use domain::SandboxId;
use guest::protocol::During;

use super::{MicrovmConfig, MicrovmEngine};
use crate::process::error_of;
use crate::{SandboxEngine, SandboxError, SandboxSpec};

/// What every root has.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "tmp", "etc"];

/// A boot that worked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// From the start of the engine to a sandbox that is ready.
    pub took: Duration,
    /// What the engine says of itself.
    pub notes: Vec<String>,
}

/// Boots one VM and takes it down again. It has [`MicrovmConfig::boot_limit`] for that; its state directory must be used
/// by nobody else.
///
/// # Errors
/// What is missing, or what the VM said before it ended.
pub async fn trial(config: MicrovmConfig) -> Result<Trial, SandboxError> {
    let root = config.state_dir.join("trial");
    for directory in DIRECTORIES {
        fs::create_dir_all(root.join(directory)).during(format!("make {}", root.display())).map_err(error_of)?;
    }
    let engine = MicrovmEngine::start(MicrovmConfig { max_sandboxes: 1, pool: 0, ..config }).await?;
    let spec = SandboxSpec {
        id: SandboxId(uuid::Uuid::nil()),
        root,
        mounts: Vec::new(),
        memory_mb: 128,
        vcpus: 1.0,
        ephemeral_mb: 64,
        hosts: Vec::new(),
        listen: Vec::new(),
        standby: None,
    };
    let begin = Instant::now();
    let created = engine.create(spec).await;
    let took = begin.elapsed();
    let notes = engine.describe();
    if let Ok(sandbox) = &created {
        sandbox.destroy().await;
    }
    engine.stop().await;
    created.map(|_| Trial { took, notes })
}
