//! The SQLite store through the public trait: versions, preconditions, feed, damage and foreign files, `kill -9`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use store::{Feed, Op, Precondition, Record, SqliteStore, Store, StoreError};

const KIND: &str = "thing";

async fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(dir.join("metadata.db")).await.expect("opens")
}

#[tokio::test]
async fn versions_preconditions_and_scans() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let first = store.commit(vec![Op::put(KIND, "a", "1").when(Precondition::DoesNotExist)]).await.unwrap();
    assert_eq!(first, 1);
    assert_eq!(store.get(KIND, "a").await.unwrap(), Some(Record { version: 1, value: Bytes::from("1") }));
    assert_eq!(store.get("other", "a").await.unwrap(), None);

    let again =
        store.commit(vec![Op::put(KIND, "b", "x"), Op::put(KIND, "a", "2").when(Precondition::DoesNotExist)]).await;
    assert!(matches!(again, Err(StoreError::Conflict { ref key, .. }) if key == "a"), "{again:?}");
    assert_eq!(store.get(KIND, "b").await.unwrap(), None, "all or nothing");

    let second = store.commit(vec![Op::put(KIND, "a", "2").when(Precondition::Version(first))]).await.unwrap();
    let stale = store.commit(vec![Op::delete(KIND, "a").when(Precondition::Version(first))]).await.unwrap_err();
    assert!(stale.retryable());
    store.commit(vec![Op::delete(KIND, "a").when(Precondition::Version(second))]).await.unwrap();
    let reborn = store.commit(vec![Op::put(KIND, "a", "1")]).await.unwrap();
    assert!(reborn > second, "a version never comes back");

    store.commit(vec![Op::put(KIND, "ab", "3"), Op::put(KIND, "b", "4"), Op::put("other", "ab", "5")]).await.unwrap();
    let scan = store.scan(KIND, "a").await.unwrap();
    assert_eq!(scan.revision, 5);
    assert_eq!(scan.records.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), ["a", "ab"]);
    assert_eq!(store.scan(KIND, "").await.unwrap().records.len(), 3);
}

#[tokio::test]
async fn the_feed_has_every_commit_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()).await);
    let mut feed = store.changes();
    let writers = (0..50).map(|i| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.commit(vec![Op::put(KIND, format!("k{i}"), "v")]).await.unwrap() })
    });
    let mut revisions = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        revisions.push(writer.await.unwrap());
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=50).collect::<Vec<_>>());
    for revision in 1..=50 {
        let Feed::Commit(commit) = feed.next().await else { panic!("a commit") };
        assert_eq!(commit.revision, revision);
        assert_eq!(commit.changes[0].record.as_ref().unwrap().version, revision);
    }
    store.close().await;
    assert!(matches!(store.commit(vec![]).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(KIND, "k1").await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_slow_subscriber_is_told_to_scan_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()).await);
    let mut feed = store.changes();
    let writers: Vec<_> = (0..1500)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(vec![Op::put(KIND, "k", "v")]).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(feed.next().await, Feed::Missed);
    assert!(matches!(feed.next().await, Feed::Commit(_)));
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

/// The child of the test below: commits pairs of records, and says so after each.
#[tokio::test]
async fn child_that_writes_until_killed() {
    let Ok(path) = std::env::var("STORE_TEST_CHILD") else { return };
    let store = SqliteStore::open(path).await.unwrap();
    let start = store.get(KIND, "left").await.unwrap().map_or(0, |r| number(&r) + 1);
    for i in start.. {
        let value = i.to_string();
        store.commit(vec![Op::put(KIND, "left", value.clone()), Op::put(KIND, "right", value)]).await.unwrap();
        // Past the test harness, which captures `println!`.
        writeln!(std::io::stdout(), "wrote {i}").unwrap();
    }
}

fn number(record: &Record) -> u64 {
    std::str::from_utf8(&record.value).unwrap().parse().unwrap()
}

#[tokio::test]
async fn survives_kill_9_in_the_middle_of_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata.db");
    for round in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_killed", "--nocapture"])
            .env("STORE_TEST_CHILD", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = None;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..20 * round {
            let Some(Ok(line)) = lines.next() else { panic!("the child ended by itself") };
            acknowledged = line.strip_prefix("wrote ").map(|n| n.parse::<u64>().unwrap()).or(acknowledged);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it wrote between our last look and its end counts, too.
        for line in lines.map_while(Result::ok) {
            acknowledged = line.strip_prefix("wrote ").and_then(|n| n.parse().ok()).or(acknowledged);
        }
        let store = SqliteStore::open(&path).await.expect("opens after kill -9");
        let left = number(&store.get(KIND, "left").await.unwrap().unwrap());
        let right = number(&store.get(KIND, "right").await.unwrap().unwrap());
        assert_eq!(left, right, "a commit is there as a whole");
        assert!(left >= acknowledged.unwrap(), "{left} is there, {acknowledged:?} was acknowledged");
        store.close().await;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, Guard),
    Delete(u8, Guard),
}

#[derive(Debug, Clone, Copy)]
enum Guard {
    None,
    Absent,
    Current,
    Stale,
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let guard = prop_oneof![Just(Guard::None), Just(Guard::Absent), Just(Guard::Current), Just(Guard::Stale)];
    let step = prop_oneof![
        (0..4u8, any::<u8>(), guard.clone()).prop_map(|(k, v, g)| Step::Put(k, v, g)),
        (0..4u8, guard).prop_map(|(k, g)| Step::Delete(k, g)),
    ];
    prop::collection::vec(prop::collection::vec(step, 0..4), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a map: the same commits succeed, and the same records remain.
    #[test]
    fn behaves_like_a_map(commits in steps()) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path()).await;
            let mut model: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
            let mut revision = 0;
            for steps in commits {
                let mut next = model.clone();
                let mut holds = true;
                let mut ops = Vec::new();
                for step in steps {
                    let (key, value, guard) = match step {
                        Step::Put(k, v, g) => (k.to_string(), Some(vec![v]), g),
                        Step::Delete(k, g) => (k.to_string(), None, g),
                    };
                    let version = model.get(&key).map(|(v, _)| *v);
                    let precondition = match guard {
                        Guard::None => Precondition::None,
                        Guard::Absent => Precondition::DoesNotExist,
                        Guard::Current => Precondition::Version(version.unwrap_or(0)),
                        Guard::Stale => Precondition::Version(version.unwrap_or(0) + 1000),
                    };
                    holds &= match guard {
                        Guard::None => true,
                        Guard::Absent => version.is_none(),
                        Guard::Current => version.is_some(),
                        Guard::Stale => false,
                    };
                    match &value {
                        Some(v) => next.insert(key.clone(), (revision + 1, v.clone())),
                        None => next.remove(&key),
                    };
                    let op = value.map_or_else(|| Op::delete(KIND, key.clone()), |v| Op::put(KIND, key.clone(), v));
                    ops.push(op.when(precondition));
                }
                let result = store.commit(ops).await;
                assert_eq!(result.is_ok(), holds, "{result:?}");
                if holds {
                    revision += 1;
                    model = next;
                }
            }
            let scan = store.scan(KIND, "").await.unwrap();
            let found: BTreeMap<_, _> =
                scan.records.into_iter().map(|(k, r)| (k, (r.version, r.value.to_vec()))).collect();
            assert_eq!(found, model);
            assert_eq!(scan.revision, revision);
            store.close().await;
        });
    }
}
