//! Targets that fail.

use std::time::Duration;

use pollers::{Config, EventConfig};

use crate::support::{Does, Fate, HandClock, Rig, queue_target, seconds, until};

const WON: &str = "arn:aws:sqs:us-east-1:000000000000:won";
const DEAD: &str = "arn:aws:sqs:us-east-1:000000000000:dead";

fn config() -> EventConfig {
    EventConfig { on_success: queue_target("won"), dead_letter: queue_target("dead"), ..EventConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_is_retried_over_a_restart_and_the_function_does_not_run_again() {
    let mut rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.config("f", config());
    rig.world.deliveries.lock().insert(WON.into(), vec![Fate::Later, Fate::Later, Fate::Later]);
    rig.accept("f").await;
    for wait in [1, 2, 4] {
        rig.stats_until("f", |stats| stats.retrying == 1).await;
        rig.restart().await;
        rig.clock.advance(seconds(wait));
    }
    let stats = rig.done("f").await;
    assert_eq!((rig.world.calls("f").len(), *rig.world.tries.lock()), (1, 4));
    assert_eq!((stats.succeeded, stats.delivery_errors, stats.undelivered), (1, 3, 0));
    let delivered = rig.world.delivered();
    assert_eq!(delivered.len(), 1);
    let pollers::Message::Record { body, success: true } = &delivered[0].1 else { panic!("{delivered:?}") };
    assert!(body.contains(r#""responsePayload":null"#), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_failed_is_sent_again() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    let settings = pollers::Settings { maximum_retry_attempts: 0, ..pollers::Settings::default() };
    rig.world.config("f", EventConfig { settings, on_failure: queue_target("failed"), ..config() });
    rig.world.does("f", Does::Fail);
    rig.world.deliveries.lock().insert(DEAD.into(), vec![Fate::Later]);
    rig.accept("f").await;
    rig.stats_until("f", |stats| stats.retrying == 1).await;
    assert_eq!(rig.world.delivered().len(), 1);
    rig.clock.advance(seconds(1));
    let stats = rig.done("f").await;
    let delivered = rig.world.delivered();
    assert_eq!(delivered.len(), 2);
    let pollers::Message::DeadLetter { attributes, .. } = &delivered[1].1 else { panic!("{delivered:?}") };
    assert_eq!((attributes.error_code, attributes.error_message.as_str()), (200, "broken"));
    assert_eq!((stats.dropped, stats.dead_lettered, stats.delivery_errors), (1, 2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_refuses_is_given_up_and_counted() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.config("f", config());
    rig.world.deliveries.lock().insert(WON.into(), vec![Fate::Never]);
    rig.accept("f").await;
    let stats = rig.done("f").await;
    assert_eq!((stats.delivery_errors, stats.undelivered), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_stays_away_is_given_up_after_six_hours() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.config("f", config());
    rig.world.deliveries.lock().insert(WON.into(), vec![Fate::Later; 1000]);
    rig.accept("f").await;
    rig.stats_until("f", |stats| stats.retrying == 1).await;
    rig.clock.advance(seconds(6 * 3600 - 1));
    rig.stats_until("f", |stats| stats.retrying == 1 && stats.delivery_errors == 2).await;
    rig.clock.advance(seconds(300));
    let stats = rig.done("f").await;
    assert_eq!((stats.delivery_errors, stats.undelivered, rig.world.calls("f").len()), (3, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_holds_up_no_attempts() {
    let config_ = Config { delivery_timeout: Duration::from_secs(600), ..Config::default() };
    let rig = Rig::new(HandClock::default(), config_).await;
    rig.world.config("f", config());
    rig.world.deliveries.lock().insert(WON.into(), vec![Fate::Hang; 300]);
    for _ in 0..300 {
        rig.accept("f").await;
    }
    until("all run", || rig.world.finished.lock().len() == 300).await;
    // Some hang, the others wait in the queue.
    rig.stats_until("f", |stats| stats.retrying == 300 - 64).await;
    assert_eq!(rig.stats("f").await.delivery_errors, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_takes_too_long_has_failed() {
    let rig =
        Rig::new(HandClock::default(), Config { delivery_timeout: Duration::from_millis(50), ..Config::default() })
            .await;
    rig.world.config("f", config());
    rig.world.deliveries.lock().insert(WON.into(), vec![Fate::Hang]);
    rig.accept("f").await;
    rig.stats_until("f", |stats| stats.retrying == 1 && stats.delivery_errors == 1).await;
    rig.clock.advance(seconds(1));
    rig.done("f").await;
    assert_eq!(rig.world.delivered().len(), 1);
}
