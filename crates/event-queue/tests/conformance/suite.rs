//! What every engine must do, run over each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use domain::Clock;
use event_queue::{Content, Depth, Entry, EventQueue, LeaseId, QueueError, QueueName};
use proptest::prelude::*;
use uuid::Uuid;

pub const LEASE: Duration = Duration::from_secs(30);

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock {
    millis: AtomicU64,
    /// Where a server that is to have the same time reads it.
    file: Option<PathBuf>,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self { millis: AtomicU64::new(1_700_000_000_000), file: None }
    }
}

#[allow(dead_code, reason = "only some engines have a time of their own to agree with")]
impl ManualClock {
    pub fn at(time: SystemTime) -> Self {
        let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        Self { millis: AtomicU64::new(millis), file: None }
    }

    /// Tells the time to whoever reads `file`.
    pub fn mirrored(self, file: PathBuf) -> Self {
        let clock = Self { file: Some(file), ..self };
        clock.advance(Duration::ZERO);
        clock
    }

    pub fn advance(&self, by: Duration) {
        let by = by.as_millis() as u64;
        let now = self.millis.fetch_add(by, Ordering::SeqCst) + by;
        if let Some(file) = &self.file {
            let new = file.with_extension("new");
            std::fs::write(&new, now.to_string()).unwrap();
            std::fs::rename(new, file).unwrap();
        }
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.millis.load(Ordering::SeqCst))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.monotonic()
    }
}

pub type Queue = Arc<dyn EventQueue>;

pub fn queue(name: &str) -> QueueName {
    QueueName(name.into())
}

pub fn entry(name: &str, number: u128) -> Entry {
    let body = Bytes::from(format!("body of {number}"));
    Entry { queue: queue(name), id: Uuid::from_u128(number), body, delay: Duration::ZERO }
}

pub async fn lease_now(engine: &Queue, most: usize) -> Vec<event_queue::Lease> {
    engine.lease(most, LEASE, Duration::ZERO).await.unwrap()
}

/// What an engine can keep of the contract; each says so in its documentation where it cannot.
#[derive(Clone, Copy)]
pub struct Traits {
    /// Delays and leases are so exact.
    pub grain: Duration,
    /// Counts, purges and the list of queues are exact; queues take turns one by one.
    pub exact: bool,
}

#[allow(dead_code, reason = "not what every engine is")]
pub const EXACT: Traits = Traits { grain: Duration::from_millis(1), exact: true };

impl Traits {
    /// Lets the time pass in which the engine may be late.
    fn settle(&self, clock: &ManualClock) {
        if !self.exact {
            clock.advance(self.grain);
        }
    }

    async fn lease_one(&self, engine: &Queue) -> event_queue::Lease {
        let wait = if self.exact { Duration::ZERO } else { Duration::from_secs(5) };
        engine.lease(1, LEASE, wait).await.unwrap().remove(0)
    }

    async fn check_depth(&self, engine: &Queue, name: &str, want: Depth) {
        let depth = engine.depth(&queue(name)).await.unwrap();
        if self.exact {
            assert_eq!(depth, want);
        } else {
            assert!(depth.ready >= want.ready && depth.in_flight >= want.in_flight && depth.delayed >= want.delayed);
        }
    }
}

/// All of it, on queues of its own each.
pub async fn all(engine: Queue, clock: Arc<ManualClock>, traits: Traits) {
    life_of_an_event(&engine, &clock, traits).await;
    late_leases_change_nothing(&engine, &clock, traits).await;
    delays_and_releases(&engine, &clock, traits).await;
    refuses_what_is_too_large(&engine, traits).await;
    no_double_lease_with_many_pollers(&engine, traits).await;
    if traits.exact {
        purge_drops_all(&engine, &clock).await;
        fair_between_queues(&engine).await;
        passes_over_some(&engine).await;
    }
    wakes_fast(&engine, &clock).await;
}

