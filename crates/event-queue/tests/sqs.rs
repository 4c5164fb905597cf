//! The engine on SQS, against `moto_server` (PyPI: `moto[server]`), which the test starts.
#![cfg(feature = "sqs")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_sqs::config::{BehaviorVersion, Region};
use domain::{Clock, SystemClock};
use event_queue::QueueError;
use event_queue::sqs::{Settings, SqsQueue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[path = "conformance/suite.rs"]
mod suite;

use suite::{LEASE, ManualClock, Queue, Traits, entry, lease_now, queue};

/// Runs `moto_server`, whose SQS has the time that a file says, or the host's if it is empty.
///
/// Its threads share a queue's list of messages without a lock: to delete makes a new list, in which a message that
/// another request has added meanwhile is missing. So the two take turns here.
const SERVER: &str = "
import os, threading, moto.sqs.models as sqs
from moto.core.utils import unix_time
from moto.server import main
def millis(_=None):
    text = open(os.environ['CLOCK']).read()
    return float(text) if text else unix_time() * 1000
sqs.unix_time_millis = millis
sqs.unix_time = lambda _=None: millis() / 1000
turn = threading.RLock()
def in_turn(change):
    def changed(*arguments):
        with turn:
            return change(*arguments)
    return changed
sqs.Queue.add_message = in_turn(sqs.Queue.add_message)
sqs.Queue.delete_message = in_turn(sqs.Queue.delete_message)
main(['-p', '0'])
";

const TRAITS: Traits = Traits { grain: Duration::from_secs(2), exact: false };

/// A server of its own, gone with the test.
struct Moto {
    process: Child,
    dir: tempfile::TempDir,
    url: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    fn start(test: &str) -> Option<Self> {
        let program = std::env::var_os("EMBERBOX_TEST_MOTO").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/moto_server"),
            PathBuf::from,
        );
        let Ok(script) = std::fs::read_to_string(&program) else {
            let message = format!("SKIPPED {test}: needs moto_server at {}, or EMBERBOX_TEST_MOTO", program.display());
            assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{message}");
            println!("{message}");
            return None;
        };
        // The interpreter that has the package.
        let python = script.lines().next().unwrap().trim_start_matches("#!").trim();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("clock"), "").unwrap();
        let mut process = Command::new(python)
            .args(["-c", SERVER])
            .env("CLOCK", dir.path().join("clock"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let url = lines
            .find_map(|line| Some(format!("http://{}", line.split_once("Running on http://")?.1.trim())))
            .expect("it says where it listens");
        // It logs each request, and must not block on that.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, dir, url })
    }

    fn clock(&self) -> Arc<ManualClock> {
        Arc::new(ManualClock::default().mirrored(self.dir.path().join("clock")))
    }

    fn address(&self) -> String {
        self.url.trim_start_matches("http://").to_owned()
    }
}

async fn connect(url: &str, timeout: Duration, clock: Arc<dyn Clock>) -> Result<Queue, QueueError> {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("key", "secret", None, None, "test"))
        .endpoint_url(url)
        .build();
    let settings = Settings { timeout, ..Settings::default() };
    Ok(Arc::new(SqsQueue::connect(&config, settings, clock).await?))
}

