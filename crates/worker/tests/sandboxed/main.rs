//! The worker with everything real: process sandboxes, and Python with AWS's runtime client from the catalog.
//!
//! Needs root, and PyPI on the first run; the installed runtime is kept below `target/`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{
    AccountId, CodeRef, FunctionArn, FunctionVersion, InitDone, InitRequest, InvokeOutcome, InvokeRequest, LogFormat,
    LogType, LoggingSettings, RequestId, RetireReason, SandboxId, SnapshotError, SystemClock, VersionKey, Worker as _,
    WorkerError,
};
use libtest_mimic::{Arguments, Failed, Trial};
use sandbox::SandboxEngine as _;
use sandbox::process::{ProcessConfig, ProcessEngine};
use serde_json::{Value, json};
use uuid::Uuid;
use worker::logs::{LogConfig, LogStore};
use worker::metrics::Metrics;
use worker::sources::{NoImages, PackageSource, Sources, Unpacked};
use worker::{Config, Service};

const RUNTIME: &str = "python3.11";

const CODE: &str = r#"
import json, os, time, sys, urllib.request
starts = 1
if os.path.exists("/tmp/starts"):
    starts = int(open("/tmp/starts").read()) + 1
open("/tmp/starts", "w").write(str(starts))
if os.environ.get("FAIL_INIT") and starts < 3:
    raise ValueError("not yet")
hooks = os.environ.get("HOOKS")
seen = ["import"]
if hooks:
    from snapshot_restore_py import register_after_restore, register_before_snapshot
    @register_before_snapshot
    def before():
        print("before the snapshot")
        seen.append("before")
        if hooks == "before fails":
            raise ValueError("not to be kept")
    def after(word):
        seen.append(word)
        if hooks == "after fails":
            raise ValueError("not to be restored")
        if hooks == "after hangs":
            time.sleep(60)
    register_after_restore(after, "after")
def handler(event, context):
    what = event.get("do")
    if what == "hooks":
        names = ["AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_LAMBDA_LOG_STREAM_NAME"]
        return {"seen": seen, "env": [os.environ.get(name) for name in names]}
    if what == "raise":
        raise KeyError("nothing there")
    if what == "sleep":
        print("going to sleep")
        time.sleep(60)
    if what == "exit":
        os._exit(3)
    if what == "memory":
        hog = bytearray()
        while True:
            hog += b"x" * (16 << 20)
    if what == "print":
        print("héllo from", context.function_name, context.memory_limit_in_mb)
    if what == "get":
        url = os.environ["AWS_ENDPOINT_URL"]
        return urllib.request.urlopen(url).read().decode()
    if what == "ticks":
        return {"monotonic": time.monotonic()}
    return {"event": event, "starts": starts, "left": context.get_remaining_time_in_millis(), "arn": context.invoked_function_arn, "id": context.aws_request_id}
"#;

fn main() {
    sandbox::process::maybe_run_helper();
    let arguments = Arguments::from_args();
    let missing = if !rustix::process::geteuid().is_root() {
        Some("root".to_owned())
    } else {
        open_runtimes().check(RUNTIME).err()
    };
    let trials = match missing {
        None => trials(),
        Some(missing) => {
            let text = format!("SKIPPED sandboxed: needs {missing}");
            assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{text}");
            eprintln!("{text}");
            Vec::new()
        }
    };
    libtest_mimic::run(&arguments, trials).exit()
}

