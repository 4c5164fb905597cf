use std::collections::BTreeMap;

use domain::{AccountId, FunctionArn, ObservedSandbox, PackageChanges, WorkerReport};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const MEMORY_MB: u64 = 1000;

fn worker(n: usize) -> WorkerId {
    WorkerId(format!("w{n}").into())
}

fn arn(n: usize) -> FunctionArn {
    FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: format!("f{n}").into() }
}

fn id(n: u128) -> SandboxId {
    SandboxId(Uuid::from_u128(n))
}

fn ask(sandbox: u128, function: usize) -> PlaceRequest {
    let package = format!("package of {function}");
    PlaceRequest { sandbox: id(sandbox), memory_mb: 100, function: arn(function), package, except: vec![] }
}

/// What a worker has, which it tells of now and then.
#[derive(Clone, Default)]
struct Host {
    /// The function, and whether Init is under way.
    sandboxes: BTreeMap<SandboxId, (usize, bool)>,
    told: BTreeMap<SandboxId, (usize, bool)>,
    heard: bool,
    cordoned: bool,
}

impl Host {
    fn report(&self, n: usize) -> WorkerReport {
        let there = self.sandboxes.len();
        WorkerReport {
            worker: worker(n),
            memory_mb: MEMORY_MB,
            memory_used_mb: 100 * there as u64,
            slots: 10,
            slots_used: there as u32,
            starting: self.sandboxes.values().filter(|(_, starting)| *starting).count() as u32,
            draining: self.cordoned,
        }
    }

    fn observed(&mut self, n: usize) -> Observed {
        let whole = !std::mem::replace(&mut self.heard, true);
        let before = if whole { BTreeMap::new() } else { std::mem::take(&mut self.told) };
        let new = self.sandboxes.iter().filter(|(id, _)| !before.contains_key(id));
        let added = new.map(|(id, (function, starting))| {
            let PlaceRequest { memory_mb, function, package, .. } = ask(0, *function);
            ObservedSandbox { sandbox: *id, memory_mb, function, package, starting: *starting }
        });
        let added = added.collect();
        let initialised = self.sandboxes.iter().filter(|(id, (_, now))| !now && before.get(id).is_some_and(|b| b.1));
        let initialised = initialised.map(|(id, _)| *id).collect();
        let gone = before.keys().filter(|id| !self.sandboxes.contains_key(id)).copied().collect();
        self.told = self.sandboxes.clone();
        Observed { report: self.report(n), whole, added, initialised, gone, packages: PackageChanges::default() }
    }
}

