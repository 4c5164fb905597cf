//! What is stored, and under which kinds and keys.
//!
//! Processes of two versions work on the same records while a fleet is upgraded, and after a downgrade. So:
//!
//! - A new field has a default, and stands in one of the structs with [`Unknown`]: an older process that changes the record leaves it
//!   as it is. What a user configures belongs into [`Settings`], which go from one state of a function to the next; what belongs to a
//!   state into [`Version`]. Fields of `domain`'s types within them are lost when an older process changes the record.
//! - A new variant of an enum, or a field that changes its meaning, is something that an older process cannot read: it keeps what it had,
//!   and does not start. A release that can read it comes before the one that writes it.
//! - A new kind of record is nothing to an older process, which leaves it alone.

use std::collections::BTreeMap;

use domain::{CodeRef, FunctionArn, ImageConfig, LoggingSettings};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sealed::Variables;

/// Kind of [`FunctionRecord`]s; key: [`function_key`].
pub(crate) const FUNCTION: &str = "function";
/// Kind of published [`Version`]s; key: [`version_key`].
pub(crate) const VERSION: &str = "version";
/// Kind of [`AccountRecord`]s; key: [`account_key`].
pub(crate) const ACCOUNT: &str = "account";
/// Kind of [`DeletedRecord`]s; key: [`function_key`].
pub(crate) const DELETED: &str = "deleted-function";
/// Kind of the (empty) records that say that a package is in storage; key: its hash.
pub(crate) const PACKAGE: &str = "package";

/// The same of container images; key: its digest.
pub(crate) const IMAGE: &str = "image";

/// The same of snapshots, and written before one is taken; key: the `VersionKey` of the version.
pub(crate) const SNAPSHOT: &str = "snapshot";

/// Fields that this version does not know and a newer one has written; they are stored again as they were.
pub(crate) type Unknown = BTreeMap<String, Value>;

/// The version that can change.
pub(crate) const LATEST: &str = "$LATEST";

pub(crate) fn account_key(account: &str, region: &str) -> String {
    [account, "/", region].concat()
}

pub(crate) fn function_key(arn: &FunctionArn) -> String {
    // On the path of every invocation.
    [arn.account.as_str(), "/", &arn.region, "/", &arn.name].concat()
}

/// Sorts by number within the function.
pub(crate) fn version_key(arn: &FunctionArn, number: u64) -> String {
    format!("{}/{number:020}", function_key(arn))
}

/// The function and number of a [`version_key`].
pub(crate) fn parse_version_key(key: &str) -> Option<(&str, u64)> {
    let (function, number) = key.rsplit_once('/')?;
    Some((function, number.parse().ok()?))
}

/// The ARN of a [`function_key`].
pub(crate) fn parse_function_key(key: &str) -> Option<FunctionArn> {
    let mut parts = key.split('/');
    let account = domain::AccountId::parse(parts.next()?)?;
    let region = parts.next()?.into();
    let name = parts.next()?.into();
    parts.next().is_none().then_some(FunctionArn { region, account, name })
}

/// Everything about a function but its published versions.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct FunctionRecord {
    /// As the API shows it.
    pub latest: Version,
    /// What invocations of `$LATEST` run while `latest` is not ready, or never became so.
    pub serving: Option<Version>,
    /// The number that the next published version gets; never goes back.
    pub next_version: u64,
    /// The last publication, so that publishing the same state again can be told.
    pub published: Option<Publication>,
    pub aliases: BTreeMap<String, Alias>,
    /// By qualifier; that of the function itself under `$LATEST`.
    pub policies: BTreeMap<String, Policy>,
    pub tags: BTreeMap<String, String>,
    /// Settings of asynchronous invocation by qualifier; those of the function itself under `$LATEST`.
    #[serde(default)]
    pub event_invoke: BTreeMap<String, EventInvoke>,
    /// `RecursiveLoop` is `Allow`.
    #[serde(default)]
    pub recursion_allowed: bool,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A FunctionEventInvokeConfig: what is not given has AWS's default.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct EventInvoke {
    /// Seconds since 1970.
    pub last_modified: f64,
    /// `MaximumRetryAttempts`: 0 to 2.
    pub retries: Option<u32>,
    /// `MaximumEventAgeInSeconds`: 60 to 21,600.
    pub max_age: Option<u32>,
    /// ARN of the OnSuccess destination.
    pub on_success: Option<String>,
    /// ARN of the OnFailure destination.
    pub on_failure: Option<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A version that was made from a state of `$LATEST`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Publication {
    pub number: u64,
    /// `state_id` of `$LATEST` then.
    pub state_id: String,
}

