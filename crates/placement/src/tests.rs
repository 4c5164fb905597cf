use domain::WorkerId;
use proptest::prelude::*;

use super::*;

fn worker(id: &str) -> WorkerView {
    WorkerView {
        report: WorkerReport {
            worker: WorkerId(id.into()),
            memory_mb: 4096,
            memory_used_mb: 0,
            slots: 100,
            slots_used: 0,
            starting: 0,
            draining: false,
        },
        has_package: false,
        same_function: 0,
    }
}

fn fill(w: &mut WorkerView, sandboxes: u32) {
    w.report.memory_used_mb += 128 * u64::from(sandboxes);
    w.report.slots_used += sandboxes;
}

const SMALL: PlaceRequest = PlaceRequest { memory_mb: 128 };

fn placed(workers: &[WorkerView]) -> (usize, &'static str) {
    match place(workers, &SMALL) {
        Decision::Place { worker, reason: Reason::OnlyWorker } => (worker, "only worker"),
        Decision::Place { worker, reason: Reason::OnlyRoom } => (worker, "only room"),
        Decision::Place { worker, reason: Reason::PackageCached } => (worker, "cached"),
        Decision::Place { worker, reason: Reason::Spread } => (worker, "spread"),
        Decision::Place { worker, reason: Reason::LeastLoaded } => (worker, "load"),
        Decision::NoCapacity(n) => panic!("{n}"),
    }
}

fn refused(workers: &[WorkerView], memory_mb: u32) -> NoCapacity {
    match place(workers, &PlaceRequest { memory_mb }) {
        Decision::NoCapacity(n) => n,
        Decision::Place { .. } => panic!("placed"),
    }
}

#[test]
fn names_the_reason_that_decided() {
    assert_eq!(placed(&[worker("a")]), (0, "only worker"));

    let mut w = [worker("a"), worker("b")];
    assert_eq!(placed(&w), (0, "load"), "equals: the smaller id");
    fill(&mut w[0], 2);
    assert_eq!(placed(&w), (1, "load"));
    w[0].has_package = true;
    assert_eq!(placed(&w), (0, "cached"));
    w[1].has_package = true;
    assert_eq!(placed(&w), (1, "load"));
    w[1].same_function = 10;
    assert_eq!(placed(&w), (0, "spread"));
    w[0].report.draining = true;
    assert_eq!(placed(&w), (1, "only room"));
}

#[test]
fn a_cached_package_does_not_outweigh_a_full_worker() {
    let mut w = [worker("a"), worker("b")];
    w[0].has_package = true;
    fill(&mut w[0], 20);
    assert_eq!(placed(&w), (1, "load"));
}

#[test]
fn says_what_is_missing() {
    assert_eq!(refused(&[], 128).to_string(), "there is no worker");
    let mut w = [worker("a"), worker("b")];
    let n = refused(&w, 10_240);
    assert!(!n.could_ever_fit());
    assert!(n.to_string().contains("largest worker has 4096 MB"), "{n}");

    w[0].report.draining = true;
    fill(&mut w[1], 31);
    let n = refused(&w, 256);
    assert!(n.could_ever_fit());
    assert!(n.to_string().contains("at most 128 MB are free"), "{n}");
    w[1].report.slots_used = 100;
    assert!(refused(&w, 128).to_string().contains("every slot is taken"));
    w[1].report.draining = true;
    assert!(refused(&w, 128).to_string().contains("draining"));
}

#[test]
fn makes_room_with_the_least_recently_used_of_one_worker() {
    let mut w = [worker("a"), worker("b")];
    fill(&mut w[0], 32);
    fill(&mut w[1], 32);
    let idle = [(0, 128), (1, 128), (0, 512), (1, 128)].map(|(worker, memory_mb)| IdleSandbox { worker, memory_mb });
    assert_eq!(make_room(&w, &PlaceRequest { memory_mb: 128 }, &idle), Some(vec![0]));
    assert_eq!(make_room(&w, &PlaceRequest { memory_mb: 256 }, &idle), Some(vec![0, 2]));
    assert_eq!(make_room(&w, &PlaceRequest { memory_mb: 256 }, &idle[..2]), None);
    assert_eq!(make_room(&w, &PlaceRequest { memory_mb: 1024 }, &idle), None);
}

