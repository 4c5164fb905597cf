//! Runs seeds, each in a process of its own, and says which find something.
#![forbid(unsafe_code)]

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Simulate fleets, as many at once as there are processors")]
struct Args {
    /// How many seeds [default: 100; with --seed: 1]
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happened
    #[arg(long)]
    log: bool,
    /// Run each seed twice, and compare what happened byte by byte
    #[arg(long)]
    twice: bool,
    /// Run this one seed in this process
    #[arg(long, hide = true)]
    here: Option<u64>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(seed) = args.here {
        return Ok(here(seed));
    }
    let first = args.seed.unwrap_or(0);
    let usual = if args.seed.is_some() { 1 } else { 100 };
    let seeds = args.seeds.unwrap_or(usual);
    let (next, failed) = (AtomicU64::new(first), AtomicU64::new(0));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let one = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    return anyhow::Ok(());
                }
                if !tell(seed, &args)? {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let running: Vec<_> = (0..processors).map(|_| scope.spawn(one)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    let failed = failed.into_inner();
    println!("{failed} of {seeds} seeds found something");
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// The log, then one line for each violation, and the figures.
fn here(seed: u64) -> ExitCode {
    // For whoever looks for a cause: with RUST_LOG, what the roles say and what happens, in one stream. Not `emberbox::invoke`, which
    // takes threads.
    if let Ok(filter) = std::env::var("RUST_LOG") {
        let log = tracing_subscriber::fmt().with_env_filter(format!("{filter},emberbox::invoke=off"));
        log.with_writer(std::io::stderr).without_time().init();
    }
    let outcome = sim::run(seed);
    print!("{}", outcome.log);
    outcome.violations.iter().for_each(|violation| println!("seed {seed}: VIOLATION {violation}"));
    println!("seed {seed}: {:?}", outcome.summary);
    ExitCode::from(u8::from(!outcome.violations.is_empty()))
}

fn child(seed: u64) -> Result<(String, bool)> {
    let program = std::env::current_exe().context("find this program")?;
    let output = Command::new(program).arg("--here").arg(seed.to_string()).output().context("start a simulation")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Ok((text, true)),
        Some(1) => Ok((text, false)),
        _ => bail!("seed {seed} ended with {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// Whether nothing was found.
fn tell(seed: u64, args: &Args) -> Result<bool> {
    let (text, mut good) = child(seed)?;
    let mark = format!("seed {seed}: ");
    let shown = text.lines().filter(|line| args.log || line.starts_with(&mark));
    shown.for_each(|line| println!("{line}"));
    if args.twice {
        let (again, _) = child(seed)?;
        if let Some((line, (a, b))) = text.lines().zip(again.lines()).enumerate().find(|(_, (a, b))| a != b) {
            println!("seed {seed}: DIFFERS the second time in line {}:\n  {a}\n  {b}", line + 1);
        }
        good &= text == again;
    }
    Ok(good)
}
