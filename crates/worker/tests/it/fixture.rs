//! A worker with a function in it, and the requests to it.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{
    AccountId, CodeRef, FunctionArn, FunctionVersion, InitDone, InitRequest, InvokeOutcome, InvokeRequest, LogFormat,
    LogType, LoggingSettings, RequestId, RetireReason, SandboxId, SlotEvents, SystemClock, VersionKey, Worker as _,
    WorkerError,
};
use runtimes::{Bootstrap, RuntimeImage};
use tempfile::TempDir;
use uuid::Uuid;
use worker::logs::{Filter, GroupId, LogConfig, LogStore};
use worker::metrics::Metrics;
use worker::sources::{NoImages, PackageSource, RuntimeSource, Sources, Unpacked};
use worker::{Config, Service};

use crate::engine::{Observed, PlainEngine};

/// A small runtime client for tests in Python: `next()`, `answer()`, `fail()`, `call()`.
const CLIENT: &str = r#"#!/usr/bin/env python3
import http.client, json, os, sys, time, signal
sys.stdout.reconfigure(line_buffering=True)
api = os.environ["AWS_LAMBDA_RUNTIME_API"]
conn = http.client.HTTPConnection(api)
def call(method, path, body=None, headers={}, conn=None):
    conn = conn or globals()["conn"]
    conn.request(method, path, body, headers)
    r = conn.getresponse()
    return r.status, {k.lower(): v for k, v in r.getheaders()}, r.read()
def next():
    status, headers, body = call("GET", "/2018-06-01/runtime/invocation/next")
    assert status == 200, (status, body)
    return headers["lambda-runtime-aws-request-id"], headers, body
def answer(id, body, headers={}):
    return call("POST", f"/2018-06-01/runtime/invocation/{id}/response", body, headers)
def fail(id, body, kind="Function.Error"):
    return call("POST", f"/2018-06-01/runtime/invocation/{id}/error", body, {"Lambda-Runtime-Function-Error-Type": kind})
def fresh():
    return http.client.HTTPConnection(api)
class Extension:
    def __init__(self, name, events):
        self.conn = http.client.HTTPConnection(api)
        status, headers, body = call("POST", "/2020-01-01/extension/register", json.dumps({"events": events}), {"Lambda-Extension-Name": name}, self.conn)
        assert status == 200, (status, body)
        self.id = headers["lambda-extension-identifier"]
        self.registered = json.loads(body)
    def next(self):
        status, headers, body = call("GET", "/2020-01-01/extension/event/next", None, {"Lambda-Extension-Identifier": self.id}, self.conn)
        assert status == 200, (status, body)
        return json.loads(body)
"#;

/// What the manager was told.
#[derive(Default)]
pub struct Told {
    all: Mutex<Vec<&'static str>>,
    changed: tokio::sync::Notify,
}

impl Told {
    pub fn all(&self) -> Vec<&'static str> {
        self.all.lock().unwrap().clone()
    }

    fn add(&self, what: &'static str) {
        self.all.lock().unwrap().push(what);
        self.changed.notify_waiters();
    }

    pub fn count(&self, what: &str) -> usize {
        self.all().iter().filter(|w| **w == what).count()
    }
}

impl SlotEvents for Told {
    fn answered(&self, _: SandboxId) {
        self.add("answered");
    }

    fn idle(&self, _: SandboxId) {
        self.add("idle");
    }

    fn dead(&self, _: SandboxId, _: RetireReason) {
        self.add("dead");
    }
}

#[derive(Default)]
struct Directories(HashMap<String, PathBuf>);

#[async_trait]
impl PackageSource for Directories {
    async fn unpacked(&self, code: &CodeRef) -> Result<Unpacked, WorkerError> {
        let path = self.0.get(&code.sha256).cloned().ok_or_else(|| WorkerError::Package(code.sha256.clone()))?;
        Ok(Unpacked { path, cached: true })
    }

    fn is_unpacked(&self, sha256: &str) -> bool {
        self.0.contains_key(sha256)
    }
}

struct HostImage(Arc<RuntimeImage>);

#[async_trait]
impl RuntimeSource for HostImage {
    async fn runtime(&self, name: &str) -> Result<Arc<RuntimeImage>, WorkerError> {
        match name {
            "provided.al2023" => Ok(self.0.clone()),
            other => Err(WorkerError::Runtime(other.to_owned())),
        }
    }
}

/// What a test wants to be different.
pub struct Setup {
    pub timeout: Duration,
    pub init_limit: Duration,
    pub environment: BTreeMap<String, String>,
    pub extensions: Vec<(&'static str, String)>,
    pub json: bool,
    pub endpoint_url: Option<String>,
    pub freeze_after: Duration,
    pub slots: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            init_limit: Duration::from_secs(10),
            environment: BTreeMap::new(),
            extensions: Vec::new(),
            json: false,
            endpoint_url: None,
            freeze_after: Duration::from_millis(20),
            slots: Config::default().slots,
        }
    }
}

pub struct Fixture {
    pub service: Service,
    pub version: Arc<FunctionVersion>,
    pub told: Arc<Told>,
    pub observed: Arc<Observed>,
    pub logs: LogStore,
    pub sandbox: SandboxId,
    /// Deleted with the fixture.
    _dir: TempDir,
}

fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A script in Python with the client in front.
pub fn python(body: &str) -> String {
    format!("{CLIENT}\n{body}\n")
}

