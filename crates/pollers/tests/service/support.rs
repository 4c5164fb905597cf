//! A queue in a file of its own, and fakes of everything behind the ports.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{AccountId, Clock, FunctionArn, RequestId};
use event_queue::sqlite::SqliteQueue;
use event_queue::{Content, Depth, Entry, EventQueue, Lease, LeaseId, QueueError, QueueName};
use parking_lot::Mutex;
use pollers::{
    AsyncEvent, Attempt, Config, Deliver, DeliveryError, EventConfig, EventStats, Invoker, Message, Metrics, Outcome,
    Service, SettingsSource, Target,
};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A clock that is moved by hand.
#[derive(Default)]
pub struct HandClock(Mutex<Duration>);

impl HandClock {
    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl Clock for HandClock {
    fn monotonic(&self) -> Duration {
        *self.0.lock()
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000) + *self.0.lock()
    }
}

/// What a function does when it is invoked.
#[derive(Clone, Copy, Debug)]
pub enum Does {
    Succeed,
    Fail,
    Throttle,
    Sleep(Duration),
    /// Ends when [`World::open`] is called, once for each.
    Wait,
    Hang,
    Panic,
}

/// One call of the invoker.
#[derive(Clone, Debug)]
pub struct Call {
    pub event: AsyncEvent,
    pub at: Instant,
}

/// Everything outside, recorded.
pub struct World {
    /// By function name; [`Does::Succeed`] where nothing is said.
    pub does: Mutex<HashMap<String, Does>>,
    /// By function name; nothing for a function that is gone.
    pub configs: Mutex<HashMap<String, EventConfig>>,
    pub gone: Mutex<Vec<String>>,
    pub calls: Mutex<Vec<Call>>,
    pub finished: Mutex<Vec<RequestId>>,
    pub delivered: Mutex<Vec<(String, Message)>>,
    /// Answers of the next deliveries, by target; [`Ok`] when there are none.
    pub deliveries: Mutex<HashMap<String, Vec<Fate>>>,
    pub tries: Mutex<usize>,
    /// What the timelines were told.
    pub settled: Mutex<Vec<(RequestId, String)>>,
    gate: Semaphore,
}

impl Default for World {
    fn default() -> Self {
        Self {
            does: Mutex::default(),
            configs: Mutex::default(),
            gone: Mutex::default(),
            calls: Mutex::default(),
            finished: Mutex::default(),
            delivered: Mutex::default(),
            deliveries: Mutex::default(),
            tries: Mutex::default(),
            settled: Mutex::default(),
            gate: Semaphore::new(0),
        }
    }
}

/// What becomes of a delivery that fails.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Later,
    Never,
    Hang,
}

impl World {
    pub fn does(&self, function: &str, does: Does) {
        self.does.lock().insert(function.into(), does);
    }

    /// Lets so many waiting attempts end.
    pub fn open(&self, count: usize) {
        self.gate.add_permits(count);
    }

    pub fn config(&self, function: &str, config: EventConfig) {
        self.configs.lock().insert(function.into(), config);
    }

    pub fn calls(&self, function: &str) -> Vec<Call> {
        self.calls.lock().iter().filter(|call| *call.event.function.name == *function).cloned().collect()
    }

    pub fn delivered(&self) -> Vec<(String, Message)> {
        self.delivered.lock().clone()
    }
}

