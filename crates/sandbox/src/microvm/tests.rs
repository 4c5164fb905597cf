//! What a hostile VM can do to the engine. The machine here is a thread that connects where a guest would, and then does
//! not keep to the protocol.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use guest::protocol::{Reply, Status};
use guest::vm::protocol::{self, CONTROL_PORT, LONGEST_ORDER, OUTPUT_PORT, Order, Used, VERSION, Word};
use tokio_util::sync::CancellationToken;

use super::machine::{Beside, Drive, Engine, Machine, VSOCK, Vm, no_snapshots};
use super::{Accel, MicrovmConfig, MicrovmEngine};
use crate::api::{Command, Sandbox, SandboxEngine, SandboxError, SandboxEvent, SandboxSpec};

/// What it does, with its directory and the control connection.
type Attack = fn(PathBuf, UnixStream);

struct Hostile(Attack);

struct Thread(CancellationToken);

#[async_trait]
impl Engine for Hostile {
    async fn boot(&self, vm: Vm) -> Result<Box<dyn Machine>, SandboxError> {
        let attack = self.0;
        std::thread::spawn(move || {
            let control = connect(&vm.directory, CONTROL_PORT);
            attack(vm.directory, control);
        });
        Ok(Box::new(Thread(CancellationToken::new())))
    }

    async fn restore(&self, vm: Vm, _: &Path) -> Result<Box<dyn Machine>, SandboxError> {
        Err(no_snapshots("a hostile one", vm.id))
    }

    fn exchanges_silently(&self) -> bool {
        true
    }

    fn snapshots(&self) -> Result<(), String> {
        Err("hostile".to_owned())
    }

    fn drive(&self, number: usize) -> String {
        number.to_string()
    }

    fn describe(&self) -> String {
        "hostile".to_owned()
    }
}

#[async_trait]
impl Machine for Thread {
    fn pause(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn resume(&self) -> std::io::Result<()> {
        Ok(())
    }

    async fn exchange(&self, _: Vec<Drive>, _: &Path) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn snapshot(&self, _: &Path, _: Beside) -> Result<(), SandboxError> {
        Ok(())
    }

    fn gives_back(&self) -> Option<Duration> {
        None
    }

    fn kill(&self) {
        self.0.cancel();
    }

    async fn ended(&self) {
        self.0.cancelled().await;
    }

    fn console(&self) -> String {
        "hostile words".to_owned()
    }
}

fn connect(directory: &Path, port: u32) -> UnixStream {
    UnixStream::connect(directory.join(format!("{VSOCK}_{port}"))).unwrap()
}

/// Keeps to the protocol until the sandbox is made.
fn begin(mut control: &UnixStream) {
    protocol::write(&mut control, &Word::Hello { version: VERSION }).unwrap();
    assert!(matches!(protocol::read(&mut control, LONGEST_ORDER).unwrap(), Order::Start(_)));
    protocol::write(&mut control, &Word::Reply(Ok(Reply::Done))).unwrap();
}

/// Until the host hangs up.
fn wait(mut control: &UnixStream) {
    let _ = control.read_to_end(&mut Vec::new());
}

struct Host {
    engine: MicrovmEngine,
    directory: tempfile::TempDir,
}

impl Host {
    /// `None`, said loudly, where images cannot be made.
    async fn start(attack: Attack) -> Option<Self> {
        Self::start_with(attack, 0).await
    }

