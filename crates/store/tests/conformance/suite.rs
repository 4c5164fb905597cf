//! What every engine must do, run over each of them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use store::{Change, Changes, Commit, Feed, Op, Precondition, Record, Store, StoreError};

pub const KIND: &str = "thing";

/// Longer than anything takes that does not hang.
pub const LONG: Duration = Duration::from_secs(60);

pub type Shared = Arc<dyn Store>;

/// The next commit of a feed that has missed none.
pub async fn next(feed: &mut Changes) -> Arc<Commit> {
    match tokio::time::timeout(LONG, feed.next()).await.expect("the feed goes on") {
        Feed::Commit(commit) => commit,
        other => panic!("a commit, not {other:?}"),
    }
}

/// On an empty store.
pub async fn versions_preconditions_and_scans(store: &dyn Store) {
    let empty = store.scan(KIND, "").await.unwrap();
    assert_eq!((empty.revision, empty.records.len()), (0, 0));
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
    assert_eq!(store.scan("none", "").await.unwrap().revision, 5);

    // Ordered by bytes, whatever the language of the database; any bytes are a value, and none is one as well.
    let keys = ["Z", "_", "a%", "a\\", "a_b", "ä", "𐍈"];
    let ops = keys.iter().map(|key| Op::put("sorted", *key, Bytes::from_static(&[0, 0xff])));
    store.commit(ops.chain([Op::put("sorted", "", Bytes::new())]).collect()).await.unwrap();
    let scan = store.scan("sorted", "").await.unwrap();
    assert_eq!(scan.records.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), [&[""], &keys[..]].concat());
    assert_eq!(scan.records[0].1.value, Bytes::new());
    assert_eq!(&*scan.records[1].1.value, &[0, 0xff]);
    assert_eq!(store.scan("sorted", "a_").await.unwrap().records.len(), 1, "a prefix, not a pattern");

    // Of two ops for one record the last counts; the feed shows both.
    let mut feed = store.changes();
    let twice = store.commit(vec![Op::put(KIND, "t", "1"), Op::put(KIND, "t", "2")]).await.unwrap();
    assert_eq!(store.get(KIND, "t").await.unwrap().unwrap().value, "2");
    let commit = loop {
        let commit = next(&mut feed).await;
        if commit.revision == twice {
            break commit;
        }
    };
    assert_eq!(commit.changes.len(), 2);
}

/// On an empty store.
pub async fn the_feed_has_every_commit_once_and_in_order(store: Shared) {
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
        let commit = next(&mut feed).await;
        assert_eq!(commit.revision, revision);
        assert_eq!(commit.changes[0].record.as_ref().unwrap().version, revision);
    }
}

/// On an empty store.
pub async fn a_slow_subscriber_is_told_to_scan_again(store: Shared) {
    let mut slow = store.changes();
    let mut other = store.changes();
    let writers: Vec<_> = (0..1500)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(vec![Op::put(KIND, "k", "v")]).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let last = store.commit(vec![Op::put(KIND, "k", "last")]).await.unwrap();
    // Once one has seen the last, all have been published.
    while !matches!(tokio::time::timeout(LONG, other.next()).await.unwrap(), Feed::Commit(c) if c.revision == last) {}
    assert_eq!(slow.next().await, Feed::Missed);
    assert!(matches!(slow.next().await, Feed::Commit(_)));
}

/// Many callers, on any number of stores over the same records, add one to a counter, and must not lose any of it.
pub async fn no_update_is_lost(stores: Vec<Shared>, times: u64) {
    let callers = stores.len() as u64;
    let callers_of_one: Vec<_> = stores
        .iter()
        .cloned()
        .map(|store| {
            tokio::spawn(async move {
                let (mut conflicts, mut revisions) = (0, Vec::new());
                for _ in 0..times {
                    revisions.push(loop {
                        let (value, precondition) = match store.get(KIND, "counter").await.unwrap() {
                            Some(record) => (number(&record) + 1, Precondition::Version(record.version)),
                            None => (1, Precondition::DoesNotExist),
                        };
                        let op = Op::put(KIND, "counter", value.to_string()).when(precondition);
                        match store.commit(vec![op]).await {
                            Ok(revision) => break (revision, value),
                            Err(error) if error.retryable() => conflicts += 1,
                            Err(error) => panic!("{error}"),
                        }
                    });
                }
                (conflicts, revisions)
            })
        })
        .collect();
    let (mut conflicts, mut revisions) = (0, BTreeMap::new());
    for caller in callers_of_one {
        let (more, made) = caller.await.unwrap();
        conflicts += more;
        revisions.extend(made);
    }
    println!("{callers} callers, {} updates, {conflicts} conflicts", callers * times);
    assert!(conflicts > 0, "they were in each other's way");
    assert_eq!(revisions.len() as u64, callers * times, "each has a revision of its own");
    assert!(revisions.values().copied().eq(1..=callers * times), "in the order of the revisions");
    for store in stores {
        assert_eq!(number(&store.get(KIND, "counter").await.unwrap().unwrap()), callers * times);
    }
}

