//! The embedded engine: the shared suite, and what can happen to its file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use domain::{Clock, SystemClock};
use event_queue::sqlite::SqliteQueue;
use event_queue::{Entry, QueueError};
use proptest::prelude::*;

#[path = "conformance/suite.rs"]
mod suite;

use suite::{LEASE, ManualClock, Queue, Step, entry, lease_now, queue};

async fn open(path: &Path, clock: &Arc<ManualClock>) -> Queue {
    let clock = Arc::clone(clock);
    Arc::new(SqliteQueue::open(path, clock).await.expect("opens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    suite::all(open(&dir.path().join("events.db"), &clock).await, clock, suite::EXACT).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]
    #[test]
    fn agrees_with_the_model(steps in suite::steps()) {
        let steps: Vec<Step> = steps;
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let clock = Arc::new(ManualClock::default());
            let engine = open(&dir.path().join("events.db"), &clock).await;
            suite::agrees_with_the_model(engine, clock, steps).await;
        });
    }
}

#[tokio::test]
async fn leases_end_when_the_file_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.db");
    let clock = Arc::new(ManualClock::default());
    let engine = open(&path, &clock).await;
    engine.enqueue(vec![entry("a", 1)]).await.unwrap();
    let before = lease_now(&engine, 1).await.remove(0);
    let second = SqliteQueue::open(&path, Arc::new(SystemClock::default())).await.unwrap_err();
    assert!(second.to_string().contains("another Emberbox process uses it"), "{second}");
    engine.close().await;
    assert!(matches!(engine.enqueue(vec![entry("a", 2)]).await, Err(QueueError::Closed)));
    assert!(matches!(engine.depth(&queue("a")).await, Err(QueueError::Closed)));

    let engine = open(&path, &clock).await;
    engine.ack(&[before.id]).await.unwrap();
    let after = lease_now(&engine, 1).await.remove(0);
    assert_eq!((after.event, after.deliveries), (before.event, 1));
    assert_ne!(after.id, before.id);
}