#[async_trait]
impl Invoker for World {
    async fn invoke(&self, event: &AsyncEvent) -> Attempt {
        self.calls.lock().push(Call { event: event.clone(), at: Instant::now() });
        let does = self.does.lock().get(&*event.function.name).copied().unwrap_or(Does::Succeed);
        let answer = |outcome, status, payload: &str, error: Option<&str>| Attempt {
            outcome,
            status,
            executed_version: (status == 200).then(|| "$LATEST".into()),
            function_error: error.map(Into::into),
            payload: payload.to_owned().into(),
        };
        let attempt = match does {
            Does::Succeed => answer(Outcome::Success, 200, "null", None),
            Does::Fail => answer(
                Outcome::FunctionError,
                200,
                r#"{"errorMessage":"broken","errorType":"Error"}"#,
                Some("Unhandled"),
            ),
            Does::Throttle => answer(Outcome::Throttled, 429, r#"{"message":"Rate Exceeded."}"#, None),
            Does::Sleep(time) => {
                tokio::time::sleep(time).await;
                answer(Outcome::Success, 200, "null", None)
            }
            Does::Wait => {
                self.gate.acquire().await.expect("never closed").forget();
                answer(Outcome::Success, 200, "null", None)
            }
            Does::Hang => std::future::pending().await,
            Does::Panic => panic!("the invoker breaks its promise"),
        };
        self.finished.lock().push(event.request_id);
        attempt
    }

    fn settled(&self, event: &AsyncEvent, how: &str) {
        self.settled.lock().push((event.request_id, how.to_owned()));
    }
}

#[async_trait]
impl SettingsSource for World {
    async fn event_config(&self, event: &AsyncEvent) -> Option<EventConfig> {
        let name = &event.function.name;
        let gone = self.gone.lock().iter().any(|gone| **gone == **name);
        (!gone).then(|| self.configs.lock().get(&**name).cloned().unwrap_or_default())
    }
}

#[async_trait]
impl Deliver for World {
    async fn deliver(&self, target: &Target, _: &AsyncEvent, message: &Message) -> Result<(), DeliveryError> {
        *self.tries.lock() += 1;
        let fate = self.deliveries.lock().get_mut(&target.arn).and_then(Vec::pop);
        let failed = |retryable| DeliveryError { target: target.arn.clone(), cause: "test".into(), retryable };
        match fate {
            None => self.delivered.lock().push((target.arn.clone(), message.clone())),
            Some(Fate::Later) => return Err(failed(true)),
            Some(Fate::Never) => return Err(failed(false)),
            Some(Fate::Hang) => std::future::pending().await,
        }
        Ok(())
    }
}

/// A queue that can be away, as on a full disk; looking at its depth always works.
pub struct Outage {
    queue: SqliteQueue,
    pub away: AtomicBool,
    /// So many acks more fail as those of a damaged file do.
    pub damaged_acks: AtomicUsize,
}

impl Outage {
    fn check(&self) -> Result<(), QueueError> {
        match self.away.load(Ordering::Relaxed) {
            true => Err(QueueError::Unavailable { operation: "write".into(), cause: "the disk is full".into() }),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl EventQueue for Outage {
    async fn enqueue(&self, entries: Vec<Entry>) -> Result<(), QueueError> {
        self.check()?;
        self.queue.enqueue(entries).await
    }

    async fn lease(&self, most: usize, lease: Duration, wait: Duration) -> Result<Vec<Lease>, QueueError> {
        self.check()?;
        self.queue.lease(most, lease, wait).await
    }

    async fn lease_but(
        &self,
        but: &BTreeSet<QueueName>,
        most: usize,
        lease: Duration,
    ) -> Result<Vec<Lease>, QueueError> {
        self.check()?;
        self.queue.lease_but(but, most, lease).await
    }

    async fn extend(&self, leases: &[LeaseId], lease: Duration) -> Result<Vec<LeaseId>, QueueError> {
        self.check()?;
        self.queue.extend(leases, lease).await
    }

    async fn ack(&self, leases: &[LeaseId]) -> Result<(), QueueError> {
        self.check()?;
        let fails = self.damaged_acks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if fails.is_ok() {
            return Err(QueueError::Damaged("a page".into()));
        }
        self.queue.ack(leases).await
    }

    async fn release(&self, lease: LeaseId, delay: Duration, body: Option<Bytes>) -> Result<(), QueueError> {
        self.check()?;
        self.queue.release(lease, delay, body).await
    }

    fn largest_body(&self, content: Content) -> usize {
        self.queue.largest_body(content)
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        self.queue.depth(queue).await
    }

    async fn queues(&self) -> Result<Vec<QueueName>, QueueError> {
        self.queue.queues().await
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, QueueError> {
        self.queue.purge(queue).await
    }

    async fn close(&self) {
        self.queue.close().await;
    }
}

/// A service with its queue.
pub struct Rig<C> {
    pub world: Arc<World>,
    pub clock: Arc<C>,
    pub queue: Arc<Outage>,
    pub service: Service,
    pub metrics: Metrics,
    run: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
    config: Config,
}

impl<C: Clock> Rig<C> {
    pub async fn new(clock: C, config: Config) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Arc::new(clock);
        let queue = open(&folder, &clock).await;
        let (world, metrics) = (Arc::<World>::default(), Metrics::default());
        let service = service(&world, &clock, &queue, &config, &metrics);
        let run = Some(tokio::spawn(service.clone().run()));
        Self { world, clock, queue, service, metrics, run, folder, config }
    }

    /// The same queue and world, with another service beside this one.
    pub fn another(&self) -> Service {
        let service = service(&self.world, &self.clock, &self.queue, &self.config, &self.metrics);
        tokio::spawn(service.clone().run());
        service
    }

    /// As after a crash: what runs is abandoned, and the queue's file opened again.
    pub async fn restart(&mut self) {
        self.service.stop(Duration::ZERO).await;
        self.run.take().expect("it runs").await.expect("run ends");
        self.queue.close().await;
        self.service = {
            self.queue = open(&self.folder, &self.clock).await;
            service(&self.world, &self.clock, &self.queue, &self.config, &self.metrics)
        };
        self.run = Some(tokio::spawn(self.service.clone().run()));
    }

    pub async fn stop(&mut self, limit: Duration) {
        self.service.stop(limit).await;
        self.run.take().expect("it runs").await.expect("run ends");
    }

    pub fn event(&self, name: &str) -> AsyncEvent {
        AsyncEvent {
            trace_header: Some("Root=1-5759e988-bd862e3fe1be46a994272793".into()),
            ..AsyncEvent::new(
                function(name),
                RequestId(Uuid::new_v4()),
                Bytes::from_static(br#"{"n":1}"#),
                self.clock.wall(),
            )
        }
    }

    pub async fn accept(&self, name: &str) -> RequestId {
        let event = self.event(name);
        let id = event.request_id;
        self.service.accept(event).await.expect("accepted");
        id
    }

    /// Puts events into the queue as another process would.
    pub async fn put(&self, name: &str, count: usize) {
        for chunk in (0..count).collect::<Vec<_>>().chunks(1000) {
            let entry = |_: &usize| Entry {
                queue: queue_of(name),
                id: Uuid::new_v4(),
                body: self.event(name).encode(|_| event_queue::MAX_BODY),
                delay: Duration::ZERO,
            };
            self.queue.enqueue(chunk.iter().map(entry).collect()).await.expect("put");
        }
    }

    pub async fn stats(&self, name: &str) -> EventStats {
        self.service.stats(&function(name)).await.expect("stats")
    }

    /// Waits until the function's figures are as wanted.
    pub async fn stats_until(&self, name: &str, wanted: impl Fn(&EventStats) -> bool) -> EventStats {
        let limit = Instant::now() + LIMIT;
        loop {
            let stats = self.stats(name).await;
            if wanted(&stats) {
                return stats;
            }
            assert!(Instant::now() < limit, "stays at {stats:?}, calls {}", self.world.calls(name).len());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until nothing of the function is in the queue.
    pub async fn done(&self, name: &str) -> EventStats {
        self.stats_until(name, |stats| stats.depth == 0).await
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// Waits until it holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn open<C: Clock>(folder: &tempfile::TempDir, clock: &Arc<C>) -> Arc<Outage> {
    let clock: Arc<dyn Clock> = Arc::<C>::clone(clock);
    let queue = SqliteQueue::open(folder.path().join("events.db"), clock).await.expect("open");
    Arc::new(Outage { queue, away: AtomicBool::new(false), damaged_acks: AtomicUsize::new(0) })
}

fn service<C: Clock>(
    world: &Arc<World>,
    clock: &Arc<C>,
    queue: &Arc<Outage>,
    config: &Config,
    metrics: &Metrics,
) -> Service {
    Service::new(
        config.clone(),
        Arc::<Outage>::clone(queue),
        Arc::<World>::clone(world),
        Arc::<World>::clone(world),
        Arc::<World>::clone(world),
        Arc::<C>::clone(clock),
        metrics.clone(),
    )
}

pub fn function(name: &str) -> FunctionArn {
    FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: name.into() }
}

pub fn queue_of(name: &str) -> QueueName {
    QueueName(function(name).to_string().into())
}

pub fn queue_target(name: &str) -> Option<Target> {
    Some(Target::parse(&format!("arn:aws:sqs:us-east-1:000000000000:{name}")).expect("an ARN"))
}

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
