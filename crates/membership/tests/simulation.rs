//! Many members and one registry in simulated time: the real state machines, with latencies, outages, deaths, and a clock that jumps.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use membership::{
    Action, Call, Event, Hold, Keeper, Lease, Ledger, Member, MemberId, MemberState, Role, Standing, View,
};
use proptest::prelude::*;
use uuid::Uuid;

/// All times are in ms.
const TTL: u64 = 2000;
/// The first outage begins after everybody has joined.
const SETTLED: u64 = 3000;
/// What is between two outages at least: some of the beats fall into each of a row of short ones otherwise.
const BETWEEN: u64 = 1000;
/// The slowest answer of a registry that is there.
const SLOWEST: u64 = 60;
/// The time of day when the simulation begins.
const DAY: u64 = 1_000_000_000_000;

/// What is simulated.
#[derive(Clone, Debug)]
struct World {
    /// When each member comes.
    comes: Vec<u64>,
    /// Who dies (by place), and when.
    deaths: BTreeMap<usize, u64>,
    /// Outages: the time from the end of the one before, the length, and whether calls are refused at once (or never answered).
    outages: Vec<(u64, u64, bool)>,
    /// These are taken in turn.
    latencies: Vec<u64>,
    /// By how much the registry's clock jumps in each outage.
    jumps: Vec<i64>,
}

