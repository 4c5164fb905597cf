//! VMs that wait for a function.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::microvm::{MicrovmConfig, MicrovmEngine};
use sandbox::process::{Egress, Network};
use sandbox::{ExitStatus, SandboxEngine, SandboxSpec};

use crate::lifecycle::machines;
use crate::network::{self, devices, pool};
use crate::support::{Guest, Host, PROGRAM, build_root, config, eventually, processes, spec, test, test_with};

pub fn tests() -> Vec<Trial> {
    vec![
        test_with(network::PROGRAMS, "microvm_that_waited_serves_sooner_than_a_boot", serves_sooner),
        test("microvm_that_waited_has_nothing_of_another_function", shares_nothing),
        test("microvm_that_waited_and_died_is_replaced_by_a_boot", dies_waiting),
        test("microvms_wait_only_while_somebody_asks_and_there_is_room", goes_when_unwanted),
    ]
}

async fn start(directory: &Path, change: impl FnOnce(&mut MicrovmConfig)) -> MicrovmEngine {
    let mut config = MicrovmConfig { pool: 1, ..config(directory) };
    change(&mut config);
    MicrovmEngine::start(config).await.unwrap()
}

async fn waits(engine: &MicrovmEngine) {
    eventually("one waits", || engine.waiting() == 1).await;
}

/// A sandbox, whether it waited, and how long it took.
async fn timed(engine: &MicrovmEngine, spec: SandboxSpec) -> (Guest, Duration) {
    let begin = Instant::now();
    let sandbox = engine.create(spec).await.unwrap();
    (Guest::of(sandbox), begin.elapsed())
}

async fn serves_sooner() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let engine = start(directory.path(), |config| config.pool = 0).await;
    let mut boots = Vec::new();
    for _ in 0..3 {
        let (guest, took) = timed(&engine, spec(directory.path())).await;
        assert!(!guest.sandbox.is_from_pool());
        guest.sandbox.destroy().await;
        boots.push(took);
    }
    // It has made the images.
    boots.remove(0);
    engine.stop().await;

    let egress = || Network::Egress(Egress { pool: pool(3), ..Egress::default() });
    let engine = start(directory.path(), |config| config.network = egress()).await;
    let (first, _) = timed(&engine, spec(directory.path())).await;
    assert!(!first.sandbox.is_from_pool(), "nobody had asked");
    first.sandbox.destroy().await;
    let mut pooled = Vec::new();
    for _ in 0..2 {
        waits(&engine).await;
        assert_eq!(machines(directory.path()).len(), 2, "that one alone");
        let (mut guest, took) = timed(&engine, spec(directory.path())).await;
        assert!(guest.sandbox.is_from_pool());
        pooled.push(took);
        let (text, status) = guest.sh("cat text; cat /etc/hosts; echo kept >/tmp/f && cat /tmp/f; exit 3").await;
        assert_eq!(status, ExitStatus::Code(3));
        for words in ["the code of this function", "192.0.2.7 db.internal", "kept"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let (text, _) = guest.inside(&["address"]).await;
        assert!(text.starts_with("100.103."), "its card works: {text}");
        let filled = guest.spawn(&[PROGRAM, crate::inside::PART, "fill-memory"]).await.unwrap();
        assert_eq!(guest.exit_of(filled.0).await, (ExitStatus::Signal(9), true), "its memory is limited");
        guest.sandbox.destroy().await;
    }
    eprintln!("booted in {boots:?}, taken from those that waited in {pooled:?}");
    assert!(pooled.iter().max() < boots.iter().min(), "{pooled:?} {boots:?}");
    waits(&engine).await;
    engine.stop().await;
    assert!(machines(directory.path()).is_empty() && devices(3).is_empty());
    assert_eq!(fs::read_dir(directory.path().join("state/vms")).unwrap().count(), 0);
}

