//! The fleet against the specification and a model of the books that is kept as simply as can be.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use domain::AccountId;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::fleet::caches::HOLDERS;
use crate::{Decision, IdleSandbox, PlaceRequest};

#[derive(Clone, Debug)]
enum Event {
    Report(WorkerReport),
    Remove(WorkerId),
    Stand(WorkerId, Standing),
    Holds(WorkerId, usize),
    Drops(WorkerId, usize),
    Place(SandboxId, Want),
    Adopt(SandboxId, WorkerId, Want),
    InitOver(SandboxId),
    Gone(SandboxId),
}

#[derive(Clone, Copy, Debug)]
struct Want {
    memory_mb: u32,
    function: usize,
    package: usize,
}

const PACKAGES: [&str; 3] = ["p0", "p1", "p2"];

fn function(n: usize) -> FunctionArn {
    FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: format!("f{n}").into() }
}

fn id(n: u8) -> WorkerId {
    WorkerId(format!("w{n:03}").into())
}

/// Asks as [`Wanted`] what `want` describes.
fn ask<T>(want: Want, ask: impl FnOnce(&Wanted<'_>) -> T) -> T {
    ask(&Wanted { memory_mb: want.memory_mb, function: &function(want.function), package: PACKAGES[want.package] })
}

/// What is booked, and beside it what others have on each worker.
#[derive(Default)]
struct Model {
    workers: BTreeMap<WorkerId, ModelWorker>,
    sandboxes: BTreeMap<SandboxId, (WorkerId, Want, bool)>,
    /// By package, of which life of which worker. A life ends with the worker, or with the last that is booked there after that.
    holders: [Vec<(WorkerId, u32)>; 3],
    lives: u32,
}

struct ModelWorker {
    here: bool,
    life: u32,
    told: WorkerReport,
    others: Load,
    standing: Standing,
}

impl Model {
    fn own(&self, worker: &WorkerId) -> Load {
        self.sandboxes.values().filter(|(w, ..)| w == worker).fold(Load::default(), |sum, (_, want, starting)| Load {
            memory_mb: sum.memory_mb + u64::from(want.memory_mb),
            slots: sum.slots + 1,
            starting: sum.starting + u32::from(*starting),
        })
    }

    fn apply(&mut self, event: &Event, placed: Option<WorkerId>) {
        match event {
            Event::Report(told) => {
                let own = self.own(&told.worker);
                let others = Load {
                    memory_mb: told.memory_used_mb.saturating_sub(own.memory_mb),
                    slots: told.slots_used.saturating_sub(own.slots),
                    starting: told.starting.saturating_sub(own.starting),
                };
                self.lives += 1;
                let (life, standing) = self
                    .workers
                    .get(&told.worker)
                    .map_or((self.lives, Standing::Open), |before| (before.life, before.standing));
                let worker = ModelWorker { here: true, life, told: told.clone(), others, standing };
                self.workers.insert(told.worker.clone(), worker);
            }
            Event::Remove(worker) => {
                if let Some(w) = self.workers.get_mut(worker) {
                    (w.here, w.standing) = (false, Standing::Open);
                }
            }
            Event::Stand(worker, standing) => {
                if let Some(w) = self.workers.get_mut(worker).filter(|w| w.here) {
                    w.standing = *standing;
                }
            }
            Event::Holds(worker, package) => self.holds(worker, *package),
            Event::Drops(worker, package) => {
                if let Some(w) = self.workers.get(worker).filter(|w| w.here) {
                    self.holders[*package].retain(|h| *h != (worker.clone(), w.life));
                }
            }
            Event::Place(sandbox, want) => {
                if let Some(worker) = placed {
                    self.holds(&worker, want.package);
                    self.sandboxes.insert(*sandbox, (worker, *want, true));
                }
            }
            Event::Adopt(sandbox, worker, want) => {
                if self.workers.get(worker).is_some_and(|w| w.here) {
                    self.sandboxes.insert(*sandbox, (worker.clone(), *want, true));
                    self.holds(worker, want.package);
                    let others = &mut self.workers.get_mut(worker).unwrap().others;
                    others.memory_mb = others.memory_mb.saturating_sub(want.memory_mb.into());
                    others.slots = others.slots.saturating_sub(1);
                    others.starting = others.starting.saturating_sub(1);
                }
            }
            Event::InitOver(sandbox) => {
                if let Some((_, _, starting)) = self.sandboxes.get_mut(sandbox) {
                    *starting = false;
                }
            }
            Event::Gone(sandbox) => {
                self.sandboxes.remove(sandbox);
            }
        }
        let booked = |id: &WorkerId| self.sandboxes.values().any(|(w, ..)| w == id);
        self.workers.retain(|id, worker| worker.here || booked(id));
    }

    fn holds(&mut self, worker: &WorkerId, package: usize) {
        let Some(w) = self.workers.get(worker).filter(|w| w.here) else { return };
        let holders = &mut self.holders[package];
        let holder = (worker.clone(), w.life);
        if !holders.contains(&holder) {
            holders.push(holder);
            let over = holders.len().saturating_sub(HOLDERS);
            holders.drain(..over);
        }
    }

    fn views(&self, want: Want) -> Vec<WorkerView> {
        let view = |(id, w): (&WorkerId, &ModelWorker)| {
            let own = self.own(id);
            let report = WorkerReport {
                memory_used_mb: w.others.memory_mb + own.memory_mb,
                slots_used: w.others.slots + own.slots,
                starting: w.others.starting + own.starting,
                draining: w.told.draining || w.standing != Standing::Open,
                ..w.told.clone()
            };
            let of_function = |(w, other, _): &&(WorkerId, Want, bool)| w == id && other.function == want.function;
            let has_package = self.holders[want.package].contains(&(id.clone(), w.life));
            let same_function = self.sandboxes.values().filter(of_function).count() as u32;
            WorkerView { report, has_package, same_function }
        };
        self.workers.iter().filter(|(_, w)| w.here).map(view).collect()
    }
}

fn apply(fleet: &mut Fleet, event: &Event) -> Option<WorkerId> {
    match event {
        Event::Report(report) => fleet.report(report.clone()),
        Event::Remove(worker) => {
            fleet.remove(worker);
        }
        Event::Stand(worker, standing) => {
            fleet.set_standing(worker, *standing);
        }
        Event::Holds(worker, package) => fleet.holds(worker, PACKAGES[*package]),
        Event::Drops(worker, package) => fleet.drops(worker, PACKAGES[*package]),
        Event::Place(sandbox, want) => {
            return ask(*want, |wanted| {
                let (worker, _) = place(fleet, wanted).ok()?;
                assert!(fleet.book(*sandbox, &worker, wanted));
                Some(worker)
            });
        }
        Event::Adopt(sandbox, worker, want) => {
            ask(*want, |wanted| fleet.adopt(*sandbox, worker, wanted));
        }
        Event::InitOver(sandbox) => fleet.init_over(*sandbox),
        Event::Gone(sandbox) => fleet.gone(*sandbox),
    }
    None
}

/// What the specification says, in the fleet's words.
fn specified(views: &[WorkerView], want: Want) -> Result<(WorkerId, Reason), NoCapacity> {
    match crate::place(views, &PlaceRequest { memory_mb: want.memory_mb }) {
        Decision::Place { worker, reason } => Ok((views[worker].report.worker.clone(), reason)),
        Decision::NoCapacity(why) => Err(why),
    }
}

fn place(fleet: &Fleet, wanted: &Wanted<'_>) -> Result<(WorkerId, Reason), NoCapacity> {
    fleet.place(wanted, &HashSet::new())
}

fn agree(fleet: &Fleet, views: &[WorkerView], want: Want) -> Result<(), TestCaseError> {
    let answer = ask(want, |wanted| place(fleet, wanted));
    prop_assert_eq!(&answer, &specified(views, want), "{:?}", want);
    // The first choice, and one that is no member, refuse.
    if let Ok((first, _)) = &answer {
        let except = HashSet::from([first.clone(), WorkerId("gone".into())]);
        let others: Vec<_> = views.iter().filter(|v| v.report.worker != *first).cloned().collect();
        let second = ask(want, |wanted| fleet.place(wanted, &except));
        prop_assert_eq!(second, specified(&others, want), "{:?} but not {}", want, first);
    }
    if let Ok((worker, _)) = answer {
        let now = &views.iter().find(|v| v.report.worker == worker).expect("a worker").report;
        prop_assert!(!now.draining && now.slots_used < now.slots);
        prop_assert!(now.memory_used_mb + u64::from(want.memory_mb) <= now.memory_mb);
    }
    Ok(())
}

fn any_want() -> impl Strategy<Value = Want> {
    (prop::sample::select(vec![128, 256, 1024, 3000, 10_240]), 0usize..3, 0usize..3)
        .prop_map(|(memory_mb, function, package)| Want { memory_mb, function, package })
}

/// Of few values, so that many workers are alike but for their ids.
fn any_report(workers: u8) -> impl Strategy<Value = WorkerReport> {
    (0..workers, prop::sample::select(vec![0, 4096, 5000, 16_384]), 0u64..9, 0u32..10, 0u32..6, 0u32..300).prop_map(
        |(n, memory_mb, eighths, slots, slots_used, luck)| WorkerReport {
            worker: id(n),
            memory_mb,
            memory_used_mb: memory_mb * eighths / 8,
            slots: slots * 10,
            slots_used: slots_used * 10,
            starting: if luck < 280 { luck % 3 } else { luck },
            draining: luck % 10 == 9,
        },
    )
}

fn any_event(workers: u8) -> impl Strategy<Value = Event> {
    let worker = || (0..workers).prop_map(id);
    let sandbox = || (0u128..40).prop_map(|n| SandboxId(Uuid::from_u128(n)));
    let standing = prop::sample::select(vec![Standing::Open, Standing::Open, Standing::Cordoned, Standing::Draining]);
    prop_oneof![
        4 => any_report(workers).prop_map(Event::Report),
        1 => worker().prop_map(Event::Remove),
        1 => (worker(), standing).prop_map(|(w, s)| Event::Stand(w, s)),
        1 => (worker(), 0usize..3).prop_map(|(w, p)| Event::Holds(w, p)),
        1 => (worker(), 0usize..3).prop_map(|(w, p)| Event::Drops(w, p)),
        6 => (sandbox(), any_want()).prop_map(|(s, w)| Event::Place(s, w)),
        2 => (sandbox(), worker(), any_want()).prop_map(|(s, w, want)| Event::Adopt(s, w, want)),
        2 => sandbox().prop_map(Event::InitOver),
        3 => sandbox().prop_map(Event::Gone),
    ]
}

fn sorted(mut views: Vec<WorkerView>) -> Vec<WorkerView> {
    views.sort_by(|a, b| a.report.worker.cmp(&b.report.worker));
    views
}

/// Nothing is kept of what is over.
fn assert_empties(mut fleet: Fleet) {
    let sandboxes: Vec<_> = fleet.sandboxes.keys().copied().collect();
    sandboxes.into_iter().for_each(|s| fleet.gone(s));
    assert!(fleet.functions.is_empty());
    assert!(fleet.members.values().all(|m| m.own == Load::default() && m.sandboxes.is_empty()));
    let workers: Vec<_> = fleet.numbers.keys().cloned().collect();
    assert_eq!((workers.len(), fleet.here), (fleet.members.len(), fleet.members.len()), "only those that are here");
    assert!(workers.iter().all(|w| fleet.remove(w)));
    assert!(fleet.members.is_empty() && fleet.numbers.is_empty());
    assert_eq!((fleet.here, fleet.closed, fleet.without_slot, fleet.memories.len()), (0, 0, 0, 0));
    assert!(fleet.ladders.values().all(|ladder| ladder.with_free(0).next().is_none()));
}

proptest! {
    #[test]
    fn decides_as_specified_after_any_events(
        events in prop::collection::vec(any_event(8), 1..80),
        wants in prop::collection::vec(any_want(), 3),
    ) {
        let (mut fleet, mut model) = (Fleet::default(), Model::default());
        for event in &events {
            // Where the specification puts it, not where the fleet did.
            let specified = match event {
                Event::Place(_, want) => specified(&model.views(*want), *want).ok().map(|(worker, _)| worker),
                _ => None,
            };
            prop_assert_eq!(&apply(&mut fleet, event), &specified, "{:?}", event);
            model.apply(event, specified);
            for &want in &wants {
                let views = model.views(want);
                prop_assert_eq!(&sorted(ask(want, |wanted| fleet.views(wanted))), &views, "{:?}", event);
                agree(&fleet, &views, want)?;
            }
        }
        let booked: BTreeSet<_> = fleet.sandboxes.keys().copied().collect();
        prop_assert_eq!(booked, model.sandboxes.keys().copied().collect::<BTreeSet<_>>());
        for (id, worker) in &model.workers {
            let drains = worker.told.draining || worker.standing == Standing::Draining;
            prop_assert_eq!(fleet.drains(id), worker.here && drains);
            let there: BTreeMap<_, _> = fleet.sandboxes_on(id).collect();
            prop_assert!(there.keys().all(|s| fleet.worker_of(*s) == Some(id)));
            let of_model = model.sandboxes.iter().filter(|(_, (w, ..))| w == id);
            prop_assert_eq!(there, of_model.map(|(s, (.., starting))| (*s, *starting)).collect::<BTreeMap<_, _>>());
        }
        assert_empties(fleet);
    }

    /// More workers than are looked at, and functions and packages on more of them than that.
    #[test]
    fn decides_as_specified_over_many_workers(
        reports in prop::collection::vec(any_report(200), 100..400),
        holders in prop::collection::vec((0u8..200, 0usize..3), 0..300),
        placed in 0usize..300,
        wants in prop::collection::vec(any_want(), 8),
    ) {
        let mut fleet = Fleet::default();
        reports.into_iter().for_each(|report| fleet.report(report));
        holders.into_iter().for_each(|(worker, package)| fleet.holds(&id(worker), PACKAGES[package]));
        for n in 0..placed {
            let want = wants[n % wants.len()];
            if n % 10 == 0 {
                agree(&fleet, &ask(want, |wanted| fleet.views(wanted)), want)?;
            }
            apply(&mut fleet, &Event::Place(SandboxId(Uuid::from_u128(n as u128)), want));
        }
        for want in wants {
            agree(&fleet, &ask(want, |wanted| fleet.views(wanted)), want)?;
        }
        assert_empties(fleet);
    }

    /// [`LOOKED_AT`] costs spread only, and only of a function that many workers have.
    #[test]
    fn none_is_cheaper_than_what_is_looked_at(
        reports in prop::collection::vec(any_report(200), 100..400),
        sandboxes in 0usize..LOOKED_AT,
        want in any_want(),
    ) {
        let mut fleet = Fleet::default();
        reports.into_iter().for_each(|report| fleet.report(report));
        for n in 0..sandboxes {
            apply(&mut fleet, &Event::Place(SandboxId(Uuid::from_u128(n as u128)), want));
        }
        let views = ask(want, |wanted| fleet.views(wanted));
        let of_all: Vec<_> = views
            .iter()
            .filter(|w| admits(&w.report, want.memory_mb))
            .map(|w| Candidate::new(&w.report.worker, &w.report, want.memory_mb, w.has_package, w.same_function))
            .collect();
        let cheapest = Candidate::choose(&of_all, views.len()).map(|(worker, reason)| (worker.clone(), reason));
        prop_assert_eq!(ask(want, |wanted| place(&fleet, wanted)).ok(), cheapest);
    }

    #[test]
    fn the_order_of_reports_does_not_matter(reports in prop::collection::vec(any_report(100), 1..100), want in any_want()) {
        let last: BTreeMap<_, _> = reports.into_iter().map(|report| (report.worker.clone(), report)).collect();
        let (mut one, mut other) = (Fleet::default(), Fleet::default());
        last.values().for_each(|report| one.report(report.clone()));
        last.values().rev().for_each(|report| other.report(report.clone()));
        prop_assert_eq!(ask(want, |wanted| place(&one, wanted)), ask(want, |wanted| place(&other, wanted)));
    }

    #[test]
    fn makes_room_as_specified(
        events in prop::collection::vec(any_event(6), 1..80),
        idle in prop::collection::vec(0u128..40, 0..30),
        want in any_want(),
    ) {
        let mut fleet = Fleet::default();
        events.iter().for_each(|event| { apply(&mut fleet, event); });
        let unique: BTreeSet<_> = idle.iter().copied().collect();
        let idle: Vec<_> = unique.into_iter().map(|n| SandboxId(Uuid::from_u128(n))).collect();
        let views = ask(want, |wanted| fleet.views(wanted));
        let place_of = |worker: &WorkerId| views.iter().position(|v| v.report.worker == *worker).expect("a worker");
        let here = |s: &SandboxId| fleet.worker_of(*s).is_some_and(|w| fleet.here(w).is_some());
        let known: Vec<_> = idle.iter().copied().filter(here).collect();
        let as_specified: Vec<_> = known
            .iter()
            .map(|s| IdleSandbox {
                worker: place_of(fleet.worker_of(*s).expect("it is known")),
                memory_mb: fleet.sandboxes[s].memory_mb,
            })
            .collect();
        let specified = crate::make_room(&views, &PlaceRequest { memory_mb: want.memory_mb }, &as_specified)
            .map(|chosen| chosen.into_iter().map(|at| known[at]).collect::<Vec<_>>());
        prop_assert_eq!(fleet.make_room(want.memory_mb, idle), specified);
    }
}

fn empty(n: u8) -> WorkerReport {
    WorkerReport {
        worker: id(n),
        memory_mb: 4096,
        memory_used_mb: 0,
        slots: 100,
        slots_used: 0,
        starting: 0,
        draining: false,
    }
}

const SMALL: Want = Want { memory_mb: 128, function: 0, package: 0 };

#[test]
fn a_report_that_lags_hides_nothing_of_what_was_booked_since() {
    let mut fleet = Fleet::default();
    let used = |fleet: &Fleet| ask(SMALL, |wanted| fleet.views(wanted)[0].report.memory_used_mb);
    // 1,024 MB of another decider's; 128 of ours, which the report does not show yet, and then does.
    let others = WorkerReport { memory_used_mb: 1024, slots_used: 8, ..empty(0) };
    fleet.report(others.clone());
    apply(&mut fleet, &Event::Place(SandboxId(Uuid::from_u128(1)), SMALL));
    assert_eq!(used(&fleet), 1152);
    let both = WorkerReport { memory_used_mb: 1152, slots_used: 9, ..others };
    fleet.report(both.clone());
    assert_eq!(used(&fleet), 1152);
    // One that we take over is among those that it shows.
    apply(&mut fleet, &Event::Adopt(SandboxId(Uuid::from_u128(2)), id(0), SMALL));
    assert_eq!(used(&fleet), 1152);
    fleet.gone(SandboxId(Uuid::from_u128(1)));
    assert_eq!(used(&fleet), 1024, "before the next report");
    // A worker that was started anew has nothing of what we believe; until we hear that it is gone, its place is kept.
    fleet.report(empty(0));
    assert_eq!(used(&fleet), 128);
}

#[test]
fn a_cordon_keeps_what_is_there_and_a_drain_does_not() {
    let mut fleet = Fleet::default();
    let sandbox = SandboxId(Uuid::from_u128(1));
    fleet.report(empty(0));
    apply(&mut fleet, &Event::Place(sandbox, SMALL));
    for standing in [Standing::Cordoned, Standing::Draining] {
        assert!(fleet.set_standing(&id(0), standing));
        fleet.report(empty(0));
        let why = ask(SMALL, |wanted| place(&fleet, wanted)).expect_err("closed");
        assert_eq!(why.to_string(), "all 1 workers are draining or cordoned");
        assert_eq!(fleet.drains(&id(0)), standing == Standing::Draining);
        assert_eq!(fleet.sandboxes_on(&id(0)).collect::<Vec<_>>(), [(sandbox, true)]);
    }
    fleet.report(WorkerReport { draining: true, ..empty(0) });
    fleet.set_standing(&id(0), Standing::Open);
    assert!(fleet.drains(&id(0)), "it says so itself");
    assert!(!fleet.set_standing(&id(1), Standing::Cordoned), "no member");
    assert!(ask(SMALL, |wanted| !fleet.book(sandbox, &id(1), wanted)), "nor has it room");
    assert_eq!(fleet.worker_of(sandbox), Some(&id(0)));
}
