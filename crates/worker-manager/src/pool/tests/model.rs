//! Any sequence of events, against what must always hold.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use domain::SlotPhase;

use super::*;

const VERSIONS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Assign {
        version: usize,
        reserved: Option<u32>,
        unreserved: u32,
    },
    InitDone(Index),
    InitFailed(Index),
    /// Its worker could not be reached, and another one is asked.
    Rename(Index),
    Answered(Index),
    Idle(Index),
    Release(Index),
    Dead(Index),
    Cancel(Index),
    Evict(Index),
    Retire(usize),
    Pass(u64),
    Expire,
    TakeBack(Index),
    /// Another function of the account comes or goes.
    Neighbour(bool),
    /// Another manager had this one.
    Adopt {
        version: usize,
        phase: SlotPhase,
    },
    /// Its worker calls it idle, and the event may have been missed.
    Seen(Index),
}

fn op() -> impl Strategy<Value = Op> {
    let limits = (prop_oneof![3 => Just(None), 2 => (0u32..4).prop_map(Some)], 0u32..6);
    let phase = prop_oneof![
        Just(SlotPhase::Starting),
        Just(SlotPhase::Idle),
        Just(SlotPhase::Invoking),
        Just(SlotPhase::Finishing)
    ];
    prop_oneof![
        8 => (0..VERSIONS, limits).prop_map(|(version, (reserved, unreserved))| Op::Assign { version, reserved, unreserved }),
        6 => any::<Index>().prop_map(Op::InitDone),
        1 => any::<Index>().prop_map(Op::InitFailed),
        1 => any::<Index>().prop_map(Op::Rename),
        5 => any::<Index>().prop_map(Op::Answered),
        6 => any::<Index>().prop_map(Op::Idle),
        1 => any::<Index>().prop_map(Op::Release),
        1 => any::<Index>().prop_map(Op::Dead),
        2 => any::<Index>().prop_map(Op::Cancel),
        1 => any::<Index>().prop_map(Op::Evict),
        1 => (0..VERSIONS).prop_map(Op::Retire),
        3 => (0u64..60).prop_map(Op::Pass),
        1 => Just(Op::Expire),
        1 => any::<Index>().prop_map(Op::TakeBack),
        1 => any::<bool>().prop_map(Op::Neighbour),
        2 => (0..VERSIONS, phase).prop_map(|(version, phase)| Op::Adopt { version, phase }),
        2 => any::<Index>().prop_map(Op::Seen),
    ]
}

struct Request {
    version: usize,
    limits: ConcurrencyLimits,
    ticket: Ticket,
}

/// What an observer of the pool knows.
struct Model {
    pool: TestPool,
    account: Arc<AccountUse>,
    now: Duration,
    neighbours: u32,
    requests: u32,
    waiting: BTreeMap<u32, Request>,
    /// Every sandbox that exists, with its version.
    alive: BTreeMap<SandboxId, usize>,
    starting: BTreeSet<SandboxId>,
    /// Started by another manager, and not ready.
    adopted: BTreeSet<SandboxId>,
    leased: BTreeSet<SandboxId>,
    /// In the order in which they became idle.
    idle: Vec<SandboxId>,
    retired: [bool; VERSIONS],
}

impl Model {
    fn new() -> Self {
        let account = Arc::new(AccountUse::default());
        let config = Config {
            idle_timeout: ms(200),
            max_age: ms(500),
            scaling_burst: 6,
            scaling_per_10s: 100,
            ..Config::default()
        };
        Self {
            pool: FunctionPool::new(config, Arc::clone(&account), new_id, ms(0)),
            account,
            now: ms(0),
            neighbours: 0,
            requests: 0,
            waiting: BTreeMap::new(),
            alive: BTreeMap::new(),
            starting: BTreeSet::new(),
            adopted: BTreeSet::new(),
            leased: BTreeSet::new(),
            idle: Vec::new(),
            retired: [false; VERSIONS],
        }
    }