async fn empty(engine: &Queue) {
    assert_eq!(engine.queues().await.unwrap(), [], "the test before has left events");
}

async fn life_of_an_event(engine: &Queue, clock: &ManualClock, traits: Traits) {
    empty(engine).await;
    engine.enqueue(Vec::new()).await.unwrap();
    engine.enqueue(vec![entry("a", 1), entry("a", 2), entry("b", 1)]).await.unwrap();
    assert_eq!(engine.queues().await.unwrap(), [queue("a"), queue("b")]);
    clock.advance(Duration::from_secs(5));
    let depth = Depth { ready: 2, in_flight: 0, delayed: 0, oldest: Some(Duration::from_secs(5)) };
    traits.check_depth(engine, "a", depth).await;
    let leases = lease_now(engine, 10).await;
    let got: BTreeSet<_> = leases.iter().map(|l| (l.queue.clone(), l.event.as_u128(), l.body.clone())).collect();
    let body = |n: u8| Bytes::from(format!("body of {n}"));
    let want = [(queue("a"), 1, body(1)), (queue("a"), 2, body(2)), (queue("b"), 1, body(1))];
    assert_eq!(got, BTreeSet::from(want));
    assert!(leases.iter().all(|l| l.deliveries == 1 && l.enqueued_at == clock.wall() - Duration::from_secs(5)));
    assert!(engine.depth(&queue("a")).await.unwrap().in_flight >= 2);
    assert_eq!(lease_now(engine, 10).await, []);
    engine.ack(&leases.iter().map(|l| l.id).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(engine.depth(&queue("a")).await.unwrap(), Depth::default());
    empty(engine).await;
}

async fn late_leases_change_nothing(engine: &Queue, clock: &ManualClock, traits: Traits) {
    empty(engine).await;
    engine.enqueue(vec![entry("late", 1)]).await.unwrap();
    let first = traits.lease_one(engine).await;
    clock.advance(LEASE / 2);
    assert_eq!(engine.extend(&[first.id], LEASE).await.unwrap(), [first.id]);
    clock.advance(LEASE / 2);
    assert_eq!(lease_now(engine, 1).await, [], "extended");
    clock.advance(LEASE / 2);
    assert_eq!(engine.extend(&[first.id], LEASE).await.unwrap(), [], "over, though nobody else has it");
    traits.settle(clock);
    let second = traits.lease_one(engine).await;
    assert_ne!(second.id, first.id);
    assert_eq!(second.deliveries, 2);
    engine.ack(&[first.id, LeaseId(Uuid::from_u128(7))]).await.unwrap();
    engine.release(first.id, Duration::ZERO, Some(Bytes::from("late"))).await.unwrap();
    assert_eq!(engine.extend(&[first.id, second.id], LEASE).await.unwrap(), [second.id]);
    assert_eq!(engine.depth(&queue("late")).await.unwrap().in_flight, 1);
    engine.ack(&[second.id]).await.unwrap();
    empty(engine).await;
}

async fn delays_and_releases(engine: &Queue, clock: &ManualClock, traits: Traits) {
    empty(engine).await;
    let hour = Duration::from_secs(3600);
    engine.enqueue(vec![Entry { delay: hour, ..entry("delay", 1) }]).await.unwrap();
    assert_eq!(lease_now(engine, 1).await, []);
    assert_eq!(engine.depth(&queue("delay")).await.unwrap().delayed, 1);
    clock.advance(hour - traits.grain);
    assert_eq!(lease_now(engine, 1).await, []);
    clock.advance(traits.grain);
    traits.settle(clock);
    let lease = traits.lease_one(engine).await;
    engine.release(lease.id, hour, Some(Bytes::from("second"))).await.unwrap();
    engine.ack(&[lease.id]).await.unwrap();
    traits.check_depth(engine, "delay", Depth { ready: 0, in_flight: 0, delayed: 1, oldest: Some(hour) }).await;
    assert_eq!(lease_now(engine, 1).await, []);
    clock.advance(hour);
    traits.settle(clock);
    let again = traits.lease_one(engine).await;
    assert_eq!((&*again.body, again.deliveries, again.enqueued_at), (&b"second"[..], 2, lease.enqueued_at));
    engine.release(again.id, Duration::ZERO, None).await.unwrap();
    traits.settle(clock);
    let last = traits.lease_one(engine).await;
    assert_eq!((&*last.body, last.deliveries), (&b"second"[..], 3));
    engine.ack(&[last.id]).await.unwrap();
    empty(engine).await;
}

async fn refuses_what_is_too_large(engine: &Queue, traits: Traits) {
    let large = Entry { body: vec![1; event_queue::MAX_BODY + 1].into(), ..entry("large", 1) };
    let refused = engine.enqueue(vec![entry("large", 2), large.clone()]).await.unwrap_err();
    assert!(matches!(refused, QueueError::TooLarge { .. }) && !refused.retryable());
    empty(engine).await;
    for (byte, content) in [(1, Content::Binary), (b'x', Content::Text)] {
        let largest = Entry { body: vec![byte; engine.largest_body(content)].into(), ..large.clone() };
        engine.enqueue(vec![largest.clone()]).await.unwrap();
        let lease = traits.lease_one(engine).await;
        assert_eq!(lease.body, largest.body);
        engine.ack(&[lease.id]).await.unwrap();
    }
}

async fn no_double_lease_with_many_pollers(engine: &Queue, traits: Traits) {
    empty(engine).await;
    let puts = (0..8).map(|caller| {
        let engine = Arc::clone(engine);
        tokio::spawn(async move {
            for number in 0..50 {
                engine.enqueue(vec![entry(&format!("many{}", number % 3), caller * 1000 + number)]).await.unwrap();
            }
        })
    });
    let takes = (0..8).map(|_| {
        let engine = Arc::clone(engine);
        tokio::spawn(async move {
            let mut mine = Vec::new();
            loop {
                let leases = engine.lease(7, LEASE, Duration::from_millis(500)).await.unwrap();
                if leases.is_empty() {
                    return mine;
                }
                mine.extend(leases.iter().map(|lease| lease.event));
                engine.ack(&leases.iter().map(|lease| lease.id).collect::<Vec<_>>()).await.unwrap();
            }
        })
    });
    let (puts, takes): (Vec<_>, Vec<_>) = (puts.collect(), takes.collect());
    for put in puts {
        put.await.unwrap();
    }
    let mut all = Vec::new();
    for take in takes {
        all.extend(take.await.unwrap());
    }
    if traits.exact {
        assert_eq!(all.len(), 400, "each once");
    }
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 400);
    empty(engine).await;
}

