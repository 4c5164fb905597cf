//! Development tasks of this repository: `cargo xtask <task>`.
#![forbid(unsafe_code)]

mod bench;
mod codegen;
mod debian_kernel;
mod firecracker;
mod setup;
mod sim;
mod test;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Development tasks of this repository")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure Emberbox beside its references and print the table of promises
    Bench(bench::Args),
    /// Generate the wire model of the services that we speak from AWS's published service models
    Codegen(codegen::Args),
    /// Simulate fleets, by seeds: partitions, crashes, outages, and what must never be
    Sim(sim::Args),
    /// Set up this machine and run every test
    Test(test::Args),
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in no repository")?;
    match Cli::parse().task {
        Task::Bench(args) => bench::main(root, &args),
        Task::Codegen(args) => codegen::main(root, &args),
        Task::Sim(args) => sim::main(root, &args),
        Task::Test(args) => test::main(root, &args),
    }
}

/// Runs a program to its end; an error names the program and how it ended.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("start {program}"))?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}
