//! `cargo xtask sim`: the simulation of `crates/sim`, for as many seeds as one likes.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::run;

/// Which seeds.
#[derive(clap::Args)]
pub struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print what happened, as of one seed
    #[arg(long)]
    log: bool,
    /// Run each seed twice, and compare what happened byte by byte
    #[arg(long)]
    twice: bool,
}

/// Runs them; an error if they found something.
pub fn main(root: &Path, args: &Args) -> Result<()> {
    // With debug assertions: they are part of what is looked for.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["run", "--quiet", "--package", "sim", "--"]);
    cargo.args(["--seeds", &args.seeds.to_string(), "--seed", &args.seed.to_string()]);
    cargo.args(args.log.then_some("--log")).args(args.twice.then_some("--twice"));
    run(&mut cargo)
}
