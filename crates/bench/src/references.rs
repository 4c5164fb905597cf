//! The bare server with one thread and with one for each core, so that the faster one can be the yardstick.

use std::time::Duration;

use anyhow::Result;

use crate::Setup;
use crate::bare::Bare;
use crate::load::{Until, interleaved};
use crate::table::time;

/// Prints latency and throughput at 1 and 16 clients.
pub async fn measure(setup: &Setup) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for clients in [1, 16] {
        let lean = Bare::start(&setup.echo, clients, 1).await?;
        let wide = Bare::start(&setup.echo, clients, cores).await?;
        let each = Until { requests: u64::MAX, time: Duration::from_millis(500) };
        let outcomes = interleaved(&[&lean.target, &wide.target], clients, setup.samples(8), each).await?;
        for (outcome, threads) in outcomes.iter().zip([1, cores]) {
            outcome.check("the bare server")?;
            println!(
                "{clients:>2} clients, {threads} threads: p50 {:>8}  p99 {:>8}  {:>7.0}/s",
                time(outcome.quantile(0.5)),
                time(outcome.quantile(0.99)),
                outcome.throughput()
            );
        }
    }
    Ok(())
}
