//! 16 clients at once: what Emberbox leaves of what the function processes can do on these cores.

use std::time::Duration;

use anyhow::Result;

use crate::Setup;
use crate::bare::Bare;
use crate::emberbox::{Emberbox, Package};
use crate::load::{Clients, Kind, Outcome};
use crate::paired::paired;
use crate::table::{Bound, Number, Row, Table, time};
use crate::warm::ONE_VCPU_MB;

const CLIENTS: usize = 16;

/// What counts of a round: so short that one of theirs comes before the host has changed.
const ROUND: Duration = Duration::from_millis(250);

/// Against the bare server with 16 processes of the same function.
pub async fn measure(setup: &Setup, table: &mut Table) -> Result<()> {
    let mut emberbox = Emberbox::start(setup).await?;
    let target = emberbox.create("rust-echo", &Package::rust(&setup.echo)?, ONE_VCPU_MB).await?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let bare = Bare::start(&setup.echo, CLIENTS, cores).await?;
    let mut our_clients = Clients::open(Kind::RequestResponse, &target, CLIENTS).await?;
    let mut their_clients = Clients::open(Kind::RequestResponse, &bare.target, CLIENTS).await?;
    // Not counted: sandboxes and caches come up.
    our_clients.round(ROUND).await?.check("Emberbox")?;
    their_clients.round(ROUND).await?.check("the bare server")?;
    let (mut ours, mut theirs) = (Outcome::default(), Outcome::default());
    let ratios = paired(
        setup.samples(30),
        async || Ok(ours.with(our_clients.round(ROUND).await?).throughput()),
        async || Ok(theirs.with(their_clients.round(ROUND).await?).throughput()),
    )
    .await?;
    ours.check("Emberbox")?;
    theirs.check("the bare server")?;
    table.add(Row {
        what: "throughput, Rust echo, 16 clients; a bare server with 16 of the same runtime process".into(),
        ours: format!("{:.0}/s", ours.throughput()),
        beside: format!("{:.0}/s", theirs.throughput()),
        value: Number::Paired(ratios),
        promise: Some(Bound::AtLeast(0.8)),
    });
    let (p50, p99) = (ours.quantile(0.5), ours.quantile(0.99));
    table.add(Row {
        what: "its p99 ÷ p50".into(),
        ours: format!("{} ÷ {}", time(p99), time(p50)),
        beside: format!("{} ÷ {}", time(theirs.quantile(0.99)), time(theirs.quantile(0.5))),
        value: Number::Ratio(p99.as_secs_f64() / p50.as_secs_f64()),
        promise: Some(Bound::Below(10.0)),
    });
    table.add(Row {
        what: format!("its errors, of {} requests", ours.latencies.len()),
        ours: String::new(),
        beside: String::new(),
        value: Number::Count(ours.errors as f64),
        promise: Some(Bound::AtMost(0.0)),
    });
    Ok(())
}
