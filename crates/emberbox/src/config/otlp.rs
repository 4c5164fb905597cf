//! `[otlp]`.

use anyhow::{Result, anyhow};
use serde::Deserialize;

/// Where traces of invocations go.
#[derive(Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// Of a collector that takes OTLP over HTTP; `None`: as `OTEL_EXPORTER_OTLP_ENDPOINT` says, or no traces.
    pub endpoint: Option<String>,
    /// The share of the traces that is taken whose callers left that open, 0 to 1.
    pub sample: f64,
}

impl Default for Otlp {
    fn default() -> Self {
        Self { endpoint: None, sample: 1.0 }
    }
}

impl Otlp {
    /// # Errors
    /// The share is none.
    pub(super) fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.sample) {
            return Ok(());
        }
        Err(anyhow!("otlp.sample is {}; set a share from 0.0 to 1.0 of all traces", self.sample))
    }
}