pub fn number(record: &Record) -> u64 {
    std::str::from_utf8(&record.value).unwrap().parse().unwrap()
}

/// Tells the child of [`survives_kill_9`] where its store is.
pub const CHILD: &str = "STORE_TEST_CHILD";

/// What that child does: commits pairs of records, and says so after each.
pub async fn write_until_killed(store: &dyn Store) {
    let start = store.get(KIND, "left").await.unwrap().map_or(0, |r| number(&r) + 1);
    let mut output = std::io::stdout();
    for i in start.. {
        let value = i.to_string();
        store.commit(vec![Op::put(KIND, "left", value.clone()), Op::put(KIND, "right", value)]).await.unwrap();
        // Past the test harness, which captures `println!`.
        writeln!(output, "wrote {i}").unwrap();
    }
}

/// Runs this program's test `child_that_writes_until_killed` on `place`, kills it, and gives the number that it has
/// acknowledged last.
pub fn kill_9(place: &str, after: usize) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_writes_until_killed", "--nocapture"])
        .env(CHILD, place)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut acknowledged = None;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut take =
        |line: &str| acknowledged = line.strip_prefix("wrote ").and_then(|n| n.parse().ok()).or(acknowledged);
    for _ in 0..after {
        let Some(Ok(line)) = lines.next() else { panic!("the child ended by itself") };
        take(&line);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it wrote between our last look and its end counts, too.
    lines.map_while(Result::ok).for_each(|line| take(&line));
    acknowledged.unwrap()
}

/// What must be there after it.
pub async fn nothing_acknowledged_is_lost(store: &dyn Store, acknowledged: u64) {
    let left = number(&store.get(KIND, "left").await.unwrap().unwrap());
    let right = number(&store.get(KIND, "right").await.unwrap().unwrap());
    assert_eq!(left, right, "a commit is there as a whole");
    assert!(left >= acknowledged, "{left} is there, {acknowledged} was acknowledged");
}

#[derive(Debug, Clone)]
pub enum Step {
    Put(u8, u8, Guard),
    Delete(u8, Guard),
}

#[derive(Debug, Clone, Copy)]
pub enum Guard {
    None,
    Absent,
    Current,
    Stale,
}

pub fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let guard = prop_oneof![Just(Guard::None), Just(Guard::Absent), Just(Guard::Current), Just(Guard::Stale)];
    let step = prop_oneof![
        (0..4u8, any::<u8>(), guard.clone()).prop_map(|(k, v, g)| Step::Put(k, v, g)),
        (0..4u8, guard).prop_map(|(k, g)| Step::Delete(k, g)),
    ];
    prop::collection::vec(prop::collection::vec(step, 0..4), 1..12)
}

