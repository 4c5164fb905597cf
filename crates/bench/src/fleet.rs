//! The roles in processes of their own beside one process that has them all: what the calls between them cost.
//!
//! Both stand on the same machine at the same time and are asked in turn, in short rounds whose order changes; a ratio is the median
//! of those of the rounds. So whatever else the machine does meets both.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::future::join_all;
use serde_json::Value;

use crate::Setup;
use crate::emberbox::{DataDir, Emberbox, Package};
use crate::load::{Connection, Outcome, Target, Until, closed_loop};
use crate::process::{Child, cpu_time, tree};
use crate::table::{Bound, Number, Row, Table, time};
use crate::warm::ONE_VCPU_MB;

/// How long PostgreSQL, certificates and all processes may take.
const READY: Duration = Duration::from_secs(120);
const CLIENTS: usize = 16;
const STORM: u32 = 200;
/// The sandboxes of the storm before go down in this time.
const SETTLE: Duration = Duration::from_secs(2);

/// What a machine or a program lacks for this.
pub fn missing(setup: &Setup) -> Option<String> {
    let mut help = Command::new(&setup.emberbox);
    help.args(["dev-fleet", "--help"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !help.status().is_ok_and(|status| status.success()) {
        return Some("this emberbox was built without the feature `cluster`".into());
    }
    let postgres = fs::read_dir("/usr/lib/postgresql").is_ok_and(|mut versions| versions.next().is_some());
    (!postgres).then(|| "no PostgreSQL: install Debian's package postgresql".into())
}

/// A warm invocation, and throughput.
pub async fn measure(setup: &Setup, table: &mut Table) -> Result<()> {
    let mut one = Emberbox::start(setup).await?;
    let (mut fleet, _) = start(setup, ["1", "1", "1"]).await?;
    let package = Package::rust(&setup.echo)?;
    let target = one.create("rust-echo", &package, ONE_VCPU_MB).await?;
    let in_fleet = fleet.create("rust-echo", &package, ONE_VCPU_MB).await.with_context(|| fleet.log_tail())?;
    let both = Both { targets: [target, in_fleet], pids: [one.pid(), fleet.pid()] };
    warm(setup, &both, table).await.with_context(|| fleet.log_tail())?;
    throughput(setup, &both, table).await.with_context(|| fleet.log_tail())
}

/// `emberbox dev-fleet` with so many frontends, managers and workers, all its processes below one; and its frontends' addresses.
async fn start(setup: &Setup, [frontends, managers, workers]: [&str; 3]) -> Result<(Emberbox, Vec<SocketAddr>)> {
    let data = DataDir::new(setup, "")?;
    // Functions and PostgreSQL are other users.
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711)).context("open the data directory")?;
    let started = Instant::now();
    let mut command = Command::new(&setup.emberbox);
    command
        .args(["dev-fleet", "--json", "--listen", "127.0.0.1:0", "--pollers", "0"])
        .args(["--frontends", frontends, "--managers", managers, "--workers", workers, "--data-dir"])
        .arg(data.path())
        .arg("--config")
        .arg(data.config())
        .stderr(data.log_file()?);
    let mut process = Child::spawn(&mut command)?;
    // The line is JSON without spaces.
    let shown = process.wait_for_line("{", READY).with_context(|| data.log())?;
    let shown: Value = serde_json::from_str(&format!("{{{shown}")).context("the line of a fleet that is ready")?;
    let endpoints = shown["endpoints"].as_array().context("it has no endpoints")?;
    let address = |url: &Value| -> Result<SocketAddr> {
        let url = url.as_str().context("an endpoint is no text")?;
        url.trim_start_matches("http://").parse().with_context(|| format!("the endpoint {url}"))
    };
    let endpoints = endpoints.iter().map(address).collect::<Result<Vec<_>>>()?;
    let first = *endpoints.first().context("the fleet has no frontend")?;
    Ok((Emberbox::running(process, first, started.elapsed(), data).await?, endpoints))
}

/// What is compared: one process and a fleet, in this order.
struct Both {
    targets: [Target; 2],
    pids: [u32; 2],
}

/// What all rounds saw of one of them.
#[derive(Default)]
struct Side {
    all: Outcome,
    /// Of its processes and of the functions in them. PostgreSQL's are not among them: a warm invocation does not ask it.
    processor: Duration,
}

impl Both {
    /// Rounds in turn, and the median of the rounds' ratios, the fleet's to the other's.
    async fn rounds(
        &self,
        clients: usize,
        rounds: u32,
        each: Until,
        figure: impl Fn(&Outcome) -> f64,
    ) -> Result<([Side; 2], f64)> {
        for target in &self.targets {
            // Not counted: connections, sandboxes and caches come up.
            closed_loop(target, clients, Until { requests: 500, ..each }).await?;
        }
        let mut sides = <[Side; 2]>::default();
        let mut ratios = Vec::new();
        for round in 0..rounds {
            let mut figures = [0.0; 2];
            for at in turns(round) {
                let before = processor_time(self.pids[at])?;
                let outcome = closed_loop(&self.targets[at], clients, each).await?;
                sides[at].processor += processor_time(self.pids[at])?.saturating_sub(before);
                figures[at] = figure(&outcome);
                sides[at].all.add(outcome);
            }
            ratios.push(figures[1] / figures[0]);
        }
        for (side, of) in sides.iter().zip(["one process", "the fleet"]) {
            side.all.check(of)?;
        }
        Ok((sides, median(ratios)))
    }
}

