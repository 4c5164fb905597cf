//! The service against a queue in memory, in paused time: an hour takes milliseconds, and every run is the same.

use std::collections::BTreeMap;
use std::time::Duration;

use event_sources::{Attribute, InvokeError};
use serde_json::{Value, json};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn messages_are_delivered_as_aws_does_and_deleted() {
    let world = World::new();
    let attribute = Attribute { data_type: "Number".into(), string: Some("7".into()), binary: None };
    world.queue.send_with("hello", None, [("n".to_owned(), attribute)].into());
    world.serve(mapping("m"));
    world.until(|| world.queue.len() == 0).await;
    let [call] = &world.invoker.calls()[..] else { panic!("one invocation") };
    let record = &call.event["Records"][0];
    assert_eq!(call.event["Records"].as_array().unwrap().len(), 1);
    assert_eq!(record["body"], "hello");
    assert_eq!(record["eventSource"], "aws:sqs");
    assert_eq!(record["eventSourceARN"], QUEUE);
    assert_eq!(record["awsRegion"], "us-east-1");
    assert_eq!(record["attributes"]["ApproximateReceiveCount"], "1");
    assert_eq!(record["messageAttributes"]["n"]["stringValue"], "7");
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_comes_again_after_the_visibility_timeout() {
    let world = World::new();
    world.invoker.on(|call| if call.number < 2 { Err(function_error()) } else { Ok(json!(null)) });
    world.queue.send("a");
    world.serve(mapping("m"));
    world.until(|| world.queue.len() == 0).await;
    let calls = world.invoker.calls();
    let counts: Vec<_> =
        calls.iter().map(|c| c.event["Records"][0]["attributes"]["ApproximateReceiveCount"].clone()).collect();
    assert_eq!(counts, ["1", "2", "3"]);
    for pair in calls.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= VISIBILITY && gap < VISIBILITY + Duration::from_secs(21), "{gap:?}");
    }
    assert_eq!(world.mappings.problem("m"), None, "the last one went well");
    world.finish().await;
}

/// Recorded: test_report_batch_item_failures.
#[tokio::test(start_paused = true)]
async fn only_the_failed_messages_of_a_batch_come_again() {
    let world = World::new();
    world.invoker.on(|call| {
        let records = call.event["Records"].as_array().unwrap();
        let bad = records.iter().filter(|r| call.number == 0 && r["body"].as_str().unwrap().starts_with("bad"));
        let failures: Vec<Value> = bad.map(|r| json!({"itemIdentifier": r["messageId"]})).collect();
        Ok(json!({"batchItemFailures": failures}))
    });
    for body in ["a", "bad1", "b", "bad2"] {
        world.queue.send(body);
    }
    world.serve(Mapping { report_batch_item_failures: true, ..mapping("m") });
    world.until(|| world.queue.len() == 0).await;
    let bodies = world.invoker.bodies();
    assert_eq!(bodies, [vec!["a", "bad1", "b", "bad2"], vec!["bad1", "bad2"]]);
    world.finish().await;
}

