//! Asynchronous invocation: how fast events are accepted, started and worked off, and what a backlog takes. Each on a
//! server of its own, so that no backlog is in another's way.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::Setup;
use crate::emberbox::{Emberbox, Package};
use crate::function::WAIT_MS;
use crate::load::{
    Clients, Connection, EVENT, Kind, LEAD_IN, Outcome, Target, Until, closed_loop, closed_loop_of, events_at_rate,
};
use crate::paired::paired;
use crate::process::rss;
use crate::table::{Bound, Number, Row, Table, time};
use crate::warm::ONE_VCPU_MB;

#[path = "../../event-queue/benches/bare/writer.rs"]
mod bare_writer;

const CLIENTS: usize = 64;
/// What counts of a round: long enough that most pairs have a checkpoint of each database in them (16 MiB of log).
const ROUND: Duration = Duration::from_millis(500);
/// Sandboxes that a backlog is worked off with, and synchronous clients beside them.
const SANDBOXES: usize = 16;
const MIB: f64 = 1024.0 * 1024.0;
/// Longer than any measurement: Lambda's longest timeout.
const FOR_EVER: Duration = Duration::from_secs(900);

/// From 202 to the handler, on an idle and warm system.
pub async fn start(setup: &Setup, table: &mut Table) -> Result<()> {
    let mut emberbox = Emberbox::start(setup).await?;
    let name = "echo";
    let target = emberbox.create(name, &Package::rust(&setup.echo)?, ONE_VCPU_MB).await?;
    let mut connection = Connection::open(target.address).await?;
    connection.echo(&target.path).await?;
    let mut waits = Outcome::default();
    for _ in 0..setup.samples(500) {
        // Until the sandbox is frozen, as it is when an event comes out of the blue.
        tokio::time::sleep(Duration::from_millis(60)).await;
        let event = Bytes::from_static(EVENT.as_bytes());
        let id = connection.accept(&target.path, event, &[("X-Emberbox-Timeline", "1")]).await?;
        waits.latencies.saturating_record(started_after(&mut emberbox, name, &id).await?.as_nanos() as u64);
    }
    table.add(Row {
        what: "an event on an idle, warm system, Rust echo: from accepted to the handler's answer, p50".into(),
        ours: format!("p99 {}", time(waits.quantile(0.99))),
        beside: String::new(),
        value: Number::Ms(waits.quantile(0.5).as_secs_f64() * 1000.0),
        promise: Some(Bound::Below(5.0)),
    });
    Ok(())
}

