//! What every engine must do; time is moved by the tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use membership::{Hold, Lease, Ledger, Member, MemberId, MemberState, Registry, RegistryError, Role, View};
use proptest::prelude::*;
use uuid::Uuid;

pub const TTL: Duration = Duration::from_secs(2);
/// The registry's time of day when a test begins, in ms.
pub const START: u64 = 1_000_000;

/// The registry's clock.
#[async_trait]
pub trait TestTime: Send + Sync {
    /// It is so many milliseconds after 1970.
    async fn set(&self, now: u64);
}

/// A registry that nobody else uses, by two ways to it, as two processes have.
pub struct Bed {
    pub registry: Arc<dyn Registry>,
    pub other: Arc<dyn Registry>,
    pub time: Arc<dyn TestTime>,
    now: u64,
}

impl Bed {
    pub async fn new(registry: Arc<dyn Registry>, other: Arc<dyn Registry>, time: Arc<dyn TestTime>) -> Self {
        time.set(START).await;
        Self { registry, other, time, now: START }
    }

    async fn advance(&mut self, span: Duration) {
        self.now += span.as_millis() as u64;
        self.time.set(self.now).await;
    }

    async fn join(&self, id: &str, instance: u128) -> Lease {
        self.registry.join(&member(id), Uuid::from_u128(instance), TTL).await.unwrap()
    }

    async fn alive(&self, lease: &Lease) -> u64 {
        match self.registry.beat(lease).await.unwrap() {
            Hold::Held { joined, epoch } if joined == lease.epoch => epoch,
            other => panic!("{lease:?}: {other:?}"),
        }
    }

    /// All of these beat for so long, every quarter of the time to live.
    async fn pass(&mut self, span: Duration, leases: &[&Lease]) {
        for _ in 0..(span.as_millis() / (TTL / 4).as_millis()) {
            self.advance(TTL / 4).await;
            for lease in leases {
                self.alive(lease).await;
            }
        }
    }

    async fn ids(&self) -> String {
        ids(&self.other.view().await.unwrap())
    }
}

fn ids(view: &View) -> String {
    view.members().iter().map(|member| member.id.to_string()).collect::<Vec<_>>().join(" ")
}

pub fn member(id: &str) -> Member {
    Member {
        id: MemberId::new(id),
        roles: [Role::Worker].into(),
        address: format!("{id}:7000"),
        version: "0.1.0".into(),
        state: MemberState::Active,
        epoch: 0,
        labels: BTreeMap::new(),
    }
}

pub async fn all(bed: impl AsyncFn() -> Bed) {
    members_come_and_go(bed().await).await;
    everything_of_a_member_is_kept(bed().await).await;
    states_change_once(bed().await).await;
    the_dead_are_found_and_learn_it(bed().await).await;
    another_process_takes_the_name(bed().await).await;
    a_join_may_be_repeated(bed().await).await;
    nobody_dies_of_an_outage(bed().await).await;
    a_short_outage_is_borne(bed().await).await;
    a_clock_that_jumps_kills_nobody(bed().await).await;
    the_longest_time_to_live_holds(bed().await).await;
    epochs_are_no_lower_than_the_time(bed().await).await;
    what_cannot_join_is_refused(bed().await).await;
}

