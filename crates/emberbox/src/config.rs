//! The configuration file. Every option is described, with its default, in `emberbox.example.toml`.

#[cfg(feature = "cluster")]
mod cluster;
mod microvm;
mod otlp;
mod registries;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use domain::AccountId;
use sandbox::process::Destination;
use serde::Deserialize;

#[cfg(feature = "cluster")]
pub use cluster::{Cluster, Shared};
pub use microvm::Microvm;
#[cfg(feature = "microvm")]
pub use microvm::{Accel, VmEngine};
pub use otlp::Otlp;
pub use registries::Registry;
pub use values::{EventEngine, Isolation, Network};

/// Everything that an operator can set.
#[derive(Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where everything is kept; `None`: [`crate::data_dir::default_dir`].
    pub data_dir: Option<PathBuf>,
    /// Keys of the functions' environment variables; `None`: `secrets.key` in the data directory, made at the first start.
    pub secrets_file: Option<PathBuf>,
    /// The region in ARNs.
    #[serde(deserialize_with = "values::region")]
    pub region: String,
    /// HTTPS instead of HTTP.
    pub tls: Option<Tls>,
    /// How long requests are still accepted after the server was told to stop, while `/readyz` says no.
    #[serde(deserialize_with = "values::duration")]
    pub drain: Duration,
    /// How long running invocations may go on after the server was told to stop.
    #[serde(deserialize_with = "values::duration")]
    pub stop_limit: Duration,
    /// Who may call; empty: everybody on this machine.
    pub credentials: Vec<Credential>,
    /// Names of this machine under which it may be called while there are no credentials, besides localhost.
    pub allowed_hosts: Vec<String>,
    /// How much.
    pub limits: Limits,
    /// How functions are isolated.
    pub sandbox: Sandbox,
    /// How microVMs are made.
    pub microvm: Microvm,
    /// What functions get.
    pub functions: Functions,
    /// Where `S3Bucket` and `S3Key` lead.
    pub s3: Option<S3>,
    /// How registries of container images are spoken to.
    pub registries: Vec<Registry>,
    /// Languages.
    pub runtimes: Runtimes,
    /// What functions write.
    pub logs: Logs,
    /// Asynchronous invocation.
    pub events: Events,
    /// Traces of invocations.
    pub otlp: Otlp,
    /// This process is one of a fleet.
    #[cfg(feature = "cluster")]
    pub cluster: Option<Cluster>,
    /// It cannot be: an Emberbox for one machine says why.
    #[cfg(not(feature = "cluster"))]
    #[serde(deserialize_with = "values::no_fleet")]
    pub cluster: (),
}

/// `[tls]`.
#[derive(Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate chain.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// `[[credentials]]`.
#[derive(Deserialize, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// As in `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// As in `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// Whose functions the caller sees.
    #[serde(deserialize_with = "values::account")]
    pub account: AccountId,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// `[limits]`.
#[derive(Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Invocations of one account at the same time.
    pub account_concurrency: u32,
    /// Sandboxes that one function may start within 10 s.
    pub new_sandboxes_per_10s: u32,
    /// Sandboxes on this host.
    pub sandboxes: u32,
    /// Memory of all sandboxes together as a multiple of the host's.
    pub memory_overcommit: f64,
}

/// `[sandbox]`.
#[derive(Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// The kind.
    pub isolation: Isolation,
    /// What functions reach.
    pub network: Network,
    /// Private addresses that functions may reach nevertheless.
    pub allow: Vec<Destination>,
    /// How many blank sandboxes are kept ready.
    pub blank_pool: usize,
    /// How many more are kept in which the interpreter of a runtime already waits, for each runtime that was used in the
    /// last 5 minutes.
    pub standby_pool: usize,
    /// How long an idle sandbox is kept.
    #[serde(deserialize_with = "values::duration")]
    pub idle_timeout: Duration,
    /// How old a sandbox may become.
    #[serde(deserialize_with = "values::duration")]
    pub max_age: Duration,
}

/// `[functions]`.
#[derive(Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Functions {
    /// `AWS_ENDPOINT_URL` of every function.
    pub endpoint_url: Option<String>,
    /// What functions sign their own calls with.
    pub credentials: Option<FunctionCredentials>,
}

/// `[functions.credentials]` and `[events.credentials]`.
#[derive(Deserialize, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct FunctionCredentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    #[serde(default)]
    pub session_token: Option<String>,
}