fn trials() -> Vec<Trial> {
    fn trial<F: Future<Output = ()> + 'static>(name: &str, setup: Setup, test: fn(Fixture) -> F) -> Trial {
        Trial::test(name, move || {
            let runtime = tokio::runtime::Runtime::new().map_err(Failed::from)?;
            runtime.block_on(async { test(Fixture::new(setup).await).await });
            Ok(())
        })
    }
    let setup = Setup::default;
    vec![
        trial("python_cold_and_warm", setup(), python_cold_and_warm),
        trial("errors_of_the_handler", setup(), errors_of_the_handler),
        trial("timeout_keeps_tmp", Setup { timeout: Duration::from_secs(4), ..setup() }, timeout_keeps_tmp),
        trial("exit_and_out_of_memory", setup(), exit_and_out_of_memory),
        trial("failed_init", Setup { env: &[("FAIL_INIT", "1")], ..setup() }, failed_init),
        trial(
            "missing_wrapper",
            Setup { env: &[("AWS_LAMBDA_EXEC_WRAPPER", "/opt/none")], ..setup() },
            missing_wrapper,
        ),
        trial("endpoint", Setup { endpoint: true, ..setup() }, endpoint),
        trial("frozen", setup(), frozen),
        trial("snap_start", Setup { env: &[("HOOKS", "work")], ..setup() }, snap_start),
        trial("snap_start_without_hooks", setup(), snap_start_without_hooks),
        trial("a_hook_before_the_snapshot_fails", Setup { env: &[("HOOKS", "before fails")], ..setup() }, before_fails),
        trial("a_hook_after_the_restore_fails", Setup { env: &[("HOOKS", "after fails")], ..setup() }, after_fails),
        trial("a_hook_after_the_restore_hangs", Setup { env: &[("HOOKS", "after hangs")], ..setup() }, after_hangs),
        trial("extension_in_merged_layers", Setup { layers: true, ..setup() }, extension_in_merged_layers),
    ]
}

async fn python_cold_and_warm(f: Fixture) {
    let began = Instant::now();
    let done = f.init().await;
    println!("Init {:?}: {:?}", began.elapsed(), done.timeline.marks);
    let request = f.request(&json!({"a": 1}), LogType::None);
    let outcome = f.service.invoke(f.sandbox, request.clone()).await.unwrap();
    let answer = parse(&outcome);
    assert_eq!(answer["event"], json!({"a": 1}));
    assert_eq!(answer["arn"], request.invoked_arn);
    assert_eq!(answer["id"], request.request_id.to_string());
    assert!((5000..=10_000).contains(&answer["left"].as_i64().unwrap()), "{answer}");
    let mut times = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        let (outcome, _) = f.tail(json!({})).await;
        times.push(began.elapsed());
        assert_eq!(outcome.function_error, None);
    }
    times.sort();
    println!("warm with tail: median {:?}", times[25]);
    let (_, tail) = f.tail(json!({"do": "print"})).await;
    assert!(tail.contains("héllo from f 256\n"), "{tail}");
    let used: u64 = tail.split("Max Memory Used: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((5..256).contains(&used), "{tail}");
    f.end().await;
}

async fn errors_of_the_handler(f: Fixture) {
    f.init().await;
    let (outcome, tail) = f.tail(json!({"do": "raise"})).await;
    assert_eq!(outcome.function_error, Some("Unhandled"));
    assert_eq!(parse(&outcome)["errorType"], "KeyError");
    assert!(tail.contains("[ERROR] KeyError"), "{tail}");
    let log = f.log().await;
    let traceback = log.iter().find(|l| l.starts_with("[ERROR] KeyError")).expect("the error in the log");
    assert!(
        traceback.contains("Traceback (most recent call last):\n") && traceback.contains("index.py"),
        "{traceback}"
    );
    f.end().await;
}

async fn timeout_keeps_tmp(f: Fixture) {
    f.init().await;
    let (outcome, tail) = f.tail(json!({"do": "sleep"})).await;
    assert_eq!(parse(&outcome)["errorType"], "Sandbox.Timedout");
    assert!(tail.contains("going to sleep\n") && tail.contains("Status: timeout"), "{tail}");
    let answer = f.eventually(json!({})).await;
    assert_eq!(answer["starts"], 2, "{answer}");
    f.end().await;
}

async fn exit_and_out_of_memory(f: Fixture) {
    f.init().await;
    let (outcome, _) = f.tail(json!({"do": "exit"})).await;
    let message = parse(&outcome)["errorMessage"].as_str().unwrap().to_owned();
    assert!(message.ends_with("Runtime exited with error: exit status 3"), "{message}");
    assert_eq!(f.eventually(json!({})).await["starts"], 2);
    let (outcome, tail) = f.tail(json!({"do": "memory"})).await;
    assert_eq!(parse(&outcome)["errorType"], "Runtime.OutOfMemory", "{tail}");
    assert!(tail.contains("Max Memory Used: 256 MB"), "{tail}");
    assert_eq!(f.eventually(json!({})).await["starts"], 3);
    f.end().await;
}