/// Recorded: test_report_batch_item_failures_invalid_result_json_batch_fails. Without the setting, any answer will do.
#[tokio::test(start_paused = true)]
async fn an_answer_that_makes_no_sense_fails_the_whole_batch() {
    for (report, invocations) in [(true, 2), (false, 1)] {
        let world = World::new();
        world.invoker.on(|call| match call.number {
            0 => Ok(json!({"batchItemFailures": [{"foo": "notvalid"}]})),
            _ => Ok(json!({})),
        });
        world.queue.send("a");
        world.queue.send("b");
        world.serve(Mapping { report_batch_item_failures: report, ..mapping("m") });
        world.until(|| world.queue.len() == 0).await;
        assert_eq!(world.invoker.bodies(), vec![vec!["a", "b"]; invocations]);
        world.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_filter_matches_is_deleted_unseen() {
    let world = World::new();
    for body in [r#"{"n": 1}"#, r#"{"n": 2}"#, "text", r#"{"n": 3}"#] {
        world.queue.send(body);
    }
    world.serve(Mapping { filters: vec![r#"{"body": {"n": [{"numeric": [">", 1]}]}}"#.into()], ..mapping("m") });
    world.until(|| world.queue.len() == 0).await;
    assert_eq!(world.invoker.bodies(), [[r#"{"n": 2}"#, r#"{"n": 3}"#]]);
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_throttled_batch_is_tried_again_without_another_receipt() {
    let world = World::new();
    world
        .invoker
        .on(|call| if call.number < 3 { Err(InvokeError::Throttled("Rate exceeded".into())) } else { Ok(json!(null)) });
    world.queue.send("a");
    world.serve(mapping("m"));
    world.until(|| world.invoker.calls().len() == 2).await;
    assert_eq!(world.mappings.problem("m").as_deref(), Some("Rate exceeded"));
    world.until(|| world.queue.len() == 0).await;
    let counts = world
        .invoker
        .calls()
        .iter()
        .map(|c| c.event["Records"][0]["attributes"]["ApproximateReceiveCount"].clone())
        .collect::<Vec<_>>();
    assert_eq!(counts, ["1", "1", "1", "1"]);
    assert_eq!(world.mappings.problem("m"), None);

    // Throttled for longer than the message is hidden: it comes again.
    world.invoker.on(|call| {
        let count = &call.event["Records"][0]["attributes"]["ApproximateReceiveCount"];
        if count == "1" { Err(InvokeError::Throttled("Rate exceeded".into())) } else { Ok(json!(null)) }
    });
    world.queue.send("b");
    world.until(|| world.queue.len() == 0).await;
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_batching_window_gathers() {
    let world = World::new();
    world.serve(Mapping { batch_size: 25, batching_window: Duration::from_secs(10), ..mapping("m") });
    let start = tokio::time::Instant::now();
    for i in 0..60 {
        world.queue.send(&format!("{i}"));
    }
    world.until(|| world.queue.len() == 0).await;
    let sizes: Vec<usize> = world.invoker.bodies().iter().map(Vec::len).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 60);
    assert!(sizes.iter().all(|size| *size <= 25) && sizes.len() <= 8, "{sizes:?}");
    assert!(start.elapsed() >= Duration::from_secs(9) || sizes.contains(&25), "{sizes:?}");
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_fails_is_said_and_tried_again() {
    let world = World::new();
    world.queue.fail(Some("AWS.SimpleQueueService.NonExistentQueue"));
    world.serve(mapping("m"));
    world.until(|| world.mappings.problem("m").is_some()).await;
    assert_eq!(
        world.mappings.problem("m").unwrap(),
        "Error occurred while ReceiveMessage. SQS Error Code: AWS.SimpleQueueService.NonExistentQueue. SQS Error Message: broken"
    );
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(world.queue.failures() < 1000, "it backs off: {}", world.queue.failures());
    world.queue.send("a");
    world.queue.fail(None);
    world.until(|| world.queue.len() == 0).await;
    assert_eq!(world.mappings.problem("m"), None);
    assert_eq!(world.invoker.bodies(), [["a"]]);
    world.finish().await;
}

/// `MaximumConcurrency` holds, and without it the pollers grow with the backlog.
#[tokio::test(start_paused = true)]
async fn concurrency_follows_the_backlog_up_to_the_limit() {
    for (limit, least, most) in [(Some(2), 2, 2), (None, 50, 1000)] {
        let world = World::new();
        world.invoker.takes(Duration::from_secs(1));
        for i in 0..2000 {
            world.queue.send(&format!("{i}"));
        }
        world.serve(Mapping { batch_size: 1, source: sqs(QUEUE, limit), ..mapping("m") });
        tokio::time::sleep(Duration::from_secs(20)).await;
        let peak = world.invoker.peak();
        assert!(peak >= least && peak <= most, "{limit:?}: {peak}");
        world.finish().await;
    }
}

/// Of each group, whatever fails, the order of the messages that get through is the order in which they were sent.
#[tokio::test(start_paused = true)]
async fn fifo_groups_keep_their_order() {
    for seed in 0..20u64 {
        let world = World::named("orders.fifo");
        // A batch fails by chance, and so do single messages of it from some place on.
        world.invoker.on(move |call| {
            let mut dice =
                seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(call.number as u64 * 2_654_435_761);
            dice ^= dice >> 29;
            if dice % 4 == 0 {
                return Err(function_error());
            }
            let records = call.event["Records"].as_array().unwrap();
            let from = (dice >> 8) as usize % (records.len() + 1);
            let failed = |r: &Value| json!({"itemIdentifier": r["messageId"]});
            Ok(json!({"batchItemFailures": records[from..].iter().map(failed).collect::<Vec<_>>()}))
        });
        for i in 0..40 {
            world.queue.send_with(&format!("{i}"), Some(["a", "b", "c"][i % 3]), BTreeMap::new());
        }
        world.serve(Mapping {
            source: sqs(&world.queue.arn(), None),
            report_batch_item_failures: true,
            ..mapping("m")
        });
        world.until(|| world.queue.len() == 0).await;
        let deleted = world.queue.deleted();
        for group in 0..3 {
            let own: Vec<usize> = deleted.iter().map(|b| b.parse().unwrap()).filter(|i| i % 3 == group).collect();
            assert!(own.is_sorted(), "seed {seed}: {own:?}");
        }
        assert_eq!(deleted.len(), 40);
        world.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn changes_are_followed() {
    let world = World::new();
    world.serve(mapping("m"));
    world.queue.send("a");
    world.until(|| world.queue.len() == 0).await;
    // Disabled: nothing is taken.
    world.mappings.set(vec![]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.queue.send("b");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.invoker.calls().len(), 1);
    // Enabled again, with other settings.
    world.mappings.set(vec![Mapping { filters: vec![r#"{"body": ["c"]}"#.into()], ..mapping("m") }]);
    world.queue.send("c");
    world.until(|| world.queue.len() == 0).await;
    assert_eq!(world.invoker.bodies(), [["a"], ["c"]]);
    world.finish().await;
}

/// A stop lets invocations end and deletes what they did; what they did not end in time is still in the queue.
#[tokio::test(start_paused = true)]
async fn a_stop_loses_nothing() {
    for (limit, left) in [(60, 0), (1, 1)] {
        let world = World::new();
        world.invoker.takes(Duration::from_secs(5));
        world.queue.send("a");
        world.serve(mapping("m"));
        world.until(|| world.invoker.peak() == 1).await;
        let stopped = tokio::time::Instant::now();
        world.service.stop(Duration::from_secs(limit)).await;
        assert!(stopped.elapsed() <= Duration::from_secs(limit.min(6)));
        assert_eq!(world.queue.len(), left);
        world.queue.send("b");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(world.queue.visible(), left + 1, "nobody takes them");
    }
}

/// What was gathered but not sent is given back at once.
#[tokio::test(start_paused = true)]
async fn a_stop_gives_back_what_was_gathered() {
    let world = World::new();
    world.queue.send("a");
    world.serve(Mapping { batch_size: 100, batching_window: Duration::from_secs(300), ..mapping("m") });
    world.until(|| world.queue.visible() == 0).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.service.stop(Duration::from_secs(60)).await;
    assert_eq!((world.queue.visible(), world.invoker.calls().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_fails_is_tried_again() {
    let world = World::new();
    world.queue.fail_deletes(3);
    world.queue.send("a");
    world.serve(mapping("m"));
    world.until(|| world.queue.len() == 0).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.invoker.calls().len(), 1, "it did not come again");
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn large_messages_are_sent_in_several_events() {
    let world = World::new();
    for i in 0..10 {
        world.queue.send(&format!("{i}{}", "x".repeat(1_000_000)));
    }
    world.serve(mapping("m"));
    world.until(|| world.queue.len() == 0).await;
    let calls = world.invoker.calls();
    assert!(calls.len() >= 2 && calls.iter().all(|call| call.bytes <= 6 * 1024 * 1024));
    let firsts: String = world.invoker.bodies().concat().iter().map(|body| body[..1].to_owned()).collect();
    assert_eq!(firsts.len(), 10);
    world.finish().await;
}