impl std::fmt::Debug for FunctionCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FunctionCredentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// `[s3]`.
#[derive(Deserialize, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// Base URL of an S3-compatible service; buckets are taken from the path.
    pub endpoint: String,
    /// Key.
    pub access_key_id: String,
    /// Secret.
    pub secret_access_key: String,
    /// Region for signing; default: Emberbox's own.
    #[serde(default)]
    pub region: Option<String>,
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// `[runtimes]`.
#[derive(Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Runtimes {
    /// Directories with the operator's own runtime files.
    pub dirs: Vec<PathBuf>,
    /// Interpreters that are not in PATH, by runtime.
    pub interpreters: BTreeMap<String, PathBuf>,
}

/// `[logs]`.
#[derive(Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// How long log lines are kept.
    #[serde(deserialize_with = "values::duration")]
    pub retention: Duration,
    /// How much is kept of one function's log.
    #[serde(deserialize_with = "values::size")]
    pub max_size: u64,
}

/// `[events]`.
#[derive(Deserialize, Clone, PartialEq, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Where events wait.
    pub engine: EventEngine,
    /// With the engine `postgres`.
    pub postgres_url: Option<String>,
    /// Of queues that are event sources or destinations or get dead letters; `aws`: AWS; default: Emberbox itself.
    pub sqs_endpoint: Option<String>,
    /// Of topics.
    pub sns_endpoint: Option<String>,
    /// Of event buses.
    pub eventbridge_endpoint: Option<String>,
    /// Of buckets; default: that of `[s3]`.
    pub s3_endpoint: Option<String>,
    /// What Emberbox signs its calls to them with.
    pub credentials: Option<FunctionCredentials>,
}

impl std::fmt::Debug for Events {
    /// Without `postgres_url`, which may have a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("engine", &self.engine)
            .field("sqs_endpoint", &self.sqs_endpoint)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4566)),
            data_dir: None,
            secrets_file: None,
            region: "us-east-1".into(),
            tls: None,
            drain: Duration::ZERO,
            // Lambda's longest timeout (its documentation; the model has more), and a minute for what comes before it and after.
            stop_limit: Duration::from_secs(16 * 60),
            credentials: Vec::new(),
            allowed_hosts: Vec::new(),
            limits: Limits::default(),
            sandbox: Sandbox::default(),
            microvm: Microvm::default(),
            functions: Functions::default(),
            s3: None,
            registries: Vec::new(),
            runtimes: Runtimes::default(),
            logs: Logs::default(),
            events: Events::default(),
            otlp: Otlp::default(),
            #[cfg(feature = "cluster")]
            cluster: None,
            #[cfg(not(feature = "cluster"))]
            cluster: (),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { account_concurrency: 1000, new_sandboxes_per_10s: 1000, sandboxes: 1000, memory_overcommit: 4.0 }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            isolation: Isolation::Process,
            network: Network::Egress,
            allow: Vec::new(),
            blank_pool: 4,
            standby_pool: 2,
            idle_timeout: Duration::from_secs(600),
            max_age: Duration::from_secs(2 * 3600),
        }
    }
}

impl Default for Logs {
    fn default() -> Self {
        Self { retention: Duration::from_secs(7 * 86_400), max_size: 64 << 20 }
    }
}

