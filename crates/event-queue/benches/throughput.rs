//! How fast events are accepted durably, against a bare SQLite writer that groups alike, and how fast they are leased
//! and acknowledged. The two run on the same disk one after the other, in rounds that alternate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use domain::SystemClock;
use event_queue::sqlite::SqliteQueue;
use event_queue::{Entry, EventQueue, QueueName};
use uuid::Uuid;

#[path = "bare/writer.rs"]
mod bare_writer;

const CALLERS: u32 = 64;
const EVENTS: u32 = 100_000;
const BODY: usize = 512;
const ROUNDS: u32 = 3;

#[tokio::main(worker_threads = 2)]
async fn main() {
    // In the working directory: a temporary one may be memory.
    let dir = tempfile::tempdir_in(".").expect("a directory");
    for round in 0..ROUNDS {
        let path = dir.path().join(format!("bare{round}.db"));
        let writer = bare_writer::Writer::open(&path);
        let (events, time) = writer.accept(CALLERS, EVENTS, Duration::MAX, &[7; BODY]).await;
        writer.close();
        let bare = events as f64 / time.as_secs_f64();
        let engine = SqliteQueue::open(dir.path().join(format!("{round}.db")), Arc::new(SystemClock::default())).await;
        let engine = Arc::new(engine.expect("opens"));
        let ours = enqueue(&engine).await;
        let drained = drain(&engine).await;
        let latency = at_rate(&engine, ours / 2.0).await;
        engine.close().await;
        println!(
            "bare writer {bare:.0}/s, enqueue {ours:.0}/s ({:.0} %), lease and ack {drained:.0}/s",
            100.0 * ours / bare
        );
        let [p50, p99, worst] = latency;
        println!("  an enqueue at {:.0}/s: p50 {p50:?}, p99 {p99:?}, worst {worst:?}", ours / 2.0);
    }
}

fn rate(start: Instant) -> f64 {
    f64::from(EVENTS) / start.elapsed().as_secs_f64()
}

async fn enqueue(engine: &Arc<SqliteQueue>) -> f64 {
    let start = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let engine = Arc::clone(engine);
            let queue = QueueName(format!("f{}", caller % 8).into());
            tokio::spawn(async move {
                for _ in 0..EVENTS / CALLERS {
                    let (id, body) = (Uuid::now_v7(), Bytes::from(vec![7; BODY]));
                    let entry = Entry { queue: queue.clone(), id, body, delay: Duration::ZERO };
                    engine.enqueue(vec![entry]).await.expect("accepted");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no panic");
    }
    rate(start)
}

/// Median, 99th percentile and worst of single enqueues that start at an even rate, whether or not those before are
/// done.
async fn at_rate(engine: &Arc<SqliteQueue>, rate: f64) -> [Duration; 3] {
    let start = tokio::time::Instant::now();
    let mut calls = Vec::new();
    for number in 0..EVENTS {
        let due = start + Duration::from_secs_f64(f64::from(number) / rate);
        if due > tokio::time::Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        let engine = Arc::clone(engine);
        calls.push(tokio::spawn(async move {
            let queue = QueueName(format!("f{}", number % 8).into());
            let entry = Entry { queue, id: Uuid::now_v7(), body: vec![7; BODY].into(), delay: Duration::ZERO };
            engine.enqueue(vec![entry]).await.expect("accepted");
            // From when it was to start: a late start is no excuse.
            due.elapsed()
        }));
    }
    let mut times = Vec::new();
    for call in calls {
        times.push(call.await.expect("no panic"));
    }
    times.sort();
    [times[times.len() / 2], times[times.len() * 99 / 100], times[times.len() - 1]]
}

async fn drain(engine: &Arc<SqliteQueue>) -> f64 {
    let start = Instant::now();
    let pollers: Vec<_> = (0..8)
        .map(|_| {
            let engine = Arc::clone(engine);
            tokio::spawn(async move {
                loop {
                    let leases = engine.lease(10, Duration::from_secs(60), Duration::ZERO).await.expect("leases");
                    if leases.is_empty() {
                        return;
                    }
                    engine.ack(&leases.iter().map(|lease| lease.id).collect::<Vec<_>>()).await.expect("acknowledged");
                }
            })
        })
        .collect();
    for poller in pollers {
        poller.await.expect("no panic");
    }
    rate(start)
}
