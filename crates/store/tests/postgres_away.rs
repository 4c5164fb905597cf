//! The store on a PostgreSQL that restarts, is away, does not let us in, or whose answers are lost on the way.
#![cfg(feature = "postgres")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::{Feed, Op, PostgresStore, Precondition, Store, StoreError};
use test_postgres::Server;

#[path = "conformance/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "the rest is for the other tests")]
#[path = "conformance/suite.rs"]
mod suite;

use proxy::{Mode, Proxy};
use suite::{KIND, LONG};

/// A call that fails waits for 15 s, and for an attempt that may then be under way; the rest is for a busy machine.
const BOUND: Duration = Duration::from_secs(30);

/// Commits that only the first time can be made.
fn once(key: impl Into<String>) -> Vec<Op> {
    vec![Op::put(KIND, key, "x").when(Precondition::DoesNotExist)]
}

fn through(proxy: &Proxy, url: &str) -> String {
    let (start, rest) = url.rsplit_once(':').unwrap();
    let (_, database) = rest.split_once('/').unwrap();
    format!("{start}:{}/{database}", proxy.port)
}

fn port(url: &str) -> u16 {
    url.rsplit_once(':').unwrap().1.split_once('/').unwrap().0.parse().unwrap()
}

/// Eight writers on two stores, while the server crashes and starts again: what was answered is there, once, at its
/// revision; what has failed for certain is not; both feeds have every commit once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_lose_and_double_nothing() {
    let Some(server) = Server::start("restarts_under_load_lose_and_double_nothing") else { return };
    let url = server.url();
    let stores =
        [Arc::new(PostgresStore::open(&url).await.unwrap()), Arc::new(PostgresStore::open(&url).await.unwrap())];
    let feeds: Vec<_> = stores
        .iter()
        .map(|store| {
            let mut feed = store.changes();
            tokio::spawn(async move {
                let mut seen = BTreeMap::new();
                loop {
                    let commit = suite::next(&mut feed).await;
                    assert_eq!(commit.revision, seen.len() as u64 + 1);
                    let key = commit.changes[0].key.clone();
                    seen.insert(commit.revision, key.clone());
                    if key == "end" {
                        return seen;
                    }
                }
            })
        })
        .collect();
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (store, stop, count) = (Arc::clone(&stores[writer % 2]), Arc::clone(&stop), Arc::clone(&count));
            tokio::spawn(async move {
                let (mut made, mut not_made, mut slowest) = (BTreeMap::new(), BTreeSet::new(), Duration::ZERO);
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (key, begin) = (format!("{writer}-{n}"), Instant::now());
                    match store.commit(once(key.clone())).await {
                        Ok(revision) => drop(made.insert(revision, key)),
                        Err(StoreError::Uncertain { .. }) => {}
                        Err(StoreError::Unavailable { .. }) => drop(not_made.insert(key)),
                        Err(error) => panic!("{key}: {error}"),
                    }
                    slowest = slowest.max(begin.elapsed());
                    count.fetch_add(1, Ordering::SeqCst);
                }
                (made, not_made, slowest)
            })
        })
        .collect();
    let server = Arc::new(server);
    for _ in 0..4 {
        let (before, until) = (count.load(Ordering::SeqCst), Instant::now() + LONG);
        while count.load(Ordering::SeqCst) < before + 100 {
            assert!(Instant::now() < until, "the writers go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let server = Arc::clone(&server);
        tokio::task::spawn_blocking(move || server.restart()).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let (mut made, mut not_made, mut slowest) = (BTreeMap::new(), BTreeSet::new(), Duration::ZERO);
    for writer in writers {
        let (more, not, slow) = writer.await.unwrap();
        made.extend(more);
        not_made.extend(not);
        slowest = slowest.max(slow);
    }
    let end = stores[0].commit(once("end")).await.unwrap();
    for feed in feeds {
        let seen = feed.await.unwrap();
        assert_eq!(seen.len() as u64, end);
        assert!(made.iter().all(|(revision, key)| seen[revision] == *key), "each at its revision");
        let keys: BTreeSet<_> = seen.values().cloned().collect();
        assert_eq!(keys.len(), seen.len(), "each once");
        assert_eq!(keys.intersection(&not_made).count(), 0, "what failed for certain was not made");
    }
    let total = count.load(Ordering::SeqCst);
    println!(
        "{total} commits during 4 restarts: {} answered, {} failed; slowest {slowest:?}",
        made.len(),
        not_made.len()
    );
    assert!(slowest < BOUND);
}

/// Nothing but the log can tell these two apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_made_once() {
    let Some(server) = Server::shared("a_commit_without_an_answer_is_made_once") else { return };
    let url = server.database();
    let proxy = Proxy::start(port(&url)).await;
    let store = Arc::new(PostgresStore::open(&through(&proxy, &url)).await.unwrap());
    let mut feed = store.changes();
    let mut revision = 0;
    for round in 0..5 {
        for mode in [Mode::LoseAnswer, Mode::LoseRequest, Mode::Pass] {
            proxy.set(mode);
            // A second one conflicts, and must find that out in the same transaction or in the next.
            let other = Arc::clone(&store);
            let key = format!("{round} {mode:?}");
            let twin = key.clone();
            let twin = tokio::spawn(async move { other.commit(once(twin)).await });
            let results = [store.commit(once(key.clone())).await, twin.await.unwrap()];
            revision += 1;
            let made: Vec<_> = results.iter().flatten().collect();
            assert_eq!(made, [&revision], "{key}: {results:?}");
            assert!(results.iter().any(|result| matches!(result, Err(StoreError::Conflict { .. }))), "{key}");
            assert_eq!(proxy.mode(), Mode::Pass, "the answer was lost");
            let commit = suite::next(&mut feed).await;
            assert_eq!((commit.revision, &commit.changes[0].key), (revision, &key));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_for_good_is_uncertain_and_a_server_that_is_away_is_named() {
    let Some(server) = Server::shared("an_answer_that_is_lost_for_good_is_uncertain") else { return };
    let url = server.database();
    let proxy = Proxy::start(port(&url)).await;
    let through = through(&proxy, &url).replace("emberbox@", "emberbox:hidden-word@");
    let store = Arc::new(PostgresStore::open(&through).await.unwrap());
    let mut feed = store.changes();
    store.commit(once("before")).await.unwrap();

    proxy.set(Mode::LoseAnswerForGood);
    let begin = Instant::now();
    let lost = store.commit(once("lost")).await.unwrap_err();
    assert!(matches!(lost, StoreError::Uncertain { .. }) && !lost.retryable(), "{lost}");
    let (read, scan, commit) =
        tokio::join!(store.get(KIND, "before"), store.scan(KIND, ""), store.commit(once("not made")));
    let errors = [read.unwrap_err(), scan.unwrap_err(), commit.unwrap_err()];
    let second = PostgresStore::open(&through).await.unwrap_err();
    println!("{lost}\n{}\nafter {:?}", errors[2], begin.elapsed());
    assert!(begin.elapsed() < 3 * BOUND);
    for error in errors.iter().chain([&second]) {
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("See that the server runs"), "{error}");
    }
    for error in errors.iter().chain([&lost, &second]) {
        assert!(error.to_string().contains(&format!("127.0.0.1:{}", proxy.port)), "{error}");
        assert!(!format!("{error} {error:?} {store:?}").contains("hidden-word"), "{error:?} {store:?}");
    }

    proxy.set(Mode::Pass);
    assert_eq!(store.commit(once("after")).await.unwrap(), 3);
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(suite::next(&mut feed).await.changes[0].key.clone());
    }
    assert_eq!(keys, ["before", "lost", "after"], "the uncertain one was made, as the feed tells");
}

/// As when the server's host loses power: no connection ends, nothing answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_holds_nobody_up_for_long() {
    let Some(server) = Server::shared("a_silent_server_holds_nobody_up_for_long") else { return };
    let url = server.database();
    let proxy = Proxy::start(port(&url)).await;
    let direct = PostgresStore::open(&url).await.unwrap();
    let store = Arc::new(PostgresStore::open(&through(&proxy, &url)).await.unwrap());
    let mut feed = store.changes();
    store.commit(once("before")).await.unwrap();
    store.get(KIND, "before").await.unwrap();

    proxy.set(Mode::Silent);
    let begin = Instant::now();
    let (read, commit) = tokio::join!(store.get(KIND, "before"), store.commit(once("silent")));
    println!("after {:?}: {read:?} {commit:?}", begin.elapsed());
    assert!(matches!(read.unwrap_err(), StoreError::Unavailable { .. }));
    assert!(matches!(commit.unwrap_err(), StoreError::Unavailable { .. }));
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    // What the silent one has locked does not stay so.
    let begin = Instant::now();
    direct.commit(once("direct")).await.unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());

    proxy.set(Mode::Pass);
    store.commit(once("after")).await.unwrap();
    for key in ["before", "direct", "after"] {
        assert_eq!(suite::next(&mut feed).await.changes[0].key, key);
    }
}

