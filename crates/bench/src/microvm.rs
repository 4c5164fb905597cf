//! Functions in microVMs: what Emberbox adds to what the engine itself takes. By software emulation, which every machine
//! can do; every number is a ratio to the same engine's, in the same run, for an emulated processor is no measure of time.

use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::Setup;
use crate::emberbox::{Emberbox, Package};
use crate::function::EXCHANGES;
use crate::load::{Connection, EVENT, Outcome, Target, Until, interleaved};
use crate::process::{Child, anonymous, guest_memory, name, pss, tree};
use crate::table::{Bound, Number, Row, Table, time};
use crate::warm::ONE_VCPU_MB;

const MIB: f64 = 1024.0 * 1024.0;
/// As the kernel names them, of which it keeps 15 bytes.
const QEMU: &str = "qemu-system-x86";
const DEVICE: &str = "vhost-device-vs";
/// Where the agent of a VM connects first.
const CONTROL_PORT: u32 = 1024;
/// A boot that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// The sandbox of the version before goes down in this time.
const SETTLE: Duration = Duration::from_millis(500);
/// Idle, paused, and with what the start needed given back.
const IDLE: Duration = Duration::from_secs(3);

/// What a machine lacks for this, and where it comes from.
pub fn missing(setup: &Setup) -> Option<String> {
    let there = |path: &Path| path.is_file();
    match (there(&setup.kernel), there(&setup.vsock_device)) {
        (true, true) => None,
        (false, _) => Some(format!("no guest kernel {}; `cargo xtask test` makes one", setup.kernel.display())),
        _ => Some(format!("no {}; `cargo xtask test` installs it", setup.vsock_device.display())),
    }
}

/// Boot, warm invoke, memory.
pub async fn measure(setup: &Setup, table: &mut Table) -> Result<()> {
    let config = format!(
        "[sandbox]\nisolation = \"microvm\"\nnetwork = \"none\"\n[microvm]\naccel = \"tcg\"\nkernel = {}\nvsock_device = {}\n",
        json!(fs::canonicalize(&setup.kernel)?),
        json!(fs::canonicalize(&setup.vsock_device)?),
    );
    let mut microvms = Emberbox::start_with(setup, &config).await?;
    boot(setup, &mut microvms, table).await?;
    memory(setup, &mut microvms, table).await?;
    warm(setup, &mut microvms, table).await
}

/// From the order to make a VM until its function asks for an event; beside that, until the agent of a VM of the same
/// kernel, image, memory and drives says its first word, without Emberbox.
async fn boot(setup: &Setup, microvms: &mut Emberbox, table: &mut Table) -> Result<()> {
    let function = "boot";
    let target = microvms.create(function, &Package::rust(&setup.echo)?, 128).await?;
    let (mut ours, mut theirs) = (Outcome::default(), Outcome::default());
    for number in 0..=setup.samples(20) {
        microvms.force_cold(function, number, &[]).await?;
        tokio::time::sleep(SETTLE).await;
        let taken = cold_start(&target).await.with_context(|| microvms.log_tail())?;
        let engine = Replay::of(microvms.pid(), setup)?.boot()?;
        // The first makes the disks.
        if number > 0 {
            ours.latencies.saturating_record(taken.as_nanos() as u64);
            theirs.latencies.saturating_record(engine.as_nanos() as u64);
        }
    }
    let (ours, theirs) = (ours.quantile(0.5), theirs.quantile(0.5));
    table.add(Row {
        what: "microVM, from the order to the function's first `next`, p50; the engine's own boot of the same".into(),
        ours: time(ours),
        beside: time(theirs),
        value: Number::Ratio(ours.as_secs_f64() / theirs.as_secs_f64()),
        promise: Some(Bound::AtMost(1.15)),
    });
    Ok(())
}

