//! The benchmark: Emberbox beside what it is measured against, in one run, by a native load generator.
//!
//! * [`load`]: closed loops of HTTP clients, and one for all other requests. [`client`]: what a closed loop is made of.
//! * [`bare`]: the reference server, which hands each request to a runtime process with nothing between.
//! * [`rie`]: AWS's Runtime Interface Emulator.
//! * [`emberbox`]: the server under test, through its public API.
//! * [`paired`]: ours and theirs by turns, and the median of their ratios.
//! * [`function`]: an echo that can be told to wait.
//! * [`warm`], [`throughput`], [`cold`], [`density`], [`events`], [`fleet`], [`microvm`]: what is measured, and what is promised of it.
//!
//! `cargo xtask bench` builds and fetches what this needs and runs it. Everything talks over loopback.
#![forbid(unsafe_code)]

mod bare;
mod client;
mod cold;
mod density;
mod emberbox;
mod events;
mod fleet;
mod function;
mod load;
mod microvm;
mod paired;
mod process;
mod references;
mod rie;
mod table;
mod throughput;
mod warm;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(name = "bench", about = "Measures Emberbox beside its references and prints a table")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure and print the table; fails when a promise is not kept
    Run(Setup),
    /// Measure the reference servers alone: is the yardstick straight?
    References(Setup),
    /// The reference server: POST / goes to a runtime process that asks for it
    #[command(hide = true)]
    Bare {
        /// Where it listens
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Threads of its runtime; 1 is the leanest for one client
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
}

/// What there is to measure with.
#[derive(clap::Args)]
pub struct Setup {
    /// The server under test
    #[arg(long, default_value = "target/release/emberbox")]
    emberbox: PathBuf,
    /// The Rust echo function's `bootstrap`
    #[arg(long, default_value = "target/examples/release/rust-echo")]
    echo: PathBuf,
    /// AWS's Runtime Interface Emulator; without it Python is not measured
    #[arg(long)]
    rie: Option<PathBuf>,
    /// Python runtime to measure; its interpreter must be on the host
    #[arg(long, default_value = "python3.11")]
    python: String,
    /// A folder whose installed runtimes are used
    #[arg(long, default_value = "target/system")]
    runtimes: PathBuf,
    /// The guest kernel of microVMs; without it, and the device, these are measured only if asked for
    #[arg(long, default_value = "target/guest-kernel/vmlinux")]
    kernel: PathBuf,
    /// `vhost-device-vsock`
    #[arg(long, default_value = "target/tools/bin/vhost-device-vsock")]
    vsock_device: PathBuf,
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Scales every sample count and time; below 1 for a quick look, which proves nothing
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Print the rows as JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Setup {
    fn samples(&self, full: u32) -> u32 {
        ((f64::from(full) * self.scale) as u32).max(3)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// One client, warm
    Warm,
    /// 16 clients
    Throughput,
    /// Cold starts
    Cold,
    /// 200 sandboxes, memory
    Density,
    /// Asynchronous invocation: how soon an event starts
    Start,
    /// Asynchronous invocation: how fast events are accepted, and what a backlog takes
    Accept,
    /// Asynchronous invocation: how fast a backlog is worked off
    Drain,
    /// The roles in processes of their own: one client, 16 clients
    Fleet,
    /// The same: 200 cold starts at once
    Storm,
    /// MicroVMs by software emulation
    Microvm,
}

fn main() -> Result<ExitCode> {
    if let Ok(runtime_api) = std::env::var("AWS_LAMBDA_RUNTIME_API") {
        return generator()?.block_on(function::run(&runtime_api)).map(|()| ExitCode::SUCCESS);
    }
    match Cli::parse().command {
        Command::Bare { listen, threads } => bare::serve(listen, threads).map(|()| ExitCode::SUCCESS),
        Command::Run(setup) => generator()?.block_on(run(&setup)),
        Command::References(setup) => generator()?.block_on(references::measure(&setup)).map(|()| ExitCode::SUCCESS),
    }
}

/// One thread: the generator takes as little of the machine as it can.
fn generator() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn run(setup: &Setup) -> Result<ExitCode> {
    let wanted = |section| setup.only.is_empty() || setup.only.contains(&section);
    let mut table = table::Table::default();
    if wanted(Section::Density) {
        // First, while the server under test is new: its idle size is part of it.
        density::measure(setup, &mut table).await?;
    }
    if wanted(Section::Warm) {
        warm::measure(setup, &mut table).await?;
    }
    if wanted(Section::Throughput) {
        throughput::measure(setup, &mut table).await?;
    }
    if wanted(Section::Cold) {
        cold::measure(setup, &mut table).await?;
    }
    if wanted(Section::Start) {
        events::start(setup, &mut table).await?;
    }
    if wanted(Section::Accept) {
        events::accept(setup, &mut table).await?;
    }
    if wanted(Section::Drain) {
        events::drain(setup, &mut table).await?;
    }
    let (of_fleet, of_storm) = (wanted(Section::Fleet), wanted(Section::Storm));
    match fleet::missing(setup).filter(|_| of_fleet || of_storm) {
        None => {
            if of_fleet {
                fleet::measure(setup, &mut table).await?;
            }
            if of_storm {
                fleet::storm(setup, &mut table).await?;
            }
        }
        Some(missing) if setup.only.is_empty() => eprintln!("  a fleet is not measured: {missing}"),
        Some(missing) => bail!("a fleet cannot be measured: {missing}"),
    }
    match microvm::missing(setup) {
        None if wanted(Section::Microvm) => microvm::measure(setup, &mut table).await?,
        Some(missing) if setup.only.contains(&Section::Microvm) => bail!("microVMs cannot be measured: {missing}"),
        Some(missing) if wanted(Section::Microvm) => eprintln!("  microVMs are not measured: {missing}"),
        _ => {}
    }
    table.print(setup.json);
    Ok(if table.kept() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
