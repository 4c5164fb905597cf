//! SnapStart with everything real: microVMs with guests (by software emulation), and Python with AWS's runtime client and its
//! hooks; from Init to the snapshot, and from that to invocations. No engine can restore a machine here, so the one that is
//! restored is the one that was kept (feature `in-place` of the sandbox crate).
//!
//! Needs root, QEMU, `vhost-device-vsock` and a guest kernel, and PyPI on the first run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{
    AccountId, CodeRef, FunctionArn, FunctionVersion, InitRequest, InvokeRequest, LogFormat, LogType, LoggingSettings,
    RequestId, RetireReason, SandboxId, Step, SystemClock, VersionKey, Worker as _, WorkerError,
};
use libtest_mimic::{Arguments, Failed, Trial};
use sandbox::SandboxEngine as _;
use sandbox::microvm::{Accel, MicrovmConfig, MicrovmEngine};
use serde_json::{Value, json};
use uuid::Uuid;
use worker::logs::{GroupId, LogConfig, LogStore};
use worker::metrics::Metrics;
use worker::sources::{NoImages, PackageSource, Sources, Unpacked};
use worker::{Config, Service};

const RUNTIME: &str = "python3.11";

const CODE: &str = r#"
import os, time
from snapshot_restore_py import register_after_restore, register_before_snapshot
seen = ["import"]
open("/tmp/note", "w").write("of the Init")
@register_before_snapshot
def before():
    print("before the snapshot")
    seen.append("before")
register_after_restore(seen.append, "after")
def handler(event, context):
    return {
        "seen": seen, "note": open("/tmp/note").read(), "time": time.time(), "random": os.urandom(8).hex(),
        "type": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
    }
"#;

fn main() {
    sandbox::process::maybe_run_helper();
    let trial = Trial::test("a_version_is_kept_and_restored", || {
        if let Some(missing) = missing() {
            let text = format!("SKIPPED a_version_is_kept_and_restored: needs {missing}");
            if std::env::var_os("EMBERBOX_REQUIRE_ALL").is_some() {
                return Err(Failed::from(text));
            }
            eprintln!("{text}");
            return Ok(());
        }
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(400), kept_and_restored()).await })?;
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit()
}

fn kernel() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest-kernel/vmlinux");
    std::env::var_os("EMBERBOX_TEST_KERNEL").map_or(built, PathBuf::from)
}

/// Where `cargo xtask` installs it, if it did.
fn vsock_device() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin/vhost-device-vsock");
    installed.exists().then_some(installed)
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    if !kernel().exists() {
        return Some(format!("a guest kernel at {} or in EMBERBOX_TEST_KERNEL", kernel().display()));
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let there = |program: &str| path.split(':').any(|place| Path::new(place).join(program).exists());
    let mut programs = vec!["qemu-system-x86_64", "mksquashfs", "mkfs.ext4"];
    if vsock_device().is_none() {
        programs.push("vhost-device-vsock");
    }
    let absent = programs.into_iter().find(|program| !there(program)).map(|program| format!("the program {program}"));
    absent.or_else(|| open_runtimes().check(RUNTIME).err())
}

fn open_runtimes() -> runtimes::Runtimes {
    let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worker-runtimes");
    std::fs::create_dir_all(&data_dir).unwrap();
    runtimes::Runtimes::open(runtimes::Config { data_dir, ..runtimes::Config::default() }).unwrap()
}

/// One package.
struct Task(PathBuf);

#[async_trait]
impl PackageSource for Task {
    async fn unpacked(&self, _: &CodeRef) -> Result<Unpacked, WorkerError> {
        Ok(Unpacked { path: self.0.clone(), cached: true })
    }

    fn is_unpacked(&self, _: &str) -> bool {
        true
    }
}

fn version() -> Arc<FunctionVersion> {
    Arc::new(FunctionVersion {
        key: VersionKey("000000000000:us-east-1:f:1:x".into()),
        account: AccountId::local(),
        region: "us-east-1".into(),
        name: "f".into(),
        version: "1".into(),
        arn: FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() },
        runtime: RUNTIME.into(),
        handler: "index.handler".into(),
        code: CodeRef { sha256: "task".into(), size: 1, image: None },
        image_config: Default::default(),
        layers: Vec::new(),
        memory_mb: 256,
        timeout: Duration::from_secs(60),
        ephemeral_mb: 512,
        environment: BTreeMap::new(),
        logging: LoggingSettings {
            format: LogFormat::Text,
            application_level: None,
            system_level: None,
            group: "/aws/lambda/f".into(),
        },
        tracing_active: false,
        snap_start: true,
    })
}

struct Fixture {
    service: Service,
    logs: LogStore,
}

