//! The server under test: started as a user starts it, driven through its public API.

use std::fs;
use std::io::{Cursor, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use crate::Setup;
use crate::load::{Connection, Target};
use crate::process::Child;

/// Room for 16 sandboxes of a full vCPU and for 200 small ones, whatever the host has: they are idle most of the time.
const CONFIG: &str = "[limits]\nmemory_overcommit = 8.0\nsandboxes = 400\n";
/// Installing a runtime client on first use compiles it.
const READY: Duration = Duration::from_secs(300);

/// A running `emberbox serve`; ended when it is dropped.
pub struct Emberbox {
    server: Child,
    address: SocketAddr,
    api: Connection,
    /// Start of the process to its endpoint's line.
    pub ready_after: Duration,
    data: DataDir,
}

impl Emberbox {
    /// Starts it with an empty data directory that shares the installed runtimes.
    pub async fn start(setup: &Setup) -> Result<Self> {
        Self::start_with(setup, "").await
    }

    /// With more sections of configuration.
    pub async fn start_with(setup: &Setup, sections: &str) -> Result<Self> {
        let data = DataDir::new(setup, sections)?;
        let started = Instant::now();
        let mut server = Child::spawn(
            Command::new(&setup.emberbox)
                .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
                .arg(data.path())
                .arg("--config")
                .arg(data.config())
                .stderr(data.log_file()?),
        )?;
        let url = server.wait_for_line("AWS_ENDPOINT_URL_LAMBDA=", Duration::from_secs(30));
        let url = url.with_context(|| data.log())?;
        let ready_after = started.elapsed();
        let address = url.trim_matches('"').trim_start_matches("http://").trim_end_matches('/');
        let address: SocketAddr = address.parse().with_context(|| format!("the endpoint {url}"))?;
        Self::running(server, address, ready_after, data).await
    }

    /// Whatever serves the API there with this data directory.
    pub async fn running(server: Child, address: SocketAddr, ready_after: Duration, data: DataDir) -> Result<Self> {
        Ok(Self { server, address, api: Connection::open(address).await?, ready_after, data })
    }

    /// Creates a function and waits until it can be invoked.
    pub async fn create(&mut self, name: &str, package: &Package, memory_mb: u32) -> Result<Target> {
        let request = json!({
            "FunctionName": name,
            "Runtime": package.runtime,
            "Handler": package.handler,
            "Role": "arn:aws:iam::000000000000:role/bench",
            "Code": { "ZipFile": STANDARD.encode(&package.zip) },
            "MemorySize": memory_mb,
            "Timeout": 30,
        });
        self.call(Method::POST, "/2015-03-31/functions", Some(request)).await?;
        self.wait_ready(name).await?;
        Ok(Target { address: self.address, path: format!("/2015-03-31/functions/{name}/invocations") })
    }

    /// Changes the function's environment, so that its next invocation needs a new sandbox; it has `variables` as well.
    pub async fn force_cold(&mut self, name: &str, number: u32, variables: &[(&str, &str)]) -> Result<()> {
        let mut environment = json!({ "NUMBER": number.to_string() });
        for (variable, value) in variables {
            environment[variable] = json!(value);
        }
        self.configure(name, json!({ "Environment": { "Variables": environment } })).await
    }

    /// Changes some of the function's configuration, as UpdateFunctionConfiguration takes it.
    pub async fn configure(&mut self, name: &str, settings: Value) -> Result<()> {
        self.call(Method::PUT, &format!("/2015-03-31/functions/{name}/configuration"), Some(settings)).await?;
        self.wait_ready(name).await
    }

    /// Sandboxes that the function may have at most.
    pub async fn reserve_concurrency(&mut self, name: &str, sandboxes: usize) -> Result<()> {
        let request = json!({ "ReservedConcurrentExecutions": sandboxes });
        self.call(Method::PUT, &format!("/2017-10-31/functions/{name}/concurrency"), Some(request)).await.map(drop)
    }

    /// How the function's events are doing: `depth`, `inFlight`, `succeeded`, …
    pub async fn events(&mut self, name: &str) -> Result<Value> {
        self.call(Method::GET, &format!("/_emberbox/events/{name}"), None).await
    }

    /// What is known of an event that was accepted with `X-Emberbox-Timeline`: `attempts`, `timeline`.
    pub async fn event(&mut self, name: &str, request_id: &str) -> Result<Value> {
        self.call(Method::GET, &format!("/_emberbox/events/{name}/{request_id}"), None).await
    }

    async fn wait_ready(&mut self, name: &str) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let path = format!("/2015-03-31/functions/{name}/configuration");
            let state = self.call(Method::GET, &path, None).await?;
            match (state["State"].as_str(), state["LastUpdateStatus"].as_str()) {
                (Some("Active"), None | Some("Successful")) => return Ok(()),
                (Some("Failed"), _) | (_, Some("Failed")) => bail!("function {name} failed: {state}"),
                _ if Instant::now() > deadline => bail!("function {name} was not ready within {READY:?}: {state}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn call(&mut self, method: Method, path: &str, request: Option<Value>) -> Result<Value> {
        let body = request.map_or_else(Vec::new, |r| r.to_string().into_bytes());
        let (parts, body) = self.api.send(method.clone(), path, body.into()).await?;
        let text = String::from_utf8_lossy(&body);
        ensure!(parts.status.is_success(), "{method} {path}: {} {text}", parts.status);
        if parts.status == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).with_context(|| format!("{method} {path}: no JSON: {text}"))
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// The end of its log, for an error.
    pub fn log_tail(&self) -> String {
        let log = self.data.log();
        log.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// An empty data directory that shares the installed runtimes, with a configuration. Removed when it is dropped.
pub struct DataDir(TempDir);

impl DataDir {
    /// With more sections of configuration.
    pub fn new(setup: &Setup, sections: &str) -> Result<Self> {
        // Where files outlive a reboot: what is below /tmp may be memory, which would flatter the event queue.
        let data = TempDir::with_prefix_in("emberbox-bench-", "/var/tmp").context("make a data directory")?;
        for shared in ["runtimes", "roots"] {
            let installed = std::path::absolute(setup.runtimes.join(shared))?;
            fs::create_dir_all(&installed).with_context(|| format!("make {}", installed.display()))?;
            std::os::unix::fs::symlink(&installed, data.path().join(shared)).context("share the installed runtimes")?;
        }
        let data = Self(data);
        fs::write(data.config(), format!("{CONFIG}{sections}")).context("write the configuration")?;
        Ok(data)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The configuration.
    pub fn config(&self) -> PathBuf {
        self.path().join("emberbox.toml")
    }

    /// For what the server writes, as [`Self::log`] has it.
    pub fn log_file(&self) -> Result<fs::File> {
        fs::File::create(self.path().join("serve.log")).context("make a log file")
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("serve.log")).unwrap_or_default()
    }
}

/// What is deployed.
pub struct Package {
    runtime: String,
    handler: String,
    zip: Vec<u8>,
}

impl Package {
    /// The Rust echo function.
    pub fn rust(bootstrap: &Path) -> Result<Self> {
        let program = fs::read(bootstrap)
            .with_context(|| format!("read {}; `cargo xtask bench` builds it", bootstrap.display()))?;
        Self::new("provided.al2023", "bootstrap", "bootstrap", &program)
    }

    /// This program, which is a function too: see [`crate::function`].
    pub fn own() -> Result<Self> {
        Self::rust(&std::env::current_exe().context("find this program")?)
    }

    /// The Python echo function.
    pub fn python(runtime: &str) -> Result<Self> {
        Self::new(runtime, PYTHON_HANDLER, "echo.py", PYTHON_ECHO.as_bytes())
    }

    fn new(runtime: &str, handler: &str, file: &str, content: &[u8]) -> Result<Self> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file(file, SimpleFileOptions::default().unix_permissions(0o755))?;
        zip.write_all(content)?;
        Ok(Self { runtime: runtime.into(), handler: handler.into(), zip: zip.finish()?.into_inner() })
    }
}

/// Names [`PYTHON_ECHO`]'s function.
pub const PYTHON_HANDLER: &str = "echo.handler";
/// The same file for Emberbox and for AWS's emulator.
pub const PYTHON_ECHO: &str = "def handler(event, context):\n    return event\n";

/// What Emberbox installed for the runtime: its interpreter and AWS's runtime client, run outside of any sandbox.
pub struct Python {
    /// The copy that sandboxes run; it finds its standard library beside itself.
    pub interpreter: PathBuf,
    /// Folder that holds `awslambdaric`.
    pub client: PathBuf,
}

impl Python {
    /// Finds both. Call after a function of this runtime ran: they are installed on first use.
    pub fn find(setup: &Setup) -> Result<Self> {
        let installed = std::path::absolute(setup.runtimes.join("runtimes"))?;
        let prefix = format!("{}-", setup.python);
        let folders = fs::read_dir(&installed).with_context(|| format!("list {}", installed.display()))?;
        let newest = folders
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok())
            .with_context(|| format!("{} is not installed in {}", setup.python, installed.display()))?
            .path();
        let python = Self { interpreter: newest.join("lang/bin").join(&setup.python), client: newest.join("runtime") };
        ensure!(python.interpreter.is_file(), "{} is missing", python.interpreter.display());
        ensure!(python.client.join("awslambdaric").is_dir(), "{} has no awslambdaric", python.client.display());
        Ok(python)
    }
}
