//! The log store through its public API.

use std::sync::Arc;

use domain::AccountId;
use worker::logs::{Filter, GroupId, LogConfig, LogEvent, LogStore, Position, StreamId};

fn group(name: &str) -> GroupId {
    GroupId { account: AccountId::local(), region: "us-east-1".into(), group: name.into() }
}

fn stream(group_name: &str, name: &str) -> Arc<StreamId> {
    Arc::new(StreamId { group: group(group_name), stream: name.into() })
}

fn lines(range: std::ops::Range<u64>) -> Vec<LogEvent> {
    range.map(|n| LogEvent { timestamp: n, message: format!("line {n}\n\tmore") }).collect()
}

fn open(dir: &std::path::Path) -> LogStore {
    LogStore::open(LogConfig::new(dir)).unwrap()
}

async fn messages(store: &LogStore, group: &GroupId, filter: Filter) -> Vec<String> {
    store.events(group, filter).await.unwrap().events.into_iter().map(|e| e.message).collect()
}

#[tokio::test]
async fn events_survive_a_restart_and_a_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    let g = group("/aws/lambda/f");
    let store = open(dir.path());
    store.append(&stream("/aws/lambda/f", "2026/01/01/[1]a"), lines(0..2));
    store.flush().await;
    drop(store);
    let file = walk(dir.path()).into_iter().find(|p| p.extension().is_some_and(|e| e == "log")).unwrap();
    std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .map(|mut f| std::io::Write::write_all(&mut f, b"77\tcut o").unwrap())
        .unwrap();
    let store = open(dir.path());
    store.append(&stream("/aws/lambda/f", "2026/01/01/[1]b"), lines(2..3));
    store.flush().await;
    assert_eq!(messages(&store, &g, Filter::default()).await, ["line 0\n\tmore", "line 1\n\tmore", "line 2\n\tmore"]);
    assert_eq!(store.groups(&AccountId::local(), "us-east-1").await, std::slice::from_ref(&g));
    assert!(store.groups(&AccountId::local(), "eu-west-1").await.is_empty());
    let streams = store.streams(&g).await.unwrap();
    let summary: Vec<_> = streams.iter().map(|s| (s.name.as_str(), s.first, s.last)).collect();
    assert_eq!(summary, [("2026/01/01/[1]a", 0, 1), ("2026/01/01/[1]b", 2, 2)]);
    store.delete_group(&g).await;
    assert!(messages(&store, &g, Filter::default()).await.is_empty());
    assert!(store.groups(&AccountId::local(), "us-east-1").await.is_empty());
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn filters_select_and_pages_continue_and_follow() {
    let dir = tempfile::tempdir().unwrap();
    let g = group("g");
    let store = open(dir.path());
    store.append(&stream("g", "a"), lines(0..5));
    store.append(&stream("g", "b"), lines(5..10));
    store.flush().await;
    let of = |filter: Filter| {
        let (store, g) = (store.clone(), g.clone());
        async move { store.events(&g, filter).await.unwrap().events.iter().map(|e| e.timestamp).collect::<Vec<_>>() }
    };
    assert_eq!(of(Filter { streams: vec!["b".into()], ..Filter::default() }).await, [5, 6, 7, 8, 9]);
    assert_eq!(of(Filter { stream_prefix: Some("a".into()), ..Filter::default() }).await, [0, 1, 2, 3, 4]);
    assert_eq!(of(Filter { start: Some(3), end: Some(6), ..Filter::default() }).await, [3, 4, 5]);
    assert_eq!(of(Filter { pattern: Some("line -4 \"7\n\"".into()), ..Filter::default() }).await, [7]);

    let first = store.events(&g, Filter { limit: 3, ..Filter::default() }).await.unwrap();
    assert!(first.more);
    let token = first.next.to_string();
    let from: Position = token.parse().unwrap();
    let rest = store.events(&g, Filter { from: Some(from), ..Filter::default() }).await.unwrap();
    assert_eq!((rest.events.len(), rest.events[0].timestamp, rest.more), (7, 3, false));
    let until = Some(rest.events[2].id);
    let between = store.events(&g, Filter { from: Some(from), until, ..Filter::default() }).await.unwrap();
    assert_eq!(between.events.iter().map(|e| e.timestamp).collect::<Vec<_>>(), [3, 4]);
    assert_eq!((between.next, between.more), (rest.events[2].id, false), "the end of what was asked for");
    let mut ids: Vec<String> = first.events.iter().chain(&rest.events).map(|e| e.id.to_string()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 10);

    let none = store.events(&g, Filter { from: Some(rest.next), ..Filter::default() }).await.unwrap();
    assert!(none.events.is_empty());
    store.append(&stream("g", "c"), lines(10..11));
    store.flush().await;
    let later = store.events(&g, Filter { from: Some(none.next), ..Filter::default() }).await.unwrap();
    assert_eq!(later.events.len(), 1);
    assert!("nonsense".parse::<Position>().is_err());
}

#[tokio::test]
async fn a_group_is_limited_in_size_and_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(LogConfig { group_bytes: 80_000, ..LogConfig::new(dir.path()) }).unwrap();
    for n in 0..400u64 {
        store.append(&stream("g", "s"), vec![LogEvent { timestamp: n, message: "x".repeat(1000) }]);
        if n % 20 == 0 {
            store.flush().await;
        }
    }
    store.flush().await;
    let size: u64 = walk(dir.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(size < 81_000 && size > 50_000, "{size}");
    let page = store.events(&group("g"), Filter::default()).await.unwrap();
    assert_eq!(page.events.last().unwrap().timestamp, 399);
    assert!(page.events[0].timestamp > 300);
    // A reader that fell behind goes on with what is left.
    let from = Position::default();
    assert!(
        !store.events(&group("g"), Filter { from: Some(from), ..Filter::default() }).await.unwrap().events.is_empty()
    );
}

#[tokio::test]
async fn old_segments_go_when_the_store_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.append(&stream("g", "s"), lines(0..1));
    store.flush().await;
    drop(store);
    let store =
        LogStore::open(LogConfig { retention: std::time::Duration::ZERO, ..LogConfig::new(dir.path()) }).unwrap();
    store.flush().await;
    assert!(messages(&store, &group("g"), Filter::default()).await.is_empty());
}

#[tokio::test]
async fn what_does_not_fit_is_counted_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(LogConfig { queue_bytes: 500, ..LogConfig::new(dir.path()) }).unwrap();
    store.append(&stream("g", "s"), lines(0..100));
    assert_eq!(store.dropped(), 100);
    store.append(&stream("g", "s"), lines(0..1));
    store.flush().await;
    let all = messages(&store, &group("g"), Filter::default()).await;
    assert_eq!(all[1], "[emberbox] 100 log lines were dropped because the disk did not keep up");
    assert_eq!(store.dropped(), 0);
}

#[tokio::test]
async fn a_page_of_the_longest_lines_is_bounded_and_the_next_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let g = group("g");
    let store = open(dir.path());
    let long = LogEvent { timestamp: 1, message: "x".repeat(256 << 10) };
    store.append(&stream("g", "a"), vec![long; 10]);
    store.flush().await;
    let first = store.events(&g, Filter::default()).await.unwrap();
    assert_eq!((first.events.len(), first.more), (4, true));
    let rest = store.events(&g, Filter { from: Some(first.next), ..Filter::default() }).await.unwrap();
    assert_eq!(rest.events.len(), 4);
}
