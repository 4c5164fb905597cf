//! Where the manager's sandboxes go: by Placement where there is one, and by what the workers told.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use domain::{
    AssignError, InitDone, InitRequest, InvokeOutcome, InvokeRequest, Lease, PackageChanges, Place, PlaceError,
    PlaceRequest, Placement, RetireReason, SandboxId, SlotEvents, Step, SystemClock, Timeline, Worker, WorkerError,
    WorkerId, WorkerManager, WorkerReport, WorkerRoute,
};
use futures::future::join_all;
use tokio::time::Instant;
use worker_manager::{Config, Manager};

use crate::sim::{Sim, ms, request};

fn id(n: usize) -> WorkerId {
    WorkerId(format!("w{n}").into())
}

fn placed(lease: &Lease) -> &str {
    let mark = lease.timeline.marks.iter().find(|mark| mark.step == Step::Placed);
    &mark.expect("a cold start is placed").note
}

/// What Placement says next; as the last, from then on.
#[derive(Clone)]
enum Says {
    /// That one, unless it has refused; then the next.
    Worker(usize),
    NoCapacity,
    Unavailable,
    Nothing,
}

struct Script {
    says: Mutex<Says>,
    asked: Mutex<Vec<PlaceRequest>>,
}

impl Script {
    fn for_manager(manager: &Manager, says: Says) -> Arc<Self> {
        let script = Arc::new(Self { says: Mutex::new(says), asked: Mutex::default() });
        manager.place_by(script.clone());
        script
    }
}

