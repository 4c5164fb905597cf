//! Runs seeds, and says which find something.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;

#[derive(Parser)]
#[command(about = "Simulate fleets: seeds one after the other, on all processors")]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed; alone, the only one, with its log
    #[arg(long)]
    seed: Option<u64>,
    /// Print the log of what happened
    #[arg(long)]
    log: bool,
    /// Run each seed twice, and compare the logs
    #[arg(long)]
    twice: bool,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let first = args.seed.unwrap_or(0);
    let next = AtomicU64::new(first);
    let failed = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + args.seeds {
                        return;
                    }
                    let outcome = sim::run(seed);
                    if args.log {
                        print!("{}", outcome.log);
                    }
                    println!("seed {seed}: {:?}", outcome.summary);
                    outcome.violations.iter().for_each(|violation| println!("seed {seed}: VIOLATION {violation}"));
                    let repeats = !args.twice || sim::run(seed).log == outcome.log;
                    if !repeats {
                        println!("seed {seed}: DIFFERS the second time");
                    }
                    if !outcome.violations.is_empty() || !repeats {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{failed} of {} seeds found something", args.seeds);
    std::process::ExitCode::from(u8::from(failed > 0))
}