/// Against a map: the same commits succeed, the same records remain, and every feed has exactly the commits that were
/// made. The stores have the same records, none yet, and take turns.
pub async fn behaves_like_a_map(stores: &[Shared], commits: Vec<Vec<Step>>) {
    let mut feeds: Vec<_> = stores.iter().map(|store| store.changes()).collect();
    let mut model: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
    let mut made = Vec::new();
    for (steps, store) in commits.into_iter().zip(stores.iter().cycle()) {
        let revision = made.len() as u64 + 1;
        let mut next = model.clone();
        let mut holds = true;
        let (mut ops, mut changes) = (Vec::new(), Vec::new());
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
                Some(v) => next.insert(key.clone(), (revision, v.clone())),
                None => next.remove(&key),
            };
            let record = value.clone().map(|value| Record { version: revision, value: value.into() });
            changes.push(Change { kind: KIND.into(), key: key.clone(), record });
            let op = value.map_or_else(|| Op::delete(KIND, key.clone()), |v| Op::put(KIND, key.clone(), v));
            ops.push(op.when(precondition));
        }
        let result = store.commit(ops).await;
        assert_eq!(result.is_ok(), holds, "{result:?}");
        if holds {
            assert_eq!(result.unwrap(), revision);
            model = next;
            made.push(Commit { revision, changes });
        }
    }
    for (store, feed) in stores.iter().zip(&mut feeds) {
        let scan = store.scan(KIND, "").await.unwrap();
        let found: BTreeMap<_, _> = scan.records.into_iter().map(|(k, r)| (k, (r.version, r.value.to_vec()))).collect();
        assert_eq!(found, model);
        assert_eq!(scan.revision, made.len() as u64);
        for commit in &made {
            assert_eq!(*next(feed).await, *commit);
        }
    }
}

/// Commits of one caller each, at the same time.
pub fn concurrent() -> impl Strategy<Value = Vec<Vec<(u8, Precondition, bool)>>> {
    let precondition = prop_oneof![
        Just(Precondition::None),
        Just(Precondition::DoesNotExist),
        (1..24u64).prop_map(Precondition::Version)
    ];
    prop::collection::vec(prop::collection::vec((0..3u8, precondition, any::<bool>()), 1..4), 2..24)
}

/// Whatever order they are made in, the feeds show it, and in that order every precondition held. The stores have the same records, none yet.
pub async fn commits_at_once_have_an_order(stores: &[Shared], commits: Vec<Vec<(u8, Precondition, bool)>>) {
    let mut feeds: Vec<_> = stores.iter().map(|store| store.changes()).collect();
    let all: Vec<_> = commits.iter().cloned().zip(stores.iter().cycle().cloned()).enumerate().collect();
    let all = all.into_iter().map(|(caller, (steps, store))| {
        tokio::spawn(async move {
            // The first op says whose it is.
            let mut ops = vec![Op::put("caller", caller.to_string(), "")];
            ops.extend(steps.into_iter().map(|(key, precondition, put)| {
                let key = key.to_string();
                (if put { Op::put(KIND, key, "x") } else { Op::delete(KIND, key) }).when(precondition)
            }));
            store.commit(ops).await
        })
    });
    let mut made = BTreeMap::new();
    for (caller, commit) in all.collect::<Vec<_>>().into_iter().enumerate() {
        match commit.await.unwrap() {
            Ok(revision) => drop(made.insert(revision, caller)),
            Err(error) => assert!(matches!(error, StoreError::Conflict { .. }), "{error}"),
        }
    }
    assert!(made.keys().copied().eq(1..=made.len() as u64), "{made:?}");
    let mut model: BTreeMap<String, u64> = BTreeMap::new();
    let mut first = None;
    for feed in &mut feeds {
        let mut seen = Vec::new();
        for _ in 0..made.len() {
            seen.push(next(feed).await);
        }
        assert_eq!(*first.get_or_insert_with(|| seen.clone()), seen, "each feed has the same");
    }
    for commit in first.into_iter().flatten() {
        let caller = made[&commit.revision];
        assert_eq!(commit.changes[0].key, caller.to_string());
        for (key, precondition, _) in &commits[caller] {
            let version = model.get(&key.to_string()).copied();
            match precondition {
                Precondition::None => {}
                Precondition::DoesNotExist => assert_eq!(version, None, "{commit:?}"),
                Precondition::Version(expected) => assert_eq!(version, Some(*expected), "{commit:?}"),
            }
        }
        for (key, _, put) in &commits[caller] {
            match put {
                true => model.insert(key.to_string(), commit.revision),
                false => model.remove(&key.to_string()),
            };
        }
    }
    for store in stores {
        let scan = store.scan(KIND, "").await.unwrap();
        assert_eq!(scan.records.into_iter().map(|(k, r)| (k, r.version)).collect::<BTreeMap<_, _>>(), model);
    }
}
