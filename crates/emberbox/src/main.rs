//! `emberbox`: the server and its command line. It parses, wires the parts together and takes them down in order; it
//! decides nothing.
#![forbid(unsafe_code)]

mod adapters;
mod cli;
mod client;
mod commands;
mod config;
mod data_dir;
mod host;
mod log;
mod package;
mod serve;
mod timeline;
mod ui;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // First of all: this program is also the sandbox helper, which must begin before anything else does.
    sandbox::process::maybe_run_helper();
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing installed another one before");
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {}", ui::error_label(), ui::explain(&error));
            ExitCode::FAILURE
        }
    }
}