async fn failed_init(f: Fixture) {
    let done = f.init().await;
    let note = &done.timeline.marks.last().unwrap().note;
    assert!(note.starts_with("failed: Runtime."), "{note}");
    let outcome = f.service.invoke(f.sandbox, f.request(&json!({}), LogType::None)).await.unwrap();
    assert_eq!(parse(&outcome)["errorType"], "ValueError", "{:?}", outcome.payload);
    assert_eq!(f.eventually(json!({})).await["starts"], 3);
    f.end().await;
}

async fn missing_wrapper(f: Fixture) {
    f.init().await;
    let (outcome, _) = f.tail(json!({})).await;
    let answer = parse(&outcome);
    assert_eq!(answer["errorType"], "Runtime.ExitError");
    assert!(
        answer["errorMessage"].as_str().unwrap().ends_with("Runtime exited with error: exit status 127"),
        "{answer}"
    );
    f.end().await;
}

async fn endpoint(f: Fixture) {
    f.init().await;
    let (outcome, _) = f.tail(json!({"do": "get"})).await;
    assert_eq!(parse(&outcome), "hi", "{:?}", outcome.payload);
    f.end().await;
}

/// AWS's runtime client and its hooks, to where a snapshot is taken and on from there.
async fn snap_start(f: Fixture) {
    f.service.init_in_place(f.init_request()).await.unwrap();
    let (outcome, tail) = f.tail(json!({"do": "hooks"})).await;
    assert_eq!(parse(&outcome), json!({"seen": ["import", "before", "after"], "env": ["snap-start", null]}));
    assert!(tail.contains("\tRestore Duration: ") && tail.contains(" ms\tBilled Restore Duration: "), "{tail}");
    assert!(!tail.contains("Init Duration"), "{tail}");
    let log = f.log().await;
    let at =
        |text: &str| log.iter().position(|line| line.starts_with(text)).unwrap_or_else(|| panic!("{text}: {log:?}"));
    let order = [
        "INIT_START Runtime Version: ",
        "before the snapshot",
        "INIT_REPORT Init Duration: ",
        "RESTORE_START Runtime Version: ",
        "RESTORE_REPORT Restore Duration: ",
        "START RequestId: ",
    ];
    assert!(order.map(at).is_sorted(), "{log:?}");
    let (_, tail) = f.tail(json!({})).await;
    assert!(!tail.contains("Restore Duration"), "only the first: {tail}");
    f.end().await;
}

async fn snap_start_without_hooks(f: Fixture) {
    f.service.init_in_place(f.init_request()).await.unwrap();
    let (outcome, _) = f.tail(json!({"do": "hooks"})).await;
    assert_eq!(parse(&outcome)["seen"], json!(["import"]));
    // What was kept is not reset: the next sandbox is restored anew.
    f.tail(json!({"do": "exit"})).await;
    f.gone().await;
    let gone = f.service.invoke(f.sandbox, f.request(&json!({}), LogType::None)).await;
    assert!(matches!(gone, Err(WorkerError::Gone(_))), "{gone:?}");
    f.engine.stop().await;
}

async fn before_fails(f: Fixture) {
    let failed = f.service.init_in_place(f.init_request()).await;
    let Err(SnapshotError::Init { kind, message }) = failed else { panic!("{failed:?}") };
    assert_eq!((kind.as_str(), message.as_str()), ("Runtime.BeforeSnapshotError", "not to be kept"));
    assert_eq!(f.service.report().slots_used, 0, "nothing is left");
    // On a host that cannot keep sandboxes nothing is tried in vain.
    let refused = f.service.snapshot(f.version.clone()).await;
    let words = "Process sandboxes cannot be kept in snapshots; microVMs on Firecracker can.";
    assert!(matches!(&refused, Err(SnapshotError::Unsupported(reason)) if reason == words), "{refused:?}");
    f.engine.stop().await;
}

async fn after_fails(f: Fixture) {
    let failed = f.service.init_in_place(f.init_request()).await;
    let Err(SnapshotError::Worker(WorkerError::Restore(words))) = failed else { panic!("{failed:?}") };
    assert_eq!(words, "Runtime.AfterRestoreError: not to be restored");
    f.gone().await;
    let log = f.log().await;
    let report = log.iter().find(|line| line.starts_with("RESTORE_REPORT")).unwrap();
    assert!(report.ends_with("\tStatus: error\tError Type: Runtime.AfterRestoreError"), "{report}");
    f.engine.stop().await;
}

