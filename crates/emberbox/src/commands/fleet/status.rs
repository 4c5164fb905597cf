//! `emberbox fleet status`, and orders to workers: the members are in the fleet's database, and each is asked how it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domain::SystemClock;
use futures::future::join_all;
use membership::postgres::{Options, PostgresRegistry};
use membership::{Member, MemberState, Registry as _, Role, View};
use rpc::{Channels, Cordon, Credentials, RemoteStatus};
use serde::Serialize;

use crate::cli::FleetPlace;
use crate::config::Config;
use crate::serve::fleet::status::{OfFunction, OfPlacement, OfWorker, Report, Waiting};
use crate::serve::fleet::{MEMBERS, renewal};

/// How long a member may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often `--watch` looks again.
const AGAIN: Duration = Duration::from_secs(1);

/// The way into a fleet.
struct Way {
    registry: PostgresRegistry,
    channels: Channels,
}

impl Way {
    async fn find(place: &FleetPlace) -> Result<Self> {
        let (mut database, mut tls) = (place.database.clone(), place.tls.clone());
        if let Some(path) = &place.config {
            let config = Config::read(path)?;
            let cluster = config.cluster.with_context(|| format!("{} has no [cluster]", path.display()))?;
            database.get_or_insert(cluster.database);
            tls = tls.or(cluster.tls);
        }
        let database = database.context("say which fleet: --config FILE of one of its members, or --database URL")?;
        let tls = tls.as_deref().map(renewal::read).transpose()?;
        let credentials = tls.map(|tls| Credentials::new(&tls)).transpose()?;
        let options = Options { listen: false, schema: MEMBERS.into(), ..Options::new(database) };
        let registry = PostgresRegistry::connect(options).await?;
        Ok(Self { registry, channels: Channels::new(credentials, Arc::new(SystemClock::default())) })
    }

    fn ask(&self, member: &Member) -> Option<RemoteStatus> {
        // Its certificate has a name for each of its roles.
        let role = rpc::Role::parse(member.roles.first()?.as_str())?;
        let peer = rpc::Member::new(role, member.id.as_str());
        Some(RemoteStatus::new(self.channels.channel(&member.address, &peer), PATIENCE))
    }

    async fn look(&self) -> Result<Shown> {
        let view = self.registry.view().await?;
        // One for all: the queue is the fleet's.
        let counts = view.active(Role::Pollers).chain(view.active(Role::Frontend)).next().map(|member| &member.id);
        let answers = view.members().iter().map(|member| async move {
            match self.ask(member) {
                Some(status) if Some(&member.id) == counts => match status.report(true).await {
                    // This machine's certificate may not ask for the events.
                    Err(_) => read(status.report(false).await),
                    answer => read(answer),
                },
                Some(status) => read(status.report(false).await),
                None => Err("it has no role that this version knows".to_owned()),
            }
        });
        let answers = join_all(answers).await;
        Ok(Shown::new(&view, answers))
    }
}

fn read(answer: Result<String, String>) -> Result<Report, String> {
    serde_json::from_str(&answer?).map_err(|error| format!("its answer cannot be read: {error}"))
}

/// `emberbox fleet status`
pub async fn run(place: FleetPlace, watch: bool, json: bool) -> Result<ExitCode> {
    let way = Way::find(&place).await?;
    loop {
        let shown = way.look().await?;
        let text = if json {
            format!("{}\n", serde_json::to_string(&shown).context("make JSON")?)
        } else if watch && std::io::stdout().is_terminal() {
            // To the top, and nothing below.
            format!("\x1b[H\x1b[J{}", shown.text())
        } else {
            shown.text()
        };
        crate::commands::print(text.as_bytes())?;
        if !watch {
            break;
        }
        tokio::time::sleep(AGAIN).await;
    }
    way.registry.close().await;
    Ok(ExitCode::SUCCESS)
}