#[tokio::test]
async fn a_caller_that_is_gone_gives_its_leases_back() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let engine = open(&dir.path().join("events.db"), &clock).await;
    let mut gone = 0;
    for round in 0.. {
        engine.enqueue(vec![entry("a", round)]).await.unwrap();
        // Polled once, so that its request goes out, and dropped. On a busy machine the answer may be there already.
        let leases = tokio::select! {
            biased;
            leases = engine.lease(1, LEASE, Duration::ZERO) => leases.unwrap(),
            () = std::future::ready(()) => {
                gone += 1;
                engine.lease(1, LEASE, Duration::from_secs(10)).await.unwrap()
            }
        };
        assert_eq!(leases.len(), 1);
        engine.ack(&[leases[0].id]).await.unwrap();
        if gone == 20 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_delays_nobody() {
    // EVENT_QUEUE_BACKLOG=1000000 proves the promise; the default takes seconds.
    let backlog: u128 = std::env::var("EVENT_QUEUE_BACKLOG").map_or(100_000, |number| number.parse().unwrap());
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let clock = Arc::new(ManualClock::default());
    let engine = open(&dir.path().join("events.db"), &clock).await;
    let fill = async |from: u128, to: u128| {
        for chunk in from / 5000..to / 5000 {
            engine.enqueue((0..5000).map(|n| entry("crowd", chunk * 5000 + n)).collect()).await.unwrap();
        }
    };
    // The allocator keeps what one call has needed.
    fill(0, 5000).await;
    let memory = resident();
    fill(5000, backlog).await;
    assert_eq!(engine.depth(&queue("crowd")).await.unwrap().ready, backlog as u64);
    let mut times = Vec::new();
    for number in 0..50 {
        engine.enqueue(vec![entry("alone", number)]).await.unwrap();
        let start = Instant::now();
        let mut turns = 0;
        loop {
            turns += 1;
            let lease = lease_now(&engine, 1).await.remove(0);
            engine.ack(&[lease.id]).await.unwrap();
            if lease.queue == queue("alone") {
                break;
            }
        }
        assert!(turns <= 2, "{turns} turns");
        times.push(start.elapsed());
    }
    times.sort();
    println!("first event beside a backlog of {backlog}: median {:?}, worst {:?}", times[25], times[49]);
    assert!(times[25] < Duration::from_millis(50), "{times:?}");
    let start = Instant::now();
    engine.depth(&queue("crowd")).await.unwrap();
    let grown = resident().saturating_sub(memory);
    println!("depth: {:?}; a backlog of {backlog} has grown resident memory by {grown} KiB", start.elapsed());
    assert!(grown < 50 * 1024, "memory does not follow the backlog");
    engine.close().await;
    let start = Instant::now();
    let engine = open(&dir.path().join("events.db"), &clock).await;
    println!("open: {:?}", start.elapsed());
    let left = engine.depth(&queue("crowd")).await.unwrap().ready;
    assert_eq!(engine.purge(&queue("crowd")).await.unwrap(), left);
    assert_eq!(engine.queues().await.unwrap(), []);
}

/// Of this process, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn foreign_newer_and_damaged_files() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let refused = async |path: &Path| {
        let clock = Arc::clone(&clock);
        let error = SqliteQueue::open(path, clock).await.unwrap_err();
        assert!(matches!(error, QueueError::Damaged(_)), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        error.to_string()
    };
    let text = dir.path().join("text");
    fs::write(&text, "something else, long enough").unwrap();
    assert!(refused(&text).await.contains("move the file away"));

    let make = async |name: &str| {
        let path = dir.path().join(name);
        let engine = open(&path, &clock).await;
        engine.enqueue((0..3000).map(|n| entry("a", n)).collect()).await.unwrap();
        engine.close().await;
        path
    };
    let newer = make("newer").await;
    sql(&newer, "INSERT INTO migrations VALUES (99, '')");
    assert!(refused(&newer).await.contains("use the newer Emberbox"));

    // Events whose rows are damaged are neither handed out nor dropped, and are in nobody's way: not in that of other
    // queues, nor of what is asked for at the same time.
    let bodiless = make("bodiless").await;
    sql(&bodiless, "DELETE FROM bodies WHERE seq = 5; UPDATE events SET id = x'00' WHERE seq = 7");
    let engine = open(&bodiless, &clock).await;
    let (leases, put) = tokio::join!(engine.lease(4000, LEASE, Duration::ZERO), engine.enqueue(vec![entry("b", 4000)]));
    put.unwrap();
    let leases = leases.unwrap();
    assert_eq!(leases.iter().filter(|lease| lease.queue == queue("a")).count(), 2998);
    engine.ack(&leases.iter().map(|lease| lease.id).collect::<Vec<_>>()).await.unwrap();
    let depth = engine.depth(&queue("a")).await.unwrap();
    assert_eq!((depth.ready, depth.delayed), (0, 2));
    clock.advance(Duration::from_secs(2 * 60 * 60));
    assert!(engine.lease(10, LEASE, Duration::ZERO).await.unwrap().iter().all(|lease| lease.queue == queue("b")));
    assert_eq!(engine.depth(&queue("a")).await.unwrap().delayed, 2);
    engine.close().await;

    let other = make("other").await;
    sql(&other, "PRAGMA application_id = 1");
    assert!(refused(&other).await.contains("another program"));

    let torn = make("torn").await;
    let size = fs::metadata(&torn).unwrap().len();
    fs::File::options().write(true).open(&torn).unwrap().set_len(size / 2 / 4096 * 4096).unwrap();
    assert!(refused(&torn).await.contains("restore it"));

    fs::File::options().write(true).open(&torn).unwrap().set_len(2048).unwrap();
    assert!(refused(&torn).await.contains("first page"), "it is not taken for a new one");

    let damaged = make("damaged").await;
    let file = fs::File::options().write(true).open(&damaged).unwrap();
    for page in 4..size / 4096 {
        file.write_all_at(&[0xa5; 512], page * 4096).unwrap();
    }
    assert!(refused(&damaged).await.contains("restore it"));
}

