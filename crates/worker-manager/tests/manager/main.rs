//! The manager over simulated workers, in tokio's paused time.

mod placing;
mod sim;
mod takeover;
mod unreachable;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use domain::{AssignError, RetireReason, SlotEvents, Step, ThrottleReason, WorkerError, WorkerManager};
use futures::future::join_all;
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use sim::{Sim, ms, request};
use worker_manager::Config;

fn notes(lease: &domain::Lease) -> Vec<(Step, &str)> {
    lease.timeline.marks.iter().map(|m| (m.step, m.note.as_str())).collect()
}

#[tokio::test(start_paused = true)]
async fn cold_then_warm() {
    let sim = Sim::one_worker(Config::default());
    let cold = sim.manager.assign(request("f", 128, None)).await.unwrap();
    assert!(cold.cold);
    assert_eq!(notes(&cold), [(Step::Assigned, "cold"), (Step::Placed, "w0: only worker"), (Step::InitDone, "")]);
    assert_eq!(cold.timeline.at(Step::InitDone), Some(ms(10)));
    sim.invoke(cold, ms(3)).await;

    let warm = sim.manager.assign(request("f", 128, None)).await.unwrap();
    assert!(!warm.cold);
    assert_eq!(notes(&warm), [(Step::Assigned, "warm")]);
    sim.manager.release(warm.sandbox);
    let status = sim.manager.status();
    assert_eq!((status.functions[0].idle, status.functions[0].in_use), (1, 0));
    assert_eq!(status.accounts[0].unreserved_in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn a_sequential_client_with_reserved_concurrency_one_is_never_throttled() {
    let sim = Sim::one_worker(Config::default());
    for _ in 0..20 {
        let lease = sim.manager.assign(request("f", 128, Some(1))).await.unwrap();
        // The runtime asks for the next event only a while after its answer.
        sim.answer(lease, ms(3), ms(8)).await;
    }
    assert_eq!(sim.workers[0].inits(), 1);
    let lease = sim.manager.assign(request("f", 128, Some(1))).await.unwrap();
    let second = sim.manager.assign(request("f", 128, Some(1))).await;
    assert!(matches!(second, Err(AssignError::Throttled(ThrottleReason::Reserved))), "{second:?}");
    sim.answer(lease, ms(1), ms(150)).await;
    let third = sim.manager.assign(request("f", 128, Some(1))).await;
    assert!(matches!(third, Err(AssignError::Throttled(ThrottleReason::Reserved))), "{third:?}");
    assert!(matches!(
        sim.manager.assign(request("f", 128, Some(0))).await,
        Err(AssignError::Throttled(ThrottleReason::Reserved))
    ));
}

#[tokio::test(start_paused = true)]
async fn makes_room_by_giving_up_the_least_recently_used() {
    let sim = Sim::with_memory(Config::default(), &[512]);
    for name in ["a", "b", "c", "d"] {
        let lease = sim.manager.assign(request(name, 128, None)).await.unwrap();
        sim.invoke(lease, ms(1)).await;
    }
    let lease = sim.manager.assign(request("e", 256, None)).await.unwrap();
    assert_eq!(sim.workers[0].functions(), ["c", "d", "e"]);
    // Busy ones stay; what is left is too small.
    let refused = sim.manager.assign(request("f", 384, None)).await;
    assert!(matches!(refused, Err(AssignError::NoCapacity(_))), "{refused:?}");
    assert_eq!(sim.workers[0].functions(), ["c", "d", "e"], "nothing is given up in vain");
    let refused = sim.manager.assign(request("g", 1024, None)).await;
    assert!(refused.unwrap_err().to_string().contains("largest worker has 512 MB"));
    sim.invoke(lease, ms(1)).await;
    assert!(sim.manager.assign(request("g", 512, None)).await.is_ok());
    assert_eq!(sim.workers[0].functions(), ["g"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_init_is_told_and_frees_its_slot() {
    let sim = Sim::one_worker(Config::default());
    sim.workers[0].fail_next_init();
    let error = sim.manager.assign(request("f", 128, Some(1))).await;
    assert!(matches!(error, Err(AssignError::Worker(WorkerError::Sandbox(_)))), "{error:?}");
    assert!(sim.manager.assign(request("f", 128, Some(1))).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaks_nothing() {
    let sim = Sim::one_worker(Config::default());
    let assign = || sim.manager.assign(request("f", 128, Some(1)));
    assert!(tokio::time::timeout(ms(5), assign()).await.is_err());
    assert_eq!(sim.manager.status().functions[0].in_use, 0);
    tokio::time::sleep(ms(10)).await;
    let lease = assign().await.unwrap();
    assert!(!lease.cold, "the sandbox that nobody waited for is idle");
    // The same while waiting for a finishing one.
    sim.manager.answered(lease.sandbox);
    assert!(tokio::time::timeout(ms(5), assign()).await.is_err());
    sim.manager.idle(lease.sandbox);
    assert_eq!(sim.manager.status().functions[0].in_use, 0);
    // And when the grant comes at the same moment.
    sim.manager.answered(assign().await.unwrap().sandbox);
    let mut waiting = Box::pin(assign());
    assert!(futures::poll!(&mut waiting).is_pending());
    sim.manager.idle(lease.sandbox);
    assert_eq!(sim.manager.status().functions[0].in_use, 1);
    drop(waiting);
    assert_eq!(sim.manager.status().functions[0].in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn time_takes_idle_sandboxes_and_lost_leases() {
    let sim = Sim::one_worker(Config { idle_timeout: Duration::from_secs(60), ..Config::default() });
    tokio::spawn(sim.manager.clone().run());
    let idle = sim.manager.assign(request("f", 128, None)).await.unwrap();
    sim.invoke(idle, ms(1)).await;
    let lost = sim.manager.assign(request("g", 128, None)).await.unwrap();
    let running = sim.manager.assign(request("h", 128, None)).await.unwrap();
    sim.workers[0].begin(running.sandbox);
    drop(lost);
    tokio::time::sleep(Duration::from_secs(33)).await;
    assert_eq!(sim.workers[0].functions(), ["f", "h"]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(sim.workers[0].functions(), ["h"]);
    sim.workers[0].end(running.sandbox);
    sim.manager.dead(running.sandbox, RetireReason::Failure);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(sim.manager.status().functions.is_empty(), "unused functions are forgotten");
    assert_eq!(sim.manager.status().accounts[0].unreserved_in_use, 0);
    assert!(sim.manager.assign(request("f", 128, None)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn retire_takes_idle_at_once_and_busy_later() {
    let sim = Sim::one_worker(Config::default());
    let request = request("f", 128, None);
    let busy = sim.manager.assign(request.clone()).await.unwrap();
    let idle = sim.manager.assign(request.clone()).await.unwrap();
    sim.invoke(idle, ms(1)).await;
    sim.manager.retire(&request.version.key);
    tokio::time::sleep(ms(10)).await;
    assert_eq!(sim.workers[0].functions(), ["f"]);
    sim.invoke(busy, ms(1)).await;
    tokio::time::sleep(ms(10)).await;
    assert!(sim.workers[0].functions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_waits_for_busy_sandboxes_but_not_for_ever() {
    let sim = Sim::one_worker(Config::default());
    let idle = sim.manager.assign(request("a", 128, None)).await.unwrap();
    sim.invoke(idle, ms(1)).await;
    let busy = sim.manager.assign(request("b", 128, None)).await.unwrap();
    let _stuck = sim.manager.assign(request("c", 128, None)).await.unwrap();
    let starting = sim.manager.assign(request("d", 128, None));
    let stop = async {
        tokio::time::sleep(ms(1)).await;
        sim.manager.stop(ms(1000)).await;
    };
    let finish = async {
        tokio::time::sleep(ms(5)).await;
        let late = sim.manager.assign(request("a", 128, None)).await;
        assert!(matches!(late, Err(AssignError::Worker(WorkerError::Stopping))));
        sim.invoke(busy, ms(200)).await;
        tokio::time::sleep(ms(100)).await;
        assert_eq!(sim.workers[0].functions(), ["c", "d"]);
    };
    let started = tokio::time::Instant::now();
    let (lease, (), ()) = tokio::join!(starting, stop, finish);
    assert!(lease.unwrap().cold, "a request whose sandbox was starting is served");
    assert!(sim.workers[0].functions().is_empty());
    assert!(started.elapsed() >= ms(1000));
}

#[tokio::test(start_paused = true)]
async fn spreads_over_workers_and_spares_a_draining_one() {
    let sim = Sim::with_memory(Config::default(), &[4096, 4096, 4096]);
    sim.workers[1].drain();
    let leases = join_all((0..40).map(|_| sim.manager.assign(request("f", 128, Some(40))))).await;
    assert!(leases.iter().all(Result::is_ok));
    assert_eq!(sim.workers[1].functions().len(), 0);
    assert!(sim.workers[0].functions().len() >= 15 && sim.workers[2].functions().len() >= 15);
}

/// Many clients, some of which give up, on workers that fail and kill. The simulated worker asserts that no sandbox has
/// two invocations; here the limits and the books are checked.
#[tokio::test(start_paused = true)]
async fn storm() {
    const RESERVED: u32 = 5;
    let config = Config { idle_timeout: ms(400), max_age: ms(2000), ..Config::default() };
    let sim = Arc::new(Sim::with_memory(config, &[1024, 1024]));
    tokio::spawn(sim.manager.clone().run());
    let running = Arc::new(AtomicU32::new(0));
    let served = Arc::new(AtomicU32::new(0));
    let clients = (0..30u64).map(|client| {
        let (sim, running, served) = (sim.clone(), running.clone(), served.clone());
        tokio::spawn(async move {
            let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[client as u8; 32]);
            for _ in 0..100 {
                let mut dice = |n: u32| rng.next_u32() % n;
                let reserved = client.is_multiple_of(2);
                let name = if reserved { "r".to_owned() } else { format!("f{}", dice(6)) };
                let limit = reserved.then_some(RESERVED);
                let patience = ms(u64::from(dice(60)));
                let assigned = tokio::time::timeout(patience, sim.manager.assign(request(&name, 128, limit))).await;
                if let Ok(Ok(lease)) = assigned {
                    if reserved {
                        assert!(running.fetch_add(1, Ordering::SeqCst) < RESERVED);
                    }
                    served.fetch_add(1, Ordering::SeqCst);
                    let sandbox = lease.sandbox;
                    let (work, finish) = (ms(u64::from(dice(8))), ms(u64::from(dice(5))));
                    tokio::time::sleep(work).await;
                    if reserved {
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                    match dice(12) {
                        0 => sim.manager.release(sandbox),
                        1 => {
                            sim.workers.iter().for_each(|w| w.kill(sandbox));
                            sim.manager.dead(sandbox, RetireReason::Failure);
                        }
                        _ => sim.answer(lease, ms(0), finish).await,
                    }
                }
                tokio::time::sleep(ms(u64::from(dice(10)))).await;
            }
        })
    });
    for client in clients {
        client.await.unwrap();
    }
    assert!(served.load(Ordering::SeqCst) > 500, "served {served:?}");
    tokio::time::sleep(ms(50)).await;
    let status = sim.manager.status();
    assert!(status.functions.iter().all(|f| f.in_use == 0 && f.busy == 0 && f.starting == 0 && f.waiting == 0));
    assert_eq!(status.accounts[0].unreserved_in_use, 0);
    let alive: usize = sim.workers.iter().map(|w| w.functions().len()).sum();
    assert_eq!(alive as u32, status.functions.iter().map(|f| f.idle).sum::<u32>());
    sim.manager.stop(ms(1000)).await;
    assert!(sim.workers.iter().all(|w| w.functions().is_empty()));
}