async fn purge_drops_all(engine: &Queue, clock: &ManualClock) {
    let mut entries: Vec<_> = (0..2500).map(|n| entry("purge", n)).collect();
    entries[0].delay = Duration::from_secs(60);
    engine.enqueue(entries).await.unwrap();
    engine.enqueue(vec![entry("kept", 1)]).await.unwrap();
    let leases = lease_now(engine, 10).await;
    assert_eq!(engine.purge(&queue("purge")).await.unwrap(), 2500);
    assert_eq!(engine.purge(&queue("unknown")).await.unwrap(), 0);
    engine.ack(&leases.iter().map(|l| l.id).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(engine.depth(&queue("purge")).await.unwrap(), Depth::default());
    clock.advance(LEASE);
    for lease in lease_now(engine, 10).await {
        assert_eq!(lease.queue, queue("kept"));
        engine.ack(&[lease.id]).await.unwrap();
    }
    empty(engine).await;
}

async fn fair_between_queues(engine: &Queue) {
    engine.enqueue((0..3000).map(|n| entry("crowd", n)).collect()).await.unwrap();
    engine.enqueue((0..3000).map(|n| entry("crowd2", n)).collect()).await.unwrap();
    lease_now(engine, 5).await;
    engine.enqueue(vec![entry("alone", 1)]).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.extend(lease_now(engine, 1).await.into_iter().map(|lease| lease.queue));
    }
    assert!(seen.contains(&queue("alone")), "{seen:?}");
    for name in ["crowd", "crowd2", "alone"] {
        engine.purge(&queue(name)).await.unwrap();
    }
    empty(engine).await;
}

