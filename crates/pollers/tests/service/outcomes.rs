//! What becomes of an event by how its attempts end.

use pollers::{Config, EventConfig, Message, Settings, lineage};

use crate::support::{Does, HandClock, Rig, function, queue_target, seconds, until};

fn failing() -> EventConfig {
    EventConfig { on_failure: queue_target("failed"), dead_letter: queue_target("dead"), ..EventConfig::default() }
}

/// Condition and count of a record.
fn record(message: &Message) -> (String, u64) {
    let Message::Record { body, .. } = message else { panic!("no record: {message:?}") };
    let record: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let context = &record["requestContext"];
    (context["condition"].as_str().expect("a string").into(), context["approximateInvokeCount"].as_u64().expect("n"))
}

/// The condition that a failed event's destination was told.
fn told(rig: &Rig<HandClock>) -> (String, u64) {
    let delivered = rig.world.delivered();
    let of = |name: &str| delivered.iter().find(|(arn, _)| arn.ends_with(name)).expect(name).1.clone();
    let Message::DeadLetter { body, attributes } = of("dead") else { panic!("no dead letter") };
    assert_eq!(body, r#"{"n":1}"#);
    assert!(!attributes.error_message.is_empty());
    record(&of("failed"))
}

fn settled(rig: &Rig<HandClock>) -> Vec<String> {
    rig.world.settled.lock().iter().map(|(_, how)| how.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn success_goes_to_its_destination() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.config("f", EventConfig { on_success: queue_target("won"), ..failing() });
    let id = rig.accept("f").await;
    let stats = rig.done("f").await;
    assert_eq!((stats.received, stats.succeeded, stats.dropped, stats.dead_lettered), (1, 1, 0, 0));
    let calls = rig.world.calls("f");
    assert_eq!((calls.len(), calls[0].event.request_id, calls[0].event.attempt()), (1, id, 1));
    assert!(calls[0].event.waited().is_some());
    assert!(calls[0].event.trace_header.as_ref().expect("a trace").contains("Root=1-5759e988"));
    let delivered = rig.world.delivered();
    assert_eq!(delivered.len(), 1);
    assert!(delivered[0].0.ends_with(":won"));
    assert_eq!(record(&delivered[0].1), ("Success".into(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn function_errors_are_retried_after_one_and_two_minutes() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.config("f", failing());
    rig.world.does("f", Does::Fail);
    let id = rig.accept("f").await;
    for (runs, wait) in [(1, 60), (2, 120)] {
        rig.stats_until("f", |stats| stats.retrying == 1).await;
        rig.clock.advance(seconds(wait - 1));
        // Long enough for the queue to see the clock.
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        assert_eq!(rig.world.calls("f").len(), runs);
        rig.clock.advance(seconds(1));
        until("the retry", || rig.world.calls("f").len() == runs + 1).await;
    }
    let stats = rig.done("f").await;
    assert_eq!((stats.dropped, stats.succeeded, stats.dead_lettered), (1, 0, 2));
    let calls = rig.world.calls("f");
    assert!(calls.iter().all(|call| call.event.request_id == id));
    assert_eq!(calls.iter().map(|call| call.event.attempt()).collect::<Vec<_>>(), [1, 2, 3]);
    // A retry is the same hop of the chain.
    assert!(calls.iter().all(|call| call.event.trace_header == calls[0].event.trace_header));
    assert_eq!(told(&rig), ("RetriesExhausted".into(), 3));
    let steps = ["again in 60 s", "again in 120 s", "given up: RetriesExhausted", "told to its targets"];
    assert_eq!(settled(&rig), steps);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_retry_must_be_within_the_age() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    let settings = Settings { maximum_event_age: seconds(60), ..Settings::default() };
    rig.world.config("f", EventConfig { settings, ..failing() });
    rig.world.does("f", Does::Fail);
    rig.accept("f").await;
    rig.done("f").await;
    assert_eq!((rig.world.calls("f").len(), told(&rig)), (1, ("EventAgeExceeded".into(), 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn throttles_back_off_and_do_not_count() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    let settings = Settings { maximum_event_age: seconds(3600), ..Settings::default() };
    rig.world.config("f", EventConfig { settings, ..failing() });
    rig.world.does("f", Does::Throttle);
    rig.accept("f").await;
    let mut waits = [1, 2, 4, 8, 16, 32, 64, 128, 256].into_iter().chain(std::iter::repeat(300));
    let mut passed = 0;
    loop {
        let runs = rig.world.calls("f").len();
        if rig.stats_until("f", |stats| stats.retrying == 1 || stats.depth == 0).await.depth == 0 {
            break;
        }
        let wait = waits.next().expect("endless");
        rig.clock.advance(seconds(wait));
        passed += wait;
        until("the retry", || rig.world.calls("f").len() == runs + 1).await;
    }
    assert_eq!(told(&rig), ("EventAgeExceeded".into(), 0));
    // At 3,511 s the next attempt would be at 3,811 s.
    assert_eq!(passed, 3511);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_throttle_it_runs() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.config("f", EventConfig { on_success: queue_target("won"), ..failing() });
    rig.world.does("f", Does::Throttle);
    rig.accept("f").await;
    rig.stats_until("f", |stats| stats.retrying == 1).await;
    rig.world.does("f", Does::Succeed);
    rig.clock.advance(seconds(1));
    rig.done("f").await;
    assert_eq!(record(&rig.world.delivered()[0].1), ("Success".into(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_concurrency_zero_is_told_at_once() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    let settings = Settings { reserved_concurrency: Some(0), ..Settings::default() };
    rig.world.config("f", EventConfig { settings, ..failing() });
    rig.accept("f").await;
    rig.done("f").await;
    assert_eq!((rig.world.calls("f").len(), told(&rig)), (0, ("ZeroReservedConcurrency".into(), 0)));
    assert_eq!(settled(&rig), ["given up: ZeroReservedConcurrency", "told to its targets"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_function_that_is_gone_are_dropped_and_counted() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    rig.world.gone.lock().push("f".into());
    rig.accept("f").await;
    let stats = rig.done("f").await;
    assert_eq!((stats.received, stats.dropped, rig.world.calls("f").len()), (1, 1, 0));
    assert_eq!(settled(&rig), ["dropped: function, version or alias is gone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_is_stopped_unless_allowed() {
    let rig = Rig::new(HandClock::default(), Config::default()).await;
    let looping = |allowed| EventConfig { recursion_allowed: allowed, ..failing() };
    rig.world.config("f", looping(false));
    // The function sends its event on with the trace header that it got.
    let mut trace = rig.event("f").trace_header;
    for hop in 1..=17 {
        let event = pollers::AsyncEvent { trace_header: trace.clone(), ..rig.event("f") };
        rig.service.accept(event).await.expect("accepted");
        rig.done("f").await;
        trace = rig.world.calls("f").last().expect("a call").event.trace_header.clone();
        assert_eq!(rig.world.calls("f").len(), hop.min(16));
    }
    assert_eq!(told(&rig), ("RecursiveInvocation".into(), 0));
    assert_eq!(rig.stats("f").await.dropped, 1);
    rig.world.config("f", looping(true));
    let event = pollers::AsyncEvent { trace_header: trace.clone(), ..rig.event("f") };
    assert!(lineage::is_loop(lineage::hop(&trace.expect("a trace"), &function("f")).1));
    rig.service.accept(event).await.expect("accepted");
    rig.done("f").await;
    assert_eq!(rig.world.calls("f").len(), 17);
}