fn three() -> (Decider, [Host; 3]) {
    let (mut decider, mut hosts): (Decider, [Host; 3]) = Default::default();
    hosts.iter_mut().enumerate().for_each(|(n, host)| decider.observed(&host.observed(n)));
    (decider, hosts)
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn what_is_placed_counts_until_it_is_named_and_no_longer_than_5_s() {
    let (mut decider, mut hosts) = three();
    for n in 0..30 {
        decider.place(at(0), &ask(n, n as usize)).unwrap();
    }
    let full = decider.place(at(0), &ask(30, 30)).unwrap_err();
    assert_eq!((full.workers, full.without_slot), (3, 3), "what was placed counts, before any worker says so");
    // One manager was gone before its sandboxes came to be; the other two hosts have theirs.
    for (n, host) in hosts.iter_mut().enumerate() {
        let id = worker(n);
        let there = decider.fleet.sandboxes_on(&id).map(|(sandbox, _)| sandbox).filter(|_| n < 2);
        host.sandboxes = there.map(|sandbox| (sandbox, (sandbox.0.as_u128() as usize, true))).collect();
        decider.observed(&host.observed(n));
    }
    assert_eq!(decider.tally(at(4999)), Tally { workers: 3, sandboxes: 30, held: 10, placed: 30, refused: 1 });
    assert!(decider.place(at(4999), &ask(31, 31)).is_err(), "they may still come");
    let (there, _) = decider.place(at(5000), &ask(31, 31)).unwrap();
    assert_eq!(there, worker(2), "nobody came");
    assert_eq!(decider.tally(at(5000)).sandboxes, 21);
    // Who ends has ended.
    hosts[0].sandboxes.clear();
    decider.observed(&hosts[0].observed(0));
    assert_eq!(decider.tally(at(5000)).sandboxes, 11);
}

#[test]
fn who_asks_again_has_one_place() {
    let (mut decider, _) = three();
    let (first, _) = decider.place(at(0), &ask(1, 1)).unwrap();
    let again = PlaceRequest { except: vec![first.clone()], ..ask(1, 1) };
    let (second, _) = decider.place(at(1), &again).unwrap();
    assert_ne!(first, second);
    assert_eq!(decider.tally(at(1)).sandboxes, 1);
    assert_eq!(decider.fleet.worker_of(id(1)), Some(&second));
    // The end of the first booking's time is not that of the second's.
    let (third, _) = decider.place(at(4000), &again).unwrap();
    assert_eq!(decider.tally(at(8999)).held, 1, "{third}");
    assert_eq!(decider.tally(at(9000)), Tally { workers: 3, placed: 3, ..Tally::default() });
}

#[test]
fn functions_spread_and_packages_are_preferred_whoever_placed_them() {
    let (mut decider, mut hosts) = three();
    // Of other managers' decisions, as the workers tell of them.
    hosts[1].sandboxes.insert(id(1), (7, false));
    decider.observed(&hosts[1].observed(1));
    assert_eq!(decider.place(at(0), &ask(2, 7)).unwrap(), (worker(1), Reason::PackageCached));
    // Of a function with a sandbox on each worker: where there are fewer.
    for (n, host) in hosts.iter_mut().enumerate() {
        host.sandboxes.insert(id(10 + n as u128), (8, false));
        host.sandboxes.extend((n == 0).then_some((id(20), (8, false))));
        decider.observed(&host.observed(n));
    }
    assert_ne!(decider.place(at(0), &ask(3, 8)).unwrap().0, worker(0));
}

#[test]
fn cordoned_draining_lost_and_left() {
    let (mut decider, mut hosts) = three();
    hosts[0].cordoned = true;
    hosts[1].sandboxes.insert(id(1), (1, false));
    for (n, host) in hosts.iter_mut().enumerate().take(2) {
        decider.observed(&host.observed(n));
    }
    decider.set_standing(&worker(1), Standing::Draining);
    assert_eq!(decider.place(at(0), &ask(2, 2)).unwrap(), (worker(2), Reason::OnlyRoom));
    decider.lost(&worker(2));
    assert!(decider.place(at(0), &ask(3, 3)).unwrap_err().to_string().contains("all 2 workers are draining"));
    // The fleet's word outlasts a worker that is lost for a moment, and its sandboxes are there as before.
    decider.lost(&worker(1));
    hosts[1].heard = false;
    decider.observed(&hosts[1].observed(1));
    assert!(decider.place(at(0), &ask(3, 3)).is_err());
    decider.set_standing(&worker(1), Standing::Open);
    assert_eq!(decider.place(at(0), &ask(3, 3)).unwrap().0, worker(1));
    decider.left(&worker(1));
    decider.left(&worker(2));
    assert_eq!(decider.tally(at(0)), Tally { workers: 1, placed: 2, refused: 2, ..Tally::default() });
}

#[derive(Clone, Debug)]
enum Event {
    Place(u128, usize),
    /// The sandbox begins where it was placed; or is refused there.
    Begin(u128, bool),
    Ready(u128),
    End(u128),
    Tell(usize),
    Lose(usize),
    Leave(usize),
    Cordon(usize, bool),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..40u128, 0..5usize).prop_map(|(s, f)| Event::Place(s, f)),
        5 => (0..40u128, prop::bool::weighted(0.8)).prop_map(|(s, taken)| Event::Begin(s, taken)),
        3 => (0..40u128).prop_map(Event::Ready),
        3 => (0..40u128).prop_map(Event::End),
        5 => (0..3usize).prop_map(Event::Tell),
        1 => (0..3usize).prop_map(Event::Lose),
        1 => (0..3usize).prop_map(Event::Leave),
        1 => (0..3usize, any::<bool>()).prop_map(|(w, c)| Event::Cordon(w, c)),
        3 => (0..3000u64).prop_map(Event::Wait),
    ]
}