    fn step(&mut self, op: &Op) {
        let mut actions = Vec::new();
        let a = &mut actions;
        let now = self.now;
        let any = |set: Vec<SandboxId>, index: &Index| (!set.is_empty()).then(|| set[index.index(set.len())]);
        let known = |m: &Self| m.alive.keys().copied().collect::<Vec<_>>();
        match op {
            Op::Assign { version, reserved, unreserved } => {
                let limits = ConcurrencyLimits { unreserved: *unreserved, reserved: *reserved };
                let request = AssignRequest { version: super::version(&version.to_string()), limits };
                self.requests += 1;
                let number = self.requests;
                let answer = self.pool.assign(now, &request, || number, a);
                let took_permit = match answer {
                    Answer::Lease(_) => true,
                    Answer::Wait(_) => self.pool.waiters.back().is_some_and(|w| w.start.is_some()),
                    _ => false,
                };
                if took_permit {
                    match reserved {
                        Some(reserved) => assert!(self.pool.in_use <= *reserved, "above the reserved limit"),
                        None => assert!(self.account.in_use() <= *unreserved, "above the account's limit"),
                    }
                }
                match answer {
                    Answer::Lease(grant) => {
                        self.carry_out(std::mem::take(a));
                        let newest = self.idle.iter().rfind(|id| self.alive[id] == *version);
                        assert_eq!(newest, Some(&grant.sandbox), "most recently used first");
                        self.lease(&grant, *version, &limits);
                    }
                    Answer::Wait(ticket) => {
                        self.waiting.insert(number, Request { version: *version, limits, ticket });
                    }
                    Answer::Throttled(_) => {}
                    Answer::Stopping | Answer::Closed => panic!("neither stopped nor closed"),
                }
            }
            Op::InitDone(i) => {
                if let Some(id) = any(self.starting.iter().copied().collect(), i) {
                    self.starting.remove(&id);
                    assert!(self.pool.init_done(now, id, (), a));
                    // Dead meanwhile, or free.
                    if !self.pool.sandboxes.contains_key(&id) && !shut_down(a, id) {
                        self.alive.remove(&id);
                    } else if !granted(a, id) && !shut_down(a, id) {
                        self.idle.push(id);
                    }
                }
            }
            Op::InitFailed(i) => {
                if let Some(id) = any(self.starting.iter().copied().collect(), i) {
                    self.starting.remove(&id);
                    self.alive.remove(&id);
                    if let Some(caller) = self.pool.init_failed(now, id, a) {
                        assert!(self.waiting.remove(&caller).is_some(), "told once");
                    }
                }
            }
            Op::Rename(i) => {
                if let Some(id) = any(self.starting.iter().copied().collect(), i) {
                    let new = self.pool.rename(id).expect("it starts");
                    self.starting.remove(&id);
                    self.starting.insert(new);
                    let version = self.alive.remove(&id).expect("it was there");
                    self.alive.insert(new, version);
                }
            }
            Op::Answered(i) => {
                any(known(self), i).into_iter().for_each(|id| self.pool.answered(id));
            }
            // Events about sandboxes in any state: a worker's events may be late.
            Op::Idle(i) | Op::Release(i) => {
                if let Some(id) = any(known(self), i) {
                    match op {
                        Op::Idle(_) => self.pool.idle(now, id, a),
                        _ => self.pool.release(now, id, a),
                    }
                    let finishing =
                        matches!(self.pool.sandboxes.get(&id), Some(s) if matches!(s.state, State::Finishing { .. }));
                    let ready = matches!(op, Op::Idle(_)) && self.adopted.remove(&id);
                    if !finishing && (self.leased.remove(&id) || ready) && !granted(a, id) && !shut_down(a, id) {
                        self.idle.push(id);
                    }
                }
            }
            Op::Adopt { version, phase } => {
                let id = new_id();
                self.alive.insert(id, *version);
                let key = VersionKey(version.to_string().into());
                self.pool.seen(now, Seen { sandbox: id, worker: (), version: key, phase: *phase, fenced: false }, a);
                match phase {
                    SlotPhase::Starting => _ = self.adopted.insert(id),
                    SlotPhase::Invoking | SlotPhase::Finishing => _ = self.leased.insert(id),
                    SlotPhase::Idle if granted(a, id) || shut_down(a, id) => {}
                    SlotPhase::Idle => self.idle.push(id),
                }
            }
            Op::Seen(i) => {
                if let Some(id) = any(known(self), i) {
                    let before = self.idle.contains(&id);
                    let version = self.pool.sandboxes[&id].version.clone();
                    let seen = Seen { sandbox: id, worker: (), version, phase: SlotPhase::Idle, fenced: false };
                    self.pool.seen(now, seen, a);
                    let idle = matches!(self.pool.sandboxes.get(&id), Some(s) if matches!(s.state, State::Idle { .. }));
                    if granted(a, id) || shut_down(a, id) || idle {
                        self.leased.remove(&id);
                        self.adopted.remove(&id);
                        if idle && !before {
                            self.idle.push(id);
                        }
                    }
                }
            }
            Op::Dead(i) => {
                if let Some(id) = any(known(self), i) {
                    if self.pool.dead(now, id, a) {
                        self.forget(id);
                    } else {
                        assert!(self.starting.contains(&id));
                    }
                }
            }
            Op::Cancel(i) => {
                let waiting: Vec<u32> = self.waiting.keys().copied().collect();
                if !waiting.is_empty() {
                    let request = self.waiting.remove(&waiting[i.index(waiting.len())]).unwrap();
                    assert!(self.pool.cancel(now, request.ticket, a));
                    assert!(!self.pool.cancel(now, request.ticket, a));
                }
            }
            Op::Evict(i) => {
                if let Some(id) = any(known(self), i)
                    && self.pool.evict(id)
                {
                    assert!(self.idle.contains(&id));
                    self.forget(id);
                }
            }
            Op::Retire(v) => {
                self.pool.retire(now, &VersionKey(v.to_string().into()), a);
                self.retired[*v] = self.pool.versions.contains_key(&VersionKey(v.to_string().into()));
            }
            Op::Pass(time) => {
                self.now += ms(*time);
                self.pool.settle(self.now, a);
                let limit = self.pool.config.limit_grace;
                let overdue = |w: &Waiter<u32>| w.start.is_none() && self.now - w.arrived >= limit;
                assert!(!self.pool.waiters.iter().any(overdue), "waits beyond its grace");
            }
            Op::Expire => self.pool.expire(now, a),
            Op::TakeBack(i) => {
                if let Some(id) = any(self.leased.iter().copied().collect(), i)
                    && let State::Busy { since, .. } = self.pool.sandboxes[&id].state
                {
                    self.pool.take_back(now, id, since, a);
                    self.leased.remove(&id);
                }
            }
            Op::Neighbour(comes) => {
                if *comes && self.account.acquire(6) {
                    self.neighbours += 1;
                } else if !comes && self.neighbours > 0 {
                    self.account.release();
                    self.neighbours -= 1;
                }
            }
        }
        self.carry_out(actions);
        self.check();
    }

