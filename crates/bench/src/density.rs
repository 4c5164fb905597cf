//! 200 sandboxes at once, and what an idle one costs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;

use crate::Setup;
use crate::emberbox::{Emberbox, Package};
use crate::load::Connection;
use crate::process::{kernel_memory, name, pss, rss, tree};
use crate::table::{Bound, Number, Row, Table, time};

const SANDBOXES: usize = 200;
const MIB: f64 = 1024.0 * 1024.0;
/// The function's own process, as the kernel names it: its memory is not Emberbox's.
const FUNCTION: &str = "bootstrap";

/// Every sandbox belongs to a function of its own, so that each is there at the end.
pub async fn measure(setup: &Setup, table: &mut Table) -> Result<()> {
    let sandboxes = setup.samples(SANDBOXES as u32).min(SANDBOXES as u32) as usize;
    let mut emberbox = Emberbox::start(setup).await?;
    table.add(Row {
        what: "start of `emberbox serve` to its endpoint".into(),
        ours: String::new(),
        beside: String::new(),
        value: Number::Ms(emberbox.ready_after.as_secs_f64() * 1000.0),
        promise: Some(Bound::Below(1000.0)),
    });
    let package = Package::rust(&setup.echo)?;
    let mut targets = Vec::new();
    for number in 0..sandboxes {
        targets.push(emberbox.create(&format!("echo-{number}"), &package, 128).await?);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let idle = rss(emberbox.pid())? as f64 / MIB;
    let processes = tree(emberbox.pid())?.len();
    table.add(Row {
        what: format!("`emberbox serve` idle, {sandboxes} functions, no sandbox: resident memory"),
        ours: format!("{processes} processes"),
        beside: String::new(),
        value: Number::MiB(idle),
        promise: Some(Bound::Below(40.0)),
    });
    let before = own_memory(emberbox.pid())?;
    let kernel_before = kernel_memory()?;
    let started = Instant::now();
    let requests = targets.iter().map(|target| async move {
        let mut connection = Connection::open(target.address).await?;
        connection.echo(&target.path).await
    });
    try_join_all(requests).await.with_context(|| emberbox.log_tail())?;
    let taken = started.elapsed();
    // Idle, frozen, and with what the start needed given back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let functions = tree(emberbox.pid())?.into_iter().filter(|p| name(*p) == FUNCTION).count();
    table.add(Row {
        what: format!("{sandboxes} sandboxes at once, all cold: function processes there afterwards"),
        ours: format!("all answered in {}", time(taken)),
        beside: String::new(),
        value: Number::Count(functions as f64),
        promise: Some(Bound::AtLeast(sandboxes as f64)),
    });
    let each = (own_memory(emberbox.pid())? - before) / MIB / sandboxes as f64;
    table.add(Row {
        what: "an idle sandbox beside its function's process (PSS of the server, its helpers and PID 1s)".into(),
        ours: String::new(),
        beside: String::new(),
        value: Number::MiB(each),
        promise: Some(Bound::AtMost(3.0)),
    });
    table.add(Row {
        what: "kernel memory for a sandbox (slab, stacks, page tables, per-CPU; whole machine)".into(),
        ours: String::new(),
        beside: String::new(),
        value: Number::MiB((kernel_memory()? as f64 - kernel_before as f64) / MIB / sandboxes as f64),
        promise: None,
    });
    Ok(())
}

/// What Emberbox takes itself: its processes without the functions'.
fn own_memory(pid: u32) -> Result<f64> {
    let own = tree(pid)?.into_iter().filter(|p| name(*p) != FUNCTION);
    // One that ended meanwhile takes nothing.
    Ok(own.filter_map(|p| pss(p).ok()).sum::<u64>() as f64)
}
