//! A fleet in one thread, repeatable by its seed.
//!
//! ```text
//!  seed ──► plan (fleet, load, trouble) ──► world: each host a step further ──► log, violations
//!                                             │
//!       a host: a runtime with a paused clock │ real: frontend's router and path, worker manager, placement, membership, rpc (HTTP/2,
//!                                             │       claims, fences), who claims and follows views
//!                                             │ simulated: network, clocks, the database, sandboxes, clients
//! ```
//!
//! What is real is compiled from the product's sources. What is simulated:
//! - [`net`]: bytes between hosts are late, links are cut in one or both directions, processes are killed with and without a word. TLS
//!   is left out.
//! - [`host`]: each host has a runtime of its own, so that a kill takes everything that runs there.
//! - [`clock`]: one time for all, and a time of day for each host that may be wrong. Hosts' clocks run equally fast.
//! - `registry`: the fleet's registry in memory (the real rules, `membership::Ledger`) behind the network, in the place of PostgreSQL.
//! - `sandboxes`: a worker without processes. It keeps the promises of `domain::Worker`, and takes time, fails and dies.
//!
//! [`truth`] knows what really happened, and says what must never be. [`run`] runs a seed.
#![deny(unsafe_code)]

pub mod clock;
mod entropy;
pub mod host;
pub mod log;
pub mod net;
pub mod plan;
mod process;
mod registry;
mod sandboxes;
// In a simulation a panic is a panic.
#[allow(dead_code)]
#[path = "../../emberbox/src/serve/tasks.rs"]
mod tasks;
pub mod truth;
mod world;

use std::sync::atomic::{AtomicBool, Ordering};

pub use truth::Summary;

static RAN: AtomicBool = AtomicBool::new(false);

/// What came of a seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What happened, in order: the same for the same seed, byte for byte.
    pub log: String,
    /// What must never be, and was.
    pub violations: Vec<String>,
    /// Figures.
    pub summary: Summary,
}

/// Runs a seed, on a thread of its own. Once in a process: tokio counts its runtimes in a static, and draws from that number.
///
/// # Panics
/// If a role does, or the second time.
pub fn run(seed: u64) -> Outcome {
    assert!(!RAN.swap(true, Ordering::Relaxed), "a process runs one simulation");
    let simulation = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || {
        let mut rng = entropy::Rng::new(seed);
        entropy::seed_thread(rng.next());
        let plan = plan::Plan::new(&mut rng);
        let (log, truth) = world::World::new(plan, rng).run();
        Outcome { log: log.take(), violations: truth.violations(), summary: truth.summary() }
    });
    let simulation = simulation.expect("a thread more");
    simulation.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
