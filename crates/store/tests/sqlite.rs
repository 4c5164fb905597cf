//! The SQLite store through the public trait: the conformance suite, damage and foreign files, `kill -9`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use store::{Feed, Op, SqliteStore, Store, StoreError};

#[path = "conformance/suite.rs"]
mod suite;

use suite::{KIND, Shared};

async fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(dir.join("metadata.db")).await.expect("opens")
}

#[tokio::test]
async fn versions_preconditions_and_scans() {
    let dir = tempfile::tempdir().unwrap();
    suite::versions_preconditions_and_scans(&open(dir.path()).await).await;
}

#[tokio::test]
async fn the_feed_has_every_commit_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()).await);
    suite::the_feed_has_every_commit_once_and_in_order(store.clone()).await;
    store.close().await;
    assert!(matches!(store.commit(vec![]).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(KIND, "k1").await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_slow_subscriber_is_told_to_scan_again() {
    let dir = tempfile::tempdir().unwrap();
    suite::a_slow_subscriber_is_told_to_scan_again(Arc::new(open(dir.path()).await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store: Shared = Arc::new(open(dir.path()).await);
    suite::no_update_is_lost(vec![store; 8], 50).await;
}

#[tokio::test]
async fn reopens_with_everything_and_refuses_a_second_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.commit(vec![Op::put(KIND, "a", "1")]).await.unwrap();
    let second = SqliteStore::open(dir.path().join("metadata.db")).await.unwrap_err();
    assert!(matches!(second, StoreError::InUse { .. }), "{second}");
    store.close().await;
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.get(KIND, "a").await.unwrap().unwrap().value, "1");
    assert_eq!(store.commit(vec![]).await.unwrap(), 2, "revisions go on");
}

#[tokio::test]
async fn foreign_and_damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata.db");
    fs::write(&path, "not a database, but long enough to be taken for one by its size").unwrap();
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("move the file away"), "{error}");
    assert!(fs::read_to_string(&path).unwrap().starts_with("not a database"), "left as it was");

    fs::remove_file(&path).unwrap();
    let store = open(dir.path()).await;
    for i in 0..200 {
        store.commit(vec![Op::put(KIND, format!("{i}"), vec![b'x'; 500])]).await.unwrap();
    }
    store.close().await;
    drop(store);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[4096..middle].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()) && error.to_string().contains("backup"), "{error}");

    let folder = dir.path().join("folder.db");
    fs::create_dir(&folder).unwrap();
    let error = SqliteStore::open(&folder).await.unwrap_err();
    assert!(error.to_string().contains("folder.db"), "{error}");
}

#[tokio::test]
async fn another_programs_database_and_a_newer_schema_are_refused() {
    use sqlx::Connection as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut other = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("CREATE TABLE t (x)").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let before = fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before, "left as it was");

    let path = dir.path().join("metadata.db");
    open(dir.path()).await.close().await;
    let mut newer = sqlx::SqliteConnection::connect_with(&options.filename(&path)).await.unwrap();
    sqlx::query("INSERT INTO migrations VALUES (999, '')").execute(&mut newer).await.unwrap();
    newer.close().await.unwrap();
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 999, .. }), "{error}");
}

/// A commit that cannot be written is told to its caller, and the next one goes through.
#[tokio::test]
async fn a_failed_write_leaves_the_store_working() {
    use sqlx::Connection as _;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.commit(vec![Op::put(KIND, "a", "1")]).await.unwrap();
    let mut feed = store.changes();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("metadata.db"));
    let mut saboteur = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("ALTER TABLE records RENAME TO gone").execute(&mut saboteur).await.unwrap();
    let error = store.commit(vec![Op::put(KIND, "a", "2")]).await.unwrap_err();
    assert!(matches!(error, StoreError::Io { operation: "write", .. }), "{error}");
    assert!(error.to_string().contains("metadata.db") && !error.retryable(), "{error}");
    sqlx::query("ALTER TABLE gone RENAME TO records").execute(&mut saboteur).await.unwrap();
    assert_eq!(store.commit(vec![Op::put(KIND, "a", "3")]).await.unwrap(), 2);
    let Feed::Commit(commit) = feed.next().await else { panic!("a commit") };
    assert_eq!(commit.changes[0].record.as_ref().unwrap().value, "3", "nothing of the failed one");
}

/// Not a test by itself: the process that the next one kills.
#[tokio::test]
async fn child_that_writes_until_killed() {
    let Ok(path) = std::env::var(suite::CHILD) else { return };
    suite::write_until_killed(&SqliteStore::open(path).await.unwrap()).await;
}

#[tokio::test]
async fn survives_kill_9_in_the_middle_of_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata.db");
    for round in 1..=5 {
        let acknowledged = suite::kill_9(path.to_str().unwrap(), 20 * round);
        let store = SqliteStore::open(&path).await.expect("opens after kill -9");
        suite::nothing_acknowledged_is_lost(&store, acknowledged).await;
        store.close().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_map(commits in suite::steps()) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(open(dir.path()).await);
            suite::behaves_like_a_map(&[store.clone() as Shared], commits).await;
            store.close().await;
        });
    }

    #[test]
    fn commits_at_once_have_an_order(commits in suite::concurrent()) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(open(dir.path()).await);
            suite::commits_at_once_have_an_order(&[store.clone() as Shared], commits).await;
            store.close().await;
        });
    }
}