async fn passes_over_some(engine: &Queue) {
    engine
        .enqueue((0..20).map(|n| entry("busy", n)).chain([entry("free", 20), entry("free2", 21)]).collect())
        .await
        .unwrap();
    let busy = BTreeSet::from([queue("busy"), queue("unknown")]);
    let leases = engine.lease_but(&busy, 10, LEASE).await.unwrap();
    let names: BTreeSet<_> = leases.iter().map(|lease| lease.queue.clone()).collect();
    assert_eq!((leases.len(), names), (2, BTreeSet::from([queue("free"), queue("free2")])));
    assert_eq!(engine.lease_but(&busy, 10, LEASE).await.unwrap(), []);
    assert_eq!(lease_now(engine, 100).await.len(), 20, "they stayed ready");
    for name in ["busy", "free", "free2"] {
        engine.purge(&queue(name)).await.unwrap();
    }
    empty(engine).await;
}

async fn wakes_fast(engine: &Queue, clock: &ManualClock) {
    let waiting = |engine: &Queue| {
        let engine = Arc::clone(engine);
        tokio::spawn(async move {
            let lease = engine.lease(1, LEASE, Duration::from_secs(20)).await.unwrap().remove(0);
            (lease, Instant::now())
        })
    };
    let mut times = Vec::new();
    for number in 0..9 {
        let waiter = waiting(engine);
        // So that it waits already; if it does not yet, the test is only easier.
        tokio::time::sleep(Duration::from_millis(20)).await;
        engine.enqueue(vec![entry("wake", number)]).await.unwrap();
        let enqueued = Instant::now();
        let (lease, woken) = waiter.await.unwrap();
        times.push(woken.saturating_duration_since(enqueued));
        engine.ack(&[lease.id]).await.unwrap();
    }
    times.sort();
    println!("wake-up after enqueue: median {:?}, worst {:?}", times[4], times[8]);
    assert!(times[4] < Duration::from_millis(50), "{times:?}");
    // And when a delay passes.
    engine.enqueue(vec![Entry { delay: Duration::from_secs(3600), ..entry("wake", 100) }]).await.unwrap();
    let waiter = waiting(engine);
    tokio::time::sleep(Duration::from_millis(20)).await;
    clock.advance(Duration::from_secs(3600));
    let (lease, _) = waiter.await.unwrap();
    engine.ack(&[lease.id]).await.unwrap();
}

/// A step of the property test.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "for engines that are exact")]
pub enum Step {
    Enqueue { queue: u8, delay: u8 },
    Lease { most: u8 },
    Extend(usize),
    Ack(usize),
    Release { lease: usize, delay: u8, body: bool },
    Purge(u8),
    Advance(u8),
}

#[allow(dead_code, reason = "for engines that are exact")]
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3u8, 0..3u8).prop_map(|(queue, delay)| Step::Enqueue { queue, delay }),
        4 => (1..4u8).prop_map(|most| Step::Lease { most }),
        1 => any::<usize>().prop_map(Step::Extend),
        2 => any::<usize>().prop_map(Step::Ack),
        2 => (any::<usize>(), 0..3u8, any::<bool>())
            .prop_map(|(lease, delay, body)| Step::Release { lease, delay, body }),
        1 => (0..3u8).prop_map(Step::Purge),
        3 => (1..20u8).prop_map(Step::Advance),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Debug)]