/// A writer of another process that stopped in the middle of a transaction, whose connection stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_writer_is_ended() {
    let Some(server) = Server::shared("a_stuck_writer_is_ended") else { return };
    let url = server.database();
    let proxy = Proxy::start(port(&url)).await;
    let (stuck, direct) =
        (PostgresStore::open(&through(&proxy, &url)).await.unwrap(), PostgresStore::open(&url).await.unwrap());
    let mut feed = direct.changes();
    direct.commit(once("before")).await.unwrap();
    // It sends its COMMIT into nothing while it holds the lock.
    proxy.set(Mode::HoldCommit);
    let (lost, direct) = tokio::join!(stuck.commit(once("stuck")), async {
        while proxy.mode() != Mode::Silent {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let begin = Instant::now();
        let revision = direct.commit(once("direct")).await.unwrap();
        println!("waited {:?} for the stuck one", begin.elapsed());
        proxy.set(Mode::Pass);
        revision
    });
    assert_eq!((direct, lost.unwrap()), (2, 3));
    for key in ["before", "direct", "stuck"] {
        assert_eq!(suite::next(&mut feed).await.changes[0].key, key);
    }
}

/// Each says what to do, at once, and none has the password.
#[tokio::test]
async fn refusals_say_what_to_do() {
    let Some(server) = Server::start("refusals_say_what_to_do") else { return };
    let base = server.url();
    let psql = |sql: &str| server.psql(&base, sql);
    psql("CREATE ROLE poor LOGIN PASSWORD 'right-word'");
    let hba = psql("SHOW hba_file");
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("host all poor 127.0.0.1/32 scram-sha-256\n{rules}")).unwrap();
    psql("SELECT pg_reload_conf()");
    let at = |role: &str, rest: &str| format!("postgres://{role}@127.0.0.1:{}/{rest}", port(&base));
    psql("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    psql("CREATE SCHEMA emberbox; CREATE TABLE emberbox.migrations (id INTEGER)");
    psql("CREATE DATABASE theirs");
    let cases = [
        (at("poor:wrong-word", "postgres"), "check role and password"),
        (at("poor:right-word", "theirs"), "CREATE SCHEMA"),
        (at("emberbox:x-word", "missing"), "make the database"),
        (at("emberbox:x-word", "latin"), "ENCODING 'UTF8'"),
        (at("emberbox:x-word", "postgres"), "another program's"),
        (at("emberbox:x-word", "theirs?sslmode=require"), "check sslmode"),
        (at("emberbox:x-word", "theirs?sslmod=require"), "does not know its parameter sslmod"),
        (at("emberbox:x-word", "theirs?sslmode=x-word"), "looks like postgres://"),
        ("postgres://emberbox:x-word@host:port/".to_owned(), "looks like postgres://"),
        ("postgres://emberbox:a?b-word@host/db".to_owned(), "%40 for an @"),
        ("postgres://emberbox:1/x-word@host/db".to_owned(), "%40 for an @"),
        ("mysql://emberbox:x-word@host/".to_owned(), "looks like postgres://"),
    ];
    for (url, remedy) in cases {
        let begin = Instant::now();
        let error = PostgresStore::open(&url).await.unwrap_err();
        println!("{error}");
        assert!(matches!(error, StoreError::Refused { .. }), "{url}: {error}");
        assert!(error.to_string().contains(remedy), "{url}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(8), "at once");
        if !url.contains("sslmode=x-word") {
            assert!(!format!("{error:?}").contains("-word"), "{error:?}");
        }
    }
    // With a schema of its own, that role needs no further right.
    let theirs = at("emberbox", "theirs");
    server.psql(&theirs, "CREATE SCHEMA emberbox AUTHORIZATION poor");
    let store = PostgresStore::open(&at("poor:right-word", "theirs")).await.unwrap();
    store.commit(once("a")).await.unwrap();
}

/// The server is known by its certificate, by the parameters that PostgreSQL's own client has.
#[tokio::test]
async fn tls_knows_the_server() {
    let Some(server) = Server::start("tls_knows_the_server") else { return };
    let files = tempfile::tempdir().unwrap();
    std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let owner = server.psql(&server.url(), "SHOW data_directory");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(owner).unwrap());
    for name in ["server", "other"] {
        let (key, certificate) = (files.path().join(format!("{name}.key")), files.path().join(format!("{name}.crt")));
        let output = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"])
            .args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output();
        assert!(output.expect("openssl, which PostgreSQL's package brings").status.success());
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&key, Some(owner), None).unwrap();
    }
    let path = files.path().display();
    let plain = server.database();
    server.psql(&plain, &format!("ALTER SYSTEM SET ssl_cert_file = '{path}/server.crt'"));
    server.psql(&plain, &format!("ALTER SYSTEM SET ssl_key_file = '{path}/server.key'"));
    server.psql(&plain, "ALTER SYSTEM SET ssl = on");
    server.restart();
    let with = |name: &str| format!("{plain}?sslmode=verify-full&sslrootcert={path}/{name}.crt");
    let store = PostgresStore::open(&with("server")).await.unwrap();
    let mut feed = store.changes();
    store.commit(once("a")).await.unwrap();
    assert!(matches!(feed.next().await, Feed::Commit(_)));
    let sessions =
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'emberbox'";
    assert_eq!(server.psql(&plain, sessions), "t");
    let error = PostgresStore::open(&with("other")).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, StoreError::Refused { .. }) && error.to_string().contains("check sslmode"), "{error}");
}