/// One version: `$LATEST` or a published one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Version {
    /// `None`: `$LATEST`.
    pub number: Option<u64>,
    pub revision_id: String,
    /// As on the wire.
    pub last_modified: String,
    /// New whenever code or settings change, and never used twice: part of the `VersionKey`.
    pub state_id: String,
    pub code: CodeRef,
    pub settings: Settings,
    pub state: State,
    pub update: Update,
    /// Of a published version with SnapStart.
    #[serde(default)]
    pub snapshot: Snapshot,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How far SnapStart has come with a version.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) enum Snapshot {
    /// It is not wanted, or the runtime is not ready yet, or failed.
    #[default]
    None,
    /// It is being taken: the version is Pending.
    Due,
    /// It was taken. Whether the host still has it is known there.
    Taken,
    /// This host cannot take one, for this reason: the version starts as any other does.
    Missing(String),
}

impl Version {
    /// `$LATEST` or the number.
    pub fn name(&self) -> String {
        self.number.map_or_else(|| LATEST.to_owned(), |number| number.to_string())
    }
}

/// What a user configures, beside the code.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub description: String,
    pub role: String,
    /// Empty of a container image, as the next two are.
    pub runtime: String,
    /// What the API shows as `RuntimeVersionConfig`.
    pub runtime_version_arn: String,
    pub handler: String,
    /// Seconds.
    pub timeout: u32,
    /// MB.
    pub memory: u32,
    /// MB.
    pub ephemeral: u32,
    /// `None` when the user never gave an `Environment`: the API then shows none.
    pub environment: Option<Variables>,
    pub tracing_active: bool,
    pub logging: LoggingSettings,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// ARN of the queue or topic that `DeadLetterConfig` names.
    #[serde(default)]
    pub dead_letter: Option<String>,
    /// `None` when the user gave none, and of a zip.
    #[serde(default)]
    pub image_config: Option<ImageConfig>,
    /// `SnapStart.ApplyOn` is `PublishedVersions`.
    #[serde(default)]
    pub snap_start: bool,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Whether a version can run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum State {
    Pending,
    Active,
    Failed {
        reason: String,
        #[serde(default)]
        code: FailureCode,
    },
}

/// `StateReasonCode` and `LastUpdateStatusReasonCode` of a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum FailureCode {
    /// The runtime could not be made ready.
    #[default]
    InvalidRuntime,
    /// The image cannot be used.
    InvalidImage,
    /// It is no longer in its registry.
    ImageDeleted,
    /// The registry refuses it.
    ImageAccessDenied,
    /// The registry or this host failed.
    InternalError,
    /// Init, before a snapshot: out of time.
    InitTimeout,
    /// The runtime reported an error, or ended.
    RuntimeInitError,
    /// An extension did.
    ExtensionInitError,
    /// There is nothing to start.
    InvalidEntryPoint,
    /// Or nowhere to.
    InvalidWorkingDirectory,
    /// Out of memory.
    InitResourceExhausted,
}

/// Why a background step failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// In words that say what to do.
    pub reason: String,
    /// In AWS's.
    pub code: FailureCode,
}

/// What is stored of code, whatever number of versions needs it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stored {
    /// By `CodeSha256`.
    Package(String),
    /// By digest.
    Image(String),
    /// By `VersionKey`.
    Snapshot(String),
}

impl Stored {
    pub fn of(code: &CodeRef) -> Self {
        match &code.image {
            Some(image) => Self::Image(image.digest.clone()),
            None => Self::Package(code.sha256.clone()),
        }
    }

    /// Kind and key of the record that says that it is stored.
    pub fn record(&self) -> (&'static str, &str) {
        match self {
            Self::Package(sha256) => (PACKAGE, sha256),
            Self::Image(digest) => (IMAGE, digest),
            Self::Snapshot(key) => (SNAPSHOT, key),
        }
    }
}

/// How the last update of `$LATEST` went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Update {
    /// There was none yet: the version is Pending or Failed.
    None,
    InProgress,
    Successful,
    Failed {
        reason: String,
        #[serde(default)]
        code: FailureCode,
    },
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Alias {
    /// `$LATEST` or a number.
    pub version: String,
    /// A second version and the share of invocations that it gets.
    pub additional: Option<(u64, f64)>,
    pub description: String,
    pub revision_id: String,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A resource policy of a function, version or alias.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Policy {
    pub revision_id: String,
    /// As IAM writes them.
    pub statements: Vec<Value>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What the functions of an account in a region share.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct AccountRecord {
    /// Reserved concurrency by function name.
    pub reserved: BTreeMap<String, u32>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl AccountRecord {
    pub fn total_reserved(&self) -> u32 {
        self.reserved.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

/// Remains of a deleted function, since AWS never uses a version number twice, even for a function made anew.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct DeletedRecord {
    pub next_version: u64,
}

/// For the store, of records that hold no [`Settings`]: those go through [`crate::sealed`]. Nothing here has a form that JSON
/// lacks.
pub(crate) fn to_bytes(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have string keys and finite numbers")
}

pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}
