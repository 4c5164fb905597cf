//! Figures of a process as a member of its fleet, and of what it manages: read when somebody asks.

use std::collections::BTreeMap;
use std::fmt;

use control_plane::ControlPlane;
use membership::{MemberState, Membership, Role};
use placement::Tally;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use worker_manager::Manager;

use super::super::placement::Deciding;

/// Adds the figures, under the prefix that the registry has. `metadata` are the process' copy of them, once it has one.
pub fn register(
    registry: &mut Registry,
    membership: Membership,
    manager: Option<Manager>,
    deciding: Option<Deciding>,
    metadata: watch::Receiver<Option<ControlPlane>>,
) {
    registry.register_collector(Box::new(Figures { membership, manager, deciding, metadata }));
}

struct Figures {
    membership: Membership,
    manager: Option<Manager>,
    deciding: Option<Deciding>,
    metadata: watch::Receiver<Option<ControlPlane>>,
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

impl Collector for Figures {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.membership.view();
        let me = view.member(self.membership.id());
        let active = me.is_some_and(|member| member.state == MemberState::Active);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        family(&mut out, "build", "1, with the version as a label", &["version"], [(vec![version], 1)])?;
        one(&mut out, "member_active", "1 while the fleet gives this process work", active)?;
        let reachable = self.membership.trouble().is_none();
        one(&mut out, "database_reachable", "1 if this process' last sign of life reached the database", reachable)?;
        one(&mut out, "fleet_epoch", "Epoch of the newest view of the fleet that this process has", view.epoch())?;
        let row = |role: Role, state: MemberState| vec![role.to_string(), state.as_str().to_owned()];
        // Those of which there is none as well, so that an alert sees it.
        let mut members: BTreeMap<Vec<String>, i64> =
            Role::ALL.into_iter().map(|role| (row(role, MemberState::Active), 0)).collect();
        for member in view.members() {
            for role in &member.roles {
                *members.entry(row(*role, member.state)).or_default() += 1;
            }
        }
        let help = "Members in this process' view of the fleet, by role and state";
        family(&mut out, "fleet_members", help, &["role", "state"], members)?;
        if let Some(metadata) = &*self.metadata.borrow() {
            let help = "Functions and accounts that this process knows only as they were, since it cannot read what is stored of them";
            let count = u64::try_from(metadata.unreadable_records()).unwrap_or(u64::MAX);
            one(&mut out, "metadata_unreadable_records", help, count)?;
        }
        if let Some(deciding) = &self.deciding {
            placed(&mut out, deciding)?;
        }
        match &self.manager {
            Some(manager) => managed(&mut out, manager),
            None => Ok(()),
        }
    }
}

fn placed(out: &mut DescriptorEncoder<'_>, deciding: &Deciding) -> fmt::Result {
    let Tally { workers, sandboxes, placed, refused, .. } = deciding.tally();
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    one(out, "placement_workers", "Workers that this process observes to place on", count(workers))?;
    one(out, "placement_sandboxes", "Sandboxes that they have or were given", count(sandboxes))?;
    counter(out, "placement_placed", "Sandboxes that this process gave a place", placed)?;
    counter(out, "placement_refused", "Sandboxes that it knew no place for", refused)
}

fn managed(out: &mut DescriptorEncoder<'_>, manager: &Manager) -> fmt::Result {
    let functions = manager.status().functions;
    let sum = |of: fn(&worker_manager::FunctionStatus) -> u32| functions.iter().map(|f| i64::from(of(f))).sum::<i64>();
    let state = |state: &str, count| (vec![state.to_owned()], count);
    let sandboxes =
        [state("starting", sum(|f| f.starting)), state("idle", sum(|f| f.idle)), state("busy", sum(|f| f.busy))];
    let count = u64::try_from(functions.len()).unwrap_or(u64::MAX);
    one(out, "manager_functions", "Functions with sandboxes, or lately with some, that this process manages", count)?;
    family(out, "manager_sandboxes", "Sandboxes that this process manages, by state", &["state"], sandboxes)?;
    let waiting = u64::try_from(sum(|f| f.waiting)).unwrap_or_default();
    one(out, "manager_requests_waiting", "Invocations that wait for a sandbox", waiting)
}

fn one(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: impl Into<u64>) -> fmt::Result {
    let value = i64::try_from(value.into()).unwrap_or(i64::MAX);
    ConstGauge::new(value).encode(out.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(out.encode_descriptor(name, help, None, MetricType::Counter)?)
}

/// A gauge for each row of label values.
fn family(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[&str],
    rows: impl IntoIterator<Item = (Vec<String>, i64)>,
) -> fmt::Result {
    let mut metric = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (values, value) in rows {
        let labels: Vec<(&str, String)> = labels.iter().copied().zip(values).collect();
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
