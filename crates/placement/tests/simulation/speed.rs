//! How long a decision takes, beside the specification's in the same run, and how that grows with the fleet.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use domain::SandboxId;
use placement::{Decision, Fleet, PlaceRequest, WorkerView, place};
use uuid::Uuid;

use crate::quantile;
use crate::world::{Function, Policy, World};

struct Measured {
    decision: Duration,
    p99: Duration,
    /// place, book, init over, gone: the whole of a sandbox's life as Placement sees it.
    life: Duration,
    scan: Duration,
}

/// Under the load of the simulation, with seven functions for each worker.
fn measure(workers: usize) -> Measured {
    let mut world = World::new(Policy::Fleet, 2, workers, 7 * workers, 1);
    (0..3).for_each(|_| world.minute());
    let World { mut fleets, functions, .. } = world;
    let fleet = &mut fleets[0];

    // Those that ran, in turns with those that never did; among them the one with the most sandboxes, on hundreds of workers.
    let (ran, not_yet): (Vec<_>, Vec<_>) = functions.iter().partition(|f| !f.sandboxes.is_empty());
    let largest = ran.iter().max_by_key(|f| f.sandboxes.len()).expect("some ran");
    let few = 2000.min(ran.len()).min(not_yet.len());
    let asked: Vec<_> = ran.iter().zip(&not_yet).take(few).flat_map(|(a, b)| [a, b]).chain([largest]).collect();

    let mut times: Vec<f64> = Vec::new();
    for function in &asked {
        let wanted = function.wanted();
        let start = Instant::now();
        let answer = fleet.place(&wanted, &HashSet::new());
        times.push(start.elapsed().as_secs_f64());
        assert!(answer.is_ok());
    }
    let mut lives = Vec::new();
    for (n, function) in asked.iter().enumerate() {
        let start = Instant::now();
        let (sandbox, wanted) = (SandboxId(Uuid::from_u128(u128::MAX - n as u128)), function.wanted());
        let (worker, _) = fleet.place(&wanted, &HashSet::new()).expect("there is room");
        fleet.book(sandbox, &worker, &wanted);
        fleet.init_over(sandbox);
        fleet.gone(sandbox);
        lives.push(start.elapsed().as_secs_f64());
    }
    let life = Duration::from_secs_f64(quantile(&mut lives, 0.5));
    // Medians, since the machine may be somebody else's in between.
    let [decision, p99] = [0.5, 0.99].map(|share| Duration::from_secs_f64(quantile(&mut times, share)));

    let scanned: Vec<_> = asked.iter().rev().take(20).collect();
    let mut scans: Vec<_> = scanned.iter().map(|function| scan(fleet, function).as_secs_f64()).collect();
    let scan = Duration::from_secs_f64(quantile(&mut scans, 0.5));
    Measured { decision, p99, life, scan }
}

/// The time of one decision by the specification, whose answer is the same. Without what it takes to make the views.
fn scan(fleet: &Fleet, function: &Function) -> Duration {
    let wanted = function.wanted();
    let views: Vec<WorkerView> = fleet.views(&wanted);
    let start = Instant::now();
    let specified = place(&views, &PlaceRequest { memory_mb: wanted.memory_mb });
    let time = start.elapsed();
    let Decision::Place { worker, reason } = specified else { panic!("there is room") };
    assert_eq!(fleet.place(&wanted, &HashSet::new()), Ok((views[worker].report.worker.clone(), reason)));
    time
}

#[test]
fn a_decision_takes_microseconds_and_hardly_more_of_many_workers() {
    let measured = [100, 1000, 10_000].map(|workers| {
        let m = measure(workers);
        let Measured { decision, p99, life, scan } = m;
        println!(
            "{workers} workers: decision {decision:.2?}, p99 {p99:.2?}; a sandbox's life {life:.2?}; scan {scan:.2?}"
        );
        m
    });
    let [few, _, many] = &measured;
    assert!(many.scan >= 20 * many.decision, "not 20 times as fast as the scan");
    // 100 times the workers; by the logarithm, twice the time. The rest is for a fleet that no processor's cache holds.
    assert!(many.decision <= 10 * few.decision, "grows with the number of workers");
    if !cfg!(debug_assertions) {
        assert!(many.decision < Duration::from_micros(10), "not 100,000 decisions a second");
        assert!(many.p99 < Duration::from_millis(1));
    }
}