#[allow(dead_code, reason = "for engines that are exact")]
struct Modelled {
    body: Bytes,
    enqueued_at: SystemTime,
    due: SystemTime,
    deliveries: u32,
    lease: Option<LeaseId>,
}

/// Does the steps to the engine and to a model, and compares all that can be seen.
#[allow(dead_code, reason = "for engines that are exact")]
pub async fn agrees_with_the_model(engine: Queue, clock: Arc<ManualClock>, steps: Vec<Step>) {
    let lease_time = Duration::from_secs(10);
    let mut model = BTreeMap::<(QueueName, Uuid), Modelled>::new();
    let mut given = Vec::<LeaseId>::new();
    let second = |n: u8| Duration::from_secs(n.into());
    let held = |model: &BTreeMap<_, Modelled>, id: LeaseId, now| {
        model
            .iter()
            .find(|(_, m)| m.lease == Some(id) && m.due > now)
            .map(|(key, _): (&(QueueName, Uuid), _)| key.clone())
    };
    for (number, step) in steps.into_iter().enumerate() {
        let now = clock.wall();
        let pick = |at: usize| (!given.is_empty()).then(|| given[at % given.len()]);
        match step {
            Step::Enqueue { queue: q, delay } => {
                let put = Entry { delay: second(delay), ..entry(&format!("q{q}"), number as u128) };
                let (body, due) = (put.body.clone(), now + put.delay);
                let modelled = Modelled { body, enqueued_at: now, due, deliveries: 0, lease: None };
                model.insert((put.queue.clone(), put.id), modelled);
                engine.enqueue(vec![put]).await.unwrap();
            }
            Step::Lease { most } => {
                let ready = model.values().filter(|m| m.due <= now).count();
                let leases = engine.lease(most.into(), lease_time, Duration::ZERO).await.unwrap();
                assert_eq!(leases.len(), ready.min(most.into()));
                for lease in leases {
                    let modelled = model.get_mut(&(lease.queue, lease.event)).expect("an event that is there");
                    assert!(modelled.due <= now, "ready");
                    modelled.deliveries += 1;
                    let seen = (lease.body, lease.enqueued_at, lease.deliveries);
                    assert_eq!(seen, (modelled.body.clone(), modelled.enqueued_at, modelled.deliveries));
                    assert!(!given.contains(&lease.id), "a new id");
                    (modelled.due, modelled.lease) = (now + lease_time, Some(lease.id));
                    given.push(lease.id);
                }
            }
            Step::Extend(at) => {
                let Some(id) = pick(at) else { continue };
                let key = held(&model, id, now);
                assert_eq!(engine.extend(&[id], lease_time).await.unwrap().len(), usize::from(key.is_some()));
                if let Some(key) = key {
                    model.get_mut(&key).unwrap().due = now + lease_time;
                }
            }
            Step::Ack(at) => {
                let Some(id) = pick(at) else { continue };
                engine.ack(&[id]).await.unwrap();
                if let Some(key) = held(&model, id, now) {
                    model.remove(&key);
                }
            }
            Step::Release { lease, delay, body } => {
                let Some(id) = pick(lease) else { continue };
                let body = body.then(|| Bytes::from(format!("step {number}")));
                engine.release(id, second(delay), body.clone()).await.unwrap();
                if let Some(key) = held(&model, id, now) {
                    let modelled = model.get_mut(&key).unwrap();
                    (modelled.due, modelled.lease) = (now + second(delay), None);
                    modelled.body = body.unwrap_or_else(|| modelled.body.clone());
                }
            }
            Step::Purge(q) => {
                let name = queue(&format!("q{q}"));
                let before = model.len();
                model.retain(|(queue, _), _| *queue != name);
                assert_eq!(engine.purge(&name).await.unwrap(), (before - model.len()) as u64);
            }
            Step::Advance(by) => clock.advance(second(by)),
        }
        let now = clock.wall();
        for name in (0..3).map(|q| queue(&format!("q{q}"))) {
            let mut want = Depth::default();
            for (_, event) in model.iter().filter(|((queue, _), _)| *queue == name) {
                match (event.due > now, event.lease) {
                    (false, _) => want.ready += 1,
                    (true, Some(_)) => want.in_flight += 1,
                    (true, None) => want.delayed += 1,
                }
                let age = now.duration_since(event.enqueued_at).unwrap();
                want.oldest = Some(want.oldest.map_or(age, |oldest| oldest.max(age)));
            }
            assert_eq!(engine.depth(&name).await.unwrap(), want);
        }
    }
}

