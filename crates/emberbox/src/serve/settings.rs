//! The operator's configuration in the words of each part.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use domain::WorkerId;
use frontend::CodeUrlKey;
use sandbox::process::{Egress, Network, ProcessConfig, STANDBY_KINDS};

use crate::config::{self, Config, FunctionCredentials};

/// For the sandbox engine.
pub fn sandbox(config: &Config, dir: &Path) -> ProcessConfig {
    let (pool, standbys) = (config.sandbox.blank_pool, config.sandbox.standby_pool);
    let spare = pool.saturating_add(standbys.saturating_mul(STANDBY_KINDS));
    let max_sandboxes = config.limits.sandboxes.saturating_add(u32::try_from(spare).unwrap_or(u32::MAX));
    // What is left is for the host, and for Emberbox itself.
    let memory_mb = Some(host_memory_mb() / 10 * 9);
    let network = network(config);
    ProcessConfig { network, pool, standbys, max_sandboxes, memory_mb, ..ProcessConfig::new(dir.join("sandboxes")) }
}

/// Where functions can connect to, whatever their sandboxes are made of.
fn network(config: &Config) -> Network {
    match config.sandbox.network {
        config::Network::None => Network::None,
        config::Network::Egress => Network::Egress(Egress { allow: config.sandbox.allow.clone(), ..Egress::default() }),
    }
}

/// For the engine of microVMs.
#[cfg(feature = "microvm")]
pub fn microvm(
    config: &Config,
    dir: &Path,
    engine: sandbox::microvm::EngineKind,
    accel: config::Accel,
) -> sandbox::microvm::MicrovmConfig {
    use sandbox::microvm::{Accel, FirecrackerConfig, MicrovmConfig, POOL_KINDS};

    let accel = match accel {
        config::Accel::Kvm => Accel::Kvm,
        config::Accel::Tcg => Accel::Tcg,
    };
    let pool = config.microvm.pool;
    let spare = u32::try_from(pool.saturating_mul(POOL_KINDS)).unwrap_or(u32::MAX);
    MicrovmConfig {
        engine,
        pool,
        firecracker: FirecrackerConfig {
            program: config.microvm.firecracker.clone(),
            jailer: config.microvm.jailer.clone(),
            cpu_template: config.microvm.cpu_template.clone(),
            ..FirecrackerConfig::default()
        },
        kernel_args: config.microvm.kernel_args.clone(),
        qemu: config.microvm.qemu.clone(),
        vsock_device: config.microvm.vsock_device.clone(),
        network: network(config),
        max_sandboxes: config.limits.sandboxes.saturating_add(spare),
        memory_mb: Some(host_memory_mb() / 10 * 9),
        ..MicrovmConfig::new(dir.join("microvm"), super::isolation::kernel(config, dir), accel)
    }
}

/// For the package storage.
pub fn packages(config: &Config, dir: &Path) -> packages::Config {
    let s3 = config.s3.as_ref().map(|s3| packages::S3Config {
        endpoint: Some(s3.endpoint.clone()),
        region: s3.region.clone().unwrap_or_else(|| config.region.clone()),
        access_key: s3.access_key_id.clone(),
        secret_key: s3.secret_access_key.clone(),
        session_token: None,
    });
    let (storage, limits) = (storage(config, s3.as_ref()), packages::Limits::default());
    packages::Config { dir: dir.join("packages"), storage, limits, s3, owner: None }
}

/// Where a fleet has its packages.
#[cfg(feature = "cluster")]
fn storage(config: &Config, s3: Option<&packages::S3Config>) -> packages::Storage {
    match (config.cluster.as_ref().map(|cluster| &cluster.packages), s3) {
        (Some(config::Shared::Directory(path)), _) => packages::Storage::Shared(path.clone()),
        (Some(config::Shared::Bucket { bucket, prefix }), Some(s3)) => {
            packages::Storage::S3(Box::new(packages::S3Storage::new(s3.clone(), bucket, prefix)))
        }
        // The configuration was checked: there is no bucket without [s3].
        (Some(config::Shared::Bucket { .. }) | None, _) => packages::Storage::Own,
    }
}