async fn open(url: &str, clock: Arc<dyn Clock>) -> Queue {
    connect(url, Duration::from_secs(5), clock).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let Some(moto) = Moto::start("conforms") else { return };
    let clock = moto.clock();
    let engine = open(&moto.url, clock.clone()).await;
    suite::all(Arc::clone(&engine), Arc::clone(&clock), TRAITS).await;

    // Two processes: none gets what the other has leased.
    let second = open(&moto.url, clock.clone()).await;
    engine.enqueue((0..30).map(|n| entry(&format!("f{n}"), n)).collect()).await.unwrap();
    let (mine, theirs) = (lease_now(&engine, 12).await, lease_now(&second, 100).await);
    assert_eq!((mine.len(), theirs.len()), (12, 18));
    second.ack(&mine.iter().map(|lease| lease.id).collect::<Vec<_>>()).await.unwrap();
    clock.advance(LEASE + TRAITS.grain);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Each at least once: a request that timed out was repeated. (So was one of the tests before, perhaps.)
    let all: BTreeSet<_> = lease_now(&second, 100).await.into_iter().map(|lease| lease.queue).collect();
    let all: Vec<_> = all.iter().filter(|queue| queue.0.starts_with('f')).collect();
    assert_eq!(all.len(), 30, "only who leased an event can acknowledge it");
    engine.close().await;
    assert!(matches!(engine.enqueue(vec![entry("a", 1)]).await, Err(QueueError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_drops_what_was_there() {
    let Some(moto) = Moto::start("a_purge_drops_what_was_there") else { return };
    let clock = moto.clock();
    let engine = open(&moto.url, clock.clone()).await;
    engine.enqueue((0..20).map(|n| entry("purged", n)).collect()).await.unwrap();
    engine.enqueue(vec![entry("kept", 1)]).await.unwrap();
    let kept = lease_now(&engine, 3).await.iter().filter(|lease| lease.queue == queue("kept")).count() as u64;
    clock.advance(Duration::from_millis(1));
    assert_eq!(engine.purge(&queue("purged")).await.unwrap(), 3 - kept);
    engine.enqueue(vec![entry("purged", 100)]).await.unwrap();
    clock.advance(LEASE + TRAITS.grain);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left: BTreeSet<_> =
        lease_now(&engine, 100).await.into_iter().map(|lease| (lease.queue, lease.event.as_u128())).collect();
    assert_eq!(left, BTreeSet::from([(queue("kept"), 1), (queue("purged"), 100)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_delays_nobody_but_those_with_both_shards_in_common() {
    let Some(moto) = Moto::start("a_large_backlog_delays_nobody") else { return };
    let engine = open(&moto.url, moto.clock()).await;
    engine.enqueue((0..500).map(|n| entry("crowd", n)).collect()).await.unwrap();
    let mut slow = 0;
    for number in 0..10 {
        let name = format!("alone{number}");
        engine.enqueue(vec![entry(&name, number)]).await.unwrap();
        // One turn of each shard.
        slow += usize::from(!lease_now(&engine, 8).await.iter().any(|lease| lease.queue == queue(&name)));
    }
    println!("{slow} of 10 had to wait behind a backlog of 500");
    assert!(slow <= 2);
}

/// What stands between the engine and the server.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Open,
    Error,
    Hang,
}

/// Passes bytes on, or answers errors, or nothing at all; changes of mind break the connections that there are.
async fn proxy(target: String, path: watch::Receiver<Way>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (mut path, target) = (path.clone(), target.clone());
            let now = *path.borrow_and_update();
            let serve = async move {
                match now {
                    Way::Open => {
                        let mut server = TcpStream::connect(&target).await?;
                        copy_bidirectional(&mut client, &mut server).await.map(drop)
                    }
                    Way::Error => {
                        let _ = client.read(&mut [0; 65536]).await?;
                        let answer = "HTTP/1.1 500 Oops\r\ncontent-length: 4\r\nconnection: close\r\n\r\noops";
                        client.write_all(answer.as_bytes()).await
                    }
                    Way::Hang => std::future::pending().await,
                }
            };
            tokio::spawn(async move {
                tokio::select! { _ = serve => {}, _ = path.changed() => {} }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_or_hangs_loses_nothing() {
    let Some(moto) = Moto::start("an_endpoint_that_fails_or_hangs_loses_nothing") else { return };
    let (path, follow) = watch::channel(Way::Open);
    let url = proxy(moto.address(), follow).await;
    let short = Duration::from_millis(300);
    let clock = Arc::new(SystemClock::default());
    // What is short for an endpoint that hangs may be short for one on a busy host.
    let engine = loop {
        match connect(&url, short, clock.clone()).await {
            Ok(engine) => break engine,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
    };

    for (now, text) in [(Way::Error, "500"), (Way::Hang, "did not answer in time")] {
        path.send(now).unwrap();
        let start = Instant::now();
        for error in [
            engine.enqueue(vec![entry("a", 1)]).await.unwrap_err(),
            engine.depth(&queue("a")).await.unwrap_err(),
            connect(&url, short, clock.clone()).await.err().unwrap(),
        ] {
            assert!(error.retryable() && error.to_string().contains(text), "{now:?}: {error}");
        }
        assert!(start.elapsed() < short * 4 * 4, "{now:?} took {:?}", start.elapsed());
    }

    // Under load, with a path that changes all the time.
    path.send(Way::Open).unwrap();
    let until = Instant::now() + Duration::from_secs(6);
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move {
                let (mut accepted, mut failed) = (BTreeSet::new(), 0);
                for number in 0.. {
                    if Instant::now() > until {
                        break;
                    }
                    match engine.enqueue(vec![entry(&format!("f{caller}"), caller * 1_000_000 + number)]).await {
                        Ok(()) => drop(accepted.insert(caller * 1_000_000 + number)),
                        Err(_) => failed += 1,
                    }
                }
                (accepted, failed)
            })
        })
        .collect();
    for now in [Way::Error, Way::Open, Way::Hang, Way::Open, Way::Error, Way::Open, Way::Hang, Way::Open] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        path.send(now).unwrap();
    }
    let (mut accepted, mut failed) = (BTreeSet::new(), 0);
    for caller in callers {
        let (more, errors) = caller.await.unwrap();
        accepted.extend(more);
        failed += errors;
    }
    let mut found = BTreeSet::new();
    let engine = open(&moto.url, clock).await;
    loop {
        let leases = engine.lease(50, LEASE, Duration::from_secs(3)).await.unwrap();
        if leases.is_empty() {
            break;
        }
        found.extend(leases.iter().map(|lease| lease.event.as_u128()));
        engine.ack(&leases.iter().map(|lease| lease.id).collect::<Vec<_>>()).await.unwrap();
    }
    println!("{} accepted, {failed} refused, {} found", accepted.len(), found.len());
    assert!(accepted.len() > 50 && failed > 0);
    assert_eq!(accepted.difference(&found).count(), 0);
}

/// Not a test by itself: the process that the crash test kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_of_the_crash_test() {
    let Ok(url) = std::env::var(suite::CHILD) else { return };
    suite::crash_child(open(&url, Arc::new(SystemClock::default())).await).await;
}

#[tokio::test]
async fn kill_minus_nine_loses_nothing_that_was_answered() {
    let Some(moto) = Moto::start("kill_minus_nine_loses_nothing_that_was_answered") else { return };
    let mut seen = suite::crash(&moto.url, 30);
    // An hour later than the server's time: the leases of the dead are over.
    let later = ManualClock::at(SystemTime::now() + Duration::from_secs(3600));
    let clock = Arc::new(later.mirrored(moto.dir.path().join("clock")));
    let engine = open(&moto.url, clock.clone()).await;
    seen.find(&engine).await;
    // The last of the dead may have asked for events just before its end, and the server answered it at the new time.
    clock.advance(Duration::from_secs(3600));
    seen.find(&engine).await;
    seen.none_lost();
}
