//! What is taken from the queue, and what runs next; without IO and clock.
//!
//! ```text
//!                  leased                          start                       finished
//!  queue ──ask──► prefetched (per function) ───► running (cap per function) ───────────► cap grows or shrinks
//!    ▲                 │ no room
//!    └──── parked ◄────┘
//! ```
//!
//! - Each function has a cap of attempts at once. It grows while there is more work than it allows and attempts run
//!   (twofold each round; after a throttle not at once, and by one each round); each throttle takes one away. A function whose only
//!   attempt was throttled pauses, up to [`PAUSE_MAX`]. It does not exceed the function's reserved concurrency.
//! - Prefetched is at most twice the cap, and nothing for a function whose attempts take long: another process may have
//!   those events.
//! - While a function has no room, the queue is asked for the others' events, and only now and then, unless that brings
//!   some or an event of another function was just accepted. What comes all the same goes back: at once if the function
//!   had room when the queue was asked, else the engine cannot choose, and the event is parked, longer the longer the
//!   function has had no room.
//! - Functions without reserved concurrency share what the account has unreserved, and leave an eighth of it ([`shared`])
//!   to those that run less than [`GUARANTEED`]: attempts that hang can use up the rest, however many functions they are
//!   of, and another's first events are still not throttled.
//! - Every function may run [`GUARANTEED`] attempts even where the total is used up, so that no function's backlog or
//!   hanging attempts hold up another's first event.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use event_queue::QueueName;

/// The cap of a function that was not seen before.
const FIRST_CAP: usize = 16;
/// Attempts that a function may run whatever the others do.
const GUARANTEED: usize = 4;
/// Most events of one lease call.
const BATCH: usize = 256;
/// Fewest events of one lease call that passes over functions without room.
const PROBE: usize = 16;
/// Fewest events of one that may bring a function more than it has room for.
const FEW: usize = 4;
/// Time between lease calls that are likely to bring nothing that may run.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// Longest time that an event is parked, and so that it may wait beside sandboxes that have become free.
const PARK_MAX: Duration = Duration::from_secs(5);
/// A function whose attempts take longer prefetches nothing.
const QUICK: Duration = Duration::from_secs(1);
/// Longest time that an event is prefetched.
const PREFETCH_MAX: Duration = Duration::from_secs(5);
/// First and longest pause of a function of which nothing may run.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// For so long after a throttle a cap does not grow.
const HOLD: Duration = Duration::from_secs(1);
/// For so long after a throttle a cap grows slowly.
const CAREFUL: Duration = Duration::from_secs(10);
/// For so long the cap of a function is remembered that has nothing to do.
const REMEMBER: Duration = Duration::from_secs(60);

/// How many attempts functions share out of so much concurrency, beside the first [`GUARANTEED`] ones of each; at least one.
/// An eighth is left for those: of an account's 1,000, for 31 functions.
pub fn shared(concurrency: usize) -> usize {
    (concurrency - concurrency.div_ceil(8)).max(1)
}

/// How much may be held at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Attempts.
    pub in_flight: usize,
    /// Attempts of one function.
    pub per_function: usize,
    /// Bytes of event bodies; exceeded by at most one lease call and [`GUARANTEED`] events a function.
    pub bytes: usize,
}

/// What an attempt says about how many more there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Feedback {
    /// The function ran for so long.
    Ran(Duration),
    /// It was throttled, or the platform failed.
    Refused,
    /// It was not tried.
    Untried,
}

/// What to ask the queue for.
#[derive(PartialEq, Eq, Debug, Default)]
pub(crate) struct Ask {
    /// Events; 0: ask for nothing now.
    pub most: usize,
    /// Functions without room.
    pub but: BTreeSet<QueueName>,
}

/// An event that goes back to the queue for so long.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Parked<T> {
    pub event: T,
    pub delay: Duration,
}

/// What there is of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct View {
    pub running: usize,
    pub prefetched: usize,
    /// Given back and not yet due.
    pub parked: usize,
}

struct Prefetched<T> {
    event: T,
    bytes: usize,
    since: Duration,
}

struct Function<T> {
    cap: usize,
    /// Largest cap: what the limits and the function's reserved concurrency allow.
    most: usize,
    /// It has concurrency of its own.
    reserved: bool,
    /// Attempts that ran since the cap grew, while it grows slowly.
    credit: usize,
    running: usize,
    prefetched: VecDeque<Prefetched<T>>,
    in_ring: bool,
    /// Typical duration of an attempt.
    pace: Duration,
    throttled_at: Option<Duration>,
    /// Throttles in a row.
    refused: u32,
    paused_until: Option<Duration>,
    full_since: Option<Duration>,
    /// The last question was for others' events.
    passed_over: bool,
    /// How many are parked until when.
    parked: VecDeque<(Duration, usize)>,
    used_at: Duration,
}