async fn members_come_and_go(bed: Bed) {
    let mut heard = bed.other.heard();
    let none = bed.registry.view().await.unwrap();
    assert!(none.members().is_empty());
    let a = bed.join("a", 1).await;
    let one = bed.other.view().await.unwrap();
    assert!(a.epoch > none.epoch() && one.epoch() == a.epoch);
    assert_eq!(one.members(), [Member { epoch: a.epoch, ..member("a") }]);
    let b = bed.join("b", 2).await;
    assert_eq!(bed.ids().await, "a b");
    // Beats change nothing.
    assert_eq!((bed.alive(&a).await, bed.alive(&b).await), (b.epoch, b.epoch));
    assert_eq!(bed.other.view().await.unwrap(), bed.registry.view().await.unwrap());
    bed.other.leave(&a).await.unwrap();
    let last = bed.registry.view().await.unwrap();
    assert_eq!(ids(&last), "b");
    assert!(last.epoch() > b.epoch);
    // Gone is gone.
    bed.registry.leave(&a).await.unwrap();
    assert_eq!(bed.registry.view().await.unwrap(), last);
    assert_eq!(bed.registry.beat(&a).await, Ok(Hold::Expired));
    assert_eq!(bed.registry.set_state(&a, MemberState::Draining).await, Ok(Hold::Expired));
    // The other process hears of it without asking. (Listening may begin a little after connecting; then there is more to hear.)
    let hear = async {
        while heard.borrow_and_update().to_owned() < last.epoch() {
            let mut next = MemberState::Draining;
            while tokio::time::timeout(Duration::from_millis(200), heard.changed()).await.is_err() {
                bed.registry.set_state(&b, next).await.unwrap();
                next = if next == MemberState::Draining { MemberState::Active } else { MemberState::Draining };
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), hear).await.expect("heard");
}

async fn everything_of_a_member_is_kept(bed: Bed) {
    let mut given = member("a'; \"é\u{1f525}");
    given.roles = Role::ALL.into();
    given.labels = [("zone".to_owned(), "eu \"1\"".to_owned()), (String::new(), "ü".to_owned())].into();
    given.state = MemberState::Joining;
    let lease = bed.registry.join(&given, Uuid::from_u128(1), TTL).await.unwrap();
    given.epoch = lease.epoch;
    assert_eq!(bed.other.view().await.unwrap().members(), [given]);
}

async fn states_change_once(bed: Bed) {
    let a = bed.join("a", 1).await;
    let Ok(Hold::Held { joined, epoch }) = bed.registry.set_state(&a, MemberState::Draining).await else { panic!() };
    assert!(joined == a.epoch && epoch > a.epoch);
    let view = bed.other.view().await.unwrap();
    assert_eq!((view.epoch(), view.members()[0].state), (epoch, MemberState::Draining));
    assert_eq!(view.members()[0].epoch, a.epoch);
    assert_eq!(bed.registry.set_state(&a, MemberState::Draining).await, Ok(Hold::Held { joined, epoch }));
    assert_eq!(bed.other.view().await.unwrap(), view);
}

async fn the_dead_are_found_and_learn_it(mut bed: Bed) {
    let (a, b) = (bed.join("a", 1).await, bed.join("b", 2).await);
    bed.pass(TTL, &[&a, &b]).await;
    // Not before its time has passed.
    bed.pass(TTL, &[&a]).await;
    assert_eq!(bed.ids().await, "a b");
    let before = bed.alive(&a).await;
    bed.pass(TTL / 4, &[&a]).await;
    assert_eq!(bed.ids().await, "a");
    let found = bed.alive(&a).await;
    assert!(found > before);
    assert_eq!(bed.other.beat(&b).await, Ok(Hold::Expired));
    assert_eq!(bed.other.set_state(&b, MemberState::Draining).await, Ok(Hold::Expired));
    let again = bed.join("b", 2).await;
    assert!(again.epoch > found && bed.ids().await == "a b");
}

async fn another_process_takes_the_name(bed: Bed) {
    let (old, new) = (bed.join("a", 1).await, bed.join("a", 2).await);
    assert!(new.epoch > old.epoch);
    assert_eq!(bed.registry.beat(&old).await, Ok(Hold::Replaced));
    assert_eq!(bed.registry.set_state(&old, MemberState::Draining).await, Ok(Hold::Replaced));
    bed.registry.leave(&old).await.unwrap();
    let view = bed.registry.view().await.unwrap();
    assert_eq!((view.epoch(), ids(&view).as_str(), view.members()[0].state), (new.epoch, "a", MemberState::Active));
    bed.alive(&new).await;
}

async fn a_join_may_be_repeated(bed: Bed) {
    // Its answer was lost.
    let (lost, known) = (bed.join("a", 1).await, bed.join("a", 1).await);
    assert!(known.epoch > lost.epoch && bed.ids().await == "a");
    bed.alive(&known).await;
    // Or it was done after the second one: the beat says which epoch holds.
    let held = Hold::Held { joined: known.epoch, epoch: known.epoch };
    assert_eq!(bed.registry.beat(&lost).await, Ok(held));
}

async fn nobody_dies_of_an_outage(mut bed: Bed) {
    let [a, b, c] = [bed.join("a", 1).await, bed.join("b", 2).await, bed.join("c", 3).await];
    bed.pass(TTL, &[&a, &b, &c]).await;
    let before = bed.registry.view().await.unwrap();
    for outage in [TTL / 2, TTL, Duration::from_secs(60), Duration::from_secs(86_400)] {
        bed.advance(outage).await;
        bed.alive(&a).await;
        // A full time to live for the others.
        bed.pass(TTL, &[&a]).await;
        assert_eq!(bed.registry.view().await.unwrap(), before, "{outage:?}");
        bed.alive(&b).await;
        bed.alive(&c).await;
    }
    // Whoever joins first after one finds nobody dead either.
    bed.advance(Duration::from_secs(60)).await;
    let d = bed.join("d", 4).await;
    assert_eq!(bed.ids().await, "a b c d");
    bed.pass(TTL, &[&d]).await;
    assert_eq!(bed.ids().await, "a b c d");
    // And who is really dead goes.
    bed.pass(TTL / 2, &[&d]).await;
    assert_eq!(bed.ids().await, "d");
}

async fn a_short_outage_is_borne(mut bed: Bed) {
    let (a, b) = (bed.join("a", 1).await, bed.join("b", 2).await);
    bed.pass(TTL, &[&a, &b]).await;
    bed.advance(TTL / 4).await;
    bed.alive(&a).await;
    // It is not noticed, and the next try of `b` comes in time.
    bed.advance(TTL * 3 / 8).await;
    bed.alive(&a).await;
    bed.advance(TTL / 4).await;
    bed.alive(&a).await;
    bed.alive(&b).await;
    assert_eq!(bed.ids().await, "a b");
}

async fn a_clock_that_jumps_kills_nobody(mut bed: Bed) {
    let [a, b] = [bed.join("a", 1).await, bed.join("b", 2).await];
    bed.pass(TTL, &[&a, &b]).await;
    bed.now -= 900_000;
    bed.pass(TTL / 4, &[&a]).await;
    bed.pass(TTL, &[&a]).await;
    assert_eq!(bed.ids().await, "a b");
    bed.pass(TTL / 4, &[&a]).await;
    assert_eq!(bed.ids().await, "a", "the dead are found though the clock went back");
}

async fn the_longest_time_to_live_holds(mut bed: Bed) {
    let a = bed.join("a", 1).await;
    let slow = bed.registry.join(&member("slow"), Uuid::from_u128(2), TTL * 4).await.unwrap();
    // The first sweep ever begins all leases anew.
    bed.alive(&slow).await;
    for _ in 0..4 {
        // Its beats are far apart, which is no outage.
        bed.advance(TTL).await;
        bed.alive(&slow).await;
    }
    assert_eq!(bed.ids().await, "a slow");
    bed.advance(TTL).await;
    bed.alive(&slow).await;
    assert_eq!(bed.ids().await, "slow");
    assert_eq!(bed.registry.beat(&a).await, Ok(Hold::Expired));
}

async fn epochs_are_no_lower_than_the_time(mut bed: Bed) {
    // A registry that was restored from a backup goes on above all that it had given.
    let a = bed.join("a", 1).await;
    assert!(a.epoch >= START);
    bed.advance(TTL).await;
    let b = bed.join("b", 2).await;
    assert!(b.epoch >= START + TTL.as_millis() as u64);
    bed.now -= 900_000;
    bed.advance(TTL).await;
    assert!(bed.join("c", 3).await.epoch > b.epoch);
}

async fn what_cannot_join_is_refused(bed: Bed) {
    let mut wrong = member("a");
    wrong.roles.clear();
    let error = bed.registry.join(&wrong, Uuid::nil(), TTL).await.unwrap_err();
    assert!(matches!(error, RegistryError::Invalid { .. }) && !error.retryable(), "{error}");
    let error = bed.registry.join(&member("a"), Uuid::nil(), Duration::from_millis(1)).await.unwrap_err();
    assert!(error.to_string().contains("join the fleet as member \"a\": a lease of 1ms is too short"), "{error}");
    assert_eq!(bed.ids().await, "");
}

/// A call of one of two processes, under one of three names.
#[derive(Clone, Debug)]
pub enum Step {
    Join(u8, u8, bool),
    Beat(u8, u8),
    SetState(u8, u8, MemberState),
    Leave(u8, u8),
    Advance(u64),
    Back(u64),
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || (0u8..3, 0u8..2);
    let state = prop_oneof![Just(MemberState::Joining), Just(MemberState::Active), Just(MemberState::Draining)];
    let step = prop_oneof![
        2 => (who(), any::<bool>()).prop_map(|((name, process), long)| Step::Join(name, process, long)),
        8 => who().prop_map(|(name, process)| Step::Beat(name, process)),
        1 => (who(), state).prop_map(|((name, process), state)| Step::SetState(name, process, state)),
        1 => who().prop_map(|(name, process)| Step::Leave(name, process)),
        6 => prop_oneof![4 => 0u64..800, 1 => 800u64..20_000].prop_map(Step::Advance),
        1 => (1u64..5000).prop_map(Step::Back),
    ];
    prop::collection::vec(step, 1..80)
}

/// The engine does what the rules say, answer by answer.
pub async fn agrees_with_the_ledger(mut bed: Bed, steps: Vec<Step>) {
    let mut ledger = Ledger::default();
    let lease = |name: u8, process: u8| Lease {
        member: MemberId::new(format!("m{name}")),
        instance: Uuid::from_u128(process.into()),
        epoch: 0,
    };
    for step in steps {
        let (registry, now) = (&bed.registry, bed.now);
        match step.clone() {
            Step::Join(name, process, long) => {
                let (member, instance) = (member(&format!("m{name}")), lease(name, process).instance);
                let ttl = if long { TTL * 3 } else { TTL };
                let expected = ledger.join(now, &member, instance, ttl);
                assert_eq!(registry.join(&member, instance, ttl).await.unwrap(), expected, "{step:?}");
            }
            Step::Beat(name, process) => {
                let lease = lease(name, process);
                assert_eq!(registry.beat(&lease).await.unwrap(), ledger.beat(now, &lease), "{step:?}");
            }
            Step::SetState(name, process, state) => {
                let lease = lease(name, process);
                let expected = ledger.set_state(now, &lease, state);
                assert_eq!(registry.set_state(&lease, state).await.unwrap(), expected, "{step:?}");
            }
            Step::Leave(name, process) => {
                let lease = lease(name, process);
                registry.leave(&lease).await.unwrap();
                ledger.leave(now, &lease);
            }
            Step::Advance(span) => bed.advance(Duration::from_millis(span)).await,
            Step::Back(span) => {
                bed.now -= span;
                bed.time.set(bed.now).await;
            }
        }
        assert_eq!(bed.other.view().await.unwrap(), ledger.view(), "after {step:?}");
    }
}
