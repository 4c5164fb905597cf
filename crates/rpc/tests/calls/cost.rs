//! What the network between two roles costs: printed, not asserted, since it is the machine's as much as ours. In release:
//! `cargo test --release -p rpc --test calls cost -- --nocapture`.

use std::sync::Arc;
use std::time::Instant;

use domain::{AssignRequest, Worker, WorkerManager};
use hdrhistogram::Histogram;
use rpc::RemoteManager;

use crate::support::*;

const ROUNDS: usize = 2_000;

async fn measure(what: &str, rounds: usize, mut call: impl AsyncFnMut()) -> u64 {
    for _ in 0..rounds / 10 {
        call().await;
    }
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    for _ in 0..rounds {
        let began = Instant::now();
        call().await;
        times.saturating_record(began.elapsed().as_nanos() as u64);
    }
    let at = |q| times.value_at_quantile(q) as f64 / 1000.0;
    println!("{what:<44} p50 {:>8.1} µs   p99 {:>8.1} µs", at(0.5), at(0.99));
    times.value_at_quantile(0.5)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cost_of_a_call() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    let desk = Arc::new(Desk::default());
    *desk.lease.lock() = Some((id(1), Arc::new(f.remote())));
    let server = manager(&desk).await;
    let remote = f.remote();
    let manager = RemoteManager::new("manager-1".into(), &server.address.to_string(), &f.channels);
    for (payload, words, rounds) in [(100, "100 B", 2_000), (100_000, "100 KB", 500), (6 << 20, "6 MB", 20)] {
        let payload = bytes::Bytes::from(vec![b'x'; payload]);
        let direct = measure(&format!("invoke, {words}, direct"), rounds, async || {
            f.bench.invoke(id(1), request(payload.clone())).await.unwrap();
        })
        .await;
        let far = measure(&format!("invoke, {words}, over loopback"), rounds, async || {
            remote.invoke(id(1), request(payload.clone())).await.unwrap();
        })
        .await;
        println!(
            "{:<44} × {:.0}, + {:.0} µs",
            "",
            far as f64 / direct as f64,
            far.saturating_sub(direct) as f64 / 1000.0
        );
    }
    let ask = || AssignRequest { version: version("f"), limits: limits() };
    measure("assign, version by key", ROUNDS, async || drop(manager.assign(ask()).await.unwrap())).await;
    let mut raw = rpc::pb::worker_manager_client::WorkerManagerClient::with_origin(
        f.channels.channel(&server.address.to_string(), &rpc::Member::new(rpc::Role::WorkerManager, "manager-1")),
        rpc::origin(),
    );
    // As large as an environment may make it.
    let mut whole = version("f").as_ref().clone();
    whole.environment.insert("BIG".into(), "x".repeat(4000));
    let whole = Arc::new(whole);
    measure("assign, whole version (4 KB of environment)", ROUNDS, async || {
        let message = rpc::pb::AssignRequest {
            version_key: whole.key.to_string(),
            version: serde_json::to_vec(whole.as_ref()).unwrap().into(),
            ..Default::default()
        };
        raw.assign(message).await.unwrap();
    })
    .await;
    measure("assign, only the key, the same way", ROUNDS, async || {
        let message = rpc::pb::AssignRequest { version_key: whole.key.to_string(), ..Default::default() };
        raw.assign(message).await.unwrap();
    })
    .await;
}
