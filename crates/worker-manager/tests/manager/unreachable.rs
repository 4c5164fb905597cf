//! Workers that begin something and cannot be asked any more.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use domain::{SandboxState, SlotEvents as _, SlotPhase, Worker as _, WorkerManager as _};
use tokio::time::Instant;
use worker_manager::Partition;

use crate::sim::{ms, request};
use crate::takeover::Fleet;

#[tokio::test(start_paused = true)]
async fn an_init_that_broke_off_leaves_no_two_sandboxes_of_one_name() {
    let mut fleet = Fleet::new(1, &[4096, 4096]);
    fleet.change(&[0]);
    let manager = fleet.managers[0].clone();
    let request = request("f", 128, None);
    fleet.workers.iter().for_each(|worker| worker.break_next_init());
    // One breaks, the other is asked; the second one's next Init is sound once it was asked as well.
    let started = manager.assign(request.clone()).await;
    assert!(started.is_err(), "both of them broke");
    let lease = manager.assign(request.clone()).await.unwrap();
    fleet.begin(lease.sandbox);
    let names: Vec<_> = fleet.workers.iter().flat_map(|worker| worker.sandboxes()).map(|s| s.sandbox).collect();
    assert_eq!(names.len(), 3, "two that broke off, and one that serves");
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), 3, "each has a name of its own: {names:?}");

    // What began nevertheless is told of when it is ready, and serves as well; what is busy stays so.
    for worker in &fleet.workers {
        for state in worker.sandboxes().into_iter().filter(|state| state.sandbox != lease.sandbox) {
            worker.ready(state.sandbox);
            let way: Arc<dyn domain::Worker> = worker.clone();
            manager.adopted(&way, SandboxState { phase: SlotPhase::Idle, ..state });
        }
    }
    for _ in 0..2 {
        let other = manager.assign(request.clone()).await.unwrap();
        assert!(!other.cold && other.sandbox != lease.sandbox);
        fleet.begin(other.sandbox);
    }
    assert_eq!(fleet.workers.iter().map(|worker| worker.inits()).sum::<u32>(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_went_while_its_sandbox_was_shut_down_leaves_nothing_in_the_books() {
    let mut fleet = Fleet::new(1, &[4096]);
    fleet.change(&[0]);
    let manager = fleet.managers[0].clone();
    let request = request("f", 128, None);
    let lease = fleet.invoke(&request).await;
    // Its end is under way, and the worker is out of the view, before anybody could tell it.
    manager.retire(&request.version.key);
    manager.set_partition(Partition { epoch: 9, ..fleet.partition(0) }, &HashSet::new());
    let began = Instant::now();
    manager.stop(Duration::from_secs(3600)).await;
    assert!(began.elapsed() < ms(1000), "a stop waits for no sandbox that nobody has: {:?}", began.elapsed());
    manager.dead(lease.sandbox, domain::RetireReason::Failure);
}
