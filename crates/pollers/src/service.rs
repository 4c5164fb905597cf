//! The driver: leases events, runs their attempts, and settles what came of them.
//!
//! ```text
//!  fetch: lease ──► Scheduler ──► attempt tasks ──► acks (in groups), releases, deliveries
//!  watch: prolongs leases, lets time pass for the Scheduler
//! ```
//!
//! An event is acknowledged only after its function succeeded or was given up and all its targets have their message,
//! or the message is written back to the queue to be tried later. Whenever this process dies before, the event is
//! handed out again when its lease ends.

use std::sync::Arc;
use std::time::Duration;

use domain::{Clock, FunctionArn};
use event_queue::{Entry, EventQueue, Lease, LeaseId, QueueError, QueueName};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::event::{AsyncEvent, room};
use crate::metrics::Metrics;
use crate::ports::{Deliver, Invoker, SettingsSource};
use crate::scheduler::{Ask, Feedback, Limits, Parked, Scheduler};
use deliveries::Deliveries;
use leases::Leases;

mod attempt;
mod deliveries;
mod leases;

/// How often the clock is looked at while something is held: it need not be the host's.
const TICK: Duration = Duration::from_millis(20);
/// How long one lease call waits; new events end it at once.
const WAIT: Duration = Duration::from_secs(5);
/// A lease call that has its events already may bring them for so long after a stop.
const LAST_CALL: Duration = Duration::from_millis(20);
/// Pauses after the queue could not be reached.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Limits of one process's pollers.
#[derive(Clone, Debug)]
pub struct Config {
    /// For how long events are leased; leases are prolonged while an attempt runs. After a crash, events of an engine
    /// that several processes share come back this much later.
    pub lease: Duration,
    /// Attempts at once.
    pub in_flight: usize,
    /// Attempts of one function at once.
    pub per_function: usize,
    /// Bytes of event bodies that wait in memory.
    pub memory: usize,
    /// Real time that one delivery may take.
    pub delivery_timeout: Duration,
}

impl Default for Config {
    /// As many attempts as an account has concurrency.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            in_flight: 1000,
            per_function: 1000,
            memory: 32 << 20,
            delivery_timeout: Duration::from_secs(30),
        }
    }
}

/// How a function's events are doing. What is counted, is counted in this process since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EventStats {
    /// Events in the queue: all that follow.
    pub depth: u64,
    /// Ready for their first or next attempt, or about to be.
    pub waiting: u64,
    /// Attempts and deliveries that run, in any process.
    pub in_flight: u64,
    /// Waiting for the time of their next attempt or delivery.
    pub retrying: u64,
    /// Age of the oldest event in the queue.
    pub oldest_age: Option<Duration>,
    /// Counted: accepted.
    pub received: u64,
    /// Counted: the function succeeded.
    pub succeeded: u64,
    /// Counted: given up, whether dead-lettered or not.
    pub dropped: u64,
    /// Counted: messages about given up events that a dead letter queue or destination took.
    pub dead_lettered: u64,
    /// Counted: failed tries to deliver.
    pub delivery_errors: u64,
    /// Counted: messages that no try could deliver.
    pub undelivered: u64,
}

/// The pollers of one process. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    config: Config,
    queue: Arc<dyn EventQueue>,
    invoker: Arc<dyn Invoker>,
    settings: Arc<dyn SettingsSource>,
    deliver: Arc<dyn Deliver>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    scheduler: Mutex<Scheduler<Lease>>,
    leases: Leases,
    deliveries: Deliveries,
    tasks: TaskTracker,
    /// There may be something to fetch.
    room: Notify,
    /// There is something to watch.
    held: Notify,
    stopping: CancellationToken,
    stopped: CancellationToken,
}