    fn carry_out(&mut self, actions: Vec<TestAction>) {
        for action in actions {
            match action {
                Action::Grant { caller, grant } => {
                    let request = self.waiting.remove(&caller).expect("told once");
                    if !grant.cold {
                        let before = self.pool.waiters.iter().filter(|w| w.caller < caller && w.start.is_some());
                        let same = |w: &&Waiter<u32>| w.version.key.0.as_ref() == request.version.to_string();
                        assert_eq!(before.filter(same).count(), 0, "first come, first served");
                    }
                    self.lease(&grant, request.version, &request.limits);
                }
                Action::Throttle { caller, .. } | Action::Gone { caller, .. } => {
                    assert!(self.waiting.remove(&caller).is_some(), "told once");
                }
                Action::Start { sandbox, version } => {
                    self.alive.insert(sandbox, version.key.0.parse().unwrap());
                    self.starting.insert(sandbox);
                }
                Action::Shutdown { sandbox } => {
                    assert!(!self.leased.contains(&sandbox), "shut down under its lease");
                    self.forget(sandbox);
                }
                Action::Forget { version } => self.retired[version.0.parse::<usize>().unwrap()] = false,
                Action::Stopping { .. } | Action::Disown { .. } | Action::NotOwner { .. } => {
                    panic!("neither stopped nor disowned")
                }
            }
        }
    }

    fn lease(&mut self, grant: &Grant<()>, version: usize, limits: &ConcurrencyLimits) {
        assert_eq!(self.alive.get(&grant.sandbox), Some(&version), "alive and of the version");
        assert!(self.leased.insert(grant.sandbox), "two leases on one sandbox");
        assert!(grant.cold || !self.retired[version], "a retired version was reused");
        self.idle.retain(|id| *id != grant.sandbox);
        assert_ne!(limits.reserved, Some(0));
    }

    fn forget(&mut self, id: SandboxId) {
        assert!(self.alive.remove(&id).is_some(), "ends once");
        self.leased.remove(&id);
        self.adopted.remove(&id);
        self.idle.retain(|i| *i != id);
    }

