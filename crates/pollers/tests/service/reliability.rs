//! Restarts, lost leases, several services at once, damage.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use domain::SystemClock;
use event_queue::{Entry, EventQueue as _};
use pollers::Config;
use uuid::Uuid;

use crate::support::{Does, HandClock, Rig, queue_of, seconds, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_at_a_crash_runs_again() {
    let mut rig = Rig::new(HandClock::default(), Config::default()).await;
    let mut accepted = HashSet::new();
    for round in 0..3 {
        rig.world.does("f", Does::Hang);
        for _ in 0..50 {
            accepted.insert(rig.accept("f").await);
        }
        until("some hang", || rig.world.calls("f").len() >= 16 * (round + 1)).await;
        rig.restart().await;
    }
    rig.world.does("f", Does::Succeed);
    rig.restart().await;
    // Events that were given back for want of room are due a little later.
    let finished = || rig.world.finished.lock().iter().copied().collect::<HashSet<_>>();
    while finished() != accepted {
        rig.clock.advance(seconds(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.done("f").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_services_share_a_queue_without_running_an_event_twice() {
    let rig = Rig::new(SystemClock::default(), Config::default()).await;
    let others = [rig.another(), rig.another()];
    rig.world.does("f", Does::Sleep(Duration::from_millis(2)));
    rig.put("f", 3000).await;
    rig.done("f").await;
    assert_eq!(rig.world.calls("f").len(), 3000);
    let runs: HashSet<_> = rig.world.calls("f").iter().map(|call| call.event.request_id).collect();
    assert_eq!(runs.len(), 3000);
    for other in others {
        other.stop(seconds(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_prolonged_while_the_attempt_runs() {
    let config = Config { lease: Duration::from_millis(1500), ..Config::default() };
    let rig = Rig::new(SystemClock::default(), config).await;
    rig.world.does("f", Does::Sleep(seconds(4)));
    rig.accept("f").await;
    rig.done("f").await;
    assert_eq!(rig.world.calls("f").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_lets_the_event_run_again_and_settles_nothing() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.does("f", Does::Wait);
    rig.accept("f").await;
    until("it runs", || rig.world.calls("f").len() == 1).await;
    // As if this process had stood still.
    rig.clock.advance(seconds(61));
    until("it runs again", || rig.world.calls("f").len() == 2).await;
    rig.world.open(2);
    until("both end", || rig.world.finished.lock().len() == 2).await;
    let stats = rig.done("f").await;
    assert_eq!(stats.succeeded, 1, "only the attempt that has the lease counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoker_that_panics_costs_its_attempt_only() {
    let rig = Rig::new(HandClock::default(), Config { in_flight: 1, ..Config::default() }).await;
    rig.world.does("bad", Does::Panic);
    for _ in 0..5 {
        rig.accept("bad").await;
    }
    until("it panics", || rig.world.calls("bad").len() == 5).await;
    rig.accept("good").await;
    rig.done("good").await;
    rig.world.does("bad", Does::Succeed);
    until("the leases end", || {
        rig.clock.advance(seconds(1));
        rig.world.finished.lock().len() == 6
    })
    .await;
    rig.done("bad").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_queue_is_away_nothing_is_lost_or_run_twice() {
    let mut rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.does("works", Does::Wait);
    rig.world.does("fails", Does::Throttle);
    for _ in 0..10 {
        rig.accept("works").await;
    }
    rig.accept("fails").await;
    until("all run", || rig.world.calls.lock().len() == 11).await;
    rig.stats_until("fails", |stats| stats.retrying == 1).await;
    rig.queue.away.store(true, Ordering::Relaxed);
    assert!(rig.service.accept(rig.event("works")).await.is_err());
    rig.world.open(10);
    until("they end", || rig.world.finished.lock().len() == 11).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.stats("works").await.depth, 10);
    rig.queue.away.store(false, Ordering::Relaxed);
    rig.done("works").await;
    rig.world.does("fails", Does::Succeed);
    rig.clock.advance(seconds(1));
    rig.done("fails").await;
    assert_eq!((rig.world.calls("works").len(), rig.world.calls("fails").len()), (10, 2));
    // Nor does it keep a stop waiting.
    rig.world.does("works", Does::Throttle);
    rig.accept("works").await;
    until("it runs", || rig.world.calls("works").len() == 11).await;
    rig.queue.away.store(true, Ordering::Relaxed);
    rig.stop(Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledging_goes_on_whatever_the_error() {
    let mut rig = Rig::new(HandClock::default(), Config::default()).await;
    // An error that is no matter of time, so far as the queue can say.
    rig.queue.damaged_acks.store(3, Ordering::Relaxed);
    rig.accept("f").await;
    until("the first tries fail", || rig.queue.damaged_acks.load(Ordering::Relaxed) < 3).await;
    for _ in 0..5 {
        rig.accept("g").await;
    }
    rig.done("f").await;
    rig.done("g").await;
    assert_eq!((rig.world.calls("f").len(), rig.world.calls("g").len()), (1, 5));
    assert_eq!(rig.queue.damaged_acks.load(Ordering::Relaxed), 0);
    // Nor does it end with the stop: what is done with by then is acknowledged, after another error.
    rig.world.does("g", Does::Sleep(Duration::from_millis(100)));
    rig.accept("g").await;
    until("it runs", || rig.world.calls("g").len() == 6).await;
    rig.stop(seconds(30)).await;
    assert_eq!(rig.stats("g").await.depth, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_waits_for_what_runs_and_gives_the_rest_back() {
    let mut rig = Rig::new(SystemClock::default(), Config::default()).await;
    rig.world.does("f", Does::Sleep(Duration::from_millis(300)));
    rig.put("f", 40).await;
    until("some run", || rig.world.calls("f").len() >= 16).await;
    rig.stop(seconds(30)).await;
    let calls = rig.world.calls("f").len();
    assert_eq!(rig.world.finished.lock().len(), calls);
    let stats = rig.stats("f").await;
    assert_eq!((stats.depth, stats.in_flight), (40 - calls as u64, 0));
    // It still accepts.
    rig.accept("f").await;
    assert_eq!(rig.stats("f").await.depth, 41 - calls as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_abandons_what_takes_too_long() {
    let mut rig = Rig::new(SystemClock::default(), Config::default()).await;
    rig.world.does("f", Does::Hang);
    rig.accept("f").await;
    until("it runs", || rig.world.calls("f").len() == 1).await;
    rig.stop(Duration::from_millis(50)).await;
    assert_eq!(rig.stats("f").await.depth, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_is_kept_aside() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    for body in [&b""[..], &[9, 1], &[1, 0, 0, 0, 1, b'{']] {
        let entry = Entry { queue: queue_of("f"), id: Uuid::new_v4(), body: body.into(), delay: Duration::ZERO };
        rig.queue.enqueue(vec![entry]).await.expect("put");
    }
    rig.accept("f").await;
    until("the good one runs", || rig.world.calls("f").len() == 1).await;
    rig.stats_until("f", |stats| stats.retrying == 3 && stats.depth == 3).await;
}