impl<T> Function<T> {
    fn new(limits: &Limits, now: Duration) -> Self {
        Self {
            cap: FIRST_CAP.min(limits.per_function).max(1),
            most: limits.per_function.max(1),
            reserved: false,
            credit: 0,
            running: 0,
            prefetched: VecDeque::new(),
            in_ring: false,
            pace: Duration::ZERO,
            throttled_at: None,
            refused: 0,
            paused_until: None,
            full_since: None,
            passed_over: false,
            parked: VecDeque::new(),
            used_at: now,
        }
    }

    fn held(&self) -> usize {
        self.running + self.prefetched.len()
    }

    fn prefetch(&self) -> usize {
        if self.pace <= QUICK { 2 * self.cap } else { 0 }
    }

    fn room(&self) -> usize {
        (self.cap + self.prefetch()).saturating_sub(self.held())
    }

    /// Not worth asking for more.
    fn full(&self) -> bool {
        self.held() >= self.cap + self.prefetch() / 2
    }

    fn may_start(&self) -> bool {
        !self.prefetched.is_empty() && self.running < self.cap && self.paused_until.is_none()
    }

    /// For how long; notes it.
    fn park(&mut self, now: Duration) -> Duration {
        if !self.passed_over {
            return Duration::ZERO;
        }
        let full_since = *self.full_since.get_or_insert(now);
        let delay = now.saturating_sub(full_since).clamp(PROBE_EVERY, PARK_MAX);
        while self.parked.front().is_some_and(|(until, _)| *until <= now) {
            self.parked.pop_front();
        }
        match self.parked.back_mut() {
            Some((until, parked)) if *until == now + delay => *parked += 1,
            _ => self.parked.push_back((now + delay, 1)),
        }
        delay
    }

    fn learn(&mut self, now: Duration, feedback: Feedback) {
        // Counted before this attempt gives its slot back.
        let wanted_more = self.running >= self.cap || !self.prefetched.is_empty();
        self.running -= 1;
        match feedback {
            Feedback::Untried => {}
            Feedback::Ran(took) => {
                self.refused = 0;
                self.paused_until = None;
                self.pace = if self.pace.is_zero() { took } else { (self.pace * 7 + took) / 8 };
                let throttle_free = self.throttled_at.map_or(Duration::MAX, |then| now.saturating_sub(then));
                if wanted_more && self.cap < self.most && throttle_free >= HOLD {
                    self.credit += 1;
                    if throttle_free >= CAREFUL || self.credit >= self.cap {
                        self.cap += 1;
                        self.credit = 0;
                    }
                }
            }
            Feedback::Refused => {
                self.throttled_at = Some(now);
                self.credit = 0;
                self.cap = self.cap.saturating_sub(1).max(1);
                if self.running == 0 {
                    let pause = PAUSE_MIN.saturating_mul(1 << self.refused.min(16)).min(PAUSE_MAX);
                    self.refused += 1;
                    self.paused_until = Some(now + pause);
                }
            }
        }
    }
}

/// Whether a function has to wait until less of its account's unreserved concurrency is used.
fn crowded<T>(accounts: &HashMap<String, Account>, queue: &QueueName, function: &Function<T>) -> bool {
    !function.reserved
        && function.running >= GUARANTEED
        && accounts.get(account(queue)).is_some_and(|account| account.running >= account.share)
}

/// What the functions of an account in a region share that have no reserved concurrency.
struct Account {
    /// Attempts that run.
    running: usize,
    /// How many may run, beside the guaranteed ones.
    share: usize,
}

/// The account and region in the name of a function's queue, which is its ARN.
fn account(queue: &QueueName) -> &str {
    queue.0.split_once(":function:").map_or("", |(account, _)| account)
}

/// All that is held, by function.
pub(crate) struct Scheduler<T> {
    limits: Limits,
    functions: HashMap<QueueName, Function<T>>,
    /// Functions that may have something to start, in turn.
    ring: VecDeque<QueueName>,
    pauses: BTreeSet<(Duration, QueueName)>,
    running: usize,
    accounts: HashMap<String, Account>,
    prefetched: usize,
    bytes: usize,
    /// Size of an event to expect.
    size: usize,
    probe_at: Duration,
    /// The last question was a probe.
    probing: bool,
    /// An event was accepted that may have room.
    arrived: bool,
    swept_at: Duration,
    stopped: bool,
}