impl Service {
    /// Nothing happens before [`Service::run`]. `clock` is the queue's.
    pub fn new(
        config: Config,
        queue: Arc<dyn EventQueue>,
        invoker: Arc<dyn Invoker>,
        settings: Arc<dyn SettingsSource>,
        deliver: Arc<dyn Deliver>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        let limits =
            Limits { in_flight: config.in_flight, per_function: config.per_function, bytes: config.memory.max(1) };
        Self(Arc::new(Inner {
            leases: Leases::new(Arc::clone(&queue), Arc::clone(&clock), config.lease),
            deliveries: Deliveries::default(),
            scheduler: Mutex::new(Scheduler::new(limits)),
            config,
            queue,
            invoker,
            settings,
            deliver,
            clock,
            metrics,
            tasks: TaskTracker::new(),
            room: Notify::new(),
            held: Notify::new(),
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
        }))
    }

    /// Keeps an event; durable when this returns. Works before [`Service::run`] and after [`Service::stop`], as long as
    /// the queue is open.
    ///
    /// # Errors
    /// As [`EventQueue::enqueue`]; the caller must not answer 202.
    pub async fn accept(&self, event: AsyncEvent) -> Result<(), QueueError> {
        let queue = event.queue();
        // With room for what is noted in it later: an event that grew too large could not be given back.
        let largest = |content| self.0.queue.largest_body(content);
        if let Err(limit) = room(&[&event.payload], largest) {
            return Err(QueueError::TooLarge { size: event.payload.len(), limit });
        }
        // Not the request id: a caller may choose it, and two events with one id are two events. Ordered by time, so that
        // an index of ids grows at its end: of random ones, each would change another page of it.
        let id = uuid::Uuid::now_v7();
        let entry = Entry { queue: queue.clone(), id, body: event.encode(largest), delay: Duration::ZERO };
        self.0.queue.enqueue(vec![entry]).await?;
        self.0.metrics.received(&event.function);
        if self.0.scheduler.lock().arrived(&queue) {
            self.0.room.notify_one();
        }
        Ok(())
    }

    /// Works on events until [`Service::stop`] is done. Call it once.
    pub async fn run(self) {
        let inner = &self.0;
        tokio::join!(inner.fetch(), inner.watch(), inner.leases.settle(&inner.stopped));
    }

    /// Takes nothing new, gives back what is prefetched, and waits for what runs; what still does after `limit` (real
    /// time) is abandoned, and its events are handed out again when their leases end.
    pub async fn stop(&self, limit: Duration) {
        let inner = &self.0;
        let until = tokio::time::Instant::now() + limit;
        inner.stopping.cancel();
        let prefetched = inner.scheduler.lock().stop();
        inner.park(prefetched.into_iter().map(|event| Parked { event, delay: Duration::ZERO }).collect());
        inner.tasks.close();
        if tokio::time::timeout_at(until, inner.tasks.wait()).await.is_err() {
            tracing::warn!(running = inner.tasks.len(), "stop: asynchronous invocations are abandoned");
        }
        let _ = tokio::time::timeout_at(until, inner.leases.flush()).await;
        inner.stopped.cancel();
        inner.tasks.wait().await;
    }

    /// How a function's events are doing.
    ///
    /// # Errors
    /// As [`EventQueue::depth`].
    pub async fn stats(&self, function: &FunctionArn) -> Result<EventStats, QueueError> {
        let inner = &self.0;
        let queue = QueueName(function.to_string().into());
        let depth = inner.queue.depth(&queue).await?;
        let view = inner.scheduler.lock().view(inner.clock.monotonic(), &queue);
        let counts = inner.metrics.counts(function);
        // The queue does not know that some events are only prefetched, and some delayed for want of room.
        let prefetched = depth.in_flight.min(view.prefetched as u64);
        let parked = depth.delayed.min(view.parked as u64);
        Ok(EventStats {
            depth: depth.ready + depth.in_flight + depth.delayed,
            waiting: depth.ready + prefetched + parked,
            in_flight: depth.in_flight - prefetched,
            retrying: depth.delayed - parked,
            oldest_age: depth.oldest,
            received: counts.received,
            succeeded: counts.succeeded,
            dropped: counts.dropped,
            dead_lettered: counts.dead_lettered,
            delivery_errors: counts.delivery_errors,
            undelivered: counts.undelivered,
        })
    }
}