/// Pages of the bodies of queue `a`, which are full of `a`s, become unreadable; how many.
fn damage_bodies_of_a(path: &Path) -> usize {
    let whole = fs::read(path).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    let contains = |page: &[u8], byte: u8| page.windows(100).any(|window| window.iter().all(|b| *b == byte));
    // Leaves of tables (13) only: the root has been one, and shows it.
    let full = |page: &[u8]| page[0] == 13 && contains(page, b'a') && !contains(page, b'b');
    let pages = whole.chunks(4096).enumerate().filter(|(_, page)| full(page));
    pages.map(|(number, _)| file.write_all_at(&[0xa5; 64], number as u64 * 4096).unwrap()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_fails_only_those_that_need_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.db");
    let clock = Arc::new(ManualClock::default());
    let letters = |name: &str, number| Entry { body: name.repeat(200).into(), ..entry(name, number) };
    let engine = open(&path, &clock).await;
    engine.enqueue((0..1000).map(|n| letters("a", n)).collect()).await.unwrap();
    engine.enqueue((0..1000).map(|n| letters("b", n)).collect()).await.unwrap();
    engine.close().await;
    assert!(damage_bodies_of_a(&path) > 10);

    let engine = open(&path, &clock).await;
    // Together in one group, if the writer is busy with the first.
    let (first, leases, put) = tokio::join!(
        engine.enqueue(vec![letters("b", 5000)]),
        engine.lease(4000, LEASE, Duration::ZERO),
        engine.enqueue((0..20).map(|n| letters("b", 6000 + n)).collect()),
    );
    first.unwrap();
    put.unwrap();
    let mut leases = leases.unwrap();
    leases.extend(engine.lease(4000, LEASE, Duration::ZERO).await.unwrap());
    assert!(leases.iter().all(|lease| lease.queue == queue("b")), "they are handed out beside the damaged ones");
    assert_eq!(leases.len(), 1021);
    let depth = engine.depth(&queue("a")).await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (1000, 0), "they are kept");
    // Nobody is woken in vain.
    assert_eq!(engine.lease(10, LEASE, Duration::from_millis(200)).await.unwrap(), []);

    let damaged = queue("a");
    for round in 0..20 {
        let ids: Vec<_> = leases.split_off(leases.len() - 10).iter().map(|lease| lease.id).collect();
        let (put, purged, acked) =
            tokio::join!(engine.enqueue(vec![letters("b", 7000 + round)]), engine.purge(&damaged), engine.ack(&ids),);
        put.unwrap();
        acked.unwrap();
        let error = purged.unwrap_err();
        assert!(matches!(&error, QueueError::Damaged(text) if text.contains("restore it")), "{error}");
    }
    let depth = engine.depth(&queue("b")).await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (20, 821));
    // Looked at again, and still in nobody's way.
    clock.advance(Duration::from_secs(2 * 60 * 60));
    let leases = engine.lease(4000, LEASE, Duration::ZERO).await.unwrap();
    assert!(leases.len() == 841 && leases.iter().all(|lease| lease.queue == queue("b")), "{}", leases.len());
    engine.close().await;
}

#[tokio::test]
async fn a_damaged_log() {
    let dir = tempfile::tempdir().unwrap();
    let (path, clock) = (dir.path().join("events.db"), Arc::new(ManualClock::default()));
    let engine = open(&path, &clock).await;
    let mut ends = Vec::new();
    for number in 0..20 {
        engine.enqueue(vec![entry("a", number)]).await.unwrap();
        ends.push(fs::metadata(dir.path().join("events.db-wal")).unwrap().len() as usize);
    }
    // As a crash leaves them: the log was never brought into the file.
    let (file, log) = (fs::read(&path).unwrap(), fs::read(dir.path().join("events.db-wal")).unwrap());
    engine.close().await;
    let written = *ends.last().unwrap();
    assert!(ends.is_sorted() && log.len() == written);

    let copies = AtomicU32::new(0);
    let with_log = async |log: &[u8]| {
        let copy = dir.path().join(format!("copy{}", copies.fetch_add(1, Ordering::Relaxed)));
        fs::write(&copy, &file).unwrap();
        fs::write(dir.path().join(format!("{}-wal", copy.display())), log).unwrap();
        let engine = SqliteQueue::open(&copy, Arc::clone(&clock) as Arc<dyn Clock>).await?;
        let engine: Queue = Arc::new(engine);
        let found: BTreeSet<_> = lease_now(&engine, 100).await.iter().map(|lease| lease.event.as_u128()).collect();
        engine.close().await;
        Ok::<_, QueueError>(found)
    };
    let first = |count: u128| (0..count).collect::<BTreeSet<_>>();
    // Whatever of an unanswered commit a crash leaves behind the last one: that is gone, and no other.
    for tail in [&log[log.len() - 2000..], &[0; 5000][..], &[0xa5; 4120 * 3][..]] {
        assert_eq!(with_log(&[&log, tail].concat()).await.unwrap(), first(20));
    }
    // Torn within a commit: it counts as a whole or not at all, and those before it do.
    for (number, end) in ends.iter().enumerate().skip(15) {
        assert_eq!(with_log(&log[..end - 100]).await.unwrap(), first(number as u128), "{number}");
        assert_eq!(with_log(&log[..*end]).await.unwrap(), first(number as u128 + 1), "{number}");
    }
    // A header that is none: SQLite would drop all that the log has, and say nothing.
    for at in [0, 10, 20, 30] {
        let mut damaged = log.clone();
        damaged[at] ^= 0x55;
        let error = with_log(&damaged).await.unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, QueueError::Damaged(_)) && text.contains("-wal") && text.contains("restore it"),
            "{text}"
        );
    }
    let error = with_log(&vec![0xa5; log.len()]).await.unwrap_err();
    assert!(matches!(error, QueueError::Damaged(_)), "{error}");
}

