//! One file for each command.

mod delete;
mod demo;
mod deploy;
#[cfg(feature = "cluster")]
mod dev_fleet;
mod doctor;
mod events;
mod fleet;
mod functions;
mod image;
mod invoke;
mod logs;
mod runtime;
mod serve;

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::{Cli, Command, Local};
use crate::client::Client;
use crate::config::Config;
use crate::data_dir;

/// Why an Emberbox for one machine takes part in no fleet.
#[cfg(not(feature = "cluster"))]
pub const WITHOUT_FLEETS: &str = "this Emberbox was built without fleets; build one with `cargo build --release -p emberbox --features \
                                  cluster`";

impl Local {
    /// The configuration and the data directory, made if missing, of a server that is started with these options.
    fn open(&self) -> Result<(Config, PathBuf)> {
        let config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        let dir = match self.data_dir.clone().or_else(|| config.data_dir.clone()) {
            Some(dir) => std::path::absolute(dir)?,
            None => data_dir::default_dir()?,
        };
        data_dir::make(&dir)?;
        Ok((config, dir))
    }
}

/// Does what was asked.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Deploy(args) => client_side(async { deploy::run(&Client::new(&args.target)?, args).await }),
        Command::Invoke(args) => client_side(async { invoke::run(&Client::new(&args.target)?, args).await }),
        Command::Logs(args) => client_side(async { logs::run(&Client::new(&args.target)?, args).await }),
        Command::Events(args) => client_side(async { events::run(&Client::new(&args.target)?, args).await }),
        Command::Functions(args) => client_side(async { functions::run(&Client::new(&args.target)?, args).await }),
        Command::Delete(args) => client_side(async { delete::run(&Client::new(&args.target)?, args).await }),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "emberbox", &mut script);
            print(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(args) => doctor::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Runtime(command) => runtime::run(command),
        Command::Image(command) => image::run(command),
        Command::Fleet(command) => fleet::run(command),
        Command::Demo(args) => demo::run(args),
        #[cfg(feature = "cluster")]
        Command::DevFleet(args) => dev_fleet::run(args),
        #[cfg(not(feature = "cluster"))]
        Command::DevFleet { .. } => anyhow::bail!(WITHOUT_FLEETS),
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

/// Lines up rows under a head; the last column may be of any width.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows[0].len();
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [vec!["hello".to_owned(), "1".to_owned()], vec!["ö".to_owned(), "22".to_owned()]];
        assert_eq!(table(&["N", "X"], rows.into_iter()), "N      X\nhello  1\nö      22\n");
    }
}