impl Config {
    /// Reads a file. Paths in it are relative to its own directory.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("read the configuration {}; `--config` names it", path.display()))?;
        let mut config = Self::parse(&text).map_err(|error| {
            anyhow!("in the configuration {}: {error:#}\nemberbox.example.toml describes every option.", path.display())
        })?;
        let base = path.parent().map(Path::to_owned).unwrap_or_default();
        let mut paths: Vec<&mut PathBuf> = config.runtimes.dirs.iter_mut().collect();
        paths.extend(config.runtimes.interpreters.values_mut());
        paths.extend(config.data_dir.iter_mut());
        paths.extend(config.secrets_file.iter_mut());
        paths.extend(config.microvm.paths());
        paths.extend(config.registries.iter_mut().filter_map(|registry| registry.password_file.as_mut()));
        paths.extend(config.tls.iter_mut().flat_map(|tls| [&mut tls.cert, &mut tls.key]));
        #[cfg(feature = "cluster")]
        paths.extend(config.cluster.iter_mut().flat_map(Cluster::paths));
        for path in paths {
            *path = base.join(&*path);
        }
        Ok(config)
    }

    /// Parses the text of a file; the error shows the line.
    fn parse(text: &str) -> Result<Self> {
        // The error of the toml crate has the line, a picture of it, and then what is wrong with it.
        let config: Self = toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
        let mut seen = std::collections::HashSet::new();
        for (n, credential) in config.credentials.iter().enumerate() {
            if credential.access_key_id.is_empty() || credential.secret_access_key.is_empty() {
                return Err(anyhow!(
                    "credentials number {}: an empty access_key_id or secret_access_key; give both a value",
                    n + 1
                ));
            }
            if !seen.insert(&credential.access_key_id) {
                let key = &credential.access_key_id;
                return Err(anyhow!("credentials number {}: access_key_id `{key}` is there twice; remove one", n + 1));
            }
        }
        registries::check(&config.registries)?;
        config.otlp.check()?;
        if config.events.engine == EventEngine::Postgres && config.events.postgres_url.is_none() {
            return Err(anyhow!("events.engine is postgres, but events.postgres_url is missing; say where it is"));
        }
        if config.events.engine == EventEngine::Sqs && config.events.sqs_endpoint.is_none() {
            return Err(anyhow!(
                "events.engine is sqs, but events.sqs_endpoint is missing; say where it is, or \"aws\""
            ));
        }
        #[cfg(feature = "cluster")]
        if let Some(cluster) = &config.cluster {
            cluster.check(config.s3.is_some()).map_err(|wrong| anyhow!("{wrong}"))?;
        }
        let overcommit = config.limits.memory_overcommit;
        if !(0.1..=100.0).contains(&overcommit) {
            return Err(anyhow!("limits.memory_overcommit is {overcommit}; set a number from 0.1 to 100"));
        }
        for (key, value) in [
            ("account_concurrency", config.limits.account_concurrency),
            ("new_sandboxes_per_10s", config.limits.new_sandboxes_per_10s),
            ("sandboxes", config.limits.sandboxes),
        ] {
            if value == 0 {
                return Err(anyhow!("limits.{key} is 0, so that no function could run; set at least 1"));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_defaults() {
        let example = include_str!("../../../emberbox.example.toml");
        assert_eq!(Config::parse(example).unwrap(), Config::default(), "as it stands, every option is its default");
    }

    #[test]
    fn every_option_of_the_example_is_accepted() {
        // Options without a default value stand in the example as `#option = value`, prose as `# Sentence`.
        let example = include_str!("../../../emberbox.example.toml");
        let commented = regex::Regex::new(r"(?m)^#(\S.*)$").unwrap();
        let text = commented.replace_all(example, "$1");
        let config = Config::parse(&text).unwrap();
        assert!(config.tls.is_some() && config.s3.is_some() && config.functions.credentials.is_some(), "{config:?}");
        assert_eq!((config.credentials.len(), config.registries.len()), (1, 1));
        assert!(config.data_dir.is_some() && config.secrets_file.is_some() && config.functions.endpoint_url.is_some());
        assert!(!config.runtimes.interpreters.is_empty());
        assert!(config.otlp.endpoint.is_some());
        assert!(config.events.sqs_endpoint.is_some() && config.events.credentials.is_some());
    }

    #[cfg(not(feature = "cluster"))]
    #[test]
    fn an_emberbox_without_fleets_says_so() {
        let error = Config::parse("[cluster]\nid = 'a'").unwrap_err().to_string();
        assert!(error.contains(crate::commands::WITHOUT_FLEETS), "{error}");
    }

    /// An Emberbox without the feature has no such options, so they are in a file of their own.
    #[test]
    #[cfg(feature = "cluster")]
    fn the_example_of_a_fleet_is_the_defaults_and_every_option_of_it_is_accepted() {
        let example = include_str!("../../../emberbox.cluster.example.toml");
        let commented = regex::Regex::new(r"(?m)^#(\S.*)$").unwrap();
        let only = "[cluster]\ndatabase = 'd'\npackages = '/p'";
        let defaults = Config::parse(&format!("secrets_file = 's'\n{only}")).unwrap().cluster.unwrap();
        let (mut names, mut bucket) = (std::collections::BTreeSet::new(), false);
        for line in commented.captures_iter(example).map(|line| line[1].to_owned()) {
            let text = format!("secrets_file = 's'\n{only}\n{line}");
            let text = if line.starts_with("packages") { text.replace("packages = '/p'\n", "") } else { text };
            let text = text + "\n[s3]\nendpoint = 'e'\naccess_key_id = 'a'\nsecret_access_key = 's'";
            let cluster = Config::parse(&text).unwrap_or_else(|error| panic!("{line}: {error}")).cluster.unwrap();
            bucket |= matches!(cluster.packages, Shared::Bucket { .. });
            let name = line.split(' ').next().unwrap().to_owned();
            if ["roles", "bind"].contains(&name.as_str()) {
                let same = cluster.bind == defaults.bind
                    && cluster.roles.iter().collect::<std::collections::HashSet<_>>()
                        == defaults.roles.iter().collect();
                assert!(same, "{line} is the default");
            }
            names.insert(name);
        }
        assert!(bucket);
        let all = ["admin", "advertise", "bind", "id", "packages", "roles", "tls"];
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), all, "and `database`, which has no default");
        let as_it_stands = Config::parse(example).unwrap();
        assert_eq!(as_it_stands.secrets_file, Some("/etc/emberbox/secrets.key".into()));
    }

    /// Those of `deploy/`, one for each set of roles.
    #[test]
    #[cfg(feature = "cluster")]
    fn the_files_to_deploy_are_accepted() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config");
        let mut seen = Vec::new();
        for file in fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            let config = Config::read(&path).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
            let cluster = config.cluster.expect("it is one of a fleet's");
            assert!(cluster.tls.is_some() && cluster.admin.is_some() && cluster.advertise.is_some(), "{path:?}");
            assert_eq!(config.credentials.is_empty(), !cluster.is(membership::Role::Frontend), "{path:?}");
            assert_eq!(config.drain.is_zero(), !cluster.is(membership::Role::Frontend), "{path:?}");
            seen.push(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
        seen.sort();
        assert_eq!(seen, ["control", "frontend", "pollers", "worker", "worker-manager"]);
    }

    #[test]
    fn mistakes_name_line_key_and_remedy() {
        for (text, words) in [
            ("listn = 1", vec!["line 1", "listn", "listen"]),
            ("\n[limits]\nsandboxes = 'many'", vec!["line 3", "sandboxes"]),
            ("=", vec!["line 1"]),
            ("[sandbox]\nallow = ['example.com']", vec!["line 2", "example.com", "10.1.2.3:5432"]),
            ("[sandbox]\nnetwork = 'host'", vec!["line 2", "host", "egress", "none"]),
            ("[sandbox]\nidle_timeout = 5", vec!["line 2", "90s"]),
            ("[logs]\nmax_size = 'big'", vec!["line 2", "64 MB"]),
            ("region = 'Frankfurt!'", vec!["line 1", "eu-central-1"]),
            (
                "[[credentials]]\naccess_key_id = 'a'\nsecret_access_key = 'b'\naccount = '12'",
                vec!["line 4", "12 digits"],
            ),
            ("[events]\nengine = 'kafka'", vec!["line 2", "sqlite", "postgres"]),
            ("[events]\nengine = 'postgres'", vec!["events.postgres_url"]),
            ("[events]\nengine = 'sqs'", vec!["events.sqs_endpoint"]),
            ("[[registries]]\nhost = 'https://a'", vec!["https://a", "no host"]),
            ("[[registries]]\nhost = 'a'\nusername = 'b'", vec!["password_file", "both"]),
            ("[[registries]]\nhost = 'a'\n[[registries]]\nhost = 'a'", vec!["twice"]),
            ("[limits]\nsandboxes = 0", vec!["limits.sandboxes", "at least 1"]),
            ("[otlp]\nsample = 2.0", vec!["otlp.sample", "from 0.0 to 1.0"]),
            ("[limits]\nmemory_overcommit = nan", vec!["memory_overcommit", "from 0.1"]),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            for word in words {
                assert!(error.contains(word), "{text:?} should say {word:?}:\n{error}");
            }
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.toml");
        fs::write(&path, "data_dir = 'data'\n[runtimes]\ndirs = ['/abs', 'own']\n").unwrap();
        let config = Config::read(&path).unwrap();
        assert_eq!(config.data_dir.unwrap(), dir.path().join("data"));
        assert_eq!(config.runtimes.dirs, [PathBuf::from("/abs"), dir.path().join("own")]);
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "[[credentials]]\naccess_key_id = 'a'\nsecret_access_key = 'hidden'\naccount = '123456789012'";
        assert!(!format!("{:?}", Config::parse(text).unwrap()).contains("hidden"));
        let text = "[events]\nengine = 'postgres'\npostgres_url = 'postgres://u:hidden@h/d'";
        assert!(!format!("{:?}", Config::parse(text).unwrap()).contains("hidden"));
    }
}