prop_compose! {
    fn any_worker()(
        id in 0u8..40, memory_mb in 0u64..20_000, memory_used_mb in 0u64..20_000, slots in 0u32..50, slots_used in 0u32..50,
        starting in 0u32..30, draining in prop::bool::weighted(0.2), has_package: bool, same_function in 0u32..20,
    ) -> WorkerView {
        let worker = WorkerId(format!("w{id:02}").into());
        WorkerView {
            report: WorkerReport { worker, memory_mb, memory_used_mb, slots, slots_used, starting, draining },
            has_package,
            same_function,
        }
    }
}

fn any_workers() -> impl Strategy<Value = Vec<WorkerView>> {
    prop::collection::vec(any_worker(), 0..12).prop_map(|mut w| {
        w.sort_by(|a, b| a.report.worker.cmp(&b.report.worker));
        w.dedup_by(|a, b| a.report.worker == b.report.worker);
        w
    })
}

proptest! {
    #[test]
    fn never_over_capacity_never_draining(workers in any_workers(), memory_mb in 128u32..=10_240) {
        let fits = |w: &WorkerView| !w.report.draining
            && w.report.slots_used < w.report.slots
            && w.report.memory_used_mb + u64::from(memory_mb) <= w.report.memory_mb;
        match place(&workers, &PlaceRequest { memory_mb }) {
            Decision::Place { worker, .. } => prop_assert!(fits(&workers[worker])),
            Decision::NoCapacity(n) => {
                prop_assert!(!workers.iter().any(fits));
                prop_assert!(!n.to_string().is_empty());
            }
        }
    }

    #[test]
    fn same_answer_in_any_order(workers in any_workers(), memory_mb in 128u32..=10_240, turn in 0usize..12) {
        let request = PlaceRequest { memory_mb };
        let id = |workers: &[WorkerView]| match place(workers, &request) {
            Decision::Place { worker, reason } => Some((workers[worker].report.worker.clone(), reason)),
            Decision::NoCapacity(_) => None,
        };
        let mut turned = workers.clone();
        if !turned.is_empty() {
            let middle = turn % turned.len();
            turned.rotate_left(middle);
        }
        prop_assert_eq!(id(&workers), id(&turned));
    }

    #[test]
    fn prefers_the_cached_package_among_equals(workers in 2usize..10, cached in 0usize..10, used in 0u32..31) {
        let cached = cached % workers;
        let mut views: Vec<_> = (0..workers).map(|i| worker(&format!("w{i}"))).collect();
        views.iter_mut().for_each(|w| fill(w, used));
        views[cached].has_package = true;
        let Decision::Place { worker, .. } = place(&views, &SMALL) else { panic!("room for one more") };
        prop_assert_eq!(worker, cached);
    }

    #[test]
    fn spreads_one_function(workers in 1usize..8, sandboxes in 1u32..60) {
        let mut views: Vec<_> = (0..workers).map(|i| worker(&format!("w{i}"))).collect();
        views.iter_mut().for_each(|w| w.report.memory_mb = 1 << 20);
        for _ in 0..sandboxes {
            let Decision::Place { worker, .. } = place(&views, &SMALL) else { panic!("room") };
            fill(&mut views[worker], 1);
            views[worker].same_function += 1;
            views[worker].has_package = true;
        }
        let counts = || views.iter().map(|w| w.same_function);
        // The package draws the first ten sandboxes (200 / 20) to where it is; from there on they spread.
        prop_assert!(counts().max().unwrap() - counts().min().unwrap() <= 10);
    }

    #[test]
    fn room_that_is_made_suffices(
        workers in any_workers(),
        idle in prop::collection::vec((0usize..12, 128u32..4096), 0..20),
        memory_mb in 128u32..=10_240,
    ) {
        let request = PlaceRequest { memory_mb };
        let idle: Vec<_> = idle
            .into_iter()
            .filter(|(w, _)| *w < workers.len())
            .map(|(worker, memory_mb)| IdleSandbox { worker, memory_mb })
            .collect();
        if let Some(chosen) = make_room(&workers, &request, &idle) {
            let mut after = workers.clone();
            for i in &chosen {
                let report = &mut after[idle[*i].worker].report;
                report.memory_used_mb = report.memory_used_mb.saturating_sub(u64::from(idle[*i].memory_mb));
                report.slots_used = report.slots_used.saturating_sub(1);
            }
            let placed = matches!(place(&after, &request), Decision::Place { .. });
            prop_assert!(placed);
        }
    }
}