async fn after_hangs(f: Fixture) {
    let failed = f.service.init_in_place(f.init_request()).await;
    let Err(SnapshotError::Worker(WorkerError::RestoreTimeout(words))) = failed else { panic!("{failed:?}") };
    assert_eq!(words, "The runtime did not ask for an invocation within 2 s of its restore.");
    f.engine.stop().await;
}

/// A frozen process does not run: its own clock of CPU time stands still, and it wakes for the next event.
async fn frozen(f: Fixture) {
    f.init().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let began = Instant::now();
        let (outcome, _) = f.tail(json!({"do": "ticks"})).await;
        println!("after a thaw: {:?}", began.elapsed());
        assert!(parse(&outcome)["monotonic"].is_f64());
    }
    f.end().await;
}

/// Two layers: one with an extension, one with a module that the handler's interpreter finds below `/opt/python`.
async fn extension_in_merged_layers(f: Fixture) {
    f.init().await;
    f.tail(json!({})).await;
    let (_, tail) = f.tail(json!({"do": "print"})).await;
    assert!(tail.contains("extension saw INVOKE"), "{tail}");
    let began = Instant::now();
    f.end().await;
    assert!(began.elapsed() < Duration::from_secs(2), "the extension ends when it is told to: {:?}", began.elapsed());
    let lines = f.log().await;
    assert!(lines.iter().any(|l| l == "extension saw SHUTDOWN spindown"), "{lines:#?}");
}

const EXTENSION: &str = r#"#!/var/lang/bin/python3.11
import http.client, json, os, sys
conn = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
name = open("/opt/name").read()
conn.request("POST", "/2020-01-01/extension/register", '{"events":["INVOKE","SHUTDOWN"]}', {"Lambda-Extension-Name": name})
response = conn.getresponse()
assert response.status == 200, response.read()
response.read()
id = response.headers["Lambda-Extension-Identifier"]
while True:
    conn.request("GET", "/2020-01-01/extension/event/next", headers={"Lambda-Extension-Identifier": id})
    event = json.loads(conn.getresponse().read())
    print("extension saw", event["eventType"], *([event["shutdownReason"]] if "shutdownReason" in event else []), flush=True)
    if event["eventType"] == "SHUTDOWN":
        break
"#;

#[derive(Clone, Default)]
struct Setup {
    timeout: Duration,
    env: &'static [(&'static str, &'static str)],
    endpoint: bool,
    layers: bool,
}

