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
            let aws = unknown_runtime(runtime, here.iter().map(String::as_str)).message;
            let dir = self.0.files_dir();
            return Err(format!("{aws}. On Emberbox, a file in {} adds a runtime of that name", dir.display()));
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

#[cfg(test)]
mod tests {
    use control_plane::RuntimeCatalog;

    use super::*;

    /// A new one in AWS's model is to be added to the files in `crates/runtimes/runtimes`, or to those that AWS has retired.
    #[test]
    fn every_runtime_of_the_model_whose_language_is_here_is_served_or_retired() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().to_owned();
        let catalog =
            Catalog(Arc::new(Runtimes::open(runtimes::Config { data_dir, ..runtimes::Config::default() }).unwrap()));
        let ours = |name: &&&str| ["python", "nodejs", "provided"].iter().any(|language| name.starts_with(language));
        for runtime in lambda_api::types::Runtime::VALUES.iter().filter(ours) {
            if let Err(message) = catalog.check(runtime) {
                let get_it = message.contains("not available on this host") && message.contains("get it with");
                assert!(get_it || message.contains("no longer supported"), "{runtime}: {message}");
            }
        }
        let refused = |runtime| catalog.check(runtime).unwrap_err();
        assert!(refused("python3.99").contains("enum value set"), "{}", refused("python3.99"));
        for runtime in ["python3.99", "java21"] {
            assert!(refused(runtime).contains(dir.path().join("runtimes.d").to_str().unwrap()), "{}", refused(runtime));
        }
    }
}
