//! A control plane in a directory of its own, and helpers to compare with.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use control_plane::{
    Caller, Config, ControlPlane, ImageCatalog, ImageFault, ImageFaultKind, Metadata, RuntimeCatalog, SnapshotCatalog,
    SnapshotFault,
};
use domain::{AccountId, FunctionVersion, ImageRef, SystemClock, VersionKey};
use lambda_api::types::*;
use lambda_api::{ApiError, ErrorCode};
use packages::{Limits, Packages};
use serde::Serialize;
use serde_json::Value;
use store::SqliteStore;
use tokio::sync::watch;

pub const ARN: &str = "arn:aws:lambda:us-east-1:111111111111:function";
pub const ROLE: &str = "arn:aws:iam::111111111111:role/r";

/// In the directory of a [`World`].
pub const KEY_FILE: &str = "secrets.key";

/// Every runtime but a few, ready when the gate is open.
pub struct Runtimes {
    pub open: watch::Sender<bool>,
    pub broken: watch::Sender<bool>,
}

#[async_trait]
impl RuntimeCatalog for Runtimes {
    fn check(&self, runtime: &str) -> Result<(), String> {
        let known = !["nodejs12.x", "python3.7", "go1.x", "java8", "provided", "ruby2.7", "cobol"].contains(&runtime);
        known.then_some(()).ok_or_else(|| format!("There is no runtime {runtime}. Install it."))
    }

    fn version_arn(&self, runtime: &str, region: &str) -> String {
        format!("arn:aws:lambda:{region}::runtime:{runtime}")
    }

    async fn ensure(&self, runtime: &str) -> Result<(), String> {
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        if *self.broken.borrow() { Err(format!("{runtime} could not be installed")) } else { Ok(()) }
    }
}

/// Images by the digit that their digests consist of: `registry/app:1` is `1…1`, and so on. 8 is gone when it is to be
/// pulled, and 9 was never there.
#[derive(Default)]
pub struct Images {
    pub pulled: parking_lot::Mutex<BTreeSet<String>>,
}

#[async_trait]
impl ImageCatalog for Images {
    async fn resolve(&self, uri: &str) -> Result<ImageRef, ImageFault> {
        let fault = |kind| ImageFault { kind, reason: format!("as {uri} is") };
        let Some((name, tag)) = uri.split_once(':') else { return Err(fault(ImageFaultKind::Name)) };
        match tag {
            "9" => Err(fault(ImageFaultKind::Missing)),
            "secret" => Err(fault(ImageFaultKind::Denied)),
            tag => {
                let digest = format!("sha256:{}", tag.repeat(64));
                Ok(ImageRef { uri: uri.into(), resolved_uri: format!("{name}@{digest}"), digest })
            }
        }
    }

    async fn ensure(&self, image: &ImageRef) -> Result<(), ImageFault> {
        if image.digest.ends_with('8') {
            return Err(ImageFault { kind: ImageFaultKind::Missing, reason: "gone".into() });
        }
        self.pulled.lock().insert(image.digest.clone());
        Ok(())
    }

    async fn remove(&self, digest: &str) -> Result<(), String> {
        self.pulled.lock().remove(digest);
        Ok(())
    }
}

/// Snapshots of a host where taking one ends as `outcome` says.
pub struct Snapshots {
    pub outcome: watch::Sender<Option<Result<(), SnapshotFault>>>,
    pub kept: parking_lot::Mutex<BTreeSet<VersionKey>>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { outcome: watch::Sender::new(Some(Ok(()))), kept: parking_lot::Mutex::default() }
    }
}

#[async_trait]
impl SnapshotCatalog for Snapshots {
    async fn take(&self, version: Arc<FunctionVersion>) -> Result<(), SnapshotFault> {
        let outcome = self.outcome.subscribe().wait_for(Option::is_some).await.unwrap().clone().unwrap();
        if outcome.is_ok() {
            self.kept.lock().insert(version.key.clone());
        }
        outcome
    }

    async fn remove(&self, version: &VersionKey) -> Result<(), String> {
        self.kept.lock().remove(version);
        Ok(())
    }
}

pub struct World {
    pub dir: PathBuf,
    /// Removed with the world.
    pub owned: Option<tempfile::TempDir>,
    pub store: Arc<SqliteStore>,
    pub runtimes: Arc<Runtimes>,
    pub images: Arc<Images>,
    pub snapshots: Arc<Snapshots>,
    pub plane: ControlPlane,
}

