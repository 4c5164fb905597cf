//! What a sandbox costs in time and memory. `cargo test -p sandbox --test process -- --ignored --nocapture`

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use sandbox::SandboxEngine;
use sandbox::process::{Egress, Network, ProcessEngine};

use crate::support::{Guest, build_root, config, find_process, spec, test};

/// Sandboxes at once, as promised.
const MANY: usize = 200;
/// Memory that an idle one may cost besides the function's own, as promised.
const MEMORY: u64 = 3 << 20;

pub fn tests() -> Vec<Trial> {
    vec![
        test("measure_time", measure_time).with_ignored_flag(true),
        test("measure_memory", measure_memory).with_ignored_flag(true),
    ]
}

async fn measure_time() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let config = config(directory.path(), Network::Egress(Egress::default()));
    let engine = ProcessEngine::start(config).await.unwrap();
    let mut times: [Vec<Duration>; 6] = Default::default();
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(150)).await; // the pool is filled
        let start = Instant::now();
        let mut guest = Guest::of(engine.create(spec(directory.path())).await.unwrap());
        let created = Instant::now();
        let (process, _output) = guest.spawn(&["/bin/true"]).await.unwrap();
        let spawned = Instant::now();
        guest.exit_of(process).await;
        let exited = Instant::now();
        guest.spawn(&["/bin/sleep", "100"]).await.unwrap();
        let running = Instant::now();
        guest.sandbox.freeze().unwrap();
        let frozen = Instant::now();
        guest.sandbox.thaw().unwrap();
        let thawed = Instant::now();
        guest.sandbox.destroy().await;
        let durations =
            [created - start, spawned - created, exited - spawned, frozen - running, thawed - frozen, thawed.elapsed()];
        times.iter_mut().zip(durations).for_each(|(times, duration)| times.push(duration));
    }
    for (name, mut times) in ["create", "spawn", "run /bin/true", "freeze", "thaw", "destroy"].into_iter().zip(times) {
        times.sort_unstable();
        println!("{name:14} median {:?}, 95 % {:?}", times[20], times[37]);
    }
}

async fn measure_memory() {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let mut config = config(directory.path(), Network::Egress(Egress::default()));
    config.max_sandboxes = 256;
    let engine = ProcessEngine::start(config).await.unwrap();
    let first = Guest::of(engine.create(spec(directory.path())).await.unwrap());
    let before = available();
    let start = Instant::now();
    let mut guests = Vec::new();
    for _ in 0..MANY {
        guests.push(Guest::of(engine.create(spec(directory.path())).await.unwrap()));
    }
    let took = start.elapsed();
    let each = (before.saturating_sub(available())) / MANY as u64;
    let mark = uuid::Uuid::new_v4().to_string();
    first.spawn(&["/bin/sh", "-c", "sleep 1000; true", &mark]).await.unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", find_process(&mark).await)).unwrap();
    let init = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let rollup = fs::read_to_string(format!("/proc/{init}/smaps_rollup")).unwrap();
    let pss = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    println!(
        "{MANY} sandboxes in {took:?}: {} KiB each; PID 1 {pss}; group {:?}",
        each >> 10,
        guests[7].sandbox.usage()
    );
    assert!(each < MEMORY);
    let start = Instant::now();
    drop(guests);
    engine.stop().await;
    println!("gone in {:?}", start.elapsed());
}

fn available() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
