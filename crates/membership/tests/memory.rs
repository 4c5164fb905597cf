//! The engine in memory, and the service on it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use domain::Clock;
use membership::{Config, Membership, MemoryRegistry, Registry, Standing};
use parking_lot::Mutex;

#[path = "conformance/suite.rs"]
mod suite;

use suite::{Bed, TestTime, member};

#[derive(Default)]
struct ManualClock(Mutex<u64>);

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(*self.0.lock())
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + self.monotonic()
    }
}

#[async_trait]
impl TestTime for ManualClock {
    async fn set(&self, now: u64) {
        *self.0.lock() = now;
    }
}

async fn bed() -> Bed {
    let clock = Arc::new(ManualClock::default());
    let registry: Arc<dyn Registry> = Arc::new(MemoryRegistry::new(Arc::clone(&clock) as Arc<dyn Clock>));
    Bed::new(Arc::clone(&registry), registry, clock).await
}

#[tokio::test]
async fn conforms() {
    suite::all(bed).await;
}

proptest::proptest! {
    #[test]
    fn agrees_with_the_ledger(steps in suite::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { suite::agrees_with_the_ledger(bed().await, steps).await });
    }
}

/// Tokio's clock, which a test that waits moves on.
struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000) + self.0.elapsed()
    }
}

fn registry() -> Arc<dyn Registry> {
    Arc::new(MemoryRegistry::new(Arc::new(TokioClock(tokio::time::Instant::now()))))
}

#[tokio::test(start_paused = true)]
async fn a_member_lives_drains_and_leaves() {
    let registry = registry();
    let a = Membership::join(Arc::clone(&registry), member("a"), Config::default()).await.unwrap();
    let b = Membership::join(registry, member("b"), Config::default()).await.unwrap();
    let both = b.view();
    assert_eq!(both.members().len(), 2);
    a.changes().wait_for(|view| *view == both).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!((a.view(), b.view()), (both.clone(), both.clone()));
    a.drain();
    let drained = |view: &membership::View| view.member(a.id()).is_some_and(|a| a.state.as_str() == "draining");
    assert!(b.changes().wait_for(drained).await.unwrap().epoch() > both.epoch());
    a.activate();
    b.changes().wait_for(|view| !drained(view)).await.unwrap();
    a.leave().await.unwrap();
    assert_eq!(*a.standing().borrow(), Standing::Left);
    b.changes().wait_for(|view| view.member(a.id()).is_none()).await.unwrap();
    // Once more does no harm.
    a.leave().await.unwrap();
    assert_eq!(b.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_task_ends_is_found_dead() {
    let registry = registry();
    let a = Membership::join(Arc::clone(&registry), member("a"), Config::default()).await.unwrap();
    let b = Membership::join(registry, member("b"), Config::default()).await.unwrap();
    let clone = b.clone();
    drop(b);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(a.view().members().len(), 2, "a clone is left");
    let start = tokio::time::Instant::now();
    let id = clone.id().clone();
    drop(clone);
    a.changes().wait_for(|view| view.member(&id).is_none()).await.unwrap();
    assert!(start.elapsed() <= Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_takes_the_name_takes_the_place() {
    let registry = registry();
    let old = Membership::join(Arc::clone(&registry), member("a"), Config::default()).await.unwrap();
    let new = Membership::join(registry, member("a"), Config::default()).await.unwrap();
    old.standing().wait_for(|standing| *standing == Standing::Replaced).await.unwrap();
    old.leave().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(matches!(*new.standing().borrow(), Standing::In { .. }));
    assert_eq!(new.view().members().len(), 1);
}