/// Names what the child of the crash test opens.
pub const CHILD: &str = "EVENT_QUEUE_CRASH_TARGET";

/// Fills and drains until it is killed. Prints each id after its enqueue has answered, and, with a minus, before its
/// ack.
pub async fn crash_child(engine: Queue) {
    let say = |line: String| std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    for caller in 0..8 {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            loop {
                let id = Uuid::new_v4();
                engine.enqueue(vec![Entry { id, ..entry(&format!("q{caller}"), 0) }]).await.unwrap();
                say(format!("+{id}\n"));
            }
        });
    }
    loop {
        for lease in engine.lease(2, LEASE, Duration::from_secs(1)).await.unwrap() {
            say(format!("-{}\n", lease.event));
            engine.ack(&[lease.id]).await.unwrap();
        }
    }
}

/// What the killed processes have printed, and what was handed out after them.
#[derive(Default)]
pub struct Seen {
    answered: BTreeSet<Uuid>,
    acked: BTreeSet<Uuid>,
    found: BTreeSet<Uuid>,
}

/// Starts the test `child_of_the_crash_test` of this binary and kills it, again and again, each time at another moment:
/// in every fifth round after its start, while it opens, and else after its first answer.
pub fn crash(target: &str, rounds: u64) -> Seen {
    let mut seen = Seen::default();
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_of_the_crash_test", "--nocapture"])
            .env(CHILD, target)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Up to some dozens of groups.
        let after = Duration::from_millis(10 + round * 37 % 110);
        let (first, answered) = std::sync::mpsc::channel();
        let killer = std::thread::spawn(move || {
            if round % 5 > 0 {
                answered.recv_timeout(Duration::from_secs(60)).expect("the child answers within a minute");
            }
            std::thread::sleep(after);
            child.kill().unwrap();
            child.wait().unwrap();
        });
        for line in lines.map_while(Result::ok) {
            let id = |text: &str| Uuid::parse_str(text).ok();
            if let Some(id) = line.strip_prefix('+').and_then(id) {
                seen.answered.insert(id);
                // In rounds that do not wait for it nobody listens.
                let _ = first.send(());
            } else if let Some(id) = line.strip_prefix('-').and_then(id) {
                seen.acked.insert(id);
            }
        }
        killer.join().unwrap();
    }
    seen
}

impl Seen {
    /// Takes all that is handed out; to be called when all leases of the dead have ended.
    pub async fn find(&mut self, engine: &Queue) {
        loop {
            // An engine on queues that must be polled does not look at all of them in every call: nothing within a while
            // is nothing.
            let leases = engine.lease(500, LEASE * 10, Duration::from_secs(3)).await.unwrap();
            if leases.is_empty() {
                break;
            }
            self.found.extend(leases.iter().map(|lease| lease.event));
        }
    }

    /// Whatever was answered and not acknowledged was found.
    pub fn none_lost(&self) {
        let lost = self.answered.iter().filter(|id| !self.found.contains(*id) && !self.acked.contains(*id)).count();
        let (answered, acked) = (self.answered.len(), self.acked.len());
        println!("{answered} answered, {acked} acknowledged, {} found, {lost} lost", self.found.len());
        assert_eq!(lost, 0);
        // Each round but every fifth has waited for one.
        assert!(answered > 20, "the child got somewhere");
    }
}
