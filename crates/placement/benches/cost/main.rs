//! What a decision costs, by the number of workers: `cargo bench -p placement` prints it, and draws `docs/placement-cost.svg`.
//!
//! Measured is all that the role `placement` does for one: `Decider::place`, which finds the worker, books the sandbox there, and
//! lets go of another one that nobody has named in time. One thread; the load is the simulation's, with seven functions for each worker,
//! and every worker has told of its sandboxes and packages.

mod curve;
#[allow(unused_imports, reason = "its tests need more")]
#[path = "../../tests/simulation/load.rs"]
mod load;
#[allow(dead_code, reason = "the simulation needs more of it")]
#[path = "../../tests/simulation/world.rs"]
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use domain::{Observed, ObservedSandbox, PackageChanges, PlaceRequest, SandboxId};
use placement::{Decider, HELD, place};
use uuid::Uuid;

use crate::curve::{Curve, Point};
use crate::world::{Policy, World};

const WORKERS: [usize; 6] = [100, 300, 1000, 3000, 10_000, 30_000];
/// The specification is a scan; above this it only costs patience.
const SCANNED: usize = 10_000;
const DECISIONS: usize = 40_000;
const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/placement-cost.svg");

struct Measured {
    workers: usize,
    median: Duration,
    p99: Duration,
    scan: Option<Duration>,
}

fn main() {
    let all: Vec<Measured> = WORKERS.into_iter().map(measure).collect();
    let point = |m: &Measured, time: Duration| Point { workers: m.workers, time };
    let curves = [
        Curve {
            name: "scan (the specification)",
            colour: "#b33",
            points: all.iter().filter_map(|m| Some(point(m, m.scan?))).collect(),
        },
        Curve { name: "decision, p99", colour: "#8ab", points: all.iter().map(|m| point(m, m.p99)).collect() },
        Curve { name: "decision, median", colour: "#157", points: all.iter().map(|m| point(m, m.median)).collect() },
    ];
    let picture = Path::new(PICTURE);
    match std::fs::write(picture, curve::draw(&curves)) {
        Ok(()) => println!("drawn in docs/placement-cost.svg"),
        Err(error) => println!("cannot write {}: {error}", picture.display()),
    }
}

fn measure(workers: usize) -> Measured {
    let mut world = World::new(Policy::Fleet, 2, workers, 7 * workers, 1);
    (0..3).for_each(|_| world.minute());
    let mut decider = told_of(&world);
    // Those that ran, in turns with those that never did.
    let (ran, not_yet): (Vec<_>, Vec<_>) = world.functions.iter().partition(|f| !f.sandboxes.is_empty());
    let mut asked = ran.iter().cycle().zip(not_yet.iter().cycle()).flat_map(|(a, b)| [*a, *b]);
    let requests: Vec<PlaceRequest> = (0..DECISIONS)
        .map(|n| {
            let wanted = asked.next().expect("without end").wanted();
            PlaceRequest {
                sandbox: SandboxId(Uuid::from_u128(u128::MAX - n as u128)),
                memory_mb: wanted.memory_mb,
                function: wanted.function.clone(),
                package: wanted.package.to_owned(),
                except: Vec::new(),
            }
        })
        .collect();
    // As many are held as a tenth of the workers: there is room, and each decision ends one.
    let step = HELD / (workers as u32 / 10);
    let mut times = Vec::with_capacity(DECISIONS);
    let (mut now, mut refused) = (Duration::ZERO, 0);
    let started = Instant::now();
    for request in &requests {
        now += step;
        let start = Instant::now();
        let decided = decider.place(now, request);
        times.push(start.elapsed());
        refused += usize::from(decided.is_err());
    }
    // The few functions that take most of a worker have no room where none is empty.
    assert!(refused * 100 <= DECISIONS, "{refused} of {DECISIONS} have no room: this is not the cost of a decision");
    let per_second = DECISIONS as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    let (median, p99) = (times[DECISIONS / 2], times[DECISIONS * 99 / 100]);
    let scan = (workers <= SCANNED).then(|| scan(&world));
    let shown = scan.map_or_else(|| "-".to_owned(), |scan| format!("{scan:.1?}"));
    println!(
        "{workers:>6} workers: {per_second:>9.0} decisions/s on one core; median {median:>6.2?}, p99 {p99:>6.2?}; a scan {shown}"
    );
    Measured { workers, median, p99, scan }
}

/// A decider that has heard of everything in this world from the workers.
fn told_of(world: &World) -> Decider {
    let mut sandboxes: Vec<Vec<ObservedSandbox>> = vec![Vec::new(); world.workers.len()];
    for function in &world.functions {
        let wanted = function.wanted();
        for (sandbox, worker) in &function.sandboxes {
            sandboxes[*worker].push(ObservedSandbox {
                sandbox: *sandbox,
                memory_mb: wanted.memory_mb,
                function: wanted.function.clone(),
                package: wanted.package.to_owned(),
                starting: false,
            });
        }
    }
    let mut decider = Decider::default();
    for (worker, added) in world.workers.iter().zip(sandboxes) {
        let packages = worker.packages.iter().map(|function| world.functions[*function].wanted().package.to_owned());
        decider.observed(&Observed {
            report: worker.now.clone(),
            whole: true,
            added,
            initialised: Vec::new(),
            gone: Vec::new(),
            packages: PackageChanges { added: packages.collect(), removed: Vec::new() },
        });
    }
    decider
}

/// The median time of one decision by the specification, without what it takes to make the views.
fn scan(world: &World) -> Duration {
    let functions = world.functions.iter().filter(|f| !f.sandboxes.is_empty()).take(15);
    let mut times: Vec<Duration> = functions
        .map(|function| {
            let wanted = function.wanted();
            let views = world.fleets[0].views(&wanted);
            let start = Instant::now();
            std::hint::black_box(place(&views, &placement::PlaceRequest { memory_mb: wanted.memory_mb }));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}
