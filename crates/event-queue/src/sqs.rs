//! The engine on SQS, or on anything that speaks its protocol, for several processes at once.
//!
//! - Queues: SQS bills and polls by the queue, so names share a fixed number of SQS queues, the shards. A name uses two
//!   of them, which two is shuffled by its hash, and an event goes to the shorter one: a function's backlog fills two
//!   shards, and delays only functions that have the same two. A lease call asks the shards in turns.
//! - A lease is a visibility time-out, in whole seconds. The receipt handle stays in the process: only the process that
//!   leased an event can extend, acknowledge or release it, and it does not once the lease is over by its own clock.
//! - Delays: SQS knows up to 15 minutes, in whole seconds, rounded up. The message says when its event is due; if it is
//!   handed out before, it is replaced by a copy with the rest of the delay.
//! - A new body or a long delay replaces the message: first the new one is sent, then the old one deleted.
//! - Waiting calls wake when this process puts something in; for what others put in they look once a second.
//!
//! Where SQS cannot keep the contract of [`EventQueue`]:
//!
//! - An event may be handed out twice though nobody was late, as SQS delivers at least once; and the same id put in
//!   twice is two events.
//! - [`EventQueue::enqueue`] of several events is not one transaction: after an error some of them may be there.
//! - A body has to fit a message ([`Settings::max_message`]) together with a head of about 200 bytes; a body that is
//!   not text grows by a third.
//! - [`EventQueue::depth`] counts all that its two shards hold, others' events too, about as SQS does; the age of the
//!   oldest is not known.
//! - [`EventQueue::queues`] are those that this process has seen and whose shards are not empty.
//! - [`EventQueue::purge`] drops what this process has leased (and counts that), and, as it comes up, what was put in
//!   in an earlier millisecond. Other processes do not know of it.
//! - An event ends after SQS's retention, which is 14 days for queues that this engine makes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use bytes::Bytes;
use domain::Clock;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use crate::api::{Content, Depth, Entry, EventQueue, Lease, LeaseId, QueueError, QueueName};
use crate::time::{after, millis, system_time};

mod calls;
mod envelope;
mod shards;

use calls::{Calls, Lengths, Received};
use envelope::Head;
use shards::{LOOK, Shards};

/// SQS's longest delay.
const LONGEST_DELAY: i64 = 900;
/// Room for the head of a message, whose longest part is the queue's name, in bytes.
const ENVELOPE: usize = 1024;

/// An event does not wait longer for the shards' lengths.
const MEASURE: Duration = Duration::from_millis(500);

/// Which SQS queues are used, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The shards are named `{prefix}-0`, `{prefix}-1` and so on; they are made if they are not there. Letters, digits,
    /// `-` and `_`; 77 at most.
    pub prefix: String,
    /// How many there are, 1 to 100; 8 if in doubt. The same in all processes. More may be added; before some are
    /// taken away, they have to be empty.
    pub shards: u8,
    /// The largest message that the endpoint takes, in bytes: 1,048,576 with AWS, 262,144 with older endpoints.
    pub max_message: usize,
    /// How long one call waits for its answer. It is made up to three times, within four times this.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: "emberbox-events".to_owned(),
            shards: 8,
            max_message: 1_048_576,
            timeout: Duration::from_secs(5),
        }
    }
}

/// Events in SQS.
pub struct SqsQueue {
    calls: Calls,
    max_message: usize,
    clock: Arc<dyn Clock>,
    woken: Notify,
    closed: AtomicBool,
    state: Mutex<State>,
}

/// Locked for moments, never over a call.
struct State {
    shards: Shards,
    leases: HashMap<LeaseId, Held>,
    /// Names that were put in or leased.
    seen: BTreeSet<QueueName>,
    /// What was put in before (milliseconds since 1970) is to be dropped.
    purged: HashMap<QueueName, i64>,
}

/// A leased event.
#[derive(Clone)]
struct Held {
    shard: usize,
    receipt: String,
    head: Head,
    body: Bytes,
    deliveries: u32,
    /// Milliseconds since 1970.
    until: i64,
}

