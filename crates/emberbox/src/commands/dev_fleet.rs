//! `emberbox dev-fleet`: a whole fleet as processes on this machine, to try, and for tests.
//!
//! ```text
//!  PostgreSQL ◄── metadata, members, events ── frontend-1 … worker-manager-1 … placement-1 … pollers-1 … worker-1 …
//!  DIR/packages ◄───────────── code ───────────┘
//! ```
//!
//! Each process has a certificate of the fleet's own authority (`DIR/ca`), and is `emberbox serve` with a configuration of its own in `DIR/<name>`. A process that dies stays dead: that is what
//! people want to see. All of them end with this one, however it ends.

mod authority;
mod configuration;
mod postgres;
mod process;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::{join_all, select_all};
use membership::Role;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::cli::DevFleet;
use crate::data_dir::{self, DataDir};
use crate::ui;
use authority::Authority;
use postgres::Postgres;
use process::{Hurry, Line, Process, Ready};

/// How long the processes may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Lines of the log that wait for the terminal.
const LINES: usize = 1024;

/// `emberbox dev-fleet`
pub fn run(args: DevFleet) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(fleet(args))
}

/// What a script wants to know, in one line on standard output.
#[derive(Serialize)]
struct Shown<'a> {
    endpoints: &'a [String],
    database: &'a str,
    data_dir: &'a Path,
    processes: Vec<ShownProcess<'a>>,
}

#[derive(Serialize)]
struct ShownProcess<'a> {
    name: &'a str,
    pid: Option<u32>,
    /// Where it tells of its health and shows its metrics: `host:port`.
    admin: Option<&'a str>,
}

async fn fleet(args: DevFleet) -> Result<ExitCode> {
    // Before anything is started, so that no signal leaves something behind.
    let mut signals = super::serve::Signals::new(false)?;
    let temporary;
    let dir = match &args.data_dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
            std::fs::canonicalize(dir).with_context(|| format!("find {}", dir.display()))?
        }
        None => {
            temporary =
                tempfile::Builder::new().prefix("emberbox-fleet-").tempdir().context("make a data directory")?;
            // Other users have to pass it: functions are not root's, nor is PostgreSQL.
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
            std::fs::set_permissions(temporary.path(), open).context("open the data directory to functions")?;
            temporary.path().to_owned()
        }
    };
    // Two fleets in one would write each other's files.
    let _locked = DataDir::open(&dir)?;
    let postgres = match &args.database {
        Some(_) => None,
        None => Some(Postgres::start(&dir.join("postgres"))?),
    };
    let url = match (&args.database, &postgres) {
        (Some(url), _) => url.clone(),
        (None, Some(postgres)) => postgres.url(),
        (None, None) => unreachable!("one of them is there"),
    };
    // Installed once for all workers; without a directory of the user's own, once for good.
    let runtimes = match args.data_dir {
        Some(_) => dir.clone(),
        None => data_dir::default_dir()?,
    };
    let mut base = configuration::read(args.config.as_deref())?;
    if !base.contains_key("secrets_file") {
        let file = dir.join("secrets.key");
        if secrets::read(&file)?.is_none() {
            secrets::create(&file)?;
        }
        base.insert("secrets_file".into(), configuration::text(&file)?.into());
    }
    let authority = Authority::start(&dir.join("ca")).await?;
    let (sender, mut lines) = mpsc::channel(LINES);
    let mut processes = Vec::new();
    let mut listen = args.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 4566)));
    let counts = [
        (Role::Worker, args.workers),
        (Role::Placement, args.placements),
        (Role::WorkerManager, args.managers),
        (Role::Pollers, args.pollers),
        (Role::Frontend, args.frontends),
    ];
    for (role, count) in counts {
        for number in 1..=count {
            let name = format!("{role}-{number}");
            let own = dir.join(&name);
            data_dir::share_runtimes(&runtimes, &own.join("data"))?;
            let certificate = authority.certify(&name, role, own.join("certificate")).await?;
            // A worker needs little of the database, and has no right to the rest.
            let database = postgres.as_ref().filter(|_| role == Role::Worker).map(Postgres::worker_url);
            let database = database.unwrap_or_else(|| url.clone());
            let place = configuration::Place { name: &name, role, dir: &dir, database: &database, listen };
            let config = place.configure(&base, &certificate)?;
            processes.push(Process::start(&name, &own, &config, &sender)?);
            if role == Role::Frontend && listen.port() != 0 {
                listen.set_port(listen.port().saturating_add(1));
            }
        }
    }
    let result = tokio::select! {
        result = live(&args, &dir, &url, &mut processes, &mut lines) => result,
        () = signals.next() => Ok(()),
    };
    eprintln!("Stopping the fleet.");
    // Frontends first, so that nothing new comes; workers last, so that what runs can finish.
    let printing = async {
        while let Some(line) = lines.recv().await {
            print_line(&line);
        }
    };
    let (hurry, hurried) = watch::channel(Hurry::No);
    let hurrying = async {
        signals.next().await;
        eprintln!("Stopping at once: running invocations are cut off. Another Ctrl-C kills what is left.");
        hurry.send_replace(Hurry::Ask);
        signals.next().await;
        hurry.send_replace(Hurry::Kill);
        std::future::pending::<()>().await
    };
    let stopping = async {
        let mut failed = Vec::new();
        while !processes.is_empty() {
            let role = |process: &Process| process.name.rsplit_once('-').map(|(role, _)| role.to_owned());
            let last = processes.last().and_then(role);
            let (now, rest): (Vec<_>, Vec<_>) = processes.drain(..).partition(|process| role(process) == last);
            processes = rest;
            failed.extend(
                join_all(now.into_iter().map(|process| process.stop(hurried.clone())))
                    .await
                    .into_iter()
                    .filter_map(Result::err),
            );
        }
        failed
    };
    drop(sender);
    let failed = tokio::select! {
        failed = stopping => failed,
        () = async { printing.await; std::future::pending().await } => unreachable!("it waits for ever"),
        () = hurrying => unreachable!("it waits for ever"),
    };
    for error in &failed {
        eprintln!("{} {}", ui::error_label(), ui::explain(error));
    }
    drop(postgres);
    result?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What happens to a fleet.