/// A disk that is taken away when the test ends.
struct SmallDisk(tempfile::TempDir);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    let disk = SmallDisk(tempfile::tempdir().unwrap());
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(disk.0.path()).status();
    if !mount.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "needs root, to mount a small file system");
        println!("SKIPPED a_full_disk_refuses_and_loses_nothing: needs root, to mount a small file system");
        return;
    }
    let clock = Arc::new(ManualClock::default());
    let engine = open(&disk.0.path().join("events.db"), &clock).await;
    let large = |number| Entry { body: vec![7; 50_000].into(), ..entry("a", number) };
    let mut accepted = 0;
    let error = loop {
        match engine.enqueue(vec![large(accepted)]).await {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(error.retryable() && error.to_string().contains("full"), "{error}");
    assert!(accepted > 10);
    assert!(engine.enqueue(vec![large(accepted)]).await.is_err());
    // What is there can be worked off, or at least it is still there: whatever is asked for either fails, and says why, or
    // holds. Not even a page is left.
    let ballast = fs::File::create(disk.0.path().join("ballast")).unwrap();
    let full = (0..).find(|page| ballast.write_all_at(&[0; 4096], page * 4096).is_err());
    assert!(full.is_some());
    let told = |error: QueueError| assert!(error.retryable() && error.to_string().contains("full"), "{error}");
    let (mut leased, mut refused) = (BTreeMap::new(), 0);
    for _ in 0..5 {
        match engine.lease(2, LEASE, Duration::ZERO).await {
            Ok(leases) => leased.extend(leases.into_iter().map(|lease| (lease.event.as_u128(), lease.id))),
            Err(error) => (refused += 1, told(error)).1,
        }
    }
    let mut acked = BTreeSet::new();
    for (event, lease) in &leased {
        match engine.ack(&[*lease]).await {
            Ok(()) => drop(acked.insert(*event)),
            Err(error) => (refused += 1, told(error)).1,
        }
        // Done with already, or to be given back when there is room again.
        if let Err(error) = engine.release(*lease, Duration::ZERO, Some(vec![7; 60_000].into())).await {
            refused += 1;
            told(error);
        }
    }
    println!("full: {} leased, {} acknowledged, {refused} refused", leased.len(), acked.len());
    assert!(refused > 0);
    let depth = engine.depth(&queue("a")).await.unwrap();
    assert_eq!(depth.ready + depth.in_flight, (accepted as usize - acked.len()) as u64);
    // More room: the same process goes on, all that was accepted is there, and nothing else.
    let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(disk.0.path()).status().unwrap();
    assert!(grown.success());
    engine.enqueue(vec![large(accepted)]).await.unwrap();
    engine.close().await;
    let engine = open(&disk.0.path().join("events.db"), &clock).await;
    let found: BTreeSet<_> = lease_now(&engine, 10_000).await.iter().map(|lease| lease.event.as_u128()).collect();
    assert_eq!(found, (0..=accepted).filter(|event| !acked.contains(event)).collect());
    engine.close().await;
}

fn sql(path: &Path, statement: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(statement).unwrap();
}

/// Not a test by itself: the process that the crash test kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_of_the_crash_test() {
    let Some(path) = std::env::var_os(suite::CHILD) else { return };
    suite::crash_child(Arc::new(SqliteQueue::open(path, Arc::new(SystemClock::default())).await.unwrap())).await;
}

