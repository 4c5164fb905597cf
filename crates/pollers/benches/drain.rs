//! How long an accepted event waits on an idle system, and how fast a backlog is drained by sandboxes that take 2 ms
//! each, against the same sandboxes fed directly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{AccountId, Clock, FunctionArn, RequestId, SystemClock};
use event_queue::sqlite::SqliteQueue;
use event_queue::{Entry, EventQueue};
use pollers::{
    AsyncEvent, Attempt, Config, Deliver, DeliveryError, EventConfig, Invoker, Message, Metrics, Outcome, Service,
    SettingsSource, Target,
};
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

const SANDBOXES: usize = 16;
const TAKES: Duration = Duration::from_millis(2);
const BODY: usize = 512;

struct Sandboxes {
    free: Semaphore,
    /// Throttle rather than wait for a sandbox.
    throttles: bool,
    throttled: AtomicU64,
    runs: mpsc::UnboundedSender<Instant>,
}

#[async_trait]
impl Invoker for Sandboxes {
    async fn invoke(&self, _: &AsyncEvent) -> Attempt {
        let attempt = |outcome, status| Attempt {
            outcome,
            status,
            executed_version: None,
            function_error: None,
            payload: Bytes::from_static(b"null"),
        };
        let sandbox = match self.throttles {
            true => self.free.try_acquire().ok(),
            false => self.free.acquire().await.ok(),
        };
        if sandbox.is_none() {
            self.throttled.fetch_add(1, Ordering::Relaxed);
            return attempt(Outcome::Throttled, 429);
        }
        let _ = self.runs.send(Instant::now());
        tokio::time::sleep(TAKES).await;
        attempt(Outcome::Success, 200)
    }

    fn settled(&self, _: &AsyncEvent, _: &str) {}
}

struct Nothing;

#[async_trait]
impl SettingsSource for Nothing {
    async fn event_config(&self, _: &AsyncEvent) -> Option<EventConfig> {
        Some(EventConfig::default())
    }
}

#[async_trait]
impl Deliver for Nothing {
    async fn deliver(&self, _: &Target, _: &AsyncEvent, _: &Message) -> Result<(), DeliveryError> {
        Ok(())
    }
}

fn event() -> AsyncEvent {
    let function = FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() };
    AsyncEvent::new(function, RequestId(Uuid::new_v4()), vec![b'1'; BODY].into(), SystemClock::default().wall())
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let events: usize = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(100_000);
    // In the working directory: a temporary one may be memory.
    let folder = tempfile::tempdir_in(".").expect("a directory");
    for throttles in [false, true] {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let path = folder.path().join(format!("{throttles}.db"));
        let queue = Arc::new(SqliteQueue::open(path, Arc::clone(&clock)).await.expect("opens"));
        let (runs, mut ran) = mpsc::unbounded_channel();
        let sandboxes =
            Arc::new(Sandboxes { free: Semaphore::new(SANDBOXES), throttles, throttled: AtomicU64::new(0), runs });
        let (none, queue_) = (Arc::new(Nothing), Arc::<SqliteQueue>::clone(&queue));
        let service = Service::new(
            Config::default(),
            queue_,
            Arc::<Sandboxes>::clone(&sandboxes),
            Arc::<Nothing>::clone(&none),
            none,
            clock,
            Metrics::default(),
        );
        let run = tokio::spawn(service.clone().run());

        let mut waits = Vec::new();
        for _ in 0..1000 {
            service.accept(event()).await.expect("accepted");
            let accepted = Instant::now();
            waits.push(ran.recv().await.expect("runs").saturating_duration_since(accepted));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        waits.sort_unstable();
        println!("from 202 to the invocation: p50 {:?}, p99 {:?}", waits[500], waits[990]);
        service.stop(Duration::from_secs(10)).await;
        run.await.expect("ends");

        for _ in 0..events / 1000 {
            let entry = |event: AsyncEvent| Entry {
                queue: event.queue(),
                id: Uuid::new_v4(),
                body: event.encode(|_| event_queue::MAX_BODY),
                delay: Duration::ZERO,
            };
            queue.enqueue((0..1000).map(|_| entry(event())).collect()).await.expect("put");
        }
        let directly = directly(&sandboxes, events / 10).await;
        while ran.try_recv().is_ok() {}
        sandboxes.throttled.store(0, Ordering::Relaxed);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let (none, queue_) = (Arc::new(Nothing), Arc::<SqliteQueue>::clone(&queue));
        let sandboxes_ = Arc::<Sandboxes>::clone(&sandboxes);
        let metrics = Metrics::default();
        let service =
            Service::new(Config::default(), queue_, sandboxes_, Arc::<Nothing>::clone(&none), none, clock, metrics);
        let run = tokio::spawn(service.clone().run());
        let began = Instant::now();
        for _ in 0..events {
            ran.recv().await.expect("runs");
        }
        let drained = events as f64 / began.elapsed().as_secs_f64();
        println!(
            "drained {events} at {drained:.0}/s, fed directly {directly:.0}/s ({:.0} %), {} throttles{}",
            100.0 * drained / directly,
            sandboxes.throttled.load(Ordering::Relaxed),
            if throttles { "" } else { " (they wait)" },
        );
        service.stop(Duration::from_secs(10)).await;
        run.await.expect("ends");
        queue.close().await;
    }
}

/// As many callers as sandboxes.
async fn directly(sandboxes: &Arc<Sandboxes>, events: usize) -> f64 {
    let began = Instant::now();
    let callers: Vec<_> = (0..SANDBOXES)
        .map(|_| {
            let sandboxes = Arc::clone(sandboxes);
            tokio::spawn(async move {
                for _ in 0..events / SANDBOXES {
                    sandboxes.invoke(&event()).await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("calls");
    }
    events as f64 / began.elapsed().as_secs_f64()
}