/// Who comes first in a round: each as often as the other.
fn turns(round: u32) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn processor_time(pid: u32) -> Result<Duration> {
    // One that ended meanwhile is in its parent's.
    Ok(tree(pid)?.into_iter().filter_map(|pid| cpu_time(pid).ok()).sum())
}

/// One client.
async fn warm(setup: &Setup, both: &Both, table: &mut Table) -> Result<()> {
    let each = Until { requests: 50, time: Duration::from_secs(2) };
    let p50 = |outcome: &Outcome| outcome.quantile(0.5).as_secs_f64();
    let ([one, fleet], ratio) = both.rounds(1, setup.samples(200), each, p50).await?;
    let show = |side: &Side| format!("{} (p99 {})", time(side.all.quantile(0.5)), time(side.all.quantile(0.99)));
    table.add(Row {
        what: "warm invoke through frontend, manager and worker, Rust echo, 1 client, p50; one process".into(),
        ours: show(&fleet),
        beside: show(&one),
        value: Number::Ratio(ratio),
        promise: Some(Bound::AtMost(2.0)),
    });
    Ok(())
}

/// 16 clients: answers in a second, and in a second of a core.
async fn throughput(setup: &Setup, both: &Both, table: &mut Table) -> Result<()> {
    let each = Until { requests: u64::MAX, time: Duration::from_millis(500) };
    let ([one, fleet], ratio) = both.rounds(CLIENTS, setup.samples(24), each, Outcome::throughput).await?;
    table.add(Row {
        what: "throughput through frontend, manager and worker, the same cores, 16 clients; one process".into(),
        ours: format!("{:.0}/s", fleet.all.throughput()),
        beside: format!("{:.0}/s", one.all.throughput()),
        value: Number::Ratio(ratio),
        promise: Some(Bound::AtLeast(0.5)),
    });
    let of_a_core = |side: &Side| side.all.latencies.len() as f64 / side.processor.as_secs_f64();
    table.add(Row {
        what: "its answers per second of a core, functions included; one process".into(),
        ours: format!("{:.0}/s", of_a_core(&fleet)),
        beside: format!("{:.0}/s", of_a_core(&one)),
        value: Number::Ratio(of_a_core(&fleet) / of_a_core(&one)),
        promise: Some(Bound::AtLeast(0.5)),
    });
    Ok(())
}

/// 200 functions, each of which needs a new sandbox, invoked at once; the package is on the hosts.
pub async fn storm(setup: &Setup, table: &mut Table) -> Result<()> {
    let functions = setup.samples(STORM).min(STORM);
    let mut one = Emberbox::start(setup).await?;
    let (mut fleet, frontends) = start(setup, ["2", "2", "3"]).await?;
    let package = Package::rust(&setup.echo)?;
    let mut targets = [Vec::new(), Vec::new()];
    for (number, frontend) in (0..functions).zip(frontends.iter().cycle()) {
        let name = format!("storm-{number}");
        targets[0].push(one.create(&name, &package, 128).await?);
        let target = fleet.create(&name, &package, 128).await.with_context(|| fleet.log_tail())?;
        targets[1].push(Target { address: *frontend, ..target });
    }
    let mut taken = [Vec::new(), Vec::new()];
    let mut failures = Vec::new();
    // The first round is not counted, but for its failures: each worker unpacks the package.
    for round in 0..=setup.samples(5) {
        for at in turns(round) {
            let server = if at == 0 { &mut one } else { &mut fleet };
            for number in 0..functions {
                server.force_cold(&format!("storm-{number}"), round, &[]).await?;
            }
            tokio::time::sleep(SETTLE).await;
            let (time, failed) = all_at_once(&targets[at]).await?;
            failures.extend(failed);
            if round > 0 {
                taken[at].push(time.as_secs_f64());
            }
        }
    }
    let ratios = taken[1].iter().zip(&taken[0]).map(|(fleet, one)| fleet / one).collect();
    let [one, fleet_taken] = taken.map(|all| Duration::from_secs_f64(median(all)));
    table.add(Row {
        what: format!("{functions} cold starts at once, two frontends and managers, three workers; one process"),
        ours: time(fleet_taken),
        beside: time(one),
        value: Number::Ratio(median(ratios)),
        promise: Some(Bound::AtMost(1.5)),
    });
    if let Some(first) = failures.first() {
        eprintln!("  {first:#}\n{}", fleet.log_tail());
    }
    table.add(Row {
        what: "its failures".into(),
        ours: String::new(),
        beside: String::new(),
        value: Number::Count(failures.len() as f64),
        promise: Some(Bound::AtMost(0.0)),
    });
    Ok(())
}

/// One request to each, on connections that are there: how long until the last answer, and what went wrong.
async fn all_at_once(targets: &[Target]) -> Result<(Duration, Vec<anyhow::Error>)> {
    let mut connections = Vec::new();
    for target in targets {
        connections.push((Connection::open(target.address).await?, target));
    }
    let sent = Instant::now();
    let answers = connections.iter_mut().map(|(connection, target)| connection.echo(&target.path));
    let answers = join_all(answers).await;
    let taken = sent.elapsed();
    Ok((taken, answers.into_iter().filter_map(Result::err).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn each_comes_first_as_often_as_the_other() {
        assert_eq!((0..10).filter(|round| turns(*round)[0] == 0).count(), 5);
    }
}
