//! The engine on PostgreSQL, against a server that the test starts.
#![cfg(feature = "postgres")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use event_queue::postgres::PgQueue;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use test_postgres::Server;

#[path = "conformance/suite.rs"]
mod suite;

use suite::{ManualClock, Queue, entry, lease_now};

async fn connect(server: &Server, clock: &Arc<ManualClock>) -> Queue {
    let clock = Arc::clone(clock);
    Arc::new(PgQueue::connect(&server.url(), Some(clock)).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_and_survives_a_restart() {
    let Some(server) = Server::start("conforms_and_survives_a_restart") else { return };
    let clock = Arc::new(ManualClock::default());
    let first = connect(&server, &clock).await;
    suite::all(Arc::clone(&first), Arc::clone(&clock), suite::EXACT).await;

    let second = connect(&server, &clock).await;
    first.enqueue((0..10).map(|n| entry("a", n)).collect()).await.unwrap();
    assert_eq!(lease_now(&first, 4).await.len() + lease_now(&second, 10).await.len(), 10);
    server.stop();
    assert!(first.enqueue(vec![entry("a", 99)]).await.is_err_and(|error| error.retryable()));
    server.start_again();
    clock.advance(suite::LEASE);
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while let Err(error) = first.enqueue(vec![entry("a", 10)]).await {
        assert!(error.retryable() && std::time::Instant::now() < until, "{error}");
    }
    assert_eq!(lease_now(&second, 100).await.len(), 11);
    first.close().await;
    second.close().await;
}

/// A fleet is upgraded machine by machine, and may have to go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_program_works_on_a_newer_schema_until_that_says_no() {
    let Some(server) = Server::start("an_older_program_works_on_a_newer_schema") else { return };
    let clock = Arc::new(ManualClock::default());
    let running = connect(&server, &clock).await;
    running.enqueue(vec![entry("a", 1)]).await.unwrap();
    // As the first Emberbox left it, which knew of no oldest program.
    server.psql(&server.url(), "ALTER TABLE emberbox_migrations DROP COLUMN oldest");
    connect(&server, &clock).await.close().await;
    let newer = "INSERT INTO emberbox_migrations (number, oldest) VALUES (2, 1);
        ALTER TABLE emberbox_events ADD COLUMN more TEXT; CREATE TABLE emberbox_more (x INTEGER)";
    server.psql(&server.url(), newer);
    let started = connect(&server, &clock).await;
    started.enqueue(vec![entry("a", 2)]).await.unwrap();
    running.enqueue(vec![entry("a", 3)]).await.unwrap();
    let leases = lease_now(&running, 1).await;
    running.ack(&[leases[0].id]).await.unwrap();
    assert_eq!(lease_now(&started, 10).await.len(), 2);
    // Now something that only a program of schema 2 understands.
    server.psql(&server.url(), "UPDATE emberbox_migrations SET oldest = 2 WHERE number = 2");
    let error = PgQueue::connect(&server.url(), Some(clock)).await.unwrap_err();
    assert!(!error.retryable() && error.to_string().contains("use the newer Emberbox"), "{error}");
    running.close().await;
    started.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_lose_nothing() {
    let Some(server) = Server::start("restarts_under_load_lose_nothing") else { return };
    let clock = Arc::new(ManualClock::default());
    let engine = connect(&server, &clock).await;
    let stop = Arc::new(AtomicBool::new(false));
    let fills: Vec<_> = (0..8u128)
        .map(|caller| {
            let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut accepted, mut failed) = (BTreeSet::new(), 0);
                for number in (caller * 1_000_000).. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    match engine.enqueue(vec![entry(&format!("q{caller}"), number)]).await {
                        Ok(()) => drop(accepted.insert(number)),
                        Err(error) => {
                            assert!(error.retryable(), "{error}");
                            failed += 1;
                        }
                    }
                }
                (accepted, failed)
            })
        })
        .collect();
    let drain = {
        let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut done = BTreeSet::new();
            while !stop.load(Ordering::SeqCst) {
                let Ok(leases) = engine.lease(20, suite::LEASE, Duration::from_millis(100)).await else { continue };
                // An ack without an answer may have been done or not.
                done.extend(leases.iter().map(|lease| lease.event.as_u128()));
                let _ = engine.ack(&leases.iter().map(|lease| lease.id).collect::<Vec<_>>()).await;
            }
            done
        })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.restart();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::SeqCst);
    let (mut accepted, mut failed) = (BTreeSet::new(), 0);
    for fill in fills {
        let (more, errors) = fill.await.unwrap();
        accepted.extend(more);
        failed += errors;
    }
    let mut done = drain.await.unwrap();
    clock.advance(suite::LEASE);
    loop {
        let leases = lease_now(&engine, 1000).await;
        if leases.is_empty() {
            break;
        }
        done.extend(leases.iter().map(|lease| lease.event.as_u128()));
    }
    println!("{} accepted, {failed} refused while the server was away", accepted.len());
    assert!(accepted.len() > 100 && failed > 0);
    assert_eq!(accepted.difference(&done).count(), 0);
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enqueues_share_commits_which_are_synced() {
    let Some(server) = Server::start("enqueues_share_commits_which_are_synced") else { return };
    let psql = |sql: &str| server.psql(&server.url(), sql);
    // A server that answers before it syncs, and does that late.
    psql("ALTER SYSTEM SET synchronous_commit = off");
    psql("ALTER SYSTEM SET wal_writer_delay = '10s'");
    server.restart();
    assert_eq!(psql("SHOW synchronous_commit"), "off");
    let clock = Arc::new(ManualClock::default());
    let engine = connect(&server, &clock).await;
    let put = async |from: u128| {
        let puts = (from..from + 200).map(|n| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move { engine.enqueue(vec![entry(&format!("q{}", n % 3), n)]).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap().unwrap();
        }
    };
    put(1000).await;
    // Rows of one transaction have it in common.
    let transactions: u64 = psql("SELECT count(DISTINCT xmin::TEXT) FROM emberbox_events").parse().unwrap();
    println!("200 enqueues in {transactions} transactions");
    assert!(transactions < 100);
    put(2000).await;
    // At once after the last answer.
    server.restart();
    let found: BTreeSet<_> = loop {
        match engine.lease(1000, suite::LEASE, Duration::ZERO).await {
            Ok(leases) => break leases.iter().map(|lease| lease.event.as_u128()).collect(),
            Err(error) => assert!(error.retryable(), "{error}"),
        }
    };
    assert_eq!(found, (1000..1200).chain(2000..2200).collect());
    engine.close().await;
}

#[test]
fn agrees_with_the_model() {
    let Some(server) = Server::start("agrees_with_the_model") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(25) };
    let run = TestRunner::new(config).run(&suite::steps(), |steps| {
        runtime.block_on(async {
            let clock = Arc::new(ManualClock::default());
            let engine = connect(&server, &clock).await;
            for queue in engine.queues().await.unwrap() {
                engine.purge(&queue).await.unwrap();
            }
            suite::agrees_with_the_model(Arc::clone(&engine), clock, steps).await;
            engine.close().await;
        });
        Ok(())
    });
    run.unwrap();
}

/// Not a test by itself: the process that the crash test kills. Its leases end by the server's time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_of_the_crash_test() {
    let Ok(url) = std::env::var(suite::CHILD) else { return };
    suite::crash_child(Arc::new(PgQueue::connect(&url, None).await.unwrap())).await;
}

#[tokio::test]
async fn kill_minus_nine_loses_nothing_that_was_answered() {
    let Some(server) = Server::start("kill_minus_nine_loses_nothing_that_was_answered") else { return };
    let mut seen = suite::crash(&server.url(), 100);
    // An hour later than the server's time: the leases of the dead are over.
    let clock = Arc::new(ManualClock::at(SystemTime::now() + Duration::from_secs(3600)));
    seen.find(&connect(&server, &clock).await).await;
    seen.none_lost();
}