impl World {
    pub async fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), Config::default()).await
    }

    pub async fn at(dir: tempfile::TempDir, config: Config) -> Self {
        let world = Self::in_dir(dir.path(), config).await;
        Self { owned: Some(dir), ..world }
    }

    pub async fn in_dir(dir: &Path, config: Config) -> Self {
        Self::over(dir, config, BTreeSet::new(), Arc::default()).await.unwrap()
    }

    /// Over what is there, with the keys that are there.
    pub async fn try_in_dir(dir: &Path) -> Result<Self, control_plane::Error> {
        Self::over(dir, Config::default(), BTreeSet::new(), Arc::default()).await
    }

    async fn over(
        dir: &Path,
        config: Config,
        pulled: BTreeSet<String>,
        snapshots: Arc<Snapshots>,
    ) -> Result<Self, control_plane::Error> {
        let store = Arc::new(SqliteStore::open(dir.join("metadata.db")).await.unwrap());
        Self::of(dir, &dir.join(KEY_FILE), config, store, pulled, snapshots).await
    }

    /// Over what is in this store.
    pub async fn with_store(dir: &Path, store: Arc<SqliteStore>) -> Self {
        let keys = dir.join(KEY_FILE);
        Self::of(dir, &keys, Config::default(), store, BTreeSet::new(), Arc::default()).await.unwrap()
    }

    /// Another process with the same metadata.
    pub async fn beside(&self) -> Self {
        self.beside_with(KEY_FILE).await
    }

    /// The same with another file of keys.
    pub async fn beside_with(&self, keys: &str) -> Self {
        let config = Config { shared: true, ..Config::default() };
        let keys = self.dir.join(keys);
        Self::of(&self.dir, &keys, config, self.store.clone(), BTreeSet::new(), Arc::default()).await.unwrap()
    }

    async fn of(
        dir: &Path,
        key_file: &Path,
        config: Config,
        store: Arc<SqliteStore>,
        pulled: BTreeSet<String>,
        snapshots: Arc<Snapshots>,
    ) -> Result<Self, control_plane::Error> {
        let keys = match secrets::read(key_file).unwrap() {
            Some(keys) => keys,
            None => secrets::create(key_file).unwrap(),
        };
        let packages = Packages::open(packages::Config {
            dir: dir.join("packages"),
            storage: packages::Storage::Own,
            limits: Limits::default(),
            s3: None,
            owner: None,
        })
        .unwrap();
        let runtimes = Arc::new(Runtimes { open: watch::Sender::new(true), broken: watch::Sender::new(false) });
        let clock = Arc::new(SystemClock::default());
        let images = Arc::new(Images { pulled: parking_lot::Mutex::new(pulled) });
        let plane = ControlPlane::open(
            config,
            Metadata { store: store.clone(), keys: Arc::new(keys) },
            packages,
            runtimes.clone(),
            images.clone(),
            snapshots.clone(),
            clock,
        );
        let plane = match plane.await {
            Ok(plane) => plane,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };
        Ok(Self { dir: dir.to_owned(), owned: None, store, runtimes, images, snapshots, plane })
    }

    /// Ends this process' control plane as a crash would, and starts the next one.
    pub async fn restart(self) -> Self {
        self.restart_with(BTreeSet::new()).await
    }

    /// The same, with these images there.
    pub async fn restart_with(self, pulled: BTreeSet<String>) -> Self {
        let Self { dir, owned, store, plane, snapshots, .. } = self;
        drop(plane);
        store.close().await;
        let world = Self::over(&dir, Config::default(), pulled, snapshots).await.unwrap();
        Self { owned, ..world }
    }

    /// Creates a Python function and waits until it is Active.
    pub async fn create(&self, name: &str) -> FunctionConfiguration {
        let created = self.plane.create_function(&me(), function(name)).await.unwrap();
        self.plane.wait_idle().await;
        created
    }

    pub async fn publish(&self, name: &str) -> FunctionConfiguration {
        let request = PublishVersionRequest { function_name: name.into(), ..Default::default() };
        self.plane.publish_version(&me(), request).await.unwrap()
    }

    pub async fn describe(&self, name: &str, description: &str) -> FunctionConfiguration {
        let request = UpdateFunctionConfigurationRequest {
            function_name: name.into(),
            description: Some(description.into()),
            ..Default::default()
        };
        let updated = self.plane.update_function_configuration(&me(), request).await.unwrap();
        self.plane.wait_idle().await;
        updated
    }

    pub async fn alias(&self, function: &str, name: &str, version: &str) -> AliasConfiguration {
        self.plane.create_alias(&me(), new_alias(function, name, version)).await.unwrap()
    }

    pub async fn get(&self, name: &str, qualifier: Option<&str>) -> Result<FunctionConfiguration, ApiError> {
        let request = GetFunctionRequest { function_name: name.into(), qualifier: qualifier.map(str::to_owned) };
        let response = self.plane.get_function(&me(), request).await?;
        let code = response.code.unwrap();
        assert_eq!((code.repository_type.as_deref(), code.location), (Some("S3"), None));
        let request =
            GetFunctionConfigurationRequest { function_name: name.into(), qualifier: qualifier.map(str::to_owned) };
        let alone = self.plane.get_function_configuration(&me(), request).await?;
        assert_eq!(Some(&alone), response.configuration.as_ref(), "GetFunctionConfiguration says the same");
        Ok(alone)
    }

    pub async fn revision(&self, name: &str, qualifier: Option<&str>) -> String {
        self.get(name, qualifier).await.unwrap().revision_id.unwrap()
    }

    pub async fn delete(&self, name: &str, qualifier: Option<&str>) -> Result<DeleteFunctionResponse, ApiError> {
        let request = DeleteFunctionRequest { function_name: name.into(), qualifier: qualifier.map(str::to_owned) };
        self.plane.delete_function(&me(), request).await
    }

    pub fn has_package(&self, config: &FunctionConfiguration) -> bool {
        use base64::Engine as _;
        let sha = base64::engine::general_purpose::STANDARD.decode(config.code_sha256.as_ref().unwrap()).unwrap();
        let name: String = sha.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(format!("packages/zips/{name}.zip")).exists()
    }
}