#[cfg(not(feature = "cluster"))]
fn storage(_: &Config, _: Option<&packages::S3Config>) -> packages::Storage {
    packages::Storage::Own
}

/// How long a container image may take to come.
#[cfg(feature = "oci")]
const PULL_LIMIT: std::time::Duration = std::time::Duration::from_secs(20 * 60);

/// For the container images of functions. Reads the files with the registries' passwords.
#[cfg(feature = "oci")]
pub fn images(config: &Config, dir: &Path) -> Result<images::oci::StoreConfig> {
    let mut registries = std::collections::BTreeMap::new();
    for registry in &config.registries {
        let credentials = match (&registry.username, &registry.password_file) {
            (Some(username), Some(path)) => {
                let password = fs::read_to_string(path).with_context(|| {
                    format!("read the password of the registry {} from {}", registry.host, path.display())
                })?;
                let password = password.trim_end_matches(['\r', '\n']).to_owned();
                Some(images::oci::Login { username: username.clone(), password })
            }
            _ => None,
        };
        // Docker Hub's names are not where it is.
        let host = if registry.host == "docker.io" { "index.docker.io" } else { &registry.host };
        registries.insert(host.to_owned(), images::oci::Access { credentials, plain_http: registry.plain_http });
    }
    let (dir, limits) = (dir.join("function-images"), images::Limits::default());
    Ok(images::oci::StoreConfig { dir, limits, pull_limit: PULL_LIMIT, registries })
}

/// For the runtimes.
pub fn runtimes(config: &Config, dir: &Path) -> runtimes::Config {
    runtimes::Config {
        data_dir: dir.to_owned(),
        extra_dirs: config.runtimes.dirs.clone(),
        interpreters: config.runtimes.interpreters.clone(),
        owner: None,
    }
}

/// For the functions' logs.
pub fn logs(config: &Config, dir: &Path) -> worker::logs::LogConfig {
    worker::logs::LogConfig {
        group_bytes: config.logs.max_size,
        retention: config.logs.retention,
        ..worker::logs::LogConfig::new(dir.join("logs"))
    }
}

/// For the control plane.
pub fn control_plane(config: &Config) -> control_plane::Config {
    control_plane::Config { account_concurrency: config.limits.account_concurrency, ..control_plane::Config::default() }
}

/// For the Worker Manager.
pub fn manager(config: &Config) -> worker_manager::Config {
    worker_manager::Config {
        idle_timeout: config.sandbox.idle_timeout,
        max_age: config.sandbox.max_age,
        scaling_burst: config.limits.new_sandboxes_per_10s,
        scaling_per_10s: config.limits.new_sandboxes_per_10s,
        ..worker_manager::Config::default()
    }
}

/// For the worker.
pub fn worker(config: &Config, dir: &Path, id: WorkerId) -> worker::Config {
    #[cfg(feature = "cluster")]
    let shared = config.cluster.is_some();
    #[cfg(not(feature = "cluster"))]
    let shared = false;
    let defaults = worker::Config::default();
    let credentials = match &config.functions.credentials {
        None => defaults.credentials.clone(),
        Some(given) => worker::Credentials {
            access_key_id: Some(given.access_key_id.clone()),
            secret_access_key: given.secret_access_key.clone(),
            session_token: given.session_token.clone(),
        },
    };
    let memory = host_memory_mb() as f64 * config.limits.memory_overcommit;
    worker::Config {
        id,
        memory_mb: memory as u64,
        slots: config.limits.sandboxes,
        shared,
        credentials,
        endpoint_url: config.functions.endpoint_url.clone(),
        layers_dir: dir.join("layers"),
        snapshots_dir: Some(dir.join("snapshots")),
        ..defaults
    }
}