/// How long it took to make the sandbox, start the function's process and hear its first `next`.
async fn cold_start(target: &Target) -> Result<Duration> {
    let mut connection = Connection::open(target.address).await?;
    let event = Bytes::from_static(EVENT.as_bytes());
    let headers = [("X-Emberbox-Timeline", "1")];
    let (parts, body) = connection.exchange(Method::POST, &target.path, &headers, event).await?;
    ensure!(parts.status.is_success(), "{}: {}", parts.status, String::from_utf8_lossy(&body));
    let timeline = parts.headers.get("x-emberbox-timeline").context("an answer without its timeline")?;
    let timeline: Vec<Value> = serde_json::from_slice(timeline.as_bytes()).context("the timeline is no JSON")?;
    let at = |step: &str| {
        let mark = timeline.iter().find(|mark| mark["step"] == step);
        let us = mark.and_then(|mark| mark["us"].as_u64());
        us.map(Duration::from_micros).with_context(|| format!("no {step} in {timeline:?}"))
    };
    Ok(at("init_done")? - at("package_fetched")?)
}

/// What a VM of Emberbox's was started with.
struct Replay {
    device: Vec<String>,
    qemu: Vec<String>,
}

impl Replay {
    /// Of a VM below `server`.
    fn of(server: u32, setup: &Setup) -> Result<Self> {
        let command = |wanted: &str| {
            let pid = tree(server)?.into_iter().rfind(|pid| name(*pid) == wanted);
            let pid = pid.with_context(|| format!("the server has no {wanted}"))?;
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).context("read a command line")?;
            let given = |word: &str| word.replace("/proc/self/fd/", &format!("/proc/{pid}/fd/"));
            anyhow::Ok(line.trim_end_matches('\0').split('\0').map(given).collect())
        };
        let (mut device, qemu): (Vec<String>, _) = (command(DEVICE)?, command(QEMU)?);
        // It sees itself in a root of its own.
        device[0] = fs::canonicalize(&setup.vsock_device)?.to_string_lossy().into_owned();
        Ok(Self { device, qemu })
    }

    /// Starts the same, and waits for the guest's first word.
    fn boot(&self) -> Result<Duration> {
        let directory = tempfile::tempdir().context("make a directory")?;
        let setting = |name: &str| {
            let found = self.device.iter().flat_map(|word| word.split(',')).find_map(|word| word.strip_prefix(name));
            found.map(PathBuf::from).with_context(|| format!("{:?} says no {name}", self.device))
        };
        let (vsock, vhost) = (setting("uds-path=")?, setting("socket=")?);
        let control = directory.path().join(format!("{}_{CONTROL_PORT}", vsock.display()));
        let control = UnixListener::bind(&control).with_context(|| format!("listen at {}", control.display()))?;
        control.set_nonblocking(true)?;
        let start = |words: &[String]| {
            let mut command = Command::new(&words[0]);
            Child::spawn(command.args(&words[1..]).current_dir(directory.path()))
        };
        let begin = Instant::now();
        let wait = |what: &str, ready: &dyn Fn() -> bool| {
            while !ready() {
                ensure!(begin.elapsed() < PATIENCE, "{what} within {PATIENCE:?}");
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(())
        };
        let device = start(&self.device)?;
        let socket = directory.path().join(vhost);
        wait("the vsock device did not listen", &|| socket.exists())?;
        let qemu = start(&self.qemu)?;
        let stream = std::cell::RefCell::new(None);
        wait("the guest did not connect", &|| {
            *stream.borrow_mut() = control.accept().ok();
            stream.borrow().is_some()
        })?;
        let Some((mut stream, _)) = stream.into_inner() else { bail!("no connection") };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut [0; 4]).context("the guest's first word")?;
        let taken = begin.elapsed();
        drop((qemu, device));
        Ok(taken)
    }
}