    /// Another manager takes over, at any moment: this one has nothing left, and everybody is told.
    fn disown(mut self) {
        let mut actions = Vec::new();
        self.pool.disown(&mut actions);
        for action in actions {
            match action {
                Action::Disown { sandbox } => assert!(self.alive.remove(&sandbox).is_some(), "given up once"),
                Action::NotOwner { caller } => assert!(self.waiting.remove(&caller).is_some(), "told once"),
                Action::Forget { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(self.alive.is_empty() && self.waiting.is_empty());
        assert_eq!((self.pool.in_use, self.account.in_use()), (0, self.neighbours));
        // What comes late changes nothing.
        for id in self.starting {
            assert!(!self.pool.init_done(self.now, id, (), &mut vec![]));
        }
    }

    fn check(&self) {
        let pool = &self.pool;
        assert!(pool.sandboxes.keys().eq_unordered(self.alive.keys()), "no lost sandboxes");
        let count = |f: &dyn Fn(&Sandbox<()>) -> bool| pool.sandboxes.values().filter(|s| f(s)).count();
        let held: Vec<Permit> = pool
            .sandboxes
            .values()
            .filter_map(|s| match s.state {
                State::Busy { permit, .. } | State::Finishing { permit } => Some(permit),
                _ => None,
            })
            .collect();
        let starters: Vec<Permit> = pool.waiters.iter().filter_map(|w| w.start.map(|(p, _)| p)).collect();
        assert_eq!(held.len(), self.leased.len());
        assert_eq!(pool.in_use as usize, held.len() + starters.len(), "each permit is released exactly once");
        let in_account = held.iter().chain(&starters).filter(|p| **p == Permit::Account).count();
        assert_eq!(self.account.in_use(), in_account as u32 + self.neighbours);
        assert_eq!(pool.waiters.len(), self.waiting.len(), "no lost requests");
        assert!(
            pool.waiters.iter().filter(|w| w.start.is_none()).count() <= pool.finishing,
            "each claim has a sandbox"
        );
        assert_eq!(pool.finishing, count(&|s| matches!(s.state, State::Finishing { .. })));
        for (key, version) in &pool.versions {
            let of = |f: &dyn Fn(&State) -> bool| count(&|s| s.version == *key && f(&s.state));
            assert_eq!(version.live, of(&|_| true));
            assert_eq!(version.idle.len(), of(&|s| matches!(s, State::Idle { .. })));
            assert_eq!(version.finishing, of(&|s| matches!(s, State::Finishing { .. })));
            assert_eq!(version.spare.len(), of(&|s| matches!(s, State::Starting { waiter: None, .. })));
            let starts = pool.waiters.iter().any(|w| w.start.is_some() && w.version.key == *key);
            assert!(version.idle.is_empty() || !starts, "waits for a start beside an idle sandbox");
        }
    }

    /// Everything that runs comes to its end.
    fn wind_down(&mut self) {
        let zero = Op::InitDone(index(0));
        while !self.starting.is_empty() {
            self.step(&zero);
        }
        while let Some(id) = self.leased.first().or_else(|| self.adopted.first()).copied() {
            let at = self.alive.keys().position(|k| *k == id).unwrap();
            let op = Op::Idle(index_of(at, self.alive.len()));
            self.step(&op);
            while !self.starting.is_empty() {
                self.step(&zero);
            }
        }
        self.step(&Op::Pass(100));
        assert!(self.waiting.is_empty());
        assert_eq!(self.pool.in_use, 0);
        assert_eq!(self.account.in_use(), self.neighbours);
        assert_eq!(self.idle.len(), self.alive.len());
    }
}

fn granted(actions: &[TestAction], id: SandboxId) -> bool {
    actions.iter().any(|a| matches!(a, Action::Grant { grant, .. } if grant.sandbox == id))
}

fn shut_down(actions: &[TestAction], id: SandboxId) -> bool {
    actions.iter().any(|a| matches!(a, Action::Shutdown { sandbox } if *sandbox == id))
}

fn index(at: usize) -> Index {
    index_of(at, 1)
}

/// An [`Index`] that picks `at` of `len`.
fn index_of(at: usize, len: usize) -> Index {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    loop {
        let index = any::<Index>().new_tree(&mut runner).unwrap().current();
        if index.index(len) == at {
            return index;
        }
    }
}

trait EqUnordered<'a>: Iterator<Item = &'a SandboxId> + Sized {
    fn eq_unordered(self, other: impl Iterator<Item = &'a SandboxId>) -> bool {
        self.collect::<BTreeSet<_>>() == other.collect::<BTreeSet<_>>()
    }
}

impl<'a, I: Iterator<Item = &'a SandboxId>> EqUnordered<'a> for I {}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn always_holds(ops in prop::collection::vec(op(), 0..120), disowned: bool) {
        let mut model = Model::new();
        for op in &ops {
            model.step(op);
        }
        if disowned { model.disown() } else { model.wind_down() }
    }
}
