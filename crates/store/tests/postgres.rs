//! The store on PostgreSQL, against a server that the tests start: the conformance suite, and what only many processes
//! and a server that goes away bring.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use store::{Feed, Op, PostgresStore, Precondition, Store, StoreError};
use test_postgres::Server;

#[path = "conformance/suite.rs"]
mod suite;

use suite::{KIND, Shared};

async fn open(url: &str) -> Arc<PostgresStore> {
    Arc::new(PostgresStore::open(url).await.expect("opens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let Some(server) = Server::shared("conforms") else { return };
    suite::versions_preconditions_and_scans(&*open(&server.database()).await).await;

    let store = open(&server.database()).await;
    suite::the_feed_has_every_commit_once_and_in_order(store.clone()).await;
    let mut feed = store.changes();
    store.close().await;
    assert!(matches!(store.commit(vec![]).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(KIND, "k1").await, Err(StoreError::Closed)));
    while feed.next().await != Feed::Closed {}
    assert_eq!(store.changes().next().await, Feed::Closed);

    suite::a_slow_subscriber_is_told_to_scan_again(open(&server.database()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost() {
    let Some(server) = Server::shared("no_update_is_lost") else { return };
    let url = server.database();
    let mut stores: Vec<Shared> = Vec::new();
    for _ in 0..4 {
        let store = open(&url).await;
        stores.extend([store.clone() as Shared, store]);
    }
    suite::no_update_is_lost(stores, 25).await;
}

/// Runs `check` on cases, each with two stores on a schema of its own.
fn with_two_stores<S: Strategy>(name: &str, cases: S, check: impl AsyncFn(&[Shared], S::Value)) {
    let Some(server) = Server::shared(name) else { return };
    let url = server.database();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) };
    let schemas = AtomicU64::new(0);
    let run = TestRunner::new(config).run(&cases, |case| {
        let schema = format!("case_{}", schemas.fetch_add(1, Ordering::Relaxed));
        runtime.block_on(async {
            let one = Arc::new(PostgresStore::open_in(&url, &schema).await.unwrap());
            let two = Arc::new(PostgresStore::open_in(&url, &schema).await.unwrap());
            check(&[one.clone() as Shared, two.clone()], case).await;
            one.close().await;
            two.close().await;
        });
        Ok(())
    });
    run.unwrap();
}

#[test]
fn stores_that_take_turns_behave_like_a_map() {
    with_two_stores("stores_that_take_turns_behave_like_a_map", suite::steps(), suite::behaves_like_a_map);
}

#[test]
fn commits_at_once_have_an_order() {
    with_two_stores("commits_at_once_have_an_order", suite::concurrent(), suite::commits_at_once_have_an_order);
}

/// Not a test by itself: the process that the next one kills.
#[tokio::test]
async fn child_that_writes_until_killed() {
    let Ok(url) = std::env::var(suite::CHILD) else { return };
    suite::write_until_killed(&PostgresStore::open(&url).await.unwrap()).await;
}

/// Its commits are in the feed of another process, each once and in order, up to the last that is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_in_the_middle_of_writes_loses_nothing_and_holds_nobody_up() {
    let Some(server) = Server::shared("a_process_killed_in_the_middle_of_writes") else { return };
    let url = server.database();
    let store = open(&url).await;
    let mut feed = store.changes();
    let mut last = 0;
    for round in 1..=3 {
        let kill = {
            let url = url.clone();
            tokio::task::spawn_blocking(move || suite::kill_9(&url, 20 * round))
        };
        let acknowledged = kill.await.unwrap();
        suite::nothing_acknowledged_is_lost(&*store, acknowledged).await;
        let begin = Instant::now();
        let ours = store.commit(vec![Op::put(KIND, "ours", "x")]).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5), "waited {:?} for a dead writer", begin.elapsed());
        for revision in last + 1..=ours {
            assert_eq!(suite::next(&mut feed).await.revision, revision);
        }
        last = ours;
    }
}

/// As a fleet that is started for the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_start_at_once() {
    let Some(server) = Server::shared("many_start_at_once") else { return };
    let url = server.database();
    let starts: Vec<_> = (0..12)
        .map(|n| {
            let url = url.clone();
            tokio::spawn(async move {
                let store = PostgresStore::open(&url).await?;
                store.commit(vec![Op::put(KIND, n.to_string(), "x").when(Precondition::DoesNotExist)]).await?;
                Ok::<_, StoreError>(store)
            })
        })
        .collect();
    let mut stores = Vec::new();
    for start in starts {
        stores.push(start.await.unwrap().unwrap());
    }
    for store in &stores {
        let scan = store.scan(KIND, "").await.unwrap();
        assert_eq!((scan.revision, scan.records.len()), (12, 12));
    }
    assert_eq!(server.psql(&url, "SELECT count(*) FROM emberbox.migrations"), "1");
}

#[tokio::test]
async fn schemas_of_one_database_know_nothing_of_each_other() {
    let Some(server) = Server::shared("schemas_of_one_database") else { return };
    let url = server.database();
    let one = PostgresStore::open_in(&url, "fleet_1").await.unwrap();
    let two = PostgresStore::open_in(&url, "fleet_2").await.unwrap();
    let mut feed = two.changes();
    for _ in 0..3 {
        one.commit(vec![Op::put(KIND, "a", "1")]).await.unwrap();
    }
    assert_eq!(two.commit(vec![Op::put(KIND, "b", "2")]).await.unwrap(), 1);
    assert_eq!(suite::next(&mut feed).await.changes[0].key, "b");
    assert_eq!(two.get(KIND, "a").await.unwrap(), None);
    for bad in ["", "Upper", "1st", "a-b", "a\"; DROP SCHEMA public; --", &"x".repeat(49)] {
        let error = PostgresStore::open_in(&url, bad).await.unwrap_err();
        assert!(error.to_string().contains("no name for a schema"), "{error}");
    }
}

