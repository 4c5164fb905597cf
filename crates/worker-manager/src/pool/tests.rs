mod model;

use std::sync::atomic::{AtomicU64, Ordering};

use domain::{AccountId, CodeRef, FunctionArn, LogFormat, LoggingSettings, SlotPhase};
use uuid::Uuid;

use super::*;

type TestPool = FunctionPool<u32, ()>;
type TestAction = Action<u32, ()>;

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub fn new_id() -> SandboxId {
    static LAST: AtomicU64 = AtomicU64::new(0);
    SandboxId(Uuid::from_u64_pair(0, LAST.fetch_add(1, Ordering::Relaxed)))
}

pub fn version(key: &str) -> Arc<FunctionVersion> {
    let account = AccountId::local();
    let arn = FunctionArn { region: "us-east-1".into(), account: account.clone(), name: "f".into() };
    Arc::new(FunctionVersion {
        key: VersionKey(key.into()),
        account,
        region: "us-east-1".into(),
        name: "f".into(),
        version: "$LATEST".into(),
        arn,
        runtime: "provided.al2023".into(),
        handler: String::new(),
        code: CodeRef { sha256: key.into(), size: 1, image: None },
        image_config: Default::default(),
        layers: vec![],
        memory_mb: 128,
        timeout: ms(3000),
        ephemeral_mb: 512,
        environment: Default::default(),
        logging: LoggingSettings {
            format: LogFormat::Text,
            application_level: None,
            system_level: None,
            group: "/aws/lambda/f".into(),
        },
        tracing_active: false,
        snap_start: false,
    })
}

fn request(key: &str, reserved: Option<u32>) -> AssignRequest {
    AssignRequest { version: version(key), limits: ConcurrencyLimits { unreserved: 10, reserved } }
}

/// A pool with what a test wants to see of it.
struct Bench {
    pool: TestPool,
    account: Arc<AccountUse>,
    actions: Vec<TestAction>,
    now: Duration,
    callers: u32,
}

impl Bench {
    fn new(config: Config) -> Self {
        let account = Arc::new(AccountUse::default());
        let pool = FunctionPool::new(config, Arc::clone(&account), new_id, ms(0));
        Self { pool, account, actions: vec![], now: ms(0), callers: 0 }
    }

    fn assign(&mut self, request: &AssignRequest) -> Answer<()> {
        self.callers += 1;
        self.pool.assign(self.now, request, || self.callers, &mut self.actions)
    }

    /// The sandbox that was started last.
    fn started(&mut self) -> SandboxId {
        match self.actions.pop() {
            Some(Action::Start { sandbox, .. }) => sandbox,
            other => panic!("expected a start, not {other:?}"),
        }
    }

    fn granted(&mut self) -> (u32, SandboxId, bool) {
        match self.actions.remove(0) {
            Action::Grant { caller, grant } => (caller, grant.sandbox, grant.cold),
            other => panic!("expected a grant, not {other:?}"),
        }
    }

    fn leased(&mut self, request: &AssignRequest) -> SandboxId {
        match self.assign(request) {
            Answer::Lease(grant) => grant.sandbox,
            other => panic!("expected a lease, not {other:?}"),
        }
    }

    fn waits(&mut self, request: &AssignRequest) -> Ticket {
        match self.assign(request) {
            Answer::Wait(ticket) => ticket,
            other => panic!("expected to wait, not {other:?}"),
        }
    }

    fn cold(&mut self, request: &AssignRequest) -> SandboxId {
        self.waits(request);
        let id = self.started();
        self.init_done(id);
        assert_eq!(self.granted(), (self.callers, id, true));
        id
    }

    fn init_done(&mut self, id: SandboxId) {
        assert!(self.pool.init_done(self.now, id, (), &mut self.actions));
    }

    fn idle(&mut self, id: SandboxId) {
        self.pool.idle(self.now, id, &mut self.actions);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.pool.settle(self.now, &mut self.actions);
    }

    fn quiet(&self) {
        assert!(self.actions.is_empty(), "{:?}", self.actions);
    }
}

#[test]
fn reuses_the_most_recently_used() {
    let mut b = Bench::new(Config::default());
    let r = request("v", None);
    let first = b.cold(&r);
    let second = b.cold(&r);
    b.idle(second);
    b.idle(first);
    assert_eq!(b.leased(&r), first);
    assert_eq!(b.leased(&r), second);
    b.quiet();
    assert_eq!(b.account.in_use(), 2);
}

