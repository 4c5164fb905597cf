//! 16 clients at once: what Emberbox leaves of what the function processes can do on these cores.

use std::time::Duration;

use anyhow::Result;

use crate::Setup;
use crate::bare::Bare;
use crate::emberbox::{Emberbox, Package};
use crate::load::{Until, interleaved};
use crate::table::{Bound, Number, Row, Table, time};
use crate::warm::ONE_VCPU_MB;

const CLIENTS: usize = 16;

/// Against the bare server with 16 processes of the same function, in rounds of one second.
pub async fn measure(setup: &Setup, table: &mut Table) -> Result<()> {
    let rounds = setup.samples(8);
    let each = Until { requests: u64::MAX, time: Duration::from_secs(1) };
    let mut emberbox = Emberbox::start(setup).await?;
    let ours = emberbox.create("rust-echo", &Package::rust(&setup.echo)?, ONE_VCPU_MB).await?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let bare = Bare::start(&setup.echo, CLIENTS, cores).await?;
    let outcomes = interleaved(&[&ours, &bare.target], CLIENTS, rounds, each).await?;
    let [ours, theirs] = &outcomes[..] else { unreachable!("two targets, two outcomes") };
    ours.check("Emberbox")?;
    theirs.check("the bare server")?;
    table.add(Row {
        what: "throughput, Rust echo, 16 clients; a bare server with 16 of the same runtime process".into(),
        ours: format!("{:.0}/s", ours.throughput()),
        beside: format!("{:.0}/s", theirs.throughput()),
        value: Number::Ratio(ours.throughput() / theirs.throughput()),
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
