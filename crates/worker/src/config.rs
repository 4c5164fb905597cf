//! Settings of a worker.

use std::path::PathBuf;
use std::time::Duration;

use domain::WorkerId;

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name.
    pub id: WorkerId,
    /// Memory that sandboxes may have in all, in MB: the host's times the operator's overcommit factor.
    pub memory_mb: u64,
    /// How many sandboxes may exist.
    pub slots: u32,
    /// Several managers place sandboxes here, and can find the same room: what does not fit is refused.
    pub shared: bool,
    /// Limit of Init.
    pub init_limit: Duration,
    /// Limit of the Init before a snapshot, unless the function's timeout is longer.
    pub snapshot_init_limit: Duration,
    /// Limit of what a runtime does after it was restored.
    pub restore_limit: Duration,
    /// Where snapshots of versions are kept: on the file system of the engine's VMs. `None`: nowhere.
    pub snapshots_dir: Option<PathBuf>,
    /// How long an idle sandbox runs on before it is frozen, so that a back-to-back caller never pays for a thaw.
    pub freeze_after: Duration,
    /// Shutdown budget with internal extensions only.
    pub internal_extension_budget: Duration,
    /// Shutdown budget with an external extension.
    pub external_extension_budget: Duration,
    /// What functions sign their own AWS calls with.
    pub credentials: Credentials,
    /// `AWS_ENDPOINT_URL` of functions, e.g. `http://localhost:4566`.
    pub endpoint_url: Option<String>,
    /// Where merged layers are kept; only used by functions with two or more layers.
    pub layers_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: WorkerId("local".into()),
            memory_mb: 4096,
            slots: 1000,
            shared: false,
            init_limit: Duration::from_secs(10),
            snapshot_init_limit: Duration::from_secs(130),
            restore_limit: Duration::from_secs(10),
            snapshots_dir: None,
            freeze_after: Duration::from_millis(20),
            internal_extension_budget: Duration::from_millis(500),
            external_extension_budget: Duration::from_secs(2),
            credentials: Credentials::default(),
            endpoint_url: None,
            layers_dir: std::env::temp_dir().join("emberbox-layers"),
        }
    }
}

/// The credentials in a function's environment. The defaults are of no use anywhere, but an SDK signs with them.
#[derive(Clone)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`; `None`: the account id of the function, which tools of the field take as the caller's.
    pub access_key_id: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self { access_key_id: None, secret_access_key: "local".into(), session_token: None }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}
