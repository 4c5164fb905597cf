//! Cold starts, from request to answer, with the package on the host.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::Setup;
use crate::bare::Bare;
use crate::emberbox::{Emberbox, Package, Python};
use crate::load::{Connection, Outcome, Target};
use crate::paired::paired;
use crate::table::{Bound, Number, Row, Table, time};
use crate::warm::ONE_VCPU_MB;

/// The last sandbox of the version before goes down in this time, so that it is not measured.
const SETTLE: Duration = Duration::from_millis(150);

/// Rust in milliseconds, Python against the interpreter alone.
pub async fn measure(setup: &Setup, table: &mut Table) -> Result<()> {
    let mut emberbox = Emberbox::start(setup).await?;
    let name = "rust-echo";
    let target = emberbox.create(name, &Package::rust(&setup.echo)?, ONE_VCPU_MB).await?;
    let mut bare = Bare::start(&setup.echo, 1, 1).await?;
    let (mut ours, mut theirs) = (Outcome::default(), Outcome::default());
    for number in 0..setup.samples(40) {
        emberbox.force_cold(name, number, &[]).await?;
        tokio::time::sleep(SETTLE).await;
        let taken = first_answer(&target).await.with_context(|| emberbox.log_tail())?;
        // The first goes without the package on the host.
        if number > 0 {
            ours.latencies.saturating_record(taken.as_nanos() as u64);
        }
        bare.stop_function();
        tokio::time::sleep(SETTLE).await;
        let started = Instant::now();
        bare.start_function(&setup.echo)?;
        first_answer(&bare.target).await?;
        theirs.latencies.saturating_record(started.elapsed().as_nanos() as u64);
    }
    drop(bare);
    let p50 = ours.quantile(0.5);
    table.add(Row {
        what: "cold start, Rust echo, request to answer, p50; the process alone behind the bare server".into(),
        ours: show(&ours),
        beside: show(&theirs),
        value: Number::Ms(p50.as_secs_f64() * 1000.0),
        promise: Some(Bound::AtMost(15.0)),
    });
    if setup.rie.is_some() {
        python(setup, &mut emberbox, table).await?;
    }
    Ok(())
}

/// A variable after which the interpreter's like must start anew (see the worker's `env`), and which changes nothing in it.
const NO_STANDBY: (&str, &str) = ("LANGUAGE", "en");

/// With a standby, which a runtime in use has, and without.
async fn python(setup: &Setup, emberbox: &mut Emberbox, table: &mut Table) -> Result<()> {
    let name = "python-echo";
    let target = emberbox.create(name, &Package::python(&setup.python)?, ONE_VCPU_MB).await?;
    first_answer(&target).await.with_context(|| emberbox.log_tail())?;
    let python = Python::find(setup)?;
    let cases: [(_, &[(&str, &str)]); 2] = [("", &[]), (" without a standby", &[NO_STANDBY])];
    for (case, variables) in cases {
        let (mut ours, mut theirs) = (Outcome::default(), Outcome::default());
        let mut number = 0;
        let ratios = paired(
            setup.samples(13),
            async || {
                number += 1;
                emberbox.force_cold(name, number, variables).await?;
                tokio::time::sleep(SETTLE).await;
                let taken = first_answer(&target).await.with_context(|| emberbox.log_tail())?;
                ours.latencies.saturating_record(taken.as_nanos() as u64);
                Ok(taken.as_secs_f64())
            },
            async || {
                tokio::time::sleep(SETTLE).await;
                let taken = import(&python)?;
                theirs.latencies.saturating_record(taken.as_nanos() as u64);
                Ok(taken.as_secs_f64())
            },
        )
        .await?;
        table.add(Row {
            what: format!(
                "cold start, Python echo{case}, p50; starting the interpreter and importing the runtime client"
            ),
            ours: show(&ours),
            beside: show(&theirs),
            value: Number::Paired(ratios),
            promise: Some(Bound::AtMost(1.2)),
        });
    }
    Ok(())
}

/// From the request to the answer, on a connection that is there.
async fn first_answer(target: &Target) -> Result<Duration> {
    let mut connection = Connection::open(target.address).await?;
    let sent = Instant::now();
    connection.echo(&target.path).await?;
    Ok(sent.elapsed())
}

/// From the start of the interpreter until it says that the runtime client is imported.
fn import(python: &Python) -> Result<Duration> {
    let started = Instant::now();
    let mut child = Command::new(&python.interpreter)
        .args(["-c", "import awslambdaric.bootstrap, os; os.write(1, b'imported')"])
        .env("PYTHONPATH", &python.client)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", python.interpreter.display()))?;
    let mut said = [0; 8];
    let mut output = child.stdout.take().context("its output was piped")?;
    let read = std::io::Read::read_exact(&mut output, &mut said);
    let taken = started.elapsed();
    child.wait().context("wait for the interpreter")?;
    read.context("the interpreter could not import awslambdaric")?;
    ensure!(&said == b"imported", "the interpreter said something else");
    Ok(taken)
}

fn show(outcome: &Outcome) -> String {
    format!("{} (p90 {})", time(outcome.quantile(0.5)), time(outcome.quantile(0.9)))
}