fn worlds() -> impl Strategy<Value = World> {
    // Many around that which is just not noticed.
    let length = prop_oneof![1u64..2000, 600u64..1500, 2000u64..60_000];
    let jump = prop_oneof![3 => Just(0i64), 1 => -5_000_000i64..5_000_000];
    (
        prop::collection::vec(0u64..1000, 2..7),
        prop::collection::btree_map(0usize..5, 2500u64..30_000, 0..3),
        prop::collection::vec((BETWEEN..5000, length, any::<bool>()), 0..5),
        prop::collection::vec(1..=SLOWEST, 1..20),
        prop::collection::vec(jump, 5),
    )
        .prop_map(|(comes, mut deaths, outages, latencies, jumps)| {
            // Somebody must be left to find the dead.
            deaths.retain(|place, _| *place + 1 < comes.len());
            World { comes, deaths, outages, latencies, jumps }
        })
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Happening {
    /// The member's call of this number reaches the registry; whether its answer will reach the member.
    Arrives(usize, u64, bool),
    /// Its answer is there, or it has waited long enough.
    Answered(usize, u64),
    /// The member may have something to do.
    Wakes(usize),
}

struct Actor {
    keeper: Keeper,
    lease: Lease,
    member: Member,
    call: Option<(u64, Call)>,
    answer: Option<Event>,
    view: View,
}

struct Simulation {
    world: World,
    now: u64,
    calls: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    ordered: u64,
    actors: Vec<Actor>,
    ledger: Ledger,
    /// Each epoch's view.
    views: BTreeMap<u64, View>,
}

impl Simulation {
    fn new(world: World) -> Self {
        let actor = |place: usize| {
            let id = MemberId::new(format!("member-{place}"));
            let member = Member {
                id: id.clone(),
                roles: [Role::Worker].into(),
                address: format!("member-{place}:1"),
                version: "1".into(),
                state: MemberState::Active,
                epoch: 0,
                labels: BTreeMap::new(),
            };
            Actor {
                keeper: Keeper::new(id.clone(), MemberState::Active, Duration::from_millis(TTL)),
                lease: Lease { member: id, instance: Uuid::from_u128(place as u128), epoch: 0 },
                member,
                call: None,
                answer: None,
                view: View::default(),
            }
        };
        let mut simulation = Self {
            now: 0,
            calls: 0,
            queue: BinaryHeap::new(),
            ordered: 0,
            actors: (0..world.comes.len()).map(actor).collect(),
            ledger: Ledger::default(),
            views: BTreeMap::new(),
            world,
        };
        for (place, at) in simulation.world.comes.clone().into_iter().enumerate() {
            simulation.at(at, Happening::Wakes(place));
        }
        simulation
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.ordered += 1;
        self.queue.push(Reverse((at, self.ordered, happening)));
    }

    fn outages(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        self.world.outages.iter().scan(SETTLED, |end, (pause, length, refuses)| {
            let start = *end + pause;
            *end = start + length;
            Some((start, *end, *refuses))
        })
    }

    /// Whether calls are refused at once, if there is an outage.
    fn outage(&self, at: u64) -> Option<bool> {
        self.outages().find(|(start, end, _)| (*start..*end).contains(&at)).map(|(_, _, refuses)| refuses)
    }

    /// The registry's own time of day.
    fn day(&self) -> u64 {
        let ended = self.outages().filter(|(_, end, _)| *end <= self.now).count();
        DAY.saturating_add_signed(self.world.jumps.iter().take(ended).sum()) + self.now
    }

    fn dead(&self, place: usize) -> bool {
        self.world.deaths.get(&place).is_some_and(|at| *at <= self.now)
    }

    fn run(&mut self, until: u64) {
        while let Some(Reverse((at, ..))) = self.queue.peek()
            && *at <= until
        {
            let Reverse((at, _, happening)) = self.queue.pop().unwrap();
            self.now = at;
            match happening {
                Happening::Wakes(place) if !self.dead(place) => self.step(place, Event::Time),
                Happening::Answered(place, call) if !self.dead(place) => {
                    if self.actors[place].call.take_if(|(number, _)| *number == call).is_some() {
                        let event = self.actors[place].answer.take().unwrap_or(Event::Failed);
                        self.step(place, event);
                    }
                }
                // It was sent: what has become of the sender does not matter.
                Happening::Arrives(place, call, heard) => self.arrives(place, call, heard),
                Happening::Wakes(_) | Happening::Answered(..) => {}
            }
        }
        self.now = until;
    }

    fn arrives(&mut self, place: usize, number: u64, heard: bool) {
        let (_, call) = self.actors[place].call.filter(|(of, _)| *of == number).expect("calls arrive before they end");
        let day = self.day();
        let Actor { lease, member, .. } = &self.actors[place];
        let before = self.ledger.epoch();
        let event = match call {
            Call::Join(state) => {
                let member = Member { state, ..member.clone() };
                Event::Joined(self.ledger.join(day, &member, lease.instance, Duration::from_millis(TTL)).epoch)
            }
            Call::Beat => Event::Told(self.ledger.beat(day, lease)),
            Call::SetState(state) => Event::Told(self.ledger.set_state(day, lease, state)),
            Call::Read => Event::Read(self.ledger.view()),
            Call::Leave => {
                self.ledger.leave(day, lease);
                Event::Gone
            }
        };
        assert!(self.ledger.epoch() >= before);
        let view = self.ledger.view();
        assert_eq!(*self.views.entry(view.epoch()).or_insert_with(|| view.clone()), view, "two views of one epoch");
        assert_ne!(event, Event::Told(Hold::Expired), "at {} {place} lives and was found dead", self.now);
        for (other, actor) in self.actors.iter().enumerate().filter(|(other, _)| !self.dead(*other)) {
            let joined = matches!(actor.keeper.standing(), Standing::In { .. });
            assert!(!joined || view.member(&actor.member.id).is_some(), "at {} {other} was found dead", self.now);
        }
        self.actors[place].answer = heard.then_some(event);
    }

    fn step(&mut self, place: usize, event: Event) {
        let now = Duration::from_millis(self.now);
        for action in self.actors[place].keeper.step(now, event) {
            match action {
                Action::Call(call) => self.call(place, call),
                Action::Stand(Standing::In { epoch }) => self.actors[place].lease.epoch = epoch,
                Action::Stand(_) => {}
                Action::Publish(view) => {
                    assert!(view.epoch() > self.actors[place].view.epoch());
                    self.actors[place].view = view;
                }
            }
        }
        if let Some(due) = self.actors[place].keeper.due() {
            let due = u64::try_from(due.as_millis()).unwrap().max(self.now + 1);
            self.at(due, Happening::Wakes(place));
        }
    }

    fn call(&mut self, place: usize, call: Call) {
        self.calls += 1;
        let number = self.calls;
        self.actors[place].call = Some((number, call));
        self.actors[place].answer = None;
        let latency = self.world.latencies[usize::try_from(number).unwrap() % self.world.latencies.len()];
        let (there, back) = (self.now + latency.div_ceil(2), self.now + latency);
        let limit = self.now + u64::try_from(self.actors[place].keeper.limit(call).as_millis()).unwrap();
        if self.outage(self.now) == Some(true) {
            self.at(back, Happening::Answered(place, number));
            return;
        }
        let arrives = self.outage(self.now).or_else(|| self.outage(there)).is_none();
        // The answer can be lost though the call was done.
        let answered = arrives && self.outage(back).is_none();
        if arrives {
            self.at(there, Happening::Arrives(place, number, answered));
        }
        self.at(if answered { back } else { limit }, Happening::Answered(place, number));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_living_stay_and_the_dead_go(world in worlds()) {
        let mut simulation = Simulation::new(world.clone());
        let last_outage = simulation.outages().map(|(_, end, _)| end).max().unwrap_or(SETTLED);
        let last_death = world.deaths.values().max().copied().unwrap_or(0);
        // The next try, the time to live, the next beat of somebody who finds the dead, the next of everybody who hears of it.
        simulation.run(last_outage.max(last_death) + TTL / 4 + TTL + TTL / 4 + TTL / 4 + 5 * SLOWEST);
        let living = world.comes.len() - world.deaths.len();
        for (place, actor) in simulation.actors.iter().enumerate().filter(|(place, _)| !simulation.dead(*place)) {
            prop_assert!(matches!(actor.keeper.standing(), Standing::In { .. }), "{place}: {:?}", actor.keeper);
            prop_assert_eq!(actor.view.members().len(), living, "{} has {:?}", place, actor.view);
            prop_assert_eq!(&actor.view, &simulation.ledger.view());
        }
    }

    /// Without outages: out of all views within one and a half of the time to live.
    #[test]
    fn a_dead_member_is_out_in_time(
        comes in prop::collection::vec(0u64..1000, 2..6),
        at in 2000u64..5000,
        latency in 1..=SLOWEST,
    ) {
        let (deaths, latencies) = ([(0, at)].into(), vec![latency]);
        let mut simulation = Simulation::new(World { comes, deaths, latencies, outages: Vec::new(), jumps: Vec::new() });
        simulation.run(at - 1);
        prop_assert_eq!(simulation.ledger.view().members().len(), simulation.actors.len());
        simulation.run(at + TTL * 3 / 2 + 3 * latency);
        for actor in &simulation.actors[1..] {
            prop_assert_eq!(actor.view.members().len(), simulation.actors.len() - 1);
        }
    }
}