impl Inner {
    /// Asks the queue for events, as many as the scheduler wants.
    async fn fetch(self: &Arc<Self>) {
        // A stop waits for the last call's events to be given back.
        let _call = self.tasks.token();
        let mut pause = RETRY_MIN;
        while !self.stopping.is_cancelled() {
            let Ask { most, but } = self.scheduler.lock().ask(self.clock.monotonic());
            if most == 0 {
                tokio::select! {
                    () = self.stopping.cancelled() => {}
                    () = self.room.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
                continue;
            }
            let lease = async {
                match but.is_empty() {
                    true => self.queue.lease(most, self.config.lease, WAIT).await,
                    false => self.queue.lease_but(&but, most, self.config.lease).await,
                }
            };
            // Not dropped while it may hold events, but for a stop.
            let leases = tokio::select! {
                leases = lease => leases,
                () = async {
                    self.stopping.cancelled().await;
                    tokio::time::sleep(LAST_CALL).await;
                } => return,
            };
            match leases {
                Ok(leases) => {
                    pause = RETRY_MIN;
                    self.take(leases);
                }
                Err(QueueError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "take events from the queue; trying again");
                    tokio::select! {
                        () = self.stopping.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn take(self: &Arc<Self>, leases: Vec<Lease>) {
        self.leases.add(&leases);
        let events = leases.into_iter().map(|lease| {
            let bytes = lease.body.len();
            (lease.queue.clone(), lease, bytes)
        });
        let parked = self.scheduler.lock().leased(self.clock.monotonic(), events);
        self.dispatch();
        self.park(parked);
        self.held.notify_one();
    }

    /// Prolongs leases and lets time pass while something is held.
    async fn watch(self: &Arc<Self>) {
        loop {
            let idle = self.scheduler.lock().idle() && self.leases.idle();
            tokio::select! {
                () = self.stopped.cancelled() => return,
                () = self.held.notified(), if idle => {}
                () = tokio::time::sleep(TICK), if !idle => {}
            }
            for (lease, queue) in self.leases.prolong().await {
                tracing::warn!(%queue, "a lease ended before its attempt; the event will run again");
                self.scheduler.lock().discard(&queue, |held| held.id == lease);
            }
            let parked = self.scheduler.lock().sweep(self.clock.monotonic());
            self.park(parked);
            self.dispatch();
        }
    }

    /// Starts all that may start.
    fn dispatch(self: &Arc<Self>) {
        loop {
            let started = self.scheduler.lock().start(self.clock.monotonic());
            let Some((queue, lease)) = started else { return };
            let inner = Arc::clone(self);
            self.tasks.spawn(async move {
                let _held = Held { inner: Arc::clone(&inner), lease: lease.id };
                let slot = Slot { inner: Arc::clone(&inner), queue, feedback: Feedback::Untried };
                tokio::select! {
                    biased;
                    () = inner.stopped.cancelled() => {}
                    () = inner.handle(lease, slot) => {}
                }
            });
        }
    }

    /// Gives events back without holding up the caller.
    fn park(self: &Arc<Self>, parked: Vec<Parked<Lease>>) {
        if parked.is_empty() {
            return;
        }
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let release = |parked: Parked<Lease>| inner.leases.release(parked.event.id, parked.delay, None);
            tokio::select! {
                () = inner.stopped.cancelled() => {}
                _ = futures::future::join_all(parked.into_iter().map(release)) => {}
            }
        });
    }
}

/// The lease of an event in hand: prolonged no more when it is dropped unsettled, also by a panic.
struct Held {
    inner: Arc<Inner>,
    lease: LeaseId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.inner.leases.forget(self.lease);
    }
}

/// A running attempt in the scheduler; over when it is dropped, also by a panic.
struct Slot {
    inner: Arc<Inner>,
    queue: QueueName,
    feedback: Feedback,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inner.scheduler.lock().finished(self.inner.clock.monotonic(), &self.queue, self.feedback);
        self.inner.dispatch();
        self.inner.room.notify_one();
    }
}