#[test]
fn a_sequential_client_keeps_one_sandbox() {
    for reserved in [None, Some(1)] {
        let mut b = Bench::new(Config::default());
        let r = request("v", reserved);
        let sandbox = b.cold(&r);
        for _ in 0..3 {
            b.pool.answered(sandbox);
            b.waits(&r);
            b.quiet();
            b.now += ms(5);
            b.idle(sandbox);
            assert_eq!(b.granted(), (b.callers, sandbox, false));
        }
        // Only one request has a claim on one finishing sandbox.
        b.pool.answered(sandbox);
        b.waits(&r);
        match (b.assign(&r), reserved) {
            (Answer::Throttled(ThrottleReason::Reserved), Some(1)) => b.quiet(),
            (Answer::Wait(_), None) => _ = b.started(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn after_the_grace_a_request_starts_cold_or_is_throttled() {
    let mut b = Bench::new(Config::default());
    let r = request("v", None);
    let sandbox = b.cold(&r);
    b.pool.answered(sandbox);
    b.waits(&r);
    b.pass(ms(19));
    b.quiet();
    b.pass(ms(1));
    b.started();

    let mut b = Bench::new(Config::default());
    let r = request("v", Some(1));
    let sandbox = b.cold(&r);
    b.pool.answered(sandbox);
    b.waits(&r);
    b.pass(ms(99));
    b.quiet();
    b.pass(ms(1));
    assert!(matches!(b.actions[..], [Action::Throttle { caller: 2, reason: ThrottleReason::Reserved }]));
    assert_eq!(b.pool.in_use, 1);
}

#[test]
fn a_request_whose_sandbox_starts_takes_one_that_becomes_free() {
    let mut b = Bench::new(Config::default());
    let r = request("v", None);
    let warm = b.cold(&r);
    b.waits(&r);
    let starting = b.started();
    b.idle(warm);
    assert_eq!(b.granted(), (2, warm, false));
    assert_eq!(b.account.in_use(), 1);
    // The next request waits for the spare one rather than starting a third.
    b.waits(&r);
    b.quiet();
    b.init_done(starting);
    assert_eq!(b.granted(), (3, starting, true));
    assert_eq!(b.account.in_use(), 2);
}

#[test]
fn a_request_that_may_not_run_keeps_nobody_behind_it_from_a_free_sandbox() {
    let mut b = Bench::new(Config::default());
    // The account's limit changes between requests.
    let [one, none, two] = [1, 0, 2].map(|unreserved| AssignRequest {
        limits: ConcurrencyLimits { unreserved, reserved: None },
        ..request("v", None)
    });
    let warm = b.cold(&one);
    b.pool.answered(warm);
    b.waits(&none);
    b.waits(&two);
    let starting = b.started();
    b.idle(warm);
    // Lying idle, it would have gone to a later request, while this one waits for its start.
    assert_eq!(b.granted(), (3, warm, false));
    assert!(matches!(b.actions.pop(), Some(Action::Throttle { caller: 2, reason: ThrottleReason::Account })));
    b.init_done(starting);
    b.quiet();
    assert_eq!(b.leased(&two), starting);
}

#[test]
fn a_cancelled_start_leaves_an_idle_sandbox() {
    let mut b = Bench::new(Config::default());
    let r = request("v", Some(1));
    let ticket = b.waits(&r);
    let id = b.started();
    assert!(b.pool.cancel(b.now, ticket, &mut b.actions));
    assert_eq!(b.pool.in_use, 0);
    b.init_done(id);
    b.quiet();
    assert_eq!(b.leased(&r), id);
}

#[test]
fn limits_count_all_versions_and_only_unreserved_ones_in_the_account() {
    let mut b = Bench::new(Config::default());
    b.cold(&request("a", Some(2)));
    b.cold(&request("b", Some(2)));
    assert_eq!(b.assign(&request("a", Some(2))), Answer::Throttled(ThrottleReason::Reserved));
    assert_eq!(b.account.in_use(), 0);
    for _ in 0..10 {
        b.cold(&request("b", None));
    }
    assert_eq!(b.assign(&request("b", None)), Answer::Throttled(ThrottleReason::Account));
    assert_eq!(b.assign(&request("b", Some(0))), Answer::Throttled(ThrottleReason::Reserved));
}

#[test]
fn scaling_rate() {
    let mut b = Bench::new(Config { scaling_burst: 3, scaling_per_10s: 10, ..Config::default() });
    let r = request("v", None);
    let ids = [(); 3].map(|()| b.cold(&r));
    assert_eq!(b.assign(&r), Answer::Throttled(ThrottleReason::ScalingRate));
    b.idle(ids[0]);
    assert_eq!(b.leased(&r), ids[0], "warm ones are not rated");
    b.pass(Duration::from_secs(1));
    b.cold(&r);
}

#[test]
fn init_failure_frees_the_slot() {
    let mut b = Bench::new(Config::default());
    let r = request("v", Some(1));
    b.waits(&r);
    let id = b.started();
    assert_eq!(b.pool.init_failed(b.now, id, &mut b.actions), Some(1));
    assert_eq!(b.pool.in_use, 0);
    assert!(b.pool.sandboxes.is_empty());
    // One that died during its Init is not handed out, whatever Init says.
    b.waits(&r);
    let id = b.started();
    assert!(!b.pool.dead(b.now, id, &mut b.actions));
    b.init_done(id);
    assert!(matches!(b.actions[..], [Action::Gone { caller: 2, sandbox }] if sandbox == id));
    assert!(b.pool.sandboxes.is_empty());
}

#[test]
fn retired_versions_go_when_they_are_free() {
    let mut b = Bench::new(Config::default());
    let r = request("v", None);
    let (busy, idle) = (b.cold(&r), b.cold(&r));
    b.idle(idle);
    b.pool.retire(b.now, &r.version.key, &mut b.actions);
    assert!(matches!(b.actions.pop(), Some(Action::Shutdown { sandbox }) if sandbox == idle));
    b.idle(busy);
    assert!(matches!(b.actions.pop(), Some(Action::Shutdown { sandbox }) if sandbox == busy));
    assert_eq!(b.account.in_use(), 0);
    b.now += ms(61_000);
    b.pool.expire(b.now, &mut b.actions);
    assert!(matches!(&b.actions[..], [Action::Forget { version }] if *version == r.version.key));
}

#[test]
fn idle_and_old_sandboxes_expire() {
    let mut b = Bench::new(Config { idle_timeout: ms(1000), max_age: ms(5000), ..Config::default() });
    let r = request("v", None);
    let (a, c) = (b.cold(&r), b.cold(&r));
    b.idle(a);
    b.now += ms(999);
    b.idle(c);
    b.pool.expire(b.now, &mut b.actions);
    b.quiet();
    b.now += ms(1);
    b.pool.expire(b.now, &mut b.actions);
    assert!(matches!(b.actions.pop(), Some(Action::Shutdown { sandbox }) if sandbox == a));
    b.quiet();
    assert_eq!(b.leased(&r), c);
    b.now += ms(5000);
    b.idle(c);
    assert!(matches!(b.actions.pop(), Some(Action::Shutdown { sandbox }) if sandbox == c));
    b.pool.expire(b.now, &mut b.actions);
    assert!(matches!(&b.actions[..], [Action::Forget { .. }]));
    assert!(!b.pool.close_if_unused(ms(0)));
    assert!(b.pool.close_if_unused(b.now + ms(1)));
    assert_eq!(b.assign(&r), Answer::Closed);
}

#[test]
fn a_lost_lease_is_taken_back_with_its_sandbox() {
    let mut b = Bench::new(Config::default());
    let id = b.cold(&request("v", Some(1)));
    b.now += ms(29_999);
    assert!(b.pool.overdue_leases(b.now).is_empty());
    b.now += ms(1);
    let overdue = b.pool.overdue_leases(b.now);
    assert_eq!(overdue[0].sandbox, id);
    assert!(b.pool.overdue_leases(b.now).is_empty(), "asked once per limit");
    b.pool.take_back(b.now, id, ms(0), &mut b.actions);
    b.quiet();
    b.pool.take_back(b.now, id, overdue[0].since, &mut b.actions);
    assert!(matches!(b.actions[..], [Action::Shutdown { sandbox }] if sandbox == id));
    assert_eq!(b.pool.in_use, 0);
}

#[test]
fn stop_serves_who_has_a_start_and_nobody_else() {
    let mut b = Bench::new(Config::default());
    let r = request("v", None);
    let finishing = b.cold(&r);
    let idle = b.cold(&r);
    b.idle(idle);
    b.pool.answered(finishing);
    assert_eq!(b.leased(&r), idle);
    b.waits(&r); // 4, for `finishing`
    b.waits(&r); // 5, by a start
    let starting = b.started();
    b.pool.stop(&mut b.actions);
    assert!(matches!(b.actions[..], [Action::Stopping { caller: 4 }]));
    b.actions.clear();
    assert_eq!(b.assign(&r), Answer::Stopping);
    b.init_done(starting);
    assert_eq!(b.granted(), (5, starting, true));
    for id in [finishing, idle, starting] {
        b.idle(id);
        assert!(matches!(b.actions.pop(), Some(Action::Shutdown { sandbox }) if sandbox == id));
    }
    assert_eq!(b.account.in_use(), 0);
}

/// Found by the simulation: it was shut down while a function ran in it.
#[test]
fn what_another_manager_has_used_meanwhile_is_not_idle() {
    let mut b = Bench::new(Config::default());
    let id = new_id();
    let seen = |phase| Seen { sandbox: id, worker: (), version: VersionKey("v".into()), phase, fenced: true };
    b.pool.seen(b.now, seen(SlotPhase::Idle), &mut b.actions);
    b.pool.seen(b.now, seen(SlotPhase::Invoking), &mut b.actions);
    assert!(!b.pool.evict(id));
    assert_eq!(b.pool.in_use, 1);
    b.pool.idle(b.now, id, &mut b.actions);
    assert_eq!(b.pool.in_use, 0);
    assert!(b.pool.evict(id) && b.actions.is_empty());
}