enum Event {
    Wrote(Line),
    /// The process at this place.
    Ended(usize, ExitStatus),
    Late,
}

/// Waits for the next; `deadline` is that of the start, while it lasts.
async fn next(
    alive: &mut [&mut Process],
    lines: &mut mpsc::Receiver<Line>,
    deadline: Option<Instant>,
) -> Result<Event> {
    let ended = select_all(alive.iter_mut().map(|process| Box::pin(process.ended())));
    let late = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // What a process said last is shown before its end.
        biased;
        Some(line) = lines.recv() => Ok(Event::Wrote(line)),
        (status, at, _) = ended => Ok(Event::Ended(at, status?)),
        () = late => Ok(Event::Late),
    }
}

/// Waits until all are ready, says so, and shows what they write, until all have ended.
async fn live(
    args: &DevFleet,
    dir: &Path,
    database: &str,
    processes: &mut [Process],
    lines: &mut mpsc::Receiver<Line>,
) -> Result<()> {
    let names: Vec<(String, Option<u32>)> = processes.iter().map(|p| (p.name.clone(), p.pid())).collect();
    let mut missing: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
    let mut endpoints: Vec<(String, String)> = Vec::new();
    let mut admins: Vec<(String, String)> = Vec::new();
    let deadline = Instant::now() + START_LIMIT;
    let mut alive: Vec<&mut Process> = processes.iter_mut().collect();
    loop {
        match next(&mut alive, lines, (!missing.is_empty()).then_some(deadline)).await? {
            Event::Wrote(Line { name, ready: Some(Ready { endpoint, admin }), .. }) if missing.contains(&name) => {
                missing.retain(|other| *other != name);
                endpoints.extend(endpoint.map(|endpoint| (name.clone(), endpoint)));
                admins.extend(admin.map(|admin| (name.clone(), admin)));
                if missing.is_empty() {
                    endpoints.sort();
                    let endpoints: Vec<String> = endpoints.iter().map(|(_, endpoint)| endpoint.clone()).collect();
                    let admin =
                        |name: &str| admins.iter().find(|(of, _)| of == name).map(|(_, address)| address.as_str());
                    let processes =
                        names.iter().map(|(name, pid)| ShownProcess { name, pid: *pid, admin: admin(name) }).collect();
                    announce(args, &Shown { endpoints: &endpoints, database, data_dir: dir, processes })?;
                }
            }
            Event::Wrote(line) => print_line(&line),
            Event::Ended(at, status) => {
                let process = alive.swap_remove(at);
                if missing.contains(&process.name) {
                    bail!("{} did not start ({status}): what it said stands above", process.name);
                }
                eprintln!("{} has ended ({status})", process.name);
                if alive.is_empty() {
                    bail!("all processes of the fleet have ended");
                }
            }
            Event::Late => bail!("not ready after {} s: {}", START_LIMIT.as_secs(), missing.join(", ")),
        }
    }
}

fn announce(args: &DevFleet, shown: &Shown<'_>) -> Result<()> {
    if args.json {
        return super::print(format!("{}\n", serde_json::to_string(shown).context("make JSON")?).as_bytes());
    }
    let first = shown.endpoints.first().map_or("", String::as_str);
    let mut text =
        format!("A fleet of {} processes is ready, at {}.\n", shown.processes.len(), shown.endpoints.join(" and "));
    text += &format!("Its database is {}; everything is in {}.\n", shown.database, shown.data_dir.display());
    for process in &shown.processes {
        let (name, pid) = (process.name, process.pid.unwrap_or_default());
        let metrics = process.admin.map(|admin| format!("http://{admin}/metrics")).unwrap_or_default();
        text += &format!("  {name:<20} process {pid:<8} {metrics}\n");
    }
    text += &format!("\nexport AWS_ENDPOINT_URL_LAMBDA={first}\n\nKill any of them, and see. Ctrl-C stops them all.\n");
    super::print(text.as_bytes())
}

fn print_line(line: &Line) {
    eprintln!("{} {}", ui::dim(&format!("{:<18}", line.name)), line.text);
}
