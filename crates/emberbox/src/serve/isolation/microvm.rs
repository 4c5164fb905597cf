//! Which engine runs microVMs: the one that the operator asked for, or the best that runs one here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use sandbox::SandboxEngine;
use sandbox::microvm::{self, EngineKind, MicrovmConfig, MicrovmEngine};

use super::Verdict;
use crate::config::{Accel, Config, VmEngine};
use crate::serve::settings;

/// Ten times what a boot takes where the processor runs the guest.
const LIMIT: Duration = Duration::from_secs(5);

/// Starts the engine that the operator asked for. `engine = "auto"` is decided by [`verdict`].
pub async fn engine(config: &Config, dir: &Path) -> Result<Arc<dyn SandboxEngine>> {
    let accel = config.microvm.accel;
    let kind = match candidates(config.microvm.engine, accel) {
        [only] => *only,
        _ => decide(config, dir).await.context("start microVMs")?.0,
    };
    start(config, dir, kind, accel).await
}

/// Starts the engine of a verdict.
pub async fn of(verdict: &Verdict, config: &Config, dir: &Path) -> Result<Arc<dyn SandboxEngine>> {
    start(config, dir, verdict.engine, Accel::Kvm).await
}

async fn start(config: &Config, dir: &Path, kind: EngineKind, accel: Accel) -> Result<Arc<dyn SandboxEngine>> {
    Ok(Arc::new(MicrovmEngine::start(settings::microvm(config, dir, kind, accel)).await?))
}

/// Whether microVMs work here, and by what: found out by booting one, within seconds, and never by software emulation.
pub async fn verdict(config: &Config, dir: &Path) -> Result<Verdict> {
    let (engine, words) = decide(config, dir).await?;
    Ok(Verdict { engine, words })
}

async fn decide(config: &Config, dir: &Path) -> Result<(EngineKind, String)> {
    let mut failures: Vec<String> = Vec::new();
    for &kind in candidates(config.microvm.engine, Accel::Kvm) {
        match attempt(config, dir, kind).await {
            Ok(words) if failures.is_empty() => return Ok((kind, words)),
            Ok(words) => {
                let words = format!("{words}; not by {}", failures.join(". "));
                tracing::info!("microVMs: {words}");
                return Ok((kind, words));
            }
            Err(error) => failures.push(format!("{}: {error:#}", name(kind))),
        }
    }
    bail!("none boots with KVM. {}", failures.join(". "))
}

async fn attempt(config: &Config, dir: &Path, kind: EngineKind) -> Result<String> {
    let place = tempfile::Builder::new().prefix("microvm-trial-").tempdir_in(dir);
    let place = place.with_context(|| format!("make a directory in {}", dir.display()))?;
    let settings = MicrovmConfig {
        state_dir: place.path().to_owned(),
        boot_limit: LIMIT,
        ..settings::microvm(config, dir, kind, Accel::Kvm)
    };
    // It tells its cause itself.
    let trial = microvm::trial(settings).await.map_err(|error| anyhow!("{error}"))?;
    Ok(format!("one booted in {} ms ({})", trial.took.as_millis(), trial.notes.first().cloned().unwrap_or_default()))
}

/// The engines that may be taken, the best first.
fn candidates(engine: VmEngine, accel: Accel) -> &'static [EngineKind] {
    match (engine, accel) {
        (VmEngine::Firecracker, _) => &[EngineKind::Firecracker],
        (VmEngine::Auto, Accel::Kvm) => &[EngineKind::Firecracker, EngineKind::Qemu],
        (VmEngine::Qemu, _) | (VmEngine::Auto, Accel::Tcg) => &[EngineKind::Qemu],
    }
}

fn name(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Firecracker => "Firecracker",
        EngineKind::Qemu => "QEMU",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_emulation_is_qemus_and_for_those_who_ask() {
        use EngineKind::{Firecracker, Qemu};
        assert_eq!(candidates(VmEngine::Auto, Accel::Kvm), [Firecracker, Qemu]);
        assert_eq!(candidates(VmEngine::Auto, Accel::Tcg), [Qemu]);
        // What was asked for is taken, or refused by the engine with the reason.
        assert_eq!(candidates(VmEngine::Firecracker, Accel::Tcg), [Firecracker]);
        assert_eq!(candidates(VmEngine::Qemu, Accel::Kvm), [Qemu]);
    }
}