/// A program of the next version has changed the schema while this one runs.
#[tokio::test]
async fn an_older_program_works_on_a_newer_schema_until_that_says_no() {
    let Some(server) = Server::shared("an_older_program_works_on_a_newer_schema") else { return };
    let url = server.database();
    let running = open(&url).await;
    running.commit(vec![Op::put(KIND, "a", "1")]).await.unwrap();
    let newer = "SET search_path = emberbox; INSERT INTO migrations VALUES (2);
        ALTER TABLE records ADD COLUMN more TEXT; ALTER TABLE head ADD COLUMN more TEXT; CREATE TABLE more (x INTEGER)";
    server.psql(&url, newer);
    let started = open(&url).await;
    for store in [&running, &started] {
        store.commit(vec![Op::put(KIND, "a", "2")]).await.unwrap();
        assert_eq!(store.get(KIND, "a").await.unwrap().unwrap().value, "2");
    }
    // Now something that only a program of schema 2 understands.
    server.psql(&url, "UPDATE emberbox.head SET oldest = 2");
    let error = PostgresStore::open(&url).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("use the newer Emberbox"), "{error}");
    let error = running.commit(vec![Op::put(KIND, "a", "3")]).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");
    assert_eq!(running.get(KIND, "a").await.unwrap().unwrap().value, "2", "nothing written");
}

/// The log is kept for an hour. A subscriber that comes back later is told, as is one of a server that was restored.
#[tokio::test]
async fn what_the_log_no_longer_has_is_missed() {
    let Some(server) = Server::shared("what_the_log_no_longer_has_is_missed") else { return };
    let url = server.database();
    let store = open(&url).await;
    let commits = (0..1500).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.commit(vec![Op::put(KIND, "a", "x")]).await.unwrap() })
    });
    for commit in commits.collect::<Vec<_>>() {
        commit.await.unwrap();
    }
    let count = || server.psql(&url, "SELECT count(*), min(revision) FROM emberbox.commits");
    assert_eq!(count(), "1500|1");
    server.psql(&url, "UPDATE emberbox.commits SET made = made - INTERVAL '2 hours'");
    // Each trims when it starts.
    let second = open(&url).await;
    let until = Instant::now() + suite::LONG;
    while count() != "1000|501" {
        assert!(Instant::now() < until, "{}", count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.psql(&url, "SELECT count(*) FROM emberbox.changes"), "1000");

    // As if these had been made, and their log deleted, while nobody was connected.
    let mut feed = second.changes();
    server.psql(&url, "UPDATE emberbox.head SET revision = revision + 10");
    assert_eq!(feed.next().await, Feed::Missed);
    let next = store.commit(vec![Op::put(KIND, "a", "x")]).await.unwrap();
    assert_eq!(next, 1511);
    assert_eq!(suite::next(&mut feed).await.revision, next);

    // As if a standby had taken over that did not have the last commit, and somebody has made another.
    server.psql(&url, "UPDATE emberbox.commits SET attempt = 'other' WHERE revision = 1511");
    assert_eq!(feed.next().await, Feed::Missed);
    server.psql(&url, "UPDATE emberbox.head SET revision = 1400");
    assert_eq!(feed.next().await, Feed::Missed);
}

/// What the server cannot store is told to its caller, also if others share the transaction.
#[tokio::test]
async fn a_refused_commit_fails_alone() {
    let Some(server) = Server::shared("a_refused_commit_fails_alone") else { return };
    let store = open(&server.database()).await;
    let all = (0..20).map(|n| {
        let store = Arc::clone(&store);
        let key = if n == 7 { "with\0zero".to_owned() } else { n.to_string() };
        tokio::spawn(async move { store.commit(vec![Op::put(KIND, key, "x")]).await })
    });
    let mut failed = Vec::new();
    for commit in all.collect::<Vec<_>>() {
        failed.extend(commit.await.unwrap().err());
    }
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(
        matches!(failed[0], StoreError::Refused { operation: "write", .. }) && !failed[0].retryable(),
        "{failed:?}"
    );
    assert_eq!(store.scan(KIND, "").await.unwrap().records.len(), 19);
}

/// How soon a commit is in the feed of its own process, and of another: printed, with limits below the second after which the log is looked at anyway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_soon_in_every_feed() {
    let Some(server) = Server::start("a_commit_is_soon_in_every_feed") else { return };
    let url = server.database();
    let (one, two) = (open(&url).await, open(&url).await);
    let (mut own, mut other) = (one.changes(), two.changes());
    let (mut commits, mut owns, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..100 {
        let begin = Instant::now();
        one.commit(vec![Op::put(KIND, "a", n.to_string())]).await.unwrap();
        let made = Instant::now();
        commits.push(made - begin);
        suite::next(&mut own).await;
        owns.push(made.elapsed());
        suite::next(&mut other).await;
        others.push(made.elapsed());
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    };
    let (commits, owns, others) = (median(&mut commits), median(&mut owns), median(&mut others));
    println!("p50, p99 of: commit {commits:?}; after it, own feed {owns:?}, another's {others:?}");
    assert!(owns.0 < Duration::from_millis(500) && others.0 < Duration::from_millis(500));
}