impl Fixture {
    /// A worker and a function whose bootstrap is `code`; not yet initialised.
    pub fn new(code: &str, setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let task = dir.path().join("task");
        std::fs::create_dir_all(&task).unwrap();
        if !code.is_empty() {
            script(&task.join("bootstrap"), code);
        }
        let layer = dir.path().join("layer");
        std::fs::create_dir_all(&layer).unwrap();
        for (name, text) in &setup.extensions {
            script(&layer.join("extensions").join(name), text);
        }
        let code = |sha256: &str| CodeRef { sha256: sha256.into(), size: 1, image: None };
        let packages = HashMap::from([("task".to_owned(), task), ("layer".to_owned(), layer)]);
        let image = RuntimeImage {
            name: "provided.al2023".into(),
            root: dir.path().join("root"),
            mounts: Vec::new(),
            bootstrap: Bootstrap::Search(vec!["/var/task/bootstrap".into(), "/opt/bootstrap".into()]),
            standby: false,
            env: Vec::new(),
            execution_env: None,
            version: "provided:al2023.v1".into(),
            version_arn_hash: "0".repeat(64),
        };
        let config = Config {
            init_limit: setup.init_limit,
            freeze_after: setup.freeze_after,
            slots: setup.slots,
            shared: true,
            layers_dir: dir.path().join("layers"),
            endpoint_url: setup.endpoint_url,
            ..Config::default()
        };
        let logs = LogStore::open(LogConfig::new(dir.path().join("logs"))).unwrap();
        let observed = Arc::new(Observed::default());
        let service = Service::new(
            config,
            Arc::new(PlainEngine { observed: observed.clone() }),
            Sources {
                packages: Arc::new(Directories(packages)),
                runtimes: Arc::new(HostImage(image.into())),
                images: Arc::new(NoImages),
            },
            Arc::new(SystemClock::default()),
            Metrics::default(),
            logs.clone(),
        )
        .unwrap();
        let told = Arc::new(Told::default());
        service.connect(told.clone());
        let version = FunctionVersion {
            key: VersionKey("k".into()),
            account: AccountId::local(),
            region: "us-east-1".into(),
            name: "f".into(),
            version: "$LATEST".into(),
            arn: FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() },
            runtime: "provided.al2023".into(),
            handler: "index.handler".into(),
            code: code("task"),
            image_config: Default::default(),
            layers: if setup.extensions.is_empty() { Vec::new() } else { vec![code("layer")] },
            memory_mb: 128,
            timeout: setup.timeout,
            ephemeral_mb: 512,
            environment: setup.environment,
            logging: LoggingSettings {
                format: if setup.json { LogFormat::Json } else { LogFormat::Text },
                application_level: None,
                system_level: None,
                group: "/aws/lambda/f".into(),
            },
            tracing_active: false,
            snap_start: false,
        };
        let sandbox = SandboxId(Uuid::new_v4());
        Self { service, version: Arc::new(version), told, observed, logs, sandbox, _dir: dir }
    }

    pub async fn init(&self) -> InitDone {
        self.try_init().await.unwrap()
    }

    pub async fn try_init(&self) -> Result<InitDone, WorkerError> {
        self.service.init(InitRequest { sandbox: self.sandbox, version: self.version.clone() }).await
    }

    pub fn request(&self, payload: &str, log_type: LogType) -> InvokeRequest {
        InvokeRequest {
            request_id: RequestId(Uuid::new_v4()),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            invoked_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".into(),
            client_context: None,
            trace_id: "Root=1-5e1b4151-5ac6c58f5b5daa6532f53f15;Parent=0;Sampled=0".into(),
            log_type,
        }
    }

    pub async fn invoke(&self, payload: &str) -> InvokeOutcome {
        self.service.invoke(self.sandbox, self.request(payload, LogType::None)).await.unwrap()
    }

    pub async fn invoke_tail(&self, payload: &str) -> (InvokeOutcome, String) {
        let outcome = self.service.invoke(self.sandbox, self.request(payload, LogType::Tail)).await.unwrap();
        let tail = String::from_utf8(outcome.log_tail.clone().expect("a tail").to_vec()).unwrap();
        (outcome, tail)
    }

    /// Waits until the manager was told `what` `times` times.
    pub async fn wait_told(&self, what: &str, times: usize) {
        let told = async {
            loop {
                let changed = self.told.changed.notified();
                if self.told.count(what) >= times {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told).await.unwrap_or_else(|_| panic!("{what} × {times}"));
    }

    /// All lines of the function's log. Only complete after a shutdown or a tail: else see [`Fixture::wait_log`].
    pub async fn log(&self) -> Vec<String> {
        self.logs.flush().await;
        let group = GroupId { account: AccountId::local(), region: "us-east-1".into(), group: "/aws/lambda/f".into() };
        let mut filter = Filter::default();
        let mut lines = Vec::new();
        loop {
            let page = self.logs.events(&group, filter.clone()).await.unwrap();
            lines.extend(page.events.into_iter().map(|event| event.message));
            if !page.more {
                return lines;
            }
            filter.from = Some(page.next);
        }
    }

    /// Waits until a line of the function's log contains `text`.
    pub async fn wait_log(&self, text: &str) {
        for _ in 0..500 {
            if self.log().await.iter().any(|line| line.contains(text)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no line contains {text:?}: {:#?}", self.log().await);
    }

    pub async fn shutdown(&self) {
        self.service.shutdown(self.sandbox, RetireReason::Spindown).await;
    }
}

/// Waits until a condition holds.
pub async fn wait(mut condition: impl FnMut() -> bool, what: &str) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("did not come to pass: {what}");
}

pub fn text(outcome: &InvokeOutcome) -> &str {
    std::str::from_utf8(&outcome.payload).unwrap()
}

pub fn json(outcome: &InvokeOutcome) -> serde_json::Value {
    serde_json::from_slice(&outcome.payload).unwrap()
}
