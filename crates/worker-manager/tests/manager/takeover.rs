//! Several managers over the same workers, whose view of each other changes.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use domain::quota::{Ask, Grant, QuotaHome as _};
use domain::{
    AccountId, AssignError, AssignRequest, Lease, RetireReason, SandboxId, SlotEvents, ThrottleReason, Worker,
    WorkerError, WorkerId, WorkerManager,
};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tokio::time::Instant;
use worker_manager::{Config, Homes, Manager, Partition};

use crate::sim::{Sim, SimWorker, ms, request};

/// Of `sim`, and one for each further manager.
pub struct Fleet {
    pub managers: Vec<Manager>,
    pub workers: Vec<Arc<SimWorker>>,
    epoch: u64,
    /// Who live, by their place in `managers`.
    live: Vec<usize>,
    silent: Arc<Mutex<HashSet<usize>>>,
    slow: Arc<AtomicU32>,
}

fn id(manager: usize) -> Arc<str> {
    format!("m{manager}").into()
}

/// Managers ask each other without a network; those in `silent` do not answer, and all answers take `slow` milliseconds.
struct Local {
    all: Vec<Manager>,
    me: Arc<str>,
    silent: Arc<Mutex<HashSet<usize>>>,
    slow: Arc<AtomicU32>,
}

impl Local {
    fn home(&self, id: &str) -> Option<&Manager> {
        let at = id[1..].parse().unwrap();
        (!self.silent.lock().unwrap().contains(&at)).then(|| &self.all[at])
    }
}

#[async_trait]
impl Homes for Local {
    async fn hello(&self, home: &str, epoch: u64, number: u64, holds: Vec<(AccountId, u32)>) -> bool {
        self.home(home).is_some_and(|home| home.hello(&self.me, epoch, number, &holds))
    }

    async fn ask(&self, home: &str, ask: Ask) -> Option<Grant> {
        tokio::time::sleep(ms(self.slow.load(Ordering::SeqCst).into())).await;
        self.home(home)?.answer(&self.me, &ask)
    }
}

impl Fleet {
    pub fn new(managers: usize, workers: &[u64]) -> Self {
        let first = Sim::with_memory(Config::default(), workers);
        let mut all = vec![first.manager];
        all.extend((1..managers).map(|_| Sim::with_memory(Config::default(), &[]).manager));
        let (silent, slow): (Arc<Mutex<HashSet<usize>>>, Arc<AtomicU32>) = Default::default();
        for (n, manager) in all.iter().enumerate() {
            let homes = Local { all: all.clone(), me: id(n), silent: silent.clone(), slow: slow.clone() };
            tokio::spawn(manager.clone().share_accounts(Arc::new(homes)));
        }
        Self { managers: all, workers: first.workers, epoch: 0, live: vec![], silent, slow }
    }

    fn worker_ids(&self) -> HashSet<WorkerId> {
        self.workers.iter().map(|worker| worker.id().clone()).collect()
    }

    /// A new view, which reaches the living managers before they have claimed anything.
    pub fn view(&mut self, live: &[usize]) {
        self.epoch += 1;
        self.live = live.to_vec();
        for manager in live {
            let partition = self.partition(*manager);
            self.managers[*manager].set_partition(partition, &self.worker_ids());
        }
    }

    pub fn partition(&self, me: usize) -> Partition {
        Partition { epoch: self.epoch, managers: self.live.iter().map(|m| id(*m)).collect(), me: id(me) }
    }

    pub fn claim(&self, manager: usize, worker: usize) {
        let partition = self.partition(manager);
        let worker = &self.workers[worker];
        let mine = worker.sandboxes().into_iter().filter(|state| partition.owns(&state.version.arn)).collect();
        self.managers[manager].claimed(worker.clone(), self.epoch, mine);
    }

    pub fn change(&mut self, live: &[usize]) {
        self.view(live);
        for manager in live {
            (0..self.workers.len()).for_each(|worker| self.claim(*manager, worker));
        }
    }

