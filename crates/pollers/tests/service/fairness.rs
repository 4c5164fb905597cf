//! No function's backlog, hanging attempts or throttling hold up another's events.

use std::time::{Duration, Instant};

use domain::SystemClock;
use pollers::{Config, EventConfig};

use crate::support::{Does, Rig, until};

/// Far more than it takes, far less than it would take if the other function were in the way.
const SOON: Duration = Duration::from_secs(2);

async fn backlog(does: Does) -> Rig<SystemClock> {
    let rig = Rig::new(SystemClock::default(), Config::default()).await;
    rig.world.does("busy", does);
    rig.put("busy", 20_000).await;
    until("the backlog is worked on", || rig.world.calls("busy").len() >= 16).await;
    rig
}

/// From now until the call; the event came in as `accept` says.
async fn first_call(rig: &Rig<SystemClock>, name: &str, accept: bool) -> Duration {
    let began = Instant::now();
    match accept {
        true => drop(rig.accept(name).await),
        false => rig.put(name, 1).await,
    }
    until("the other function's event", || !rig.world.calls(name).is_empty()).await;
    rig.world.calls(name)[0].at - began
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_hanging_attempts_is_in_nobodys_way() {
    let rig = backlog(Does::Hang).await;
    for round in 0..10 {
        let here = first_call(&rig, &format!("here-{round}"), true).await;
        let elsewhere = first_call(&rig, &format!("elsewhere-{round}"), false).await;
        println!("first event after {here:?} (accepted here), {elsewhere:?} (by another process)");
        assert!(here < SOON && elsewhere < SOON, "{here:?} {elsewhere:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_hang_do_not_use_up_the_accounts_concurrency() {
    let rig = Rig::new(SystemClock::default(), Config::default()).await;
    let config = EventConfig { unreserved_concurrency: Some(100), ..EventConfig::default() };
    let hanging: Vec<_> = (0..8).map(|number| format!("hangs-{number}")).collect();
    for name in &hanging {
        rig.world.config(name, config.clone());
        rig.world.does(name, Does::Hang);
        rig.put(name, 100).await;
    }
    let running = || hanging.iter().map(|name| rig.world.calls(name).len()).sum::<usize>();
    until("they hang", || running() >= 80).await;
    for round in 0..5 {
        let name = format!("other-{round}");
        rig.world.config(&name, config.clone());
        let took = first_call(&rig, &name, round % 2 == 0).await;
        assert!(took < SOON, "{took:?}");
    }
    // What was leased before anybody knew the limit may run besides.
    println!("{} attempts hang", running());
    assert!(running() <= pollers::shared(100) + 16, "{}", running());
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_is_one_that_is_throttled() {
    let rig = backlog(Does::Throttle).await;
    for round in 0..10 {
        let took = first_call(&rig, &format!("other-{round}"), true).await;
        assert!(took < SOON, "{took:?}");
    }
    // The throttled function is asked less and less, not 20,000 times.
    let before = rig.world.calls("busy").len();
    assert!(before < 2000, "{before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_is_one_that_runs_well() {
    let rig = backlog(Does::Sleep(Duration::from_millis(20))).await;
    for round in 0..10 {
        let took = first_call(&rig, &format!("other-{round}"), true).await;
        assert!(took < SOON, "{took:?}");
    }
    let stats = rig.done("busy").await;
    assert_eq!((stats.succeeded, rig.world.calls("busy").len()), (20_000, 20_000));
}

/// All that may run in all is used up by many functions; a new one still runs.
#[tokio::test(flavor = "multi_thread")]
async fn the_total_is_not_the_first_comers() {
    let rig = Rig::new(SystemClock::default(), Config { in_flight: 40, ..Config::default() }).await;
    for function in 0..10 {
        let name = format!("hangs-{function}");
        rig.world.does(&name, Does::Hang);
        rig.put(&name, 100).await;
    }
    until("the total is used up", || rig.world.calls.lock().len() >= 40).await;
    let took = first_call(&rig, "other", true).await;
    assert!(took < SOON, "{took:?}");
}