impl std::fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqsQueue").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl SqsQueue {
    /// Finds the shards, or makes them. `config` has the endpoint, region and credentials; time-outs and retries are
    /// set here.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] if the endpoint does not answer or refuses us.
    pub async fn connect(
        config: &aws_sdk_sqs::Config,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, QueueError> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(settings.timeout)
            .operation_attempt_timeout(settings.timeout)
            .operation_timeout(settings.timeout * 4)
            .build();
        let retries = RetryConfig::standard().with_initial_backoff(Duration::from_millis(100));
        let config = config.to_builder().timeout_config(timeouts).retry_config(retries).build();
        let calls = Calls::connect(Client::from_conf(config), &settings).await?;
        let state = State {
            shards: Shards::new(calls.shards()),
            leases: HashMap::new(),
            seen: BTreeSet::new(),
            purged: HashMap::new(),
        };
        let (woken, closed) = (Notify::new(), AtomicBool::new(false));
        Ok(Self { calls, max_message: settings.max_message, clock, woken, closed, state: Mutex::new(state) })
    }

    fn now(&self) -> i64 {
        millis(self.clock.wall())
    }

    fn check_open(&self) -> Result<(), QueueError> {
        if self.closed.load(Ordering::SeqCst) { Err(QueueError::Closed) } else { Ok(()) }
    }

    fn message(&self, head: &Head, body: &[u8]) -> Result<String, QueueError> {
        let message = envelope::write(head, body);
        let limit = self.max_message;
        if message.len() > limit { Err(QueueError::TooLarge { size: message.len(), limit }) } else { Ok(message) }
    }

    /// Asks how long the shards are, once a second at most. Without an answer the old lengths are as good as any.
    async fn measure(&self) {
        if self.state.lock().shards.measure(Instant::now()) {
            let all = join_all((0..self.calls.shards()).map(|shard| self.calls.lengths(shard)));
            let Ok(all) = timeout(MEASURE, all).await else { return };
            let mut state = self.state.lock();
            for (shard, lengths) in all.into_iter().enumerate() {
                if let Ok(lengths) = lengths {
                    state.shards.measured(shard, lengths.ready);
                }
            }
        }
    }

    /// The leases that are still on.
    fn held(&self, leases: &[LeaseId]) -> Vec<(LeaseId, Held)> {
        let (now, state) = (self.now(), self.state.lock());
        let held = leases.iter().filter_map(|id| Some((*id, state.leases.get(id)?.clone())));
        held.filter(|(_, held)| held.until > now).collect()
    }

    /// Sends a copy that is due at `due`, then deletes the message.
    async fn replace(
        &self,
        shard: usize,
        receipt: String,
        head: &Head,
        body: &[u8],
        due: i64,
    ) -> Result<(), QueueError> {
        let message = self.message(&Head { due, ..head.clone() }, body)?;
        self.calls.send(shard, vec![(message, delay_seconds(self.now(), due))]).await?;
        if let Err(error) = self.calls.delete(shard, vec![receipt]).await {
            // The copy is there: to say that it failed would only make a third.
            tracing::warn!(%error, event = %head.event, "an event of the queue may be handed out twice");
        }
        Ok(())
    }

    /// Asks one shard for up to `most` messages; returns those to hand out.
    async fn receive(&self, shard: usize, most: usize, lease: Duration) -> Result<Vec<Lease>, QueueError> {
        let until = after(self.now(), lease.max(Duration::from_millis(1)));
        let received = self.calls.receive(shard, most, seconds(lease)).await;
        if !received.as_ref().is_ok_and(|received| !received.is_empty()) {
            self.state.lock().shards.rest(shard, Instant::now());
        }
        let mut leases = Vec::new();
        for Received { message, receipt, count } in received? {
            let (head, body) = match envelope::read(&message) {
                Ok(read) => read,
                Err(reason) => {
                    // Not ours to drop. It comes back when the visibility time-out is over.
                    let queue = self.calls.url(shard);
                    tracing::error!(queue, reason, "a message in the event queue is none of Emberbox's; remove it");
                    continue;
                }
            };
            let purged = self.state.lock().purged.get(&head.queue).is_some_and(|before| head.enqueued_at < *before);
            if purged {
                self.calls.delete(shard, vec![receipt]).await?;
            } else if head.due > self.now() {
                self.replace(shard, receipt, &head, &body, head.due).await?;
            } else {
                let deliveries = head.deliveries.saturating_add(count);
                let held = Held { shard, receipt, head, body, deliveries, until };
                leases.push(self.hold(held));
            }
        }
        Ok(leases)
    }

    fn hold(&self, held: Held) -> Lease {
        let id = LeaseId(Uuid::new_v4());
        let Held { head, body, deliveries, .. } = &held;
        let lease = Lease {
            id,
            queue: head.queue.clone(),
            event: head.event,
            body: body.clone(),
            enqueued_at: system_time(head.enqueued_at),
            deliveries: *deliveries,
        };
        let mut state = self.state.lock();
        state.seen.insert(lease.queue.clone());
        state.leases.insert(id, held);
        lease
    }

    /// Forgets leases that are over: nobody can use them.
    fn forget(&self) {
        let now = self.now();
        self.state.lock().leases.retain(|_, held| held.until > now);
    }
}

