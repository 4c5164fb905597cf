//! One client, warm: what Emberbox adds to the function.

use std::time::Duration;

use anyhow::Result;

use crate::Setup;
use crate::bare::Bare;
use crate::emberbox::{Emberbox, Package, Python};
use crate::load::{Clients, Kind, Outcome, Target};
use crate::paired::paired;
use crate::rie::Rie;
use crate::table::{Bound, Number, Row, Table, time};

/// One vCPU: the function must not be throttled where its reference is not.
pub const ONE_VCPU_MB: u32 = 1769;

/// What counts of a round.
const ROUND: Duration = Duration::from_millis(150);

/// Rust against the bare server, Python against AWS's emulator.
pub async fn measure(setup: &Setup, table: &mut Table) -> Result<()> {
    let mut emberbox = Emberbox::start(setup).await?;
    let ours = emberbox.create("rust-echo", &Package::rust(&setup.echo)?, ONE_VCPU_MB).await?;
    let bare = Bare::start(&setup.echo, 1, 1).await?;
    let what = "warm invoke, Rust echo, 1 client, p50; a bare server with the same runtime process";
    beside(setup, table, what, [&ours, &bare.target], Bound::AtMost(1.3)).await?;
    drop(bare);

    if let Some(rie) = &setup.rie {
        let ours = emberbox.create("python-echo", &Package::python(&setup.python)?, ONE_VCPU_MB).await?;
        let rie = Rie::start(rie, &Python::find(setup)?).await?;
        let what = "warm invoke, Python echo, 1 client, p50; AWS's Runtime Interface Emulator";
        beside(setup, table, what, [&ours, &rie.target], Bound::Below(1.0)).await?;
    }
    Ok(())
}

async fn beside(setup: &Setup, table: &mut Table, what: &str, targets: [&Target; 2], promise: Bound) -> Result<()> {
    let mut our_client = Clients::open(Kind::RequestResponse, targets[0], 1).await?;
    let mut their_client = Clients::open(Kind::RequestResponse, targets[1], 1).await?;
    // Not counted: sandboxes and caches come up.
    our_client.round(ROUND).await?.check("Emberbox")?;
    their_client.round(ROUND).await?.check("the reference")?;
    let (mut ours, mut theirs) = (Outcome::default(), Outcome::default());
    let ratios = paired(
        setup.samples(20),
        async || Ok(ours.with(our_client.round(ROUND).await?).quantile(0.5).as_secs_f64()),
        async || Ok(theirs.with(their_client.round(ROUND).await?).quantile(0.5).as_secs_f64()),
    )
    .await?;
    ours.check("Emberbox")?;
    theirs.check("the reference")?;
    let show = |o: &Outcome| format!("{} (p99 {})", time(o.quantile(0.5)), time(o.quantile(0.99)));
    table.add(Row {
        what: what.into(),
        ours: show(&ours),
        beside: show(&theirs),
        value: Number::Paired(ratios),
        promise: Some(promise),
    });
    Ok(())
}