/// `emberbox fleet cordon`, `uncordon`, `drain`
pub async fn order(place: FleetPlace, id: &str, state: Cordon) -> Result<ExitCode> {
    let way = Way::find(&place).await?;
    let view = way.registry.view().await?;
    let Some(member) = view.members().iter().find(|member| member.id.as_str() == id) else {
        let workers: Vec<&str> = view.live(Role::Worker).map(|member| member.id.as_str()).collect();
        bail!("the fleet has no member {id}; its workers are: {}", workers.join(", "));
    };
    if !member.is(Role::Worker) {
        bail!("{id} is no worker, and has no sandboxes; stop its process to take it out of the fleet");
    }
    let status = way.ask(member).with_context(|| format!("{id} has no role that this version knows"))?;
    if let Err(error) = status.cordon(state).await {
        bail!("tell {id} at {}: {error}", member.address);
    }
    way.registry.close().await;
    eprintln!(
        "{}",
        match state {
            Cordon::None => format!("{id} takes new sandboxes again."),
            Cordon::Cordon =>
                format!("{id} takes no new sandboxes, until `emberbox fleet uncordon {id}` or its next start."),
            Cordon::Drain => format!(
                "{id} takes no new sandboxes, ends idle ones and finishes what runs, until `emberbox fleet uncordon {id}` or its next \
             start. `emberbox fleet status` says when it is empty."
            ),
        }
    );
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    epoch: u64,
    members: Vec<ShownMember>,
    functions: Vec<OfFunction>,
    events: Option<Waiting>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownMember {
    id: String,
    roles: Vec<&'static str>,
    address: String,
    version: String,
    state: MemberState,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Shown {
    fn new(view: &View, answers: Vec<Result<Report, String>>) -> Self {
        let mut functions: BTreeMap<String, OfFunction> = BTreeMap::new();
        let mut events = None;
        let mut add = |from: &OfFunction, waiting: bool| {
            let function = from.function.clone();
            let of = functions.entry(function.clone()).or_insert_with(|| OfFunction { function, ..Default::default() });
            if waiting {
                of.waiting += from.waiting;
            } else {
                of.starting += from.starting;
                of.idle += from.idle;
                of.busy += from.busy;
            }
        };
        let member = |(member, answer): (&Member, Result<Report, String>)| {
            let (report, error) = match answer {
                Ok(mut report) => {
                    events = events.take().or_else(|| report.events.take());
                    // Sandboxes as the workers see them, who are the truth; who waits only managers know.
                    report.worker.iter().flat_map(|worker| &worker.functions).for_each(|of| add(of, false));
                    report.manager.iter().flatten().for_each(|of| add(of, true));
                    (Some(report), None)
                }
                Err(error) => (None, Some(error)),
            };
            ShownMember {
                id: member.id.to_string(),
                roles: member.roles.iter().map(|role| role.as_str()).collect(),
                address: member.address.clone(),
                version: member.version.clone(),
                state: member.state,
                report,
                error,
            }
        };
        let members = view.members().iter().zip(answers).map(member).collect();
        // A manager remembers functions without sandboxes.
        let there = |of: &OfFunction| of.starting + of.idle + of.busy + of.waiting > 0;
        Self { epoch: view.epoch(), members, functions: functions.into_values().filter(there).collect(), events }
    }

    fn text(&self) -> String {
        let mut text = format!("{} members, view {}{}\n\n", self.members.len(), self.epoch, self.versions());
        let mut table = vec![["MEMBER", "ROLES", "STATE", "VERSION", "ADDRESS", "VIEW", "LOAD"].map(str::to_owned)];
        table.extend(self.members.iter().map(|member| member.row(self.epoch)));
        lay_out(&mut text, &table);
        if !self.functions.is_empty() {
            let mut table = vec![["FUNCTION", "STARTING", "IDLE", "BUSY", "WAITING REQUESTS"].map(str::to_owned)];
            table.extend(self.functions.iter().map(|of| {
                let OfFunction { function, starting, idle, busy, waiting } = of;
                [function.clone(), starting.to_string(), idle.to_string(), busy.to_string(), waiting.to_string()]
            }));
            text.push('\n');
            lay_out(&mut text, &table);
        }
        let events = match &self.events {
            None => "not known: no process with the queue answers".to_owned(),
            Some(Waiting { error: Some(error), .. }) => format!("not known: {error}"),
            Some(Waiting { ready, in_flight, delayed, oldest_ms, error: None }) => {
                let oldest = oldest_ms.map(|ms| format!("; the oldest is {} old", ago(ms))).unwrap_or_default();
                format!("{ready} ready, {in_flight} running, {delayed} to be tried later{oldest}")
            }
        };
        // Writing to a text cannot fail.
        let _ = writeln!(text, "\nEvents: {events}");
        for member in &self.members {
            let trouble = member.report.as_ref().and_then(|report| report.view.trouble.as_ref());
            for trouble in trouble.into_iter().chain(&member.error) {
                let _ = writeln!(text, "{}: {trouble}", member.id);
            }
        }
        text
    }
}

impl Shown {
    /// Nothing, unless there are several: then an upgrade is under way.
    fn versions(&self) -> String {
        let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
        for member in &self.members {
            *versions.entry(&member.version).or_default() += 1;
        }
        let all: Vec<String> = versions.iter().map(|(version, count)| format!("{version} ({count})")).collect();
        if all.len() < 2 { String::new() } else { format!(", versions {}", all.join(", ")) }
    }
}

impl ShownMember {
    fn row(&self, newest: u64) -> [String; 7] {
        let (view, load) = match &self.report {
            None => (String::new(), "does not answer".to_owned()),
            Some(report) => {
                let behind = if report.view.epoch < newest { ", not the newest" } else { "" };
                let view = format!("{} for {}{behind}", report.view.epoch, ago(report.view.age_ms));
                let load = report.worker.as_ref().map(load).into_iter().chain(report.placement.as_ref().map(placed));
                (view, load.collect::<Vec<_>>().join("; "))
            }
        };
        let (roles, state) = (self.roles.join(","), self.state.to_string());
        [self.id.clone(), roles, state, self.version.clone(), self.address.clone(), view, load]
    }
}

fn load(worker: &OfWorker) -> String {
    let OfWorker { slots, slots_used, memory_mb, memory_used_mb, draining, cordon, functions } = worker;
    let starting: u32 = functions.iter().map(|of| of.starting).sum();
    let order = match cordon.as_str() {
        "cordon" => ", cordoned",
        "drain" => ", drained",
        _ if *draining => ", takes no new ones",
        _ => "",
    };
    format!("{slots_used}/{slots} sandboxes ({starting} starting), {memory_used_mb}/{memory_mb} MB{order}")
}

fn placed(placement: &OfPlacement) -> String {
    let OfPlacement { decides, workers, sandboxes, placed, refused } = placement;
    let role = if *decides { "places" } else { "stands by" };
    let refused = if *refused > 0 { format!(", {refused} without a place") } else { String::new() };
    format!("{role}: {workers} workers, {sandboxes} sandboxes, {placed} placed{refused}")
}

fn ago(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

/// Columns as wide as their widest text.
fn lay_out<const N: usize>(text: &mut String, table: &[[String; N]]) {
    let width: [usize; N] =
        std::array::from_fn(|column| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in table {
        let line: Vec<String> = row.iter().zip(width).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use membership::MemberId;

    use super::*;

    fn member(id: &str, role: Role) -> Member {
        Member {
            id: MemberId::new(id),
            roles: [role].into(),
            address: format!("{id}:1"),
            version: "1".into(),
            state: MemberState::Active,
            epoch: 1,
            labels: Default::default(),
        }
    }

    fn of(function: &str, idle: u32, waiting: u32) -> OfFunction {
        OfFunction { function: function.into(), idle, waiting, ..Default::default() }
    }

    fn worker(functions: Vec<OfFunction>, cordon: &str) -> Report {
        let worker = OfWorker {
            slots: 10,
            slots_used: 2,
            memory_mb: 1000,
            memory_used_mb: 256,
            draining: cordon != "none",
            cordon: cordon.into(),
            functions,
        };
        Report { worker: Some(worker), ..Default::default() }
    }

    #[test]
    fn what_all_say_is_one_picture() {
        let view = View::new(
            7,
            vec![
                member("m", Role::WorkerManager),
                member("w1", Role::Worker),
                member("w2", Role::Worker),
                member("w3", Role::Worker),
                member("p", Role::Placement),
            ],
        );
        let placement = OfPlacement { decides: true, workers: 3, sandboxes: 4, placed: 9, refused: 0 };
        let manager = Report { manager: Some(vec![of("f", 99, 4), of("gone", 0, 0)]), ..Default::default() };
        let shown = Shown::new(
            &view,
            vec![
                Ok(manager),
                Ok(Report { placement: Some(placement), ..Default::default() }),
                Ok(worker(vec![of("f", 1, 0), of("g", 2, 0)], "none")),
                Ok(worker(vec![of("f", 1, 0)], "drain")),
                Err("no answer within 3s".to_owned()),
            ],
        );
        let functions: Vec<_> = shown.functions.iter().map(|of| (of.function.as_str(), of.idle, of.waiting)).collect();
        assert_eq!(functions, [("f", 2, 4), ("g", 2, 0)]);
        let text = shown.text();
        let line = |id: &str| text.lines().find(|line| line.starts_with(id)).unwrap().to_owned();
        assert!(line("w1").contains("2/10 sandboxes (0 starting), 256/1000 MB"), "{text}");
        assert!(line("w2").ends_with(", drained"), "{text}");
        assert!(line("w3").contains("does not answer"), "{text}");
        assert!(text.contains("w3: no answer within 3s") && text.contains("5 members, view 7\n"), "{text}");
        assert!(line("p ").ends_with("places: 3 workers, 4 sandboxes, 9 placed"), "{text}");
        assert!(text.lines().all(|line| line == line.trim_end()));
    }

    #[test]
    fn several_versions_are_said_at_once() {
        let newer = Member { version: "2".into(), ..member("w2", Role::Worker) };
        let view = View::new(1, vec![member("m", Role::WorkerManager), member("w1", Role::Worker), newer]);
        let silent = || Err("no answer".to_owned());
        let shown = Shown::new(&view, vec![silent(), silent(), silent()]);
        assert!(shown.text().starts_with("3 members, view 1, versions 1 (2), 2 (1)\n"), "{}", shown.text());
    }

    #[test]
    fn another_version_may_say_less_and_more() {
        let report = read(Ok(r#"{"view":{"epoch":3},"news":[1]}"#.to_owned())).unwrap();
        assert_eq!((report.view.epoch, report.worker.is_none(), report.up_ms), (3, true, 0));
        assert!(read(Ok("nonsense".to_owned())).is_err());
    }
}