async fn shares_nothing() {
    let host = Host::start().await;
    host.engine.stop().await;
    let directory = host.directory.path();
    let other_code = directory.join("other-code");
    fs::create_dir(&other_code).unwrap();
    fs::copy(directory.join("code/program"), other_code.join("program")).unwrap();
    fs::write(other_code.join("text"), "another's code").unwrap();
    let one = || spec(directory);
    let other = || {
        let mut spec = spec(directory);
        spec.mounts[0].source = other_code.clone();
        spec.ephemeral_mb = 128;
        spec.hosts.clear();
        spec.listen = vec![9001, 9002];
        spec
    };
    let engine = start(directory, |_| ()).await;
    engine.create(one()).await.unwrap().destroy().await;
    let (mut seen, mut vms) = (BTreeSet::new(), BTreeSet::new());
    for (spec, code, tmp_mb) in [
        (one(), "the code of this function", 64),
        (other(), "another's code", 128),
        (one(), "the code of this function", 64),
    ] {
        waits(&engine).await;
        let before = machines(directory);
        assert_eq!(before.len(), 2);
        assert!(vms.insert(before.clone()), "never the same VM again");
        let (mut guest, _) = timed(&engine, spec.clone()).await;
        assert!(guest.sandbox.is_from_pool());
        let (text, _) = guest.sh("cat text; echo; for f in /tmp/*; do echo $f; done; echo secret >/tmp/secret").await;
        assert_eq!(text, format!("{code}\n/tmp/*\n"), "its own code, and an empty /tmp");
        let (text, _) = guest.sh("cat /etc/hosts").await;
        assert_eq!(text.contains("db.internal"), !spec.hosts.is_empty());
        let (text, _) = guest.inside(&["size", "/tmp"]).await;
        let size_mb: u64 = text.trim().parse::<u64>().unwrap() >> 20;
        assert!(size_mb > tmp_mb * 3 / 4 && size_mb <= tmp_mb, "{size_mb} of {tmp_mb} MB");
        for port in &spec.listen {
            assert!(guest.sandbox.take_listener(*port).is_some());
        }
        let (random, _) = guest.sh("cat /proc/sys/kernel/random/uuid").await;
        assert!(seen.insert(random), "entropy of its own");
        let host_time = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let begin = host_time();
        let (time, _) = guest.inside(&["clock"]).await;
        let (time, end) = (time.trim().parse::<u128>().unwrap(), host_time());
        let slack = 50_000_000;
        assert!(begin < time + slack && time < end + slack, "the host's time: {begin} {time} {end}");
        guest.sandbox.destroy().await;
    }
    engine.stop().await;
}

async fn dies_waiting() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let engine = start(directory.path(), |_| ()).await;
    let create = async || timed(&engine, spec(directory.path())).await.0;
    create().await.sandbox.destroy().await;
    for (victim, signal) in [
        ("qemu-system", Signal::KILL),
        ("vhost-device-vsock", Signal::KILL),
        // It hangs.
        ("qemu-system", Signal::STOP),
    ] {
        waits(&engine).await;
        let all = machines(directory.path());
        let pid = all.into_iter().find(|pid| processes(victim).contains(pid)).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        // At once: perhaps nobody has noticed.
        let mut guest = create().await;
        assert!(
            !guest.sandbox.is_from_pool() || signal == Signal::STOP,
            "{victim}; after a while, there may be another"
        );
        assert_eq!(guest.sh("cat text").await.0, "the code of this function");
        guest.sandbox.destroy().await;
    }
    // What dies while nobody asks is not booted again and again.
    waits(&engine).await;
    for pid in machines(directory.path()) {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    eventually("it is gone", || engine.waiting() == 0 && machines(directory.path()).is_empty()).await;
    engine.stop().await;
}

async fn goes_when_unwanted() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let vms = directory.path().join("state/vms");
    let engine = start(directory.path(), |config| config.pool_expiry = Duration::from_secs(30)).await;
    engine.create(spec(directory.path())).await.unwrap().destroy().await;
    waits(&engine).await;
    eventually("nobody asks", || engine.waiting() == 0).await;
    eventually("it is gone", || fs::read_dir(&vms).unwrap().count() == 0).await;
    engine.stop().await;

    // Room for two small ones, which with the emulator's share take 477 MB each.
    let engine = start(directory.path(), |config| config.memory_mb = Some(1000)).await;
    let (small, _) = timed(&engine, spec(directory.path())).await;
    waits(&engine).await;
    let large = SandboxSpec { memory_mb: 256, ..spec(directory.path()) };
    let (mut guest, _) = timed(&engine, large).await;
    assert!(!guest.sandbox.is_from_pool() && engine.waiting() == 0, "it has made room");
    assert_eq!(guest.sh("echo here").await.0, "here\n");
    guest.sandbox.destroy().await;
    small.sandbox.destroy().await;
    engine.stop().await;
    assert_eq!(fs::read_dir(&vms).unwrap().count(), 0);
}
