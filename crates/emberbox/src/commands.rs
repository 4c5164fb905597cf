//! One file for each command.

mod delete;
mod deploy;
mod doctor;
mod functions;
mod invoke;
mod logs;

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::{Cli, Command};
use crate::client::Client;

/// Does what was asked.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Deploy(args) => client_side(async { deploy::run(&Client::new(&args.target)?, args).await }),
        Command::Invoke(args) => client_side(async { invoke::run(&Client::new(&args.target)?, args).await }),
        Command::Logs(args) => client_side(async { logs::run(&Client::new(&args.target)?, args).await }),
        Command::Functions(args) => client_side(async { functions::run(&Client::new(&args.target)?, args).await }),
        Command::Delete(args) => client_side(async { delete::run(&Client::new(&args.target)?, args).await }),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "emberbox", &mut script);
            print(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(args) => doctor::run(args),
        Command::Serve(_) | Command::Runtime(_) | Command::Demo(_) => {
            anyhow::bail!("not in this build")
        }
    }
}

/// Runs a command that needs no threads of its own.
fn client_side(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
    runtime.block_on(command)
}

/// Writes to stdout; a reader that went away (`emberbox logs f | head`) is no error.
fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("write to stdout"),
    }
}

/// Writes a value as indented JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context("make JSON")?;
    text.push(b'\n');
    print(&text)
}