/// What the server takes for a VM that waits, and what the engine does.
async fn memory(setup: &Setup, microvms: &mut Emberbox, table: &mut Table) -> Result<()> {
    let vms = setup.samples(4).min(4);
    let package = Package::rust(&setup.echo)?;
    let mut targets = Vec::new();
    for number in 0..vms {
        targets.push(microvms.create(&format!("idle-{number}"), &package, 128).await?);
    }
    let engine =
        |of: &str| tree(microvms.pid()).map(|pids| pids.into_iter().filter(|pid| name(*pid) == of).collect::<Vec<_>>());
    tokio::time::sleep(IDLE).await;
    let (before, others) = (pss(microvms.pid())?, engine(QEMU)?);
    for target in &targets {
        Connection::open(target.address).await?.echo(&target.path).await.with_context(|| microvms.log_tail())?;
    }
    tokio::time::sleep(IDLE).await;
    let after = pss(microvms.pid())?;
    let new: Vec<u32> = engine(QEMU)?.into_iter().filter(|pid| !others.contains(pid)).collect();
    ensure!(new.len() == vms as usize, "{} of {vms} VMs are there", new.len());
    let each = |bytes: f64| bytes / f64::from(vms) / MIB;
    let devices: u64 = engine(DEVICE)?.into_iter().filter_map(|pid| anonymous(pid).ok()).sum();
    let of_devices = devices as f64 / MIB / (others.len() + new.len()) as f64;
    let guests: f64 = new.iter().filter_map(|pid| guest_memory(*pid).ok()).sum::<u64>() as f64;
    let qemus: f64 = new.iter().filter_map(|pid| anonymous(*pid).ok()).sum::<u64>() as f64;
    table.add(Row {
        what: "the server's memory for an idle microVM (PSS, beside the guest's own and the engine's)".into(),
        ours: format!("the guest's own: {:.0} MiB", each(guests)),
        beside: format!("QEMU {:.0} MiB, its vsock device {of_devices:.1} MiB", each(qemus)),
        value: Number::MiB(each(after as f64 - before as f64)),
        promise: Some(Bound::Below(5.0)),
    });
    Ok(())
}

/// The same function in both kinds of sandbox. What the engine and an emulated processor take for an exchange of that
/// size between function and server is measured from inside: a POST to the Runtime API that is refused at once.
async fn warm(setup: &Setup, microvms: &mut Emberbox, table: &mut Table) -> Result<()> {
    let mut processes = Emberbox::start(setup).await?;
    let package = Package::own()?;
    let inside = microvms.create("warm", &package, ONE_VCPU_MB).await?;
    let outside = processes.create("warm", &package, ONE_VCPU_MB).await?;
    let each = Until { requests: 100, time: Duration::from_secs(2) };
    let rounds = setup.samples(20);
    let outcomes = interleaved(&[&inside, &outside], 1, rounds, each).await?;
    let [ours, theirs] = &outcomes[..] else { unreachable!("two targets, two outcomes") };
    ours.check("the microVM")?;
    theirs.check("the process sandbox")?;
    let (vm, process) = (exchange(&inside, setup).await?, exchange(&outside, setup).await?);
    let (ours, theirs) = (ours.quantile(0.5), theirs.quantile(0.5));
    // The process sandbox's, with its exchange as slow as the VM's.
    let expected = (theirs + vm).saturating_sub(process);
    table.add(Row {
        what: "warm invoke in a microVM, p50; the process sandbox's with an exchange over the same vsock in place of its own".into(),
        ours: format!("{} (an exchange: {})", time(ours), time(vm)),
        beside: format!("{}, from {} (an exchange: {})", time(expected), time(theirs), time(process)),
        value: Number::Ratio(ours.as_secs_f64() / expected.as_secs_f64()),
        promise: Some(Bound::AtMost(1.5)),
    });
    Ok(())
}

/// The median of what an exchange takes the function.
async fn exchange(target: &Target, setup: &Setup) -> Result<Duration> {
    let mut connection = Connection::open(target.address).await?;
    let event = json!({ EXCHANGES: setup.samples(1000) }).to_string();
    let (parts, body) = connection.send(Method::POST, &target.path, event.into()).await?;
    ensure!(parts.status.is_success(), "{}: {}", parts.status, String::from_utf8_lossy(&body));
    let nanoseconds: u64 = serde_json::from_slice(&body).context("the function's answer is no number")?;
    Ok(Duration::from_nanos(nanoseconds))
}
