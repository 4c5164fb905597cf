//! A fleet of 10,000 workers under load that has the shape of production's; the figures and their sources are in `load.rs`.
//!
//! One seed gives one history. `cargo test --release -p placement --test simulation -- --nocapture` prints what is measured.

mod load;
mod speed;
mod world;

use world::{Policy, World};

const WORKERS: usize = 10_000;
const FUNCTIONS: usize = 70_000;
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

/// A fleet that came up with nothing, 25 minutes later; and of the last 10 minutes' cold starts of functions that had run before, the
/// share that found their package.
fn after_a_while(policy: Policy) -> (World, f64) {
    let mut world = World::new(policy, 1, WORKERS, FUNCTIONS, MANAGERS);
    (0..15).for_each(|_| world.minute());
    let (starts, with_package) = (world.starts - world.first, world.with_package);
    (0..10).for_each(|_| world.minute());
    let again = world.starts - world.first - starts;
    println!("{} starts, {again} of them in the last 10 minutes and not a function's first", world.starts);
    assert!(world.workers.iter().all(|w| w.now.memory_used_mb <= w.now.memory_mb && w.now.slots_used <= w.now.slots));
    let local = (world.with_package - with_package) as f64 / again as f64;
    (world, local)
}

#[test]
fn ten_thousand_workers() {
    let (random, local_at_random) = after_a_while(Policy::Random);
    let (random_p99, random_mean) = memory_use(&random);
    drop(random);
    let (mut world, local) = after_a_while(Policy::Fleet);
    println!("package there: {:.1} % of the cold starts; at random {:.1} %", 100.0 * local, 100.0 * local_at_random);
    assert!(local >= 0.85 && local >= 20.0 * local_at_random);

    let (p99, mean) = memory_use(&world);
    println!(
        "memory in use: p99 {p99:.3}, mean {mean:.3}, {:.3} ×; at random {:.3} ×",
        p99 / mean,
        random_p99 / random_mean
    );
    assert!(p99 <= 1.35 * mean && p99 / mean < random_p99 / random_mean);

    // By managers that do not know of each other's last two seconds.
    println!("{} starts, {} without a place, {} collided", world.starts, world.without_place, world.collided);
    // A sandbox of 10 GB has no place once every worker of 12 has some memory in use.
    assert!(world.without_place * 10_000 <= world.starts && world.collided * 1000 <= world.starts);

    for (at_least, bound_of_worker, bound_of_zone) in [(5, 0.8, 1.0), (10, 0.4, 1.0), (30, 0.15, 0.9), (100, 0.06, 0.7)]
    {
        let mut worker = largest_part(&world, at_least, |worker| worker);
        let mut zone = largest_part(&world, at_least, |worker| worker % 3);
        println!("of {} functions with {at_least} sandboxes or more, the largest part", worker.len());
        for (place, parts, bound) in
            [("on one worker", &mut worker, bound_of_worker), ("in one zone of three", &mut zone, bound_of_zone)]
        {
            let [median, p99, most] = [0.5, 0.99, 1.0].map(|share| quantile(parts, share));
            println!("  {place}: median {median:.3}, p99 {p99:.3}, most {most:.3}");
            assert!(p99 <= bound, "{place}");
        }
    }

    let before = (world.starts, world.without_place, world.collided);
    world.lose(|worker| worker % 3 == 0);
    let (p99, mean) = memory_use(&world);
    let (started, collided) = (world.starts - before.0, world.collided - before.2);
    let without_place = world.without_place - before.1;
    println!("a zone lost: {started} started anew, {without_place} without a place, {collided} collided");
    println!("  memory in use: p99 {p99:.3}, mean {mean:.3}, {:.3} ×", p99 / mean);
    assert!(without_place * 100 <= started && collided * 20 <= started && p99 <= 1.35 * mean);
}
