//! A function version: what a sandbox is made from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arn::FunctionArn;
use crate::ids::AccountId;

/// Identifies one immutable state of one function version: `$LATEST` gets a new key with every change of its code or
/// configuration, so a sandbox is never reused for anything but the exact state that it was initialised with.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionKey(pub Arc<str>);

impl fmt::Display for VersionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VersionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Code: a package in the package storage, or a container image.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct CodeRef {
    /// The API's `CodeSha256`: SHA-256 of the zip file in base64, or of the image's manifest in hexadecimal.
    pub sha256: String,
    /// Size of the zip file in bytes (`CodeSize`); 0 of an image, as on AWS.
    pub size: u64,
    /// `None` of a zip file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
}

/// A container image, as its tag led to it when the function was made or updated.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ImageRef {
    /// As the user named it.
    pub uri: String,
    /// The same with the digest in place of the tag.
    pub resolved_uri: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
}

/// `ImageConfig`: what replaces an image's own way of being started. `None` leaves it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// In place of `ENTRYPOINT`.
    pub entry_point: Option<Vec<String>>,
    /// In place of `CMD`.
    pub command: Option<Vec<String>>,
    /// In place of `WORKDIR`.
    pub working_directory: Option<String>,
}

/// `LoggingConfig.LogFormat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LogFormat {
    /// Lines as the function writes them, and `START`, `END`, `REPORT`.
    Text,
    /// One JSON object a line, system lines as telemetry events.
    #[serde(rename = "JSON")]
    Json,
}

/// `LoggingConfig`, with defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LoggingSettings {
    /// Text or JSON.
    pub format: LogFormat,
    /// `TRACE` … `FATAL`; JSON format only.
    pub application_level: Option<String>,
    /// `DEBUG`, `INFO` or `WARN`; JSON format only.
    pub system_level: Option<String>,
    /// Log group, `/aws/lambda/<function name>` unless configured.
    pub group: String,
}

/// Everything a worker needs to know to run one function version. Immutable: a change makes a new one with a new
/// [`VersionKey`].
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionVersion {
    /// The exact state that this is.
    pub key: VersionKey,
    /// Owner.
    pub account: AccountId,
    /// e.g. `us-east-1`.
    pub region: String,
    /// Function name without version.
    pub name: String,
    /// `$LATEST` or a number.
    pub version: String,
    /// ARN without qualifier.
    pub arn: FunctionArn,
    /// e.g. `python3.12`; empty of a container image.
    pub runtime: String,
    /// e.g. `index.handler`; may be empty for `provided` runtimes, and is of a container image.
    pub handler: String,
    /// The deployment package, or the container image.
    pub code: CodeRef,
    /// Of a container image.
    pub image_config: ImageConfig,
    /// Layer packages in merge order (a later one overrides an earlier one in `/opt`).
    pub layers: Vec<CodeRef>,
    /// `MemorySize` in MB: 128 to 10,240.
    pub memory_mb: u32,
    /// `Timeout`: 1 to 900 s.
    pub timeout: Duration,
    /// `EphemeralStorage.Size` in MB: 512 to 10,240.
    pub ephemeral_mb: u32,
    /// The customer's environment variables.
    pub environment: BTreeMap<String, String>,
    /// Where and how it logs.
    pub logging: LoggingSettings,
    /// `TracingConfig.Mode` is `Active`.
    pub tracing_active: bool,
    /// It is to start from a snapshot, where there is one: a published version with SnapStart.
    #[serde(default)]
    pub snap_start: bool,
}

impl fmt::Debug for FunctionVersion {
    /// Without the values of the customer's environment variables.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionVersion")
            .field("key", &self.key)
            .field("runtime", &self.runtime)
            .field("handler", &self.handler)
            .field("code", &self.code)
            .field("image_config", &self.image_config)
            .field("layers", &self.layers)
            .field("memory_mb", &self.memory_mb)
            .field("timeout", &self.timeout)
            .field("ephemeral_mb", &self.ephemeral_mb)
            .field("environment", &self.environment.keys())
            .field("logging", &self.logging)
            .field("tracing_active", &self.tracing_active)
            .field("snap_start", &self.snap_start)
            .finish()
    }
}

impl FunctionVersion {
    /// CPU share in vCPUs: linear in memory, 1,769 MB are one (AWS Lambda documentation, "Memory").
    pub fn vcpus(&self) -> f64 {
        f64::from(self.memory_mb) / 1769.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_has_no_value_of_a_variable() {
        let arn = FunctionArn { region: "r".into(), account: AccountId::local(), name: "f".into() };
        let version = FunctionVersion {
            key: VersionKey("k".into()),
            account: AccountId::local(),
            region: "r".into(),
            name: "f".into(),
            version: "1".into(),
            arn,
            runtime: "python3.12".into(),
            handler: "h".into(),
            code: CodeRef { sha256: "s".into(), size: 1, image: None },
            image_config: ImageConfig::default(),
            layers: Vec::new(),
            memory_mb: 128,
            timeout: Duration::from_secs(3),
            ephemeral_mb: 512,
            environment: [("PASSWORD".to_owned(), "hunter2".to_owned())].into(),
            logging: LoggingSettings {
                format: LogFormat::Text,
                application_level: None,
                system_level: None,
                group: "g".into(),
            },
            tracing_active: false,
            snap_start: false,
        };
        let shown = format!("{version:?}");
        assert!(shown.contains("PASSWORD") && !shown.contains("hunter2"), "{shown}");
    }
}