impl<T> Scheduler<T> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            functions: HashMap::new(),
            ring: VecDeque::new(),
            pauses: BTreeSet::new(),
            running: 0,
            accounts: HashMap::new(),
            prefetched: 0,
            bytes: 0,
            size: 1024,
            probe_at: Duration::ZERO,
            probing: false,
            arrived: false,
            swept_at: Duration::ZERO,
            stopped: false,
        }
    }

    /// An event was put into this queue; whether it is worth to look for it at once.
    pub(crate) fn arrived(&mut self, queue: &QueueName) -> bool {
        let room = self
            .functions
            .get(queue)
            .is_none_or(|function| !function.full() && !crowded(&self.accounts, queue, function));
        self.arrived |= room;
        room
    }

    /// What to ask the queue for.
    pub(crate) fn ask(&mut self, now: Duration) -> Ask {
        if self.stopped {
            return Ask::default();
        }
        let (mut full, mut room) = (0, None);
        for (queue, function) in self.functions.iter().filter(|(_, function)| function.held() > 0) {
            match function.full() || crowded(&self.accounts, queue, function) {
                true => full += 1,
                false => room = Some(function.room().min(room.unwrap_or(usize::MAX))),
            }
        }
        let total = (3 * self.limits.in_flight).saturating_sub(self.running + self.prefetched);
        let bytes = self.limits.bytes.saturating_sub(self.bytes) / self.size;
        let free = total.min(bytes);
        self.probing = full > 0 || free == 0;
        if !self.probing {
            self.probe_at = now + PROBE_EVERY;
            let fresh = Function::<T>::new(&self.limits, now).room();
            return self.question(room.unwrap_or(fresh).clamp(FEW, BATCH).min(free), |_| false);
        }
        if !self.arrived && now < self.probe_at {
            return Ask::default();
        }
        self.arrived = false;
        self.probe_at = now + PROBE_EVERY;
        // As many as there are turns before that of a function with room, where the engine cannot choose, but no more
        // bytes than a quarter of all.
        let most = (2 * full).clamp(PROBE, BATCH).min((self.limits.bytes / 4 / self.size).max(1));
        self.question(most, |function| function.full() || free == 0 && function.held() >= GUARANTEED)
    }

    fn question(&mut self, most: usize, pass_over: impl Fn(&Function<T>) -> bool) -> Ask {
        let mut but = BTreeSet::new();
        for (queue, function) in &mut self.functions {
            function.passed_over = pass_over(function) || crowded(&self.accounts, queue, function);
            if function.passed_over {
                but.insert(queue.clone());
            }
        }
        Ask { most, but }
    }

    /// Takes what the queue gave; what has no room comes back.
    pub(crate) fn leased(
        &mut self,
        now: Duration,
        events: impl IntoIterator<Item = (QueueName, T, usize)>,
    ) -> Vec<Parked<T>> {
        let (mut parked, mut useful, mut largest) = (Vec::new(), false, 1);
        for (queue, event, bytes) in events {
            largest = largest.max(bytes);
            if self.stopped {
                parked.push(Parked { event, delay: Duration::ZERO });
                continue;
            }
            let free = self.running + self.prefetched < 3 * self.limits.in_flight && self.bytes < self.limits.bytes;
            let function = self.functions.entry(queue.clone()).or_insert_with(|| Function::new(&self.limits, now));
            function.used_at = now;
            let free = free && !crowded(&self.accounts, &queue, function);
            if function.room() > 0 && (free || function.held() < GUARANTEED) {
                useful |= self.probing && !function.full();
                function.prefetched.push_back(Prefetched { event, bytes, since: now });
                self.prefetched += 1;
                self.bytes += bytes;
                self.enlist(&queue);
            } else {
                let delay = function.park(now);
                parked.push(Parked { event, delay });
            }
        }
        self.size = largest.max(self.size - self.size / 8).max(1024);
        if useful {
            self.probe_at = now;
        }
        parked
    }

    /// The next event to run. Call [`Scheduler::finished`] once for each.
    pub(crate) fn start(&mut self, now: Duration) -> Option<(QueueName, T)> {
        while self.pauses.first().is_some_and(|(until, _)| *until <= now) {
            let (until, queue) = self.pauses.pop_first()?;
            if let Some(function) = self.functions.get_mut(&queue)
                && function.paused_until == Some(until)
            {
                function.paused_until = None;
            }
            self.enlist(&queue);
        }
        for _ in 0..self.ring.len() {
            let queue = self.ring.pop_front()?;
            let Some(function) = self.functions.get_mut(&queue) else { continue };
            function.in_ring = false;
            if !function.may_start() {
                continue;
            }
            let used_up = self.running >= self.limits.in_flight && function.running >= GUARANTEED;
            if used_up || crowded(&self.accounts, &queue, function) {
                self.enlist(&queue);
                continue;
            }
            let prefetched = function.prefetched.pop_front()?;
            function.running += 1;
            self.running += 1;
            if !function.reserved {
                Self::account(&mut self.accounts, &self.limits, &queue).running += 1;
            }
            self.prefetched -= 1;
            self.bytes -= prefetched.bytes;
            self.enlist(&queue);
            return Some((queue, prefetched.event));
        }
        None
    }

    /// A function's reserved concurrency: more attempts at once would only be throttled.
    pub(crate) fn bound(&mut self, queue: &QueueName, reserved: Option<u32>) {
        if let Some(function) = self.functions.get_mut(queue) {
            if function.reserved != reserved.is_some() {
                function.reserved = reserved.is_some();
                let account = Self::account(&mut self.accounts, &self.limits, queue);
                match function.reserved {
                    true => account.running -= function.running,
                    false => account.running += function.running,
                }
            }
            let reserved = reserved.map_or(usize::MAX, |reserved| reserved as usize);
            function.most = self.limits.per_function.min(reserved).max(1);
            function.cap = function.cap.min(function.most);
        }
    }

    /// How much concurrency the account of this function has for those without reserved concurrency.
    pub(crate) fn unreserved(&mut self, queue: &QueueName, concurrency: u32) {
        Self::account(&mut self.accounts, &self.limits, queue).share = shared(concurrency as usize);
    }

    fn account<'a>(accounts: &'a mut HashMap<String, Account>, limits: &Limits, queue: &QueueName) -> &'a mut Account {
        let name = account(queue);
        if !accounts.contains_key(name) {
            accounts.insert(name.to_owned(), Account { running: 0, share: limits.in_flight });
        }
        accounts.get_mut(name).expect("it was just put in")
    }

    /// An attempt is over.
    pub(crate) fn finished(&mut self, now: Duration, queue: &QueueName, feedback: Feedback) {
        let Some(function) = self.functions.get_mut(queue) else { return };
        function.learn(now, feedback);
        function.used_at = now;
        if !function.full() {
            function.full_since = None;
        }
        self.running -= 1;
        if !function.reserved {
            Self::account(&mut self.accounts, &self.limits, queue).running -= 1;
        }
        if let Some(until) = function.paused_until {
            self.pauses.insert((until, queue.clone()));
        }
        self.enlist(queue);
    }

    /// Forgets prefetched events, say because their leases are over.
    pub(crate) fn discard(&mut self, queue: &QueueName, mut lost: impl FnMut(&T) -> bool) {
        let Some(function) = self.functions.get_mut(queue) else { return };
        let before = function.prefetched.len();
        let bytes = &mut self.bytes;
        function.prefetched.retain(|prefetched| {
            let lost = lost(&prefetched.event);
            *bytes -= if lost { prefetched.bytes } else { 0 };
            !lost
        });
        self.prefetched -= before - function.prefetched.len();
    }

    /// Gives back what was prefetched too long ago, and forgets functions that have had nothing to do for a while.
    pub(crate) fn sweep(&mut self, now: Duration) -> Vec<Parked<T>> {
        let mut parked = Vec::new();
        if now < self.swept_at + PREFETCH_MAX / 5 {
            return parked;
        }
        self.swept_at = now;
        for function in self.functions.values_mut() {
            let stale = function.prefetched.front().is_some_and(|first| now.saturating_sub(first.since) > PREFETCH_MAX);
            if !stale {
                continue;
            }
            // Attempts that have been running since then say more about the pace than those that are over.
            if function.running > 0 {
                function.pace = function.pace.max(PREFETCH_MAX);
            }
            for prefetched in function.prefetched.drain(..) {
                self.prefetched -= 1;
                self.bytes -= prefetched.bytes;
                parked.push(Parked { event: prefetched.event, delay: Duration::ZERO });
            }
        }
        self.functions.retain(|_, function| {
            function.held() > 0 || function.paused_until.is_some() || now.saturating_sub(function.used_at) < REMEMBER
        });
        parked
    }

    /// Takes nothing more; all that is prefetched.
    pub(crate) fn stop(&mut self) -> Vec<T> {
        self.stopped = true;
        self.prefetched = 0;
        self.bytes = 0;
        self.functions.values_mut().flat_map(|function| function.prefetched.drain(..)).map(|p| p.event).collect()
    }

    /// Whether time alone changes nothing.
    pub(crate) fn idle(&self) -> bool {
        self.running + self.prefetched == 0 && self.pauses.is_empty()
    }

    /// What there is of one function.
    pub(crate) fn view(&self, now: Duration, queue: &QueueName) -> View {
        self.functions.get(queue).map_or_else(View::default, |function| View {
            running: function.running,
            prefetched: function.prefetched.len(),
            parked: function.parked.iter().filter(|(until, _)| *until > now).map(|(_, count)| count).sum(),
        })
    }

    fn enlist(&mut self, queue: &QueueName) {
        if let Some(function) = self.functions.get_mut(queue)
            && !function.in_ring
            && function.may_start()
        {
            function.in_ring = true;
            self.ring.push_back(queue.clone());
        }
    }
}

#[cfg(test)]
mod tests;