proptest! {
    /// Whatever happens in between: when all have told and nothing is held any more, the decider knows what there is, and no
    /// worker was given more than it has room for as far as it had told.
    #[test]
    fn knows_what_there_is_once_all_have_told(events in prop::collection::vec(event(), 0..150)) {
        let (mut decider, mut hosts) = three();
        let mut now = at(0);
        let mut places: BTreeMap<u128, (usize, usize)> = BTreeMap::new();
        for event in events {
            let host_of = |hosts: &[Host; 3], s: u128| hosts.iter().position(|h| h.sandboxes.contains_key(&id(s)));
            match event {
                Event::Place(s, function) if host_of(&hosts, s).is_none() => {
                    if let Ok((at, _)) = decider.place(now, &ask(s, function)) {
                        let n = hosts.iter().enumerate().position(|(n, _)| worker(n) == at).unwrap();
                        prop_assert!(hosts[n].heard, "placed where nothing is heard");
                        prop_assert!(hosts[n].told.len() < 10, "placed where no room was told");
                        places.insert(s, (n, function));
                    }
                }
                Event::Begin(s, taken) => {
                    if let Some((n, function)) = places.remove(&s)
                        && taken && host_of(&hosts, s).is_none() && hosts[n].sandboxes.len() < 10
                    {
                        hosts[n].sandboxes.insert(id(s), (function, true));
                    }
                }
                Event::Ready(s) => hosts.iter_mut().filter_map(|h| h.sandboxes.get_mut(&id(s))).for_each(|s| s.1 = false),
                Event::End(s) => hosts.iter_mut().for_each(|h| h.sandboxes.retain(|id, _| id.0.as_u128() != s)),
                Event::Tell(n) => decider.observed(&hosts[n].observed(n)),
                Event::Lose(n) => {
                    hosts[n].heard = false;
                    decider.lost(&worker(n));
                }
                Event::Leave(n) => {
                    hosts[n] = Host::default();
                    places.retain(|_, (at, _)| *at != n);
                    decider.left(&worker(n));
                }
                Event::Cordon(n, cordoned) => hosts[n].cordoned = cordoned,
                Event::Wait(ms) => now += at(ms),
                Event::Place(..) => {}
            }
        }
        now += HELD;
        decider.expire(now);
        for (n, host) in hosts.iter_mut().enumerate() {
            decider.observed(&host.observed(n));
            let known: BTreeMap<SandboxId, bool> = decider.fleet.sandboxes_on(&worker(n)).collect();
            let there: BTreeMap<SandboxId, bool> = host.sandboxes.iter().map(|(id, (_, starting))| (*id, *starting)).collect();
            prop_assert_eq!(known, there);
        }
        let (arn, package) = (arn(0), String::new());
        let wanted = Wanted { memory_mb: 100, function: &arn, package: &package };
        for view in decider.fleet.views(&wanted) {
            let n = (0..3).find(|n| worker(*n) == view.report.worker).unwrap();
            prop_assert_eq!(view.report, hosts[n].report(n));
            prop_assert_eq!(view.same_function as usize, hosts[n].sandboxes.values().filter(|s| s.0 == 0).count());
        }
        prop_assert_eq!(decider.tally(now).held, 0);
    }
}