pub fn me() -> Caller {
    caller("111111111111")
}

pub fn caller(account: &str) -> Caller {
    Caller {
        account: AccountId::parse(account).unwrap(),
        region: "us-east-1".into(),
        principal: Some(format!("arn:aws:iam::{account}:user/someone")),
    }
}

/// A zip with one file.
pub fn zip(content: &str) -> Bytes {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("index.py", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(content.as_bytes()).unwrap();
    zip.finish().unwrap().into_inner().into()
}

pub fn function(name: &str) -> CreateFunctionRequest {
    CreateFunctionRequest {
        function_name: name.into(),
        runtime: Some(Runtime::Python3_12),
        role: ROLE.into(),
        handler: Some("index.handler".into()),
        code: FunctionCode { zip_file: Some(zip(name)), ..Default::default() },
        ..Default::default()
    }
}

pub fn new_code(name: &str, content: &str) -> UpdateFunctionCodeRequest {
    UpdateFunctionCodeRequest { function_name: name.into(), zip_file: Some(zip(content)), ..Default::default() }
}

pub fn new_alias(function: &str, name: &str, version: &str) -> CreateAliasRequest {
    CreateAliasRequest {
        function_name: function.into(),
        name: name.into(),
        function_version: version.into(),
        ..Default::default()
    }
}

pub fn weights(pairs: &[(&str, f64)]) -> Option<AliasRoutingConfiguration> {
    let weights: BTreeMap<String, f64> = pairs.iter().map(|(version, w)| ((*version).to_owned(), *w)).collect();
    Some(AliasRoutingConfiguration { additional_version_weights: Some(weights) })
}

/// As it goes over the wire.
pub fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

pub fn members(value: &impl Serialize) -> Vec<String> {
    let mut members: Vec<String> = json(value).as_object().unwrap().keys().cloned().collect();
    members.sort();
    members
}

/// The members of every recorded FunctionConfiguration, and `more`.
pub fn configuration_members(more: &[&str]) -> Vec<String> {
    let mut members: Vec<String> =
        LISTED.iter().chain(&["RuntimeVersionConfig", "State"]).chain(more).map(|m| (*m).to_owned()).collect();
    members.sort();
    members
}

/// Those that lists show.
pub const LISTED: &[&str] = &[
    "Architectures",
    "CodeSha256",
    "CodeSize",
    "Description",
    "EphemeralStorage",
    "FunctionArn",
    "FunctionName",
    "Handler",
    "LastModified",
    "LoggingConfig",
    "MemorySize",
    "PackageType",
    "RevisionId",
    "Role",
    "Runtime",
    "SnapStart",
    "Timeout",
    "TracingConfig",
    "Version",
];

#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, code: ErrorCode, message: &str) {
    let error = result.expect_err(message);
    assert_eq!((error.code, error.message.as_str()), (code, message));
    assert_eq!(
        error.kind.is_some(),
        !matches!(code, ErrorCode::AccessDeniedException | ErrorCode::RequestEntityTooLargeException)
    );
}

/// The same for an error that AWS sends without a type.
#[track_caller]
pub fn refused_untyped<T: std::fmt::Debug>(result: Result<T, ApiError>, code: ErrorCode, message: &str) {
    let error = result.expect_err(message);
    assert_eq!((error.code, error.message.as_str(), error.kind), (code, message, None));
}

pub const STALE: &str = "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API \
                         to retrieve the latest Revision Id";
pub const STALE_POLICY: &str = "The Revision Id provided does not match the latest Revision Id. Call the GetPolicy API to retrieve the latest Revision Id";