struct Fixture {
    service: Service,
    engine: Arc<ProcessEngine>,
    sandbox: SandboxId,
    version: Arc<FunctionVersion>,
    logs: LogStore,
    _dir: tempfile::TempDir,
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

fn parse(outcome: &InvokeOutcome) -> Value {
    serde_json::from_slice(&outcome.payload).unwrap()
}

fn open_runtimes() -> runtimes::Runtimes {
    let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worker-runtimes");
    std::fs::create_dir_all(&data_dir).unwrap();
    runtimes::Runtimes::open(runtimes::Config { data_dir, ..runtimes::Config::default() }).unwrap()
}

/// The runtime under test, installed once for all runs.
async fn runtimes() -> runtimes::Runtimes {
    let runtimes = open_runtimes();
    static INSTALLING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = INSTALLING.lock().await;
    runtimes.ensure(RUNTIME, &runtimes::Silent).await.unwrap();
    runtimes
}

impl Fixture {
    async fn new(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let task = dir.path().join("task");
        std::fs::create_dir(&task).unwrap();
        std::fs::write(task.join("index.py"), CODE).unwrap();
        let engine = ProcessEngine::start(ProcessConfig { pool: 1, ..ProcessConfig::new(dir.path().join("state")) });
        let engine = Arc::new(engine.await.unwrap());
        let mut endpoint_url = None;
        if setup.endpoint {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            endpoint_url = Some(format!("http://localhost:{}", listener.local_addr().unwrap().port()));
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
            });
        }
        let mut packages = HashMap::from([("task".to_owned(), task)]);
        let mut layers = Vec::new();
        if setup.layers {
            use std::os::unix::fs::PermissionsExt as _;
            let extension = dir.path().join("one/extensions/watcher");
            std::fs::create_dir_all(extension.parent().unwrap()).unwrap();
            std::fs::write(&extension, EXTENSION).unwrap();
            std::fs::set_permissions(&extension, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::create_dir(dir.path().join("two")).unwrap();
            std::fs::write(dir.path().join("two/name"), "watcher").unwrap();
            for name in ["one", "two"] {
                packages.insert(name.to_owned(), dir.path().join(name));
                layers.push(CodeRef { sha256: name.into(), size: 1, image: None });
            }
        }
        let logs = LogStore::open(LogConfig::new(dir.path().join("logs"))).unwrap();
        let service = Service::new(
            Config {
                endpoint_url,
                layers_dir: dir.path().join("layers"),
                restore_limit: Duration::from_secs(2),
                ..Config::default()
            },
            engine.clone(),
            Sources {
                packages: Arc::new(Directories(packages)),
                runtimes: Arc::new(runtimes().await),
                images: Arc::new(NoImages),
            },
            Arc::new(SystemClock::default()),
            Metrics::default(),
            logs.clone(),
        );
        let timeout = if setup.timeout.is_zero() { Duration::from_secs(10) } else { setup.timeout };
        let environment: BTreeMap<String, String> =
            setup.env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let version = FunctionVersion {
            key: VersionKey("k".into()),
            account: AccountId::local(),
            region: "us-east-1".into(),
            name: "f".into(),
            version: "$LATEST".into(),
            arn: FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() },
            runtime: RUNTIME.into(),
            handler: "index.handler".into(),
            code: CodeRef { sha256: "task".into(), size: 1, image: None },
            image_config: Default::default(),
            layers,
            memory_mb: 256,
            timeout,
            ephemeral_mb: 512,
            environment,
            logging: LoggingSettings {
                format: LogFormat::Text,
                application_level: None,
                system_level: None,
                group: "/aws/lambda/f".into(),
            },
            tracing_active: false,
            snap_start: false,
        };
        let sandbox = SandboxId(Uuid::new_v4());
        Self { service: service.unwrap(), engine, sandbox, version: version.into(), logs, _dir: dir }
    }

    fn init_request(&self) -> InitRequest {
        InitRequest { sandbox: self.sandbox, version: self.version.clone() }
    }

    async fn init(&self) -> InitDone {
        self.service.init(self.init_request()).await.unwrap()
    }

    fn request(&self, event: &Value, log_type: LogType) -> InvokeRequest {
        InvokeRequest {
            request_id: RequestId(Uuid::new_v4()),
            payload: Bytes::from(event.to_string()),
            invoked_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".into(),
            client_context: None,
            trace_id: "Root=1-5e1b4151-5ac6c58f5b5daa6532f53f15;Parent=0;Sampled=0".into(),
            log_type,
        }
    }

    async fn tail(&self, event: Value) -> (InvokeOutcome, String) {
        loop {
            match self.service.invoke(self.sandbox, self.request(&event, LogType::Tail)).await {
                Ok(outcome) => {
                    let tail = String::from_utf8_lossy(outcome.log_tail.as_deref().unwrap()).into_owned();
                    return (outcome, tail);
                }
                // These tests have no manager that waits for `idle`.
                Err(WorkerError::Busy(_)) => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits for the end of its sandbox, and with it of its log.
    async fn gone(&self) {
        while self.service.report().slots_used > 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn log(&self) -> Vec<String> {
        self.logs.flush().await;
        let group = worker::logs::GroupId {
            account: AccountId::local(),
            region: "us-east-1".into(),
            group: "/aws/lambda/f".into(),
        };
        let page = self.logs.events(&group, Default::default()).await.unwrap();
        page.events.into_iter().map(|e| e.message).collect()
    }

    async fn eventually(&self, event: Value) -> Value {
        let (outcome, tail) = self.tail(event).await;
        assert_eq!(outcome.function_error, None, "{tail}");
        parse(&outcome)
    }

    async fn end(&self) {
        self.service.shutdown(self.sandbox, RetireReason::Spindown).await;
        self.service.stop(Duration::from_secs(30)).await;
        self.engine.stop().await;
    }
}