/// For the pollers.
pub fn pollers(config: &Config) -> pollers::Config {
    // Neither the account's concurrency nor the host's sandboxes may all be taken by attempts that hang.
    let concurrency = pollers::shared(config.limits.account_concurrency.min(config.limits.sandboxes) as usize);
    pollers::Config { in_flight: concurrency, per_function: concurrency, ..pollers::Config::default() }
}

/// Emberbox's own queues, which are used unless there are others.
pub struct OwnQueues {
    /// As clients know it.
    pub endpoint: String,
    /// The way to them.
    pub client: SharedHttpClient,
}

/// For event source mappings.
pub fn queues(config: &Config, own: &OwnQueues) -> event_sources::SqsConfig {
    let (endpoint, http_client) = sqs(config, own);
    event_sources::SqsConfig {
        endpoint,
        credentials: config.events.credentials.as_ref().map(|given| event_sources::SqsCredentials {
            access_key_id: given.access_key_id.clone(),
            secret_access_key: given.secret_access_key.clone(),
            session_token: given.session_token.clone(),
        }),
        http_client,
    }
}

/// For the event queue in SQS.
#[cfg(feature = "sqs")]
pub fn event_queue(config: &Config) -> aws_sdk_sqs::Config {
    use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};

    let env = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let from_env = || {
        Some(FunctionCredentials {
            access_key_id: env("AWS_ACCESS_KEY_ID")?,
            secret_access_key: env("AWS_SECRET_ACCESS_KEY")?,
            session_token: env("AWS_SESSION_TOKEN"),
        })
    };
    // Servers that check no signatures take the key for the account.
    let by_account = || FunctionCredentials {
        access_key_id: domain::AccountId::local().to_string(),
        secret_access_key: "unchecked".into(),
        session_token: None,
    };
    let given = config.events.credentials.clone().or_else(from_env).unwrap_or_else(by_account);
    let credentials =
        Credentials::new(given.access_key_id, given.secret_access_key, given.session_token, None, "emberbox");
    let mut sdk = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(config.region.clone()))
        .credentials_provider(credentials);
    sdk.set_endpoint_url(config.events.sqs_endpoint.clone().filter(|url| url != "aws"));
    sdk.build()
}

/// Where SQS is (AWS's own where there is no URL), and the way there if it is not the network.
fn sqs(config: &Config, own: &OwnQueues) -> (Option<String>, Option<SharedHttpClient>) {
    match config.events.sqs_endpoint.as_deref() {
        Some("aws") => (None, None),
        Some(url) => (Some(url.to_owned()), None),
        None => (Some(own.endpoint.clone()), Some(own.client.clone())),
    }
}

/// For the delivery of records and dead letters.
pub fn delivery(config: &Config, own: &OwnQueues) -> delivery::DeliveryConfig {
    let events = &config.events;
    let credentials = |given: &FunctionCredentials| delivery::Credentials {
        access_key: given.access_key_id.clone(),
        secret_key: given.secret_access_key.clone(),
        session_token: given.session_token.clone(),
    };
    let endpoint = |url: &Option<String>| delivery::Endpoint {
        url: url.clone(),
        credentials: events.credentials.as_ref().map(credentials),
    };
    let (sqs_url, sqs_client) = sqs(config, own);
    let s3 = match (&events.s3_endpoint, &config.s3) {
        (None, Some(s3)) => delivery::Endpoint {
            url: Some(s3.endpoint.clone()),
            credentials: Some(delivery::Credentials {
                access_key: s3.access_key_id.clone(),
                secret_key: s3.secret_access_key.clone(),
                session_token: None,
            }),
        },
        (url, _) => endpoint(url),
    };
    delivery::DeliveryConfig {
        sqs: endpoint(&sqs_url),
        sqs_client,
        sns: endpoint(&events.sns_endpoint),
        eventbridge: endpoint(&events.eventbridge_endpoint),
        s3,
        ..delivery::DeliveryConfig::default()
    }
}