/// Rounded up, and at most the 12 hours that SQS hides a message.
fn seconds(span: Duration) -> i32 {
    span.as_millis().div_ceil(1000).clamp(1, 43_200) as i32
}

fn delay_seconds(now: i64, due: i64) -> i32 {
    let millis = due.saturating_sub(now).max(0).cast_unsigned();
    millis.div_ceil(1000).min(LONGEST_DELAY.cast_unsigned()) as i32
}

#[async_trait]
impl EventQueue for SqsQueue {
    async fn enqueue(&self, entries: Vec<Entry>) -> Result<(), QueueError> {
        self.check_open()?;
        crate::check_sizes(&entries)?;
        let now = self.now();
        let mut messages = Vec::with_capacity(entries.len());
        for Entry { queue, id, body, delay } in entries {
            let head = Head::new(queue, id, now, after(now, delay));
            messages.push((self.message(&head, &body)?, head));
        }
        self.measure().await;
        let mut by_shard = HashMap::<usize, Vec<_>>::new();
        {
            let mut state = self.state.lock();
            for (message, head) in messages {
                let shard = state.shards.choose(&head.queue.0);
                by_shard.entry(shard).or_default().push((message, delay_seconds(now, head.due)));
                state.seen.insert(head.queue);
            }
        }
        for (shard, messages) in by_shard {
            self.calls.send(shard, messages).await?;
            self.state.lock().shards.filled(shard);
        }
        self.woken.notify_waiters();
        Ok(())
    }

    async fn lease(&self, most: usize, lease: Duration, wait: Duration) -> Result<Vec<Lease>, QueueError> {
        let until = Instant::now() + wait;
        self.forget();
        loop {
            self.check_open()?;
            let mut woken = std::pin::pin!(self.woken.notified());
            // From here on no notification is missed.
            woken.as_mut().enable();
            let (mut leases, mut failed) = (Vec::new(), None);
            loop {
                let turn = self.state.lock().shards.turn(most - leases.len(), Instant::now());
                if turn.is_empty() {
                    break;
                }
                for answer in join_all(turn.into_iter().map(|(shard, most)| self.receive(shard, most, lease))).await {
                    match answer {
                        Ok(more) => leases.extend(more),
                        Err(error) => failed = Some(error),
                    }
                }
            }
            match failed {
                // What the other shards have given is not to wait for its lease to end.
                Some(error) if leases.is_empty() => return Err(error),
                _ if !leases.is_empty() || most == 0 || Instant::now() >= until => return Ok(leases),
                _ => {}
            }
            let _ = timeout_at(until.min(Instant::now() + LOOK), woken).await;
        }
    }

    /// SQS cannot be asked for some queues' events only.
    async fn lease_but(&self, _: &BTreeSet<QueueName>, most: usize, lease: Duration) -> Result<Vec<Lease>, QueueError> {
        self.lease(most, lease, Duration::ZERO).await
    }