    /// With this many VMs that wait.
    async fn start_with(attack: Attack, pool: usize) -> Option<Self> {
        let there = ["mksquashfs", "mkfs.ext4"]
            .iter()
            .all(|program| std::process::Command::new(program).arg("-version").output().is_ok());
        if !there {
            let skipped = "SKIPPED hostile microVMs: needs mksquashfs and mkfs.ext4";
            assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none_or(|value| value != "1"), "{skipped}");
            eprintln!("{skipped}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        let limit = Duration::from_secs(2);
        let config = MicrovmConfig {
            boot_limit: limit,
            answer_limit: limit,
            pool,
            ..MicrovmConfig::new(directory.path(), "", Accel::Tcg)
        };
        let engine = MicrovmEngine::with(Box::new(Hostile(attack)), config).unwrap();
        Some(Self { engine, directory })
    }

    async fn create(&self) -> Result<Box<dyn Sandbox>, SandboxError> {
        let spec = SandboxSpec {
            id: domain::SandboxId(uuid::Uuid::new_v4()),
            root: self.directory.path().join("root"),
            mounts: Vec::new(),
            memory_mb: 128,
            vcpus: 1.0,
            ephemeral_mb: 64,
            hosts: Vec::new(),
            listen: vec![9001],
            standby: None,
        };
        self.engine.create(spec).await
    }

    /// Asserts that nothing is left of any VM.
    async fn stop(self) {
        self.engine.stop().await;
        assert_eq!(fs::read_dir(self.directory.path().join("vms")).unwrap().count(), 0);
    }
}

/// The sandbox is never made, and the error says so.
async fn refused(attack: Attack, words: &str) {
    let Some(host) = Host::start(attack).await else { return };
    let error = host.create().await.err().expect("it cannot be made").to_string();
    assert!(error.contains(words) && error.contains("hostile words"), "{error}");
    host.stop().await;
}

/// The sandbox is made, a process is asked for in vain, and the VM is killed.
async fn killed(attack: Attack) {
    let Some(host) = Host::start(attack).await else { return };
    let sandbox = host.create().await.unwrap();
    let mut events = sandbox.take_events().unwrap();
    let spawned = sandbox.spawn(Command { argv: vec!["/x".into()], ..Command::default() }).await;
    assert!(matches!(spawned, Err(SandboxError::Gone(_))), "{spawned:?}");
    assert_eq!(events.recv().await, Some(SandboxEvent::Gone));
    assert!(matches!(sandbox.kill_all().await, Err(SandboxError::Gone(_))), "and stays so");
    sandbox.destroy().await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_no_guest_is_no_sandbox() {
    refused(|_, control| wait(&control), "timed out").await;
    refused(|_, _| (), "").await;
    refused(|_, mut control| control.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap(), "frame").await;
    refused(|_, mut control| protocol::write(&mut control, &Word::Hello { version: 0 }).unwrap(), "build").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_answer_is_killed() {
    killed(|_, control| {
        begin(&control);
        wait(&control);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_breaks_the_protocol_is_killed() {
    killed(|_, mut control| {
        begin(&control);
        let _ = protocol::read::<Order>(&mut control, LONGEST_ORDER);
        control.write_all(&[0xff; 64]).unwrap();
        wait(&control);
    })
    .await;
    killed(|_, mut control| {
        begin(&control);
        let _ = protocol::read::<Order>(&mut control, LONGEST_ORDER);
        // Ends of processes that never were, without end.
        let word = Word::Exited { process: 7, status: Status::Code(0), used: Used::default() };
        while protocol::write(&mut control, &word).is_ok() {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_its_output_is_none() {
    killed(|_, mut control| {
        begin(&control);
        let _ = protocol::read::<Order>(&mut control, LONGEST_ORDER);
        let _ = protocol::write(&mut control, &Word::Reply(Ok(Reply::Spawned { process: 1 })));
        wait(&control);
    })
    .await;
}

/// What was told to wait does this; what was booted for somebody is a good one.
async fn waits_badly(attack: Attack, ever_waits: bool) {
    let Some(host) = Host::start_with(attack, 1).await else { return };
    host.create().await.unwrap().destroy().await;
    let waits = async {
        while host.engine.waiting() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), waits).await.is_ok(), ever_waits);
    let sandbox = host.create().await.unwrap();
    assert!(!sandbox.is_from_pool());
    sandbox.destroy().await;
    host.stop().await;
}

/// Is made a sandbox if that is the first that is asked of it; `false` after it was told to wait.
fn is_for_somebody(mut control: &UnixStream) -> bool {
    protocol::write(&mut control, &Word::Hello { version: VERSION }).unwrap();
    match protocol::read(&mut control, LONGEST_ORDER) {
        Ok(Order::Start(_)) => {
            protocol::write(&mut control, &Word::Reply(Ok(Reply::Done))).unwrap();
            wait(control);
            true
        }
        other => {
            assert!(matches!(other, Ok(Order::Wait { .. }) | Err(_)), "{other:?}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_waits_badly_is_nobodys() {
    let never = |_: PathBuf, control: UnixStream| {
        if !is_for_somebody(&control) {
            wait(&control);
        }
    };
    waits_badly(never, false).await;
    // Answers, and then does not do what it is told.
    let not_then = |_: PathBuf, mut control: UnixStream| {
        if !is_for_somebody(&control) {
            let _ = protocol::write(&mut control, &Word::Reply(Ok(Reply::Done)));
            wait(&control);
        }
    };
    waits_badly(not_then, true).await;
    let lies = |_: PathBuf, mut control: UnixStream| {
        if !is_for_somebody(&control) {
            let _ = protocol::write(&mut control, &Word::Reply(Ok(Reply::Done)));
            let _ = protocol::read::<Order>(&mut control, LONGEST_ORDER);
            let _ = control.write_all(&[0xff; 64]);
            wait(&control);
        }
    };
    waits_badly(lies, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_talks_while_it_waits_is_killed() {
    static CUT_OFF: AtomicBool = AtomicBool::new(false);
    let talks = |_: PathBuf, mut control: UnixStream| {
        if !is_for_somebody(&control) {
            let _ = protocol::write(&mut control, &Word::Reply(Ok(Reply::Done)));
            let word = Word::Exited { process: 7, status: Status::Code(0), used: Used::default() };
            while protocol::write(&mut control, &word).is_ok() {}
            CUT_OFF.store(true, Ordering::Relaxed);
        }
    };
    let Some(host) = Host::start_with(talks, 1).await else { return };
    host.create().await.unwrap().destroy().await;
    let cut_off = async {
        while !CUT_OFF.load(Ordering::Relaxed) || host.engine.waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), cut_off).await.unwrap();
    let sandbox = host.create().await.unwrap();
    assert!(!sandbox.is_from_pool());
    sandbox.destroy().await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_words_and_connections_does_not_keep_the_host_from_its_end() {
    let Some(host) = Host::start(|directory, mut control| {
        begin(&control);
        let flood = protocol::frame(&Word::Used(Used::default())).unwrap().repeat(100);
        let mut connections = Vec::new();
        while control.write_all(&flood).is_ok() {
            if connections.len() < 200 {
                // Refused when the listener is gone; kept waiting when it has enough.
                let stream = UnixStream::connect(directory.join(format!("{VSOCK}_{OUTPUT_PORT}")));
                connections.extend(stream.ok().filter(|_| connections.len() < 100));
            }
        }
    })
    .await
    else {
        return;
    };
    let sandbox = host.create().await.unwrap();
    assert_eq!(sandbox.usage().oom_kills, 0);
    sandbox.freeze().unwrap();
    sandbox.thaw().unwrap();
    tokio::time::timeout(Duration::from_secs(30), sandbox.destroy()).await.unwrap();
    host.stop().await;
}
