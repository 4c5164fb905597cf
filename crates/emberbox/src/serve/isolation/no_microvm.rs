//! In a build without microVMs.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use sandbox::SandboxEngine;

use super::Verdict;
use crate::config::Config;

/// Fails.
pub async fn engine(_: &Config, _: &Path) -> Result<Arc<dyn SandboxEngine>> {
    bail!("this build of Emberbox has no microVMs; build it with the cargo feature `microvm`");
}

/// Is not called: there is no verdict.
pub async fn of(verdict: &Verdict, _: &Config, _: &Path) -> Result<Arc<dyn SandboxEngine>> {
    match verdict.engine {}
}

/// Fails.
pub async fn verdict(_: &Config, _: &Path) -> Result<Verdict> {
    bail!("this build of Emberbox has no microVMs (cargo feature `microvm`)");
}

/// What a verdict would name.
pub type EngineKind = Infallible;