#[async_trait]
impl Placement for Script {
    async fn place(&self, request: PlaceRequest) -> Result<Place, PlaceError> {
        self.asked.lock().unwrap().push(request.clone());
        let says = self.says.lock().unwrap().clone();
        match says {
            Says::Worker(first) => {
                let worker = (first..).map(id).find(|worker| !request.except.contains(worker)).unwrap();
                Ok(Place { worker, reason: "as it says".to_owned() })
            }
            Says::NoCapacity => Err(PlaceError::NoCapacity("it knows no room".to_owned())),
            Says::Unavailable => Err(PlaceError::Unavailable("it is down".to_owned())),
            Says::Nothing => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn placement_decides_and_the_worker_has_the_last_word() {
    let sim = Sim::with_memory(Config::default(), &[4096, 1024, 1024]);
    let script = Script::for_manager(&sim.manager, Says::Worker(1));
    let lease = sim.manager.assign(request("f", 128, None)).await.unwrap();
    assert_eq!(placed(&lease), "w1: as it says");
    let asked = script.asked.lock().unwrap()[0].clone();
    assert_eq!((&*asked.function.name, asked.memory_mb, &*asked.package), ("f", 128, "f"));
    assert_eq!((asked.sandbox, asked.except), (lease.sandbox, vec![]));
    // Full after all: another place, for the same sandbox.
    sim.workers[1].refuse_next_init();
    let lease = sim.manager.assign(request("g", 128, None)).await.unwrap();
    let notes: Vec<_> = lease.timeline.marks.iter().filter(|m| m.step == Step::Placed).map(|m| &*m.note).collect();
    assert_eq!(notes, ["w1: as it says", "w2: as it says"]);
    assert_eq!(script.asked.lock().unwrap().last().unwrap().except, [id(1)]);
    assert_eq!(script.asked.lock().unwrap().last().unwrap().sandbox, lease.sandbox);
    assert_eq!(sim.workers[2].functions(), ["g"]);
    // A warm start asks nobody.
    sim.invoke(lease, ms(1)).await;
    assert!(!sim.manager.assign(request("g", 128, None)).await.unwrap().cold);
    assert_eq!(script.asked.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn without_a_useful_answer_the_manager_decides_itself() {
    let sim = Sim::with_memory(Config::default(), &[512, 128]);
    let script = Script::for_manager(&sim.manager, Says::Unavailable);
    let started = Instant::now();
    let lease = sim.manager.assign(request("a", 128, None)).await.unwrap();
    assert_eq!((placed(&lease), started.elapsed()), ("w0: least loaded", ms(10)), "Init, and no wait");
    sim.invoke(lease, ms(1)).await;
    // Neither a worker that this manager does not have, nor one that it knows to take nothing.
    *script.says.lock().unwrap() = Says::Worker(7);
    let lease = sim.manager.assign(request("b", 128, None)).await.unwrap();
    sim.invoke(lease, ms(1)).await;
    sim.workers[1].drain();
    *script.says.lock().unwrap() = Says::Worker(1);
    let lease = sim.manager.assign(request("c", 128, None)).await.unwrap();
    assert!(placed(&lease).starts_with("w0: only"), "{}", placed(&lease));
    sim.invoke(lease, ms(1)).await;
    // It waits no longer than this.
    *script.says.lock().unwrap() = Says::Nothing;
    let started = Instant::now();
    assert!(sim.manager.assign(request("d", 128, None)).await.unwrap().cold);
    assert_eq!(started.elapsed(), ms(300 + 10));
    // That there is no room is not its last word: idle ones make some.
    *script.says.lock().unwrap() = Says::NoCapacity;
    assert!(sim.manager.assign(request("e", 128, None)).await.unwrap().cold);
    let refused = sim.manager.assign(request("g", 1024, None)).await;
    assert!(matches!(refused, Err(AssignError::NoCapacity(_))), "{refused:?}");
}

/// A worker in another process, which tells how it is.
struct Elsewhere {
    id: WorkerId,
    asked: AtomicU32,
    draining: bool,
}

impl Elsewhere {
    fn new(n: usize) -> Self {
        Self { id: id(n), asked: AtomicU32::new(0), draining: false }
    }
}

#[async_trait]
impl Worker for Elsewhere {
    fn id(&self) -> &WorkerId {
        &self.id
    }

    async fn init(&self, _: InitRequest) -> Result<InitDone, WorkerError> {
        Ok(InitDone { timeline: Timeline::default() })
    }

    async fn invoke(&self, sandbox: SandboxId, _: InvokeRequest) -> Result<InvokeOutcome, WorkerError> {
        Err(WorkerError::Gone(sandbox))
    }

    async fn shutdown(&self, _: SandboxId, _: RetireReason) {}

    fn report(&self) -> WorkerReport {
        self.asked.fetch_add(1, Ordering::SeqCst);
        WorkerReport {
            worker: self.id.clone(),
            memory_mb: 4096,
            memory_used_mb: 0,
            slots: 20,
            slots_used: 0,
            starting: 0,
            draining: self.draining,
        }
    }

    fn has_package(&self, _: &str) -> bool {
        panic!("nobody asks all workers")
    }

    fn route(&self) -> Option<WorkerRoute> {
        Some(WorkerRoute { address: "127.0.0.1:1".into(), epoch: 1 })
    }
}

fn fleet(workers: &[Arc<Elsewhere>]) -> Manager {
    let manager = Manager::new(Arc::new(SystemClock::default()), Config::default(), vec![]);
    workers.iter().for_each(|worker| manager.claimed(worker.clone(), 1, vec![]));
    manager
}

#[tokio::test]
async fn workers_elsewhere_are_not_asked() {
    let workers: Vec<_> = (0..500).map(|n| Arc::new(Elsewhere::new(n))).collect();
    let manager = fleet(&workers);
    let before: u32 = workers.iter().map(|worker| worker.asked.load(Ordering::SeqCst)).sum();
    let names: Vec<String> = (0..40).map(|n| format!("f{n}")).collect();
    let starts = names.iter().map(|name| manager.assign(request(name, 128, None)));
    assert!(join_all(starts).await.iter().all(Result::is_ok));
    let after: u32 = workers.iter().map(|worker| worker.asked.load(Ordering::SeqCst)).sum();
    assert_eq!(
        after - before,
        40,
        "each decision looks at the report of the worker that it has chosen, and at no other"
    );
}

#[tokio::test]
async fn what_workers_tell_is_what_is_decided_by() {
    let mut workers: Vec<_> = (0..3).map(|n| Arc::new(Elsewhere::new(n))).collect();
    // It has begun to drain, and that has not been told yet.
    Arc::get_mut(&mut workers[0]).unwrap().draining = true;
    let manager = fleet(&workers);
    let told = |n: usize, memory_used_mb, starting, draining| WorkerReport {
        memory_used_mb,
        slots_used: (memory_used_mb / 128) as u32,
        starting,
        draining,
        ..workers[n].report()
    };
    let nothing = PackageChanges::default();
    let place = async |name: &str| {
        let lease = manager.assign(request(name, 128, None)).await.unwrap();
        let place = placed(&lease).to_owned();
        manager.dead(lease.sandbox, RetireReason::Failure);
        place
    };
    manager.reported(told(0, 0, 0, false), &nothing);
    manager.reported(told(1, 1024, 0, false), &nothing);
    assert_eq!(place("a").await, "w2: least loaded", "w0 drains, whatever it told before");
    manager.reported(told(2, 1024, 5, false), &nothing);
    assert_eq!(place("b").await, "w1: least loaded", "fewer start there");
    let has = PackageChanges { added: vec!["c".to_owned()], removed: vec![] };
    manager.reported(told(2, 1024, 5, false), &has);
    assert_eq!(place("c").await, "w2: package cached");
    let lost = PackageChanges { added: vec![], removed: vec!["c".to_owned()] };
    manager.reported(told(2, 1024, 5, false), &lost);
    manager.reported(told(1, 1024, 0, false), &nothing);
    assert_eq!(place("c").await, "w1: least loaded");
    manager.reported(told(1, 1024, 0, true), &nothing);
    assert_eq!(place("d").await, "w2: only one with room");
    manager.drain_workers([id(2)].into());
    let error = manager.assign(request("e", 128, None)).await.unwrap_err().to_string();
    assert!(error.contains("draining or cordoned"), "{error}");
}