/// From the event's being durable, which is before the 202, to the echo's answer, which is after its handler's start.
async fn started_after(emberbox: &mut Emberbox, name: &str, id: &str) -> Result<Duration> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let event = emberbox.event(name, id).await?;
        if event["attempts"] == 1 {
            let steps = event["timeline"].as_array().context("the timeline is no array")?;
            let at = |step: &str| steps.iter().find(|mark| mark["step"] == step).and_then(|mark| mark["us"].as_u64());
            let answered = at("answered").with_context(|| format!("no answer in {event}"))?;
            // A poller may be faster than the mark; then the wait counts from the request.
            return Ok(Duration::from_micros(answered - at("queued").unwrap_or(0).min(answered)));
        }
        ensure!(Instant::now() < deadline, "event {id} did not run: {event}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The rate of 202s, their latency at half that rate, and what the backlog that this makes takes of memory. The
/// function's sandboxes wait meanwhile: what is measured is the way into the queue.
pub async fn accept(setup: &Setup, table: &mut Table) -> Result<()> {
    let backlog = u64::from(setup.samples(1_000_000));
    let events = setup.samples(60_000).max(10_000);
    let mut emberbox = Emberbox::start(setup).await?;
    let target = waiting_function(&mut emberbox, "accepts", FOR_EVER).await?;
    // After the first events: threads, connections and the database's cache are there.
    let few = Until { requests: 1000, time: Duration::from_secs(10) };
    closed_loop_of(Kind::Event, &target, CLIENTS, few).await?.check("warming up")?;
    let before = rss(emberbox.pid())?;
    // The writer beside it keeps as much of an event as the queue does: id, ARN and trace besides the payload.
    let record = vec![b'x'; record_size(emberbox.data())?];
    // On the same disk, by turns.
    let writer = bare_writer::Writer::open(&emberbox.data().join("bare.db"));
    let mut clients = Clients::open(Kind::Event, &target, CLIENTS).await?;
    let (mut accepted, mut written, mut busy) = (Outcome::default(), 0, Duration::ZERO);
    let ratios = paired(
        setup.samples(12),
        async || Ok(accepted.with(clients.round(ROUND).await?).throughput()),
        async || {
            writer.accept(CLIENTS as u32, u32::MAX, LEAD_IN, &record).await;
            let (events, time) = writer.accept(CLIENTS as u32, u32::MAX, ROUND, &record).await;
            written += events;
            busy += time;
            Ok(events as f64 / time.as_secs_f64())
        },
    )
    .await?;
    writer.close();
    drop(clients);
    accepted.check("accepting events").with_context(|| emberbox.log_tail())?;
    let rate = accepted.throughput();
    table.add(Row {
        what: "durable events accepted, 64 clients; a bare SQLite writer with the same grouping on the same disk"
            .into(),
        ours: format!("{rate:.0}/s (p99 {})", time(accepted.quantile(0.99))),
        beside: format!("{:.0}/s", written as f64 / busy.as_secs_f64()),
        value: Number::Paired(ratios),
        promise: Some(Bound::AtLeast(0.5)),
    });
    let even = events_at_rate(&target, CLIENTS, rate / 2.0, u64::from(events)).await?;
    table.add(Row {
        what: "a 202 at half that rate, p99".into(),
        ours: format!("{:.0}/s, p50 {}", even.throughput(), time(even.quantile(0.5))),
        beside: String::new(),
        value: Number::Ms(even.quantile(0.99).as_secs_f64() * 1000.0),
        promise: Some(Bound::Below(20.0)),
    });
    let mut most = rss(emberbox.pid())?;
    loop {
        let depth = emberbox.events("accepts").await?["depth"].as_u64().context("no depth")?;
        if depth >= backlog {
            break;
        }
        let chunk = Until { requests: (backlog - depth).min(20_000), time: Duration::from_secs(60) };
        closed_loop_of(Kind::Event, &target, CLIENTS, chunk).await?.check("making a backlog")?;
        most = most.max(rss(emberbox.pid())?);
    }
    table.add(Row {
        what: format!("a backlog of {backlog} events: growth of the server's resident memory"),
        ours: format!("{:.0} to {:.0} MiB", before as f64 / MIB, most as f64 / MIB),
        beside: String::new(),
        value: Number::MiB((most as f64 - before as f64) / MIB),
        promise: Some(Bound::Below(50.0)),
    });
    Ok(())
}

/// Bytes that the queue keeps of an event.
fn record_size(data: &Path) -> Result<usize> {
    let file = data.join("events.db");
    let read = || {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let size = "SELECT length(body) FROM bodies ORDER BY seq DESC LIMIT 1";
        rusqlite::Connection::open_with_flags(&file, flags)?.query_row(size, [], |row| row.get::<_, u32>(0))
    };
    Ok(read().with_context(|| format!("look at an event in {}", file.display()))? as usize)
}

/// A backlog, worked off by as many sandboxes as there were synchronous clients after.
pub async fn drain(setup: &Setup, table: &mut Table) -> Result<()> {
    let backlog = u64::from(setup.samples(100_000));
    let mut emberbox = Emberbox::start(setup).await?;
    let name = "drains";
    // Until the backlog is there, by a rate that is slow for any disk that keeps the promise above.
    let wait = Duration::from_secs_f64(2.0 + backlog as f64 / 4000.0);
    let target = waiting_function(&mut emberbox, name, wait).await?;
    let waited_from = Instant::now();
    let until = Until { requests: backlog, time: Duration::from_secs(300) };
    closed_loop_of(Kind::Event, &target, CLIENTS, until).await?.check("making a backlog")?;
    ensure!(
        waited_from.elapsed() < wait,
        "accepting {backlog} events took longer than {wait:?}; it cannot be measured"
    );
    tokio::time::sleep_until((waited_from + wait).into()).await;
    let (began, succeeded) = loop {
        let done = count(&emberbox.events(name).await?, "succeeded")?;
        if done >= SANDBOXES as u64 {
            break (Instant::now(), done);
        }
        ensure!(waited_from.elapsed() < 2 * wait, "the sandboxes still wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let (mut last, mut at) = (succeeded, began);
    let mut almost = None;
    loop {
        let stats = emberbox.events(name).await?;
        let done = count(&stats, "succeeded")?;
        if done > last {
            (last, at) = (done, Instant::now());
        }
        if almost.is_none() && done - succeeded >= (backlog - succeeded) * 99 / 100 {
            almost = Some(((done - succeeded) as f64) / began.elapsed().as_secs_f64());
        }
        if count(&stats, "depth")? == 0 {
            break;
        }
        if at.elapsed() > Duration::from_secs(60) {
            bail!("nothing runs any more: {stats}\n{}", emberbox.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let drained = (last - succeeded) as f64 / (at - began).as_secs_f64();
    let each = Until { requests: u64::MAX, time: Duration::from_secs_f64((5.0 * setup.scale).clamp(1.0, 5.0)) };
    let direct = closed_loop(&target, SANDBOXES, each).await?;
    direct.check("synchronous invocations")?;
    table.add(Row {
        what: format!("a backlog of {backlog} events worked off by 16 sandboxes; 16 synchronous clients"),
        ours: format!("{drained:.0}/s ({:.0}/s until 99 % were done)", almost.unwrap_or(drained)),
        beside: format!("{:.0}/s", direct.throughput()),
        value: Number::Ratio(drained / direct.throughput()),
        promise: Some(Bound::AtLeast(0.8)),
    });
    Ok(())
}

fn count(stats: &Value, what: &str) -> Result<u64> {
    stats[what].as_u64().with_context(|| format!("no {what} in {stats}"))
}

/// A function all of whose sandboxes are busy, for so long, with an event each.
async fn waiting_function(emberbox: &mut Emberbox, name: &str, wait: Duration) -> Result<Target> {
    let target = emberbox.create(name, &Package::own()?, ONE_VCPU_MB).await?;
    emberbox.configure(name, json!({ "Timeout": FOR_EVER.as_secs() })).await?;
    emberbox.reserve_concurrency(name, SANDBOXES).await?;
    let event = json!({ WAIT_MS: u64::try_from(wait.as_millis())? }).to_string();
    try_join_all((0..SANDBOXES).map(|_| async {
        let mut connection = Connection::open(target.address).await?;
        connection.accept(&target.path, event.clone().into(), &[]).await
    }))
    .await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while count(&emberbox.events(name).await?, "inFlight")? < SANDBOXES as u64 {
        ensure!(Instant::now() < deadline, "no {SANDBOXES} sandboxes within 30 s\n{}", emberbox.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(target)
}