#[tokio::test]
async fn kill_minus_nine_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.db");
    let mut seen = suite::crash(path.to_str().unwrap(), 100);
    let engine: suite::Queue = Arc::new(SqliteQueue::open(&path, Arc::new(SystemClock::default())).await.unwrap());
    seen.find(&engine).await;
    seen.none_lost();
}

/// As the first release has written it.
const FIRST_SCHEMA: &str = "
    PRAGMA application_id = 0x454d4251; PRAGMA journal_mode = WAL;
    CREATE TABLE migrations (number INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT;
    INSERT INTO migrations VALUES (1, '2026-11-01');
    CREATE TABLE queues (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, events INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE events (
        queue INTEGER NOT NULL, seq INTEGER NOT NULL, id BLOB NOT NULL, enqueued_at INTEGER NOT NULL,
        due INTEGER NOT NULL, deliveries INTEGER NOT NULL DEFAULT 0, leased INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (queue, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX events_by_id ON events (queue, id);
    CREATE INDEX events_by_due ON events (queue, due, leased);
    CREATE TABLE bodies (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
    INSERT INTO queues VALUES (1, 'a', 3), (2, 'empty', 0);
    INSERT INTO bodies VALUES (1, 'ready'), (2, 'leased'), (3, 'delayed');";

#[tokio::test]
async fn a_file_of_the_first_release_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let (path, clock) = (dir.path().join("events.db"), Arc::new(ManualClock::default()));
    let now = clock.wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let row = |seq: u8, due: u128, leased: u8| {
        format!("INSERT INTO events VALUES (1, {seq}, x'{:032x}', {now}, {due}, {leased}, {leased});", seq)
    };
    let rows = [row(1, now, 0), row(2, now + 60_000, 1), row(3, now + 60_000, 0)].concat();
    let bodies = FIRST_SCHEMA.replace("'ready'", "x'01'").replace("'leased'", "x'02'").replace("'delayed'", "x'03'");
    sql(&path, &format!("{bodies}{rows}"));
    let engine = open(&path, &clock).await;
    let bodies = async || {
        let leases = lease_now(&engine, 10).await;
        engine.ack(&leases.iter().map(|lease| lease.id).collect::<Vec<_>>()).await.unwrap();
        leases.iter().map(|lease| (lease.event.as_u128(), lease.body[0], lease.deliveries)).collect::<BTreeSet<_>>()
    };
    assert_eq!(bodies().await, BTreeSet::from([(1, 1, 1), (2, 2, 2)]), "no lease outlives its process");
    clock.advance(Duration::from_secs(60));
    assert_eq!(bodies().await, BTreeSet::from([(3, 3, 1)]));
    assert_eq!(engine.queues().await.unwrap(), [], "their count came with them");
    engine.close().await;
}

/// Found by the property test: the end of one lease must not be forgotten over what else the queue waits for.
#[tokio::test]
async fn a_lease_ends_whatever_else_its_queue_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let engine = open(&dir.path().join("events.db"), &clock).await;
    let second = Duration::from_secs(1);
    engine.enqueue(vec![entry("a", 1), Entry { delay: second, ..entry("a", 2) }]).await.unwrap();
    let lease = async || {
        let leases = engine.lease(2, 10 * second, Duration::ZERO).await.unwrap();
        leases.iter().map(|lease| lease.event.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(lease().await, [1]);
    clock.advance(8 * second);
    assert_eq!(lease().await, [2]);
    clock.advance(3 * second);
    assert_eq!(lease().await, [1]);
    // And wakes who waits.
    let waiter = tokio::spawn({
        let engine = Arc::clone(&engine);
        async move { engine.lease(2, LEASE, Duration::from_secs(20)).await.unwrap().len() }
    });
    tokio::task::yield_now().await;
    clock.advance(7 * second);
    assert_eq!(waiter.await.unwrap(), 1);
    engine.close().await;
}
