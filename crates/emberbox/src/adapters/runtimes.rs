//! Runtimes, for the control plane to check and to make ready.

use std::sync::Arc;

use async_trait::async_trait;
use lambda_api::unknown_runtime;
use runtimes::{Progress, Runtimes};
use sha2::{Digest, Sha256};

/// The runtimes of this host.
pub struct Catalog(pub Arc<Runtimes>);

impl Catalog {
    /// 64 hex digits that change with what is installed for a runtime. Known before it is installed, as a function that
    /// is being created shows it.
    fn version_hash(&self, runtime: &str) -> String {
        let packages = self.0.list().into_iter().find(|status| status.name == runtime).map(|status| status.packages);
        hex::encode(Sha256::digest(format!("{runtime} {packages:?}")))
    }
}

/// Tells the server's log what an installation is doing.
pub struct Logged;

impl Progress for Logged {
    fn step(&self, what: &str) {
        tracing::info!("{what}");
    }
}

#[async_trait]
impl control_plane::RuntimeCatalog for Catalog {
    fn check(&self, runtime: &str) -> Result<(), String> {
        let here: Vec<String> = self.0.list().into_iter().map(|status| status.name).collect();
        let known_to_aws = lambda_api::types::Runtime::VALUES.contains(&runtime);
        if !known_to_aws && !here.iter().any(|name| name == runtime) {
            return Err(unknown_runtime(runtime, here.iter().map(String::as_str)).message);
        }
        self.0.check(runtime)
    }

    fn version_arn(&self, runtime: &str, region: &str) -> String {
        format!("arn:aws:lambda:{region}::runtime:{}", self.version_hash(runtime))
    }

    async fn ensure(&self, runtime: &str) -> Result<(), String> {
        self.0.ensure(runtime, &Logged).await.map(drop).map_err(|error| error.to_string())
    }
}