    fn owner(&self, request: &AssignRequest) -> &Manager {
        let partition = self.partition(0);
        let owner = partition.owner(&request.version.arn).unwrap();
        &self.managers[*self.live.iter().find(|m| &*id(**m) == owner).unwrap()]
    }

    pub fn begin(&self, sandbox: SandboxId) {
        self.workers.iter().find(|worker| worker.has(sandbox)).unwrap().begin(sandbox);
    }

    pub fn end(&self, sandbox: SandboxId) {
        self.workers.iter().for_each(|worker| worker.end(sandbox));
    }

    pub async fn invoke(&self, request: &AssignRequest) -> Lease {
        let manager = self.owner(request);
        let lease = manager.assign(request.clone()).await.unwrap();
        self.begin(lease.sandbox);
        manager.answered(lease.sandbox);
        self.end(lease.sandbox);
        manager.idle(lease.sandbox);
        lease
    }

    fn inits(&self) -> u32 {
        self.workers.iter().map(|worker| worker.inits()).sum()
    }
}

#[tokio::test(start_paused = true)]
async fn warm_sandboxes_stay_warm_and_running_ones_count() {
    let mut fleet = Fleet::new(2, &[4096]);
    fleet.change(&[0]);
    let (warm, busy) = (request("warm", 128, None), request("busy", 128, Some(1)));
    let before = fleet.invoke(&warm).await;
    let running = fleet.owner(&busy).assign(busy.clone()).await.unwrap();
    fleet.begin(running.sandbox);

    fleet.change(&[1]);
    assert_eq!(fleet.invoke(&warm).await.sandbox, before.sandbox);
    let refused = fleet.managers[1].assign(busy.clone()).await;
    assert!(matches!(refused, Err(AssignError::Throttled(ThrottleReason::Reserved))), "{refused:?}");
    assert_eq!(fleet.managers[1].status().accounts[0].unreserved_in_use, 1);
    fleet.end(running.sandbox);
    fleet.managers[1].idle(running.sandbox);
    assert_eq!(fleet.invoke(&busy).await.sandbox, running.sandbox);
    assert_eq!(fleet.inits(), 2);
    assert_eq!(fleet.managers[1].status().accounts[0].unreserved_in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_for_anothers_function_says_so() {
    let mut fleet = Fleet::new(2, &[4096]);
    fleet.change(&[0, 1]);
    for name in ["a", "b", "c", "d", "e", "f"] {
        let request = request(name, 128, None);
        let other = fleet.managers.iter().find(|m| !m.partition().unwrap().owns(&request.version.arn)).unwrap();
        let refused = other.assign(request.clone()).await;
        assert!(matches!(&refused, Err(AssignError::NotOwner(why)) if why.contains("in epoch 1")), "{refused:?}");
        fleet.invoke(&request).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_given_up_keeps_nothing_and_ends_nothing() {
    let mut fleet = Fleet::new(2, &[4096]);
    fleet.change(&[0]);
    let request = request("f", 128, Some(2));
    let old = fleet.managers[0].clone();
    let lease = old.assign(request.clone()).await.unwrap();
    fleet.begin(lease.sandbox);
    // One that starts, and the caller that waits for it.
    let waiting = tokio::spawn({
        let (old, request) = (old.clone(), request.clone());
        async move { old.assign(request).await }
    });
    tokio::time::sleep(ms(5)).await;
    fleet.view(&[1]);
    old.set_partition(Partition { me: id(0), ..fleet.partition(1) }, &fleet.worker_ids());
    assert!(matches!(waiting.await.unwrap(), Err(AssignError::NotOwner(_))));
    assert!(old.status().functions.is_empty());
    assert_eq!(old.status().accounts[0].unreserved_in_use, 0);

    // The new one finds it starting, and hears the rest.
    fleet.claim(1, 0);
    let new = fleet.managers[1].clone();
    let again = tokio::spawn({
        let (new, request) = (new.clone(), request.clone());
        async move { new.assign(request).await }
    });
    tokio::time::sleep(ms(20)).await;
    let starting = fleet.workers[0].sandboxes().into_iter().find(|s| s.sandbox != lease.sandbox).unwrap();
    assert_eq!(fleet.workers[0].functions(), ["f", "f"], "the old one has shut nothing down");
    new.idle(starting.sandbox);
    assert_eq!(again.await.unwrap().unwrap().sandbox, starting.sandbox);
    assert_eq!(fleet.inits(), 2);
    old.stop(ms(100)).await;
    assert_eq!(fleet.workers[0].functions(), ["f", "f"]);
}

#[tokio::test(start_paused = true)]
async fn new_functions_wait_for_every_worker_but_not_for_one_that_is_silent() {
    let mut fleet = Fleet::new(1, &[4096, 4096]);
    fleet.view(&[0]);
    fleet.claim(0, 0);
    let request = request("f", 128, None);
    let began = Instant::now();
    fleet.invoke(&request).await;
    assert!((ms(1000)..ms(1200)).contains(&began.elapsed()), "{:?}", began.elapsed());
    // Known by now, it does not wait again.
    fleet.view(&[0]);
    let began = Instant::now();
    fleet.invoke(&request).await;
    assert!(began.elapsed() < ms(100), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_lost_is_not_used_until_it_is_claimed_again() {
    let mut fleet = Fleet::new(1, &[4096]);
    fleet.change(&[0]);
    let manager = fleet.managers[0].clone();
    let request = request("f", 128, None);
    let first = fleet.invoke(&request).await;
    let mut suspects = manager.suspects();
    manager.unreachable(fleet.workers[0].id());
    assert_eq!(suspects.try_recv().as_ref(), Ok(fleet.workers[0].id()));
    let none = manager.assign(request.clone()).await;
    assert!(matches!(none, Err(AssignError::NoCapacity(_))), "{none:?}");
    fleet.claim(0, 0);
    assert_eq!(fleet.invoke(&request).await.sandbox, first.sandbox);
    // What is gone when it comes back is forgotten.
    manager.lost(fleet.workers[0].id());
    fleet.workers[0].kill(first.sandbox);
    fleet.claim(0, 0);
    assert_ne!(fleet.invoke(&request).await.sandbox, first.sandbox);
    // A worker that the view does not have any more is dead.
    manager.set_partition(Partition { epoch: 9, ..fleet.partition(0) }, &HashSet::new());
    assert!(matches!(manager.assign(request).await, Err(AssignError::NoCapacity(_))));
}

#[tokio::test(start_paused = true)]
async fn events_that_were_missed_are_made_up_for() {
    let mut fleet = Fleet::new(1, &[4096]);
    fleet.change(&[0]);
    let manager = fleet.managers[0].clone();
    let request = request("f", 128, Some(1));
    let lease = manager.assign(request.clone()).await.unwrap();
    // The invocation may be on its way.
    fleet.claim(0, 0);
    assert!(manager.assign(request.clone()).await.is_err());
    fleet.begin(lease.sandbox);
    manager.answered(lease.sandbox);
    fleet.end(lease.sandbox);
    fleet.claim(0, 0);
    assert_eq!(manager.assign(request.clone()).await.unwrap().sandbox, lease.sandbox);
    tokio::time::sleep(Duration::from_secs(2)).await;
    fleet.claim(0, 0);
    assert_eq!(manager.assign(request).await.unwrap().sandbox, lease.sandbox, "a lease that nobody uses");
}

/// Managers die and come back at any moment, under load. What their clients may see is a request to ask another one.
#[tokio::test(start_paused = true)]
async fn storm_of_takeovers() {
    const RESERVED: u32 = 3;
    let fleet = Arc::new(tokio::sync::RwLock::new(Fleet::new(3, &[8192, 8192])));
    fleet.write().await.change(&[0, 1, 2]);
    let served = Arc::new(AtomicU32::new(0));
    let moved = Arc::new(AtomicU32::new(0));
    let running: Arc<Vec<AtomicU32>> = Arc::new((0..6).map(|_| AtomicU32::new(0)).collect());
    let clients: Vec<_> = (0..24u8)
        .map(|client| {
            let (fleet, running) = (fleet.clone(), running.clone());
            let (served, moved) = (served.clone(), moved.clone());
            tokio::spawn(async move {
                let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[client; 32]);
                for _ in 0..100 {
                    let mut dice = |n: u32| rng.next_u32() % n;
                    let function = dice(6) as usize;
                    let request = request(&format!("f{function}"), 128, Some(RESERVED));
                    let (epoch, manager) = {
                        let fleet = fleet.read().await;
                        (fleet.epoch, fleet.owner(&request).clone())
                    };
                    match manager.assign(request.clone()).await {
                        Ok(lease) => {
                            // As a worker's fence does, which the lease of an earlier view does not pass.
                            let fleet_now = fleet.read().await;
                            if fleet_now.epoch != epoch {
                                drop(fleet_now);
                                manager.release(lease.sandbox);
                                moved.fetch_add(1, Ordering::SeqCst);
                                continue;
                            }
                            fleet_now.begin(lease.sandbox);
                            drop(fleet_now);
                            assert!(running[function].fetch_add(1, Ordering::SeqCst) < RESERVED, "the limit holds");
                            tokio::time::sleep(ms(u64::from(dice(8)))).await;
                            running[function].fetch_sub(1, Ordering::SeqCst);
                            served.fetch_add(1, Ordering::SeqCst);
                            let fleet_now = fleet.read().await;
                            let owner = fleet_now.owner(&request);
                            owner.answered(lease.sandbox);
                            fleet_now.end(lease.sandbox);
                            if dice(3) == 0 {
                                fleet_now.workers.iter().for_each(|worker| worker.kill(lease.sandbox));
                                owner.dead(lease.sandbox, RetireReason::Failure);
                            } else {
                                owner.idle(lease.sandbox);
                            }
                        }
                        Err(AssignError::NotOwner(_)) => _ = moved.fetch_add(1, Ordering::SeqCst),
                        Err(AssignError::Throttled(_) | AssignError::Worker(WorkerError::Gone(_))) => {}
                        Err(error) => panic!("{error}"),
                    }
                    tokio::time::sleep(ms(u64::from(dice(6)))).await;
                }
            })
        })
        .collect();
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[99; 32]);
    while clients.iter().any(|client| !client.is_finished()) {
        tokio::time::sleep(ms(u64::from(rng.next_u32() % 60))).await;
        let live: Vec<usize> = (0..3).filter(|_| rng.next_u32().is_multiple_of(2)).collect();
        let mut fleet = fleet.write().await;
        let live = if live.is_empty() { vec![(rng.next_u32() % 3) as usize] } else { live };
        let epoch_before = fleet.epoch;
        fleet.change(&live);
        // The others live as well, and hear that they are out.
        for out in (0..3).filter(|m| !live.contains(m)) {
            let partition = Partition { me: id(out), ..fleet.partition(live[0]) };
            fleet.managers[out].set_partition(partition, &fleet.worker_ids());
        }
        assert!(fleet.epoch > epoch_before);
    }
    for client in clients {
        client.await.unwrap();
    }
    assert!(served.load(Ordering::SeqCst) > 500 && moved.load(Ordering::SeqCst) > 10, "{served:?} {moved:?}");
    tokio::time::sleep(ms(100)).await;
    let mut fleet = fleet.write().await;
    fleet.change(&[0, 1, 2]);
    let known: u32 = fleet.managers.iter().flat_map(|m| m.status().functions).map(|f| f.idle + f.starting).sum();
    let alive: usize = fleet.workers.iter().map(|worker| worker.sandboxes().len()).sum();
    assert_eq!(known as usize, alive, "no sandbox is lost");
    for manager in &fleet.managers {
        assert!(manager.status().accounts.iter().all(|account| account.unreserved_in_use == 0));
        assert!(manager.status().functions.iter().all(|f| f.in_use == 0 && f.busy == 0));
    }
}

/// Clients of several functions, over three managers whose view changes: never more at once than the account may run, but for
/// what a dead manager had running.
#[tokio::test(start_paused = true)]
async fn an_accounts_limit_holds_over_all_managers() {
    const LIMIT: u32 = 8;
    let fleet = Arc::new(tokio::sync::RwLock::new(Fleet::new(3, &[32768])));
    fleet.write().await.change(&[0, 1, 2]);
    let running = Arc::new(AtomicU32::new(0));
    let (highest, throttled, served) =
        (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let clients: Vec<_> = (0..20u8)
        .map(|client| {
            let (fleet, running, highest) = (fleet.clone(), running.clone(), highest.clone());
            let (throttled, served) = (throttled.clone(), served.clone());
            tokio::spawn(async move {
                let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[client; 32]);
                for _ in 0..60 {
                    let mut dice = |n: u32| rng.next_u32() % n;
                    let mut request = request(&format!("f{}", dice(7)), 128, None);
                    request.limits.unreserved = LIMIT;
                    let (epoch, manager) = {
                        let fleet = fleet.read().await;
                        (fleet.epoch, fleet.owner(&request).clone())
                    };
                    match manager.assign(request.clone()).await {
                        Ok(lease) => {
                            let now = fleet.read().await;
                            if now.epoch != epoch {
                                manager.release(lease.sandbox);
                                continue;
                            }
                            now.begin(lease.sandbox);
                            drop(now);
                            highest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            tokio::time::sleep(ms(u64::from(dice(30)))).await;
                            running.fetch_sub(1, Ordering::SeqCst);
                            served.fetch_add(1, Ordering::SeqCst);
                            let now = fleet.read().await;
                            let owner = now.owner(&request);
                            owner.answered(lease.sandbox);
                            now.end(lease.sandbox);
                            owner.idle(lease.sandbox);
                        }
                        Err(AssignError::Throttled(ThrottleReason::Account)) => {
                            _ = throttled.fetch_add(1, Ordering::SeqCst)
                        }
                        Err(AssignError::NotOwner(_) | AssignError::Worker(WorkerError::Gone(_))) => {}
                        Err(error) => panic!("{error}"),
                    }
                    tokio::time::sleep(ms(u64::from(dice(20)))).await;
                }
            })
        })
        .collect();
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[98; 32]);
    while clients.iter().any(|client| !client.is_finished()) {
        tokio::time::sleep(ms(u64::from(rng.next_u32() % 2000))).await;
        let mut fleet = fleet.write().await;
        let live = [vec![0, 1, 2], vec![0, 2], vec![1], vec![1, 2]][rng.next_u32() as usize % 4].clone();
        fleet.change(&live);
        for out in (0..3).filter(|m| !live.contains(m)) {
            let partition = Partition { me: id(out), ..fleet.partition(live[0]) };
            fleet.managers[out].set_partition(partition, &fleet.worker_ids());
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    let (highest, throttled, served) =
        (highest.load(Ordering::SeqCst), throttled.load(Ordering::SeqCst), served.load(Ordering::SeqCst));
    println!("{served} served, {throttled} throttled, at most {highest} at once");
    assert!((LIMIT - 2..=LIMIT).contains(&highest), "{highest}");
    assert!(served > 600 && throttled > 0, "{served} {throttled}");
}

#[tokio::test(start_paused = true)]
async fn a_view_in_between_leaves_no_sandbox_busy_that_is_not() {
    let mut fleet = Fleet::new(1, &[4096]);
    fleet.change(&[0]);
    let request = request("f", 128, Some(1));
    let first = fleet.invoke(&request).await;
    let lease = fleet.managers[0].assign(request.clone()).await.unwrap();
    fleet.begin(lease.sandbox);
    // The stream of the view before is cut off, and with it what it had to say. Or the lease was never used, and is refused now.
    fleet.end(lease.sandbox);
    fleet.change(&[0]);
    assert_eq!(fleet.invoke(&request).await.sandbox, first.sandbox);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_drains_is_rid_of_what_was_starting() {
    let mut fleet = Fleet::new(1, &[4096]);
    fleet.change(&[0]);
    let manager = fleet.managers[0].clone();
    let idle = fleet.invoke(&request("idle", 128, Some(1))).await;
    let starting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.assign(request("f", 128, Some(1))).await }
    });
    tokio::time::sleep(ms(5)).await;
    manager.drain_workers(fleet.worker_ids());
    let lease = starting.await.unwrap().unwrap();
    assert_eq!(fleet.workers[0].functions(), ["f"], "{} was idle", idle.sandbox);
    manager.idle(lease.sandbox);
    tokio::time::sleep(ms(10)).await;
    assert!(fleet.workers[0].functions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_whose_shutdown_was_refused_is_shut_down_later() {
    let mut fleet = Fleet::new(1, &[4096]);
    fleet.change(&[0]);
    let manager = fleet.managers[0].clone();
    let request = request("f", 128, None);
    let before = fleet.invoke(&request).await;
    fleet.workers[0].refuse_next_shutdown();
    manager.drain_workers(fleet.worker_ids());
    manager.drain_workers(HashSet::new());
    // Its worker was claimed for a new view first, and names it.
    fleet.change(&[0]);
    tokio::time::sleep(ms(50)).await;
    assert_eq!(fleet.invoke(&request).await.sandbox, before.sandbox);
    manager.drain_workers(fleet.worker_ids());
    tokio::time::sleep(ms(50)).await;
    assert!(fleet.workers[0].functions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn while_an_accounts_home_is_replaced_its_requests_wait() {
    let mut fleet = Fleet::new(2, &[4096]);
    fleet.change(&[0, 1]);
    let home = domain::rendezvous::owner(["m0", "m1"], AccountId::local().as_str()).unwrap();
    let (dead, other) = if home == "m0" { (0, 1) } else { (1, 0) };
    tokio::time::sleep(ms(500)).await;
    fleet.silent.lock().unwrap().insert(dead);
    let owned = |name: &String| fleet.partition(other).owns(&request(name, 128, None).version.arn);
    let name = (0..20).map(|n| format!("f{n}")).find(owned).unwrap();
    let waiting = tokio::spawn({
        let (manager, request) = (fleet.managers[other].clone(), request(&name, 128, None));
        async move { manager.assign(request).await }
    });
    tokio::time::sleep(ms(2500)).await;
    assert!(!waiting.is_finished(), "nobody knows whether the account has room");
    fleet.change(&[other]);
    let began = Instant::now();
    assert!(waiting.await.unwrap().is_ok());
    assert!(began.elapsed() < ms(200), "{:?}", began.elapsed());
}

/// In a busy moment the home's answer takes longer than a request waits at a limit.
#[tokio::test(start_paused = true)]
async fn a_burst_is_throttled_by_nothing_but_its_accounts_homes_word() {
    for (limit, least) in [(1000, 60), (40, 36)] {
        let mut fleet = Fleet::new(2, &[32768]);
        fleet.change(&[0, 1]);
        tokio::time::sleep(ms(500)).await;
        fleet.slow.store(400, Ordering::SeqCst);
        let burst: Vec<_> = (0..60)
            .map(|n| {
                let mut request = request(&format!("f{n}"), 128, None);
                request.limits.unreserved = limit;
                let manager = fleet.owner(&request).clone();
                tokio::spawn(async move { manager.assign(request).await })
            })
            .collect();
        let began = Instant::now();
        let mut leases = 0;
        for request in burst {
            match request.await.unwrap() {
                Ok(_) => leases += 1,
                Err(AssignError::Throttled(ThrottleReason::Account)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        println!("of {limit}: {leases} leases within {:?}", began.elapsed());
        assert!((least..=limit).contains(&leases), "{leases}");
        assert!(began.elapsed() < ms(3000), "{:?}", began.elapsed());
    }
}