impl Fixture {
    /// Where its sandbox came from.
    async fn init(&self) -> (SandboxId, String) {
        let sandbox = SandboxId(Uuid::new_v4());
        let done = self.service.init(InitRequest { sandbox, version: version() }).await.unwrap();
        let created = done.timeline.marks.iter().find(|mark| mark.step == Step::SandboxCreated).unwrap();
        (sandbox, created.note.to_string())
    }

    async fn invoke(&self, sandbox: SandboxId) -> (Value, String) {
        let request = InvokeRequest {
            request_id: RequestId(Uuid::new_v4()),
            payload: Bytes::from_static(b"{}"),
            invoked_arn: "arn:aws:lambda:us-east-1:000000000000:function:f:1".into(),
            client_context: None,
            trace_id: "Root=1-5e1b4151-5ac6c58f5b5daa6532f53f15;Parent=0;Sampled=0".into(),
            log_type: LogType::Tail,
        };
        let outcome = self.service.invoke(sandbox, request).await.unwrap();
        let tail = String::from_utf8_lossy(outcome.log_tail.as_deref().unwrap()).into_owned();
        assert_eq!(outcome.function_error, None, "{tail}");
        (serde_json::from_slice(&outcome.payload).unwrap(), tail)
    }
}

async fn kept_and_restored() {
    let directory = tempfile::tempdir().unwrap();
    let task = directory.path().join("task");
    std::fs::create_dir(&task).unwrap();
    std::fs::write(task.join("index.py"), CODE).unwrap();
    let runtimes = open_runtimes();
    runtimes.ensure(RUNTIME, &runtimes::Silent).await.unwrap();
    let config = MicrovmConfig {
        vsock_device: vsock_device(),
        ..MicrovmConfig::new(directory.path().join("state"), kernel(), Accel::Tcg)
    };
    let engine = Arc::new(MicrovmEngine::start_in_place(config).unwrap());
    let logs = LogStore::open(LogConfig::new(directory.path().join("logs"))).unwrap();
    let snapshots = directory.path().join("snapshots");
    // All in software, on a busy host.
    let slow = Duration::from_secs(120);
    let config = Config {
        layers_dir: directory.path().join("layers"),
        snapshots_dir: Some(snapshots.clone()),
        init_limit: slow,
        restore_limit: slow,
        ..Config::default()
    };
    let sources = Sources { packages: Arc::new(Task(task)), runtimes: Arc::new(runtimes), images: Arc::new(NoImages) };
    let clock = Arc::new(SystemClock::default());
    let service = Service::new(config, engine.clone(), sources, clock, Metrics::default(), logs.clone()).unwrap();
    let f = Fixture { service, logs };

    f.service.snapshot(version()).await.unwrap();
    assert_eq!(f.service.report().slots_used, 0, "the sandbox that was kept is gone");
    let names: Vec<_> = std::fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["000000000000:us-east-1:f:1:x"]);

    let (restored, from) = f.init().await;
    assert_eq!(from, "restored");
    let (answer, tail) = f.invoke(restored).await;
    assert_eq!(answer["seen"], json!(["import", "before", "after"]));
    assert_eq!((&answer["note"], &answer["type"]), (&json!("of the Init"), &json!("snap-start")));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - answer["time"].as_f64().unwrap()).abs() < 30.0, "{answer}, and it is {now}");
    assert!(tail.contains("\tRestore Duration: ") && !tail.contains("Init Duration"), "{tail}");
    let (_, tail) = f.invoke(restored).await;
    assert!(!tail.contains("Restore Duration"), "{tail}");
    f.service.shutdown(restored, RetireReason::Spindown).await;

    // A snapshot that cannot be restored is no reason not to serve: this engine's can be once.
    let (fresh, from) = f.init().await;
    assert_eq!(from, "");
    let (answer, _) = f.invoke(fresh).await;
    assert_eq!((&answer["seen"], &answer["type"]), (&json!(["import"]), &json!("on-demand")));
    f.service.shutdown(fresh, RetireReason::Spindown).await;

    f.service.forget(&version().key).await.unwrap();
    assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 0);
    f.logs.flush().await;
    let group = GroupId { account: AccountId::local(), region: "us-east-1".into(), group: "/aws/lambda/f".into() };
    let log: Vec<String> =
        f.logs.events(&group, Default::default()).await.unwrap().events.into_iter().map(|e| e.message).collect();
    for text in
        ["before the snapshot", "INIT_REPORT Init Duration: ", "RESTORE_START ", "RESTORE_REPORT Restore Duration: "]
    {
        assert_eq!(log.iter().filter(|line| line.starts_with(text)).count(), 1, "{text}: {log:?}");
    }
    engine.stop().await;
}