/// For the Frontend.
pub fn frontend(config: &Config, dir: &Path) -> Result<frontend::Config> {
    Ok(frontend_with(config, code_url_key(&dir.join("code-url.key"))?))
}

/// The same with a key that is given.
pub fn frontend_with(config: &Config, key: CodeUrlKey) -> frontend::Config {
    let credential = |given: &config::Credential| frontend::Credential {
        access_key_id: given.access_key_id.clone(),
        secret_access_key: given.secret_access_key.clone(),
        session_token: None,
        account: given.account.clone(),
    };
    let mut settings = frontend::Config::local(config.listen, key);
    settings.region = config.region.clone();
    settings.credentials = config.credentials.iter().map(credential).collect();
    settings.allowed_hosts = config.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
    settings.tls = config
        .tls
        .as_ref()
        .map(|tls| frontend::TlsFiles { certificate: tls.cert.clone(), private_key: tls.key.clone() });
    settings.limits.drain = config.drain;
    settings.limits.shutdown = config.stop_limit;
    settings
}

/// Signs download addresses; kept, so that one given before a restart still works after it.
fn code_url_key(path: &Path) -> Result<CodeUrlKey> {
    match fs::read(path) {
        Ok(bytes) => match <[u8; 32]>::try_from(bytes) {
            Ok(key) => return Ok(CodeUrlKey(key)),
            Err(_) => bail!("{} should hold 32 bytes; remove it, and a new one is made", path.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    let mut key = [0; 32];
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).context("get random bytes")?;
    // Under its name only when it is whole: a crash in between must not leave half a key.
    let draft = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&key)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().with_context(|| format!("write {}", path.display()))?;
    Ok(CodeUrlKey(key))
}

/// As the kernel knows it.
pub fn host_name() -> Arc<str> {
    rustix::system::uname().nodename().to_string_lossy().into()
}

/// Memory of this host in MB.
fn host_memory_mb() -> u64 {
    let info = rustix::system::sysinfo();
    // On 64-bit machines the unit is one byte, and the count fits.
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_download_addresses_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = code_url_key(&path).unwrap();
        assert!(code_url_key(&path).unwrap() == key);
        assert_ne!(key.0, [0; 32]);
        fs::write(&path, "short").unwrap();
        assert!(code_url_key(&path).unwrap_err().to_string().contains("remove it"));
    }

    #[tokio::test]
    async fn queues_are_our_own_unless_it_is_said_where() {
        let dir = tempfile::tempdir().unwrap();
        let service =
            sqs::SqsService::open(dir.path().join("queues.db"), Arc::new(domain::SystemClock::default())).await;
        let own = "http://127.0.0.1:4566";
        let client = SharedHttpClient::new(crate::adapters::OwnQueues(service.unwrap()));
        let own_queues = OwnQueues { endpoint: own.to_owned(), client };
        let seen = |sqs_endpoint: Option<&str>| {
            let mut config = Config::default();
            config.events.sqs_endpoint = sqs_endpoint.map(str::to_owned);
            let (queues, delivery) = (queues(&config, &own_queues), delivery(&config, &own_queues));
            assert_eq!(queues.endpoint, delivery.sqs.url);
            assert_eq!(queues.http_client.is_some(), delivery.sqs_client.is_some());
            (queues.endpoint, queues.http_client.is_some())
        };
        assert_eq!(seen(None), (Some(own.to_owned()), true));
        let other = "http://127.0.0.1:9324";
        assert_eq!(seen(Some(other)), (Some(other.to_owned()), false));
        assert_eq!(seen(Some("aws")), (None, false));
    }

    #[test]
    fn overcommit_multiplies_the_host() {
        let mut config = Config::default();
        config.limits.memory_overcommit = 1.0;
        let memory = |config: &Config| worker(config, Path::new("/d"), WorkerId("w".into())).memory_mb;
        let once = memory(&config);
        config.limits.memory_overcommit = 2.0;
        assert!(once > 100 && memory(&config).abs_diff(once * 2) <= 1);
    }
}