    async fn extend(&self, leases: &[LeaseId], lease: Duration) -> Result<Vec<LeaseId>, QueueError> {
        self.check_open()?;
        let mut extended = Vec::new();
        for (id, held) in self.held(leases) {
            let until = after(self.now(), lease);
            if self.calls.hide(held.shard, &held.receipt, seconds(lease)).await? {
                if let Some(held) = self.state.lock().leases.get_mut(&id) {
                    held.until = until;
                }
                extended.push(id);
            }
        }
        Ok(extended)
    }

    async fn ack(&self, leases: &[LeaseId]) -> Result<(), QueueError> {
        self.check_open()?;
        let mut by_shard = HashMap::<usize, Vec<_>>::new();
        for (id, held) in self.held(leases) {
            by_shard.entry(held.shard).or_default().push((id, held.receipt));
        }
        for (shard, leases) in by_shard {
            let (ids, receipts): (Vec<_>, Vec<_>) = leases.into_iter().unzip();
            self.calls.delete(shard, receipts).await?;
            self.state.lock().leases.retain(|id, _| !ids.contains(id));
        }
        Ok(())
    }

    async fn release(&self, lease: LeaseId, delay: Duration, body: Option<Bytes>) -> Result<(), QueueError> {
        self.check_open()?;
        if let Some(body) = &body {
            crate::check_size(body.len())?;
        }
        let Some((id, held)) = self.held(&[lease]).pop() else { return Ok(()) };
        let due = after(self.now(), delay);
        if body.is_none() && delay.as_secs() < LONGEST_DELAY.cast_unsigned() {
            // Without a delay it is there at once; `seconds` would hide it for one.
            let hidden = if delay.is_zero() { 0 } else { seconds(delay) };
            self.calls.hide(held.shard, &held.receipt, hidden).await?;
        } else {
            let head = Head { deliveries: held.deliveries, ..held.head };
            self.replace(held.shard, held.receipt, &head, &body.unwrap_or(held.body), due).await?;
        }
        let mut state = self.state.lock();
        state.leases.remove(&id);
        state.shards.filled(held.shard);
        drop(state);
        self.woken.notify_waiters();
        Ok(())
    }

    fn largest_body(&self, content: Content) -> usize {
        let room = self.max_message.saturating_sub(ENVELOPE);
        match content {
            Content::Text => room,
            Content::Binary => room / 4 * 3,
        }
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        self.check_open()?;
        let (a, b) = shards::pair(&queue.0, self.calls.shards());
        let mut depth = Depth::default();
        for shard in BTreeSet::from([a, b]) {
            let Lengths { ready, in_flight, delayed } = self.calls.lengths(shard).await?;
            depth.ready += ready;
            depth.in_flight += in_flight;
            depth.delayed += delayed;
        }
        Ok(depth)
    }

    async fn queues(&self) -> Result<Vec<QueueName>, QueueError> {
        self.check_open()?;
        let all = join_all((0..self.calls.shards()).map(|shard| self.calls.lengths(shard))).await;
        let all = all.into_iter().collect::<Result<Vec<_>, _>>()?;
        let filled = |shard: usize| all[shard] != Lengths::default();
        let mut state = self.state.lock();
        state.seen.retain(|name| {
            let (a, b) = shards::pair(&name.0, all.len());
            filled(a) || filled(b)
        });
        Ok(state.seen.iter().cloned().collect())
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, QueueError> {
        self.check_open()?;
        let held: Vec<_> = {
            let mut state = self.state.lock();
            state.purged.insert(queue.clone(), self.now());
            state.leases.iter().filter(|(_, held)| held.head.queue == *queue).map(|(id, _)| *id).collect()
        };
        let held: Vec<_> = self.held(&held).into_iter().map(|(id, _)| id).collect();
        self.ack(&held).await?;
        Ok(held.len() as u64)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Those that wait for events look again, and see it closed.
        self.woken.notify_waiters();
    }
}
