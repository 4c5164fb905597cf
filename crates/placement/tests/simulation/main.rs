//! A fleet of 10,000 workers under load that has the shape of production's; the figures and their sources are in `load.rs`.
//!
//! One seed gives one history. `cargo test --release -p placement --test simulation -- --nocapture` prints what is measured.

mod load;
mod speed;
mod world;

use world::{Policy, World};

const WORKERS: usize = 10_000;
const FUNCTIONS: usize = 100_000;
/// Each decides for a third of the functions, and learns of the others' decisions by reports that are a second or two old.
const MANAGERS: usize = 3;

/// The value below which `share` of them are.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share) as usize]
}

/// p99 of the workers' memory use, and its mean.
fn memory_use(world: &World) -> (f64, f64) {
    let live = world.workers.iter().map(|w| &w.now).filter(|w| !w.draining);
    let mut used: Vec<_> = live.map(|w| w.memory_used_mb as f64 / w.memory_mb as f64).collect();
    (quantile(&mut used, 0.99), used.iter().sum::<f64>() / used.len() as f64)
}

/// Of each function with at least so many sandboxes: the largest part that is in one place.
fn largest_part(world: &World, at_least: usize, place_of: impl Fn(usize) -> usize) -> Vec<f64> {
    let places = 1 + (0..WORKERS).map(&place_of).max().expect("workers");
    let mut counts = vec![0u32; places];
    let mut parts = Vec::new();
    for function in world.functions.iter().filter(|f| f.sandboxes.len() >= at_least) {
        let mut most = 0;
        for (_, worker) in &function.sandboxes {
            counts[place_of(*worker)] += 1;
            most = most.max(counts[place_of(*worker)]);
        }
        function.sandboxes.iter().for_each(|(_, worker)| counts[place_of(*worker)] = 0);
        parts.push(f64::from(most) / function.sandboxes.len() as f64);
    }
    parts
}

/// A fleet that came up with nothing, an hour later: the share of the last 40 minutes' cold starts that found their package.
fn an_hour(policy: Policy, seed: u64) -> (World, f64) {
    let mut world = World::new(policy, seed, WORKERS, FUNCTIONS, MANAGERS);
    (0..20).for_each(|_| world.minute());
    let (starts, with_package) = (world.starts, world.with_package);
    (0..40).for_each(|_| world.minute());
    let local = (world.with_package - with_package) as f64 / (world.starts - starts) as f64;
    println!("{} starts, {} of them in the last 40 minutes", world.starts, world.starts - starts);
    assert!(world.workers.iter().all(|w| w.now.memory_used_mb <= w.now.memory_mb && w.now.slots_used <= w.now.slots));
    (world, local)
}

#[test]
fn ten_thousand_workers() {
    let (random, local_at_random) = an_hour(Policy::Random, 1);
    let (random_p99, random_mean) = memory_use(&random);
    drop(random);
    let (mut world, local) = an_hour(Policy::Fleet, 1);
    println!("package there: {:.1} % of the cold starts; at random {:.1} %", 100.0 * local, 100.0 * local_at_random);

    let (p99, mean) = memory_use(&world);
    println!(
        "memory in use: p99 {p99:.3}, mean {mean:.3}, {:.3} ×; at random {:.3} ×",
        p99 / mean,
        random_p99 / random_mean
    );
    println!("refused: {}", world.refused);

    for at_least in [2, 5, 10, 30, 100] {
        let mut worker = largest_part(&world, at_least, |worker| worker);
        let mut zone = largest_part(&world, at_least, |worker| worker % 3);
        println!(
            "of {} functions with {at_least} sandboxes or more, on one worker: median {:.3}, p99 {:.3}, most {:.3}; in one zone of three: \
             median {:.3}, p99 {:.3}, most {:.3}",
            worker.len(),
            quantile(&mut worker, 0.5),
            quantile(&mut worker, 0.99),
            quantile(&mut worker, 1.0),
            quantile(&mut zone, 0.5),
            quantile(&mut zone, 0.99),
            quantile(&mut zone, 1.0),
        );
    }
    let lost = world.starts;
    world.lose(|worker| worker % 3 == 0);
    let (p99, mean) = memory_use(&world);
    println!(
        "a zone lost: {} started anew, {} refused; p99 {p99:.3}, mean {mean:.3}, {:.3} ×",
        world.starts - lost,
        world.refused,
        p99 / mean
    );
}
