//! One client, warm: what Emberbox adds to the function.

use std::time::Duration;

use anyhow::Result;

use crate::Setup;
use crate::bare::Bare;
use crate::emberbox::{Emberbox, Package, Python};
use crate::load::{Outcome, Until, interleaved};
use crate::rie::Rie;
use crate::table::{Bound, Number, Row, Table, time};

/// One vCPU: the function must not be throttled where its reference is not.
pub const ONE_VCPU_MB: u32 = 1769;

/// Rust against the bare server, Python against AWS's emulator.
pub async fn measure(setup: &Setup, table: &mut Table) -> Result<()> {
    let rounds = setup.samples(20);
    let each = Until { requests: 500, time: Duration::from_secs(2) };
    let mut emberbox = Emberbox::start(setup).await?;

    let ours = emberbox.create("rust-echo", &Package::rust(&setup.echo)?, ONE_VCPU_MB).await?;
    let bare = Bare::start(&setup.echo, 1, 1).await?;
    let outcomes = interleaved(&[&ours, &bare.target], 1, rounds, each).await?;
    drop(bare);
    let what = "warm invoke, Rust echo, 1 client, p50; a bare server with the same runtime process";
    add(table, what, &outcomes, Bound::AtMost(1.3))?;

    if let Some(rie) = &setup.rie {
        let ours = emberbox.create("python-echo", &Package::python(&setup.python)?, ONE_VCPU_MB).await?;
        let rie = Rie::start(rie, &Python::find(setup)?).await?;
        let outcomes = interleaved(&[&ours, &rie.target], 1, rounds, each).await?;
        let what = "warm invoke, Python echo, 1 client, p50; AWS's Runtime Interface Emulator";
        add(table, what, &outcomes, Bound::Below(1.0))?;
    }
    Ok(())
}

fn add(table: &mut Table, what: &str, outcomes: &[Outcome], promise: Bound) -> Result<()> {
    let [ours, theirs] = outcomes else { unreachable!("two targets, two outcomes") };
    ours.check("Emberbox")?;
    theirs.check("the reference")?;
    let show = |o: &Outcome| format!("{} (p99 {})", time(o.quantile(0.5)), time(o.quantile(0.99)));
    table.add(Row {
        what: what.into(),
        ours: show(ours),
        beside: show(theirs),
        value: Number::Ratio(ours.quantile(0.5).as_secs_f64() / theirs.quantile(0.5).as_secs_f64()),
        promise: Some(promise),
    });
    Ok(())
}
