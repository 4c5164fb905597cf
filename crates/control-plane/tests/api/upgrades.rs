//! Records that a newer Emberbox has written, in the hands of this one: while a fleet is upgraded, and after a downgrade.

use std::sync::Arc;

use control_plane::Behind;
use lambda_api::types::*;
use serde_json::{Value, json};
use sqlx::Connection as _;
use store::{Op, SqliteStore, Store as _};

use crate::support::*;

const KEY: &str = "111111111111/us-east-1/f";

/// What a newer one may have written, of whatever form.
fn more() -> Value {
    json!({"of": [1, 2.5, null], "text": "new"})
}

async fn records(world: &World, kind: &str) -> Vec<(String, Value)> {
    let records = world.store.scan(kind, "").await.unwrap().records;
    records.into_iter().map(|(key, record)| (key, serde_json::from_slice(&record.value).unwrap())).collect()
}

async fn only(world: &World, kind: &str) -> Value {
    let mut records = records(world, kind).await;
    assert_eq!(records.len(), 1, "{records:?}");
    records.remove(0).1
}

/// Puts a field that is not known at `places` of every record of `kind`, and waits until this process has read it.
async fn written_by_a_newer_one(world: &World, kind: &'static str, places: &[&str]) {
    let mut ops = Vec::new();
    for (key, mut record) in records(world, kind).await {
        for place in places {
            let object = record.pointer_mut(place).and_then(Value::as_object_mut);
            object.unwrap_or_else(|| panic!("{kind} has no {place}")).insert("more".into(), more());
        }
        ops.push(Op::put(kind, key, serde_json::to_vec(&record).unwrap()));
    }
    let revision = world.store.commit(ops).await.unwrap();
    world.plane.applied(revision).await.unwrap();
}

fn keeps(record: &Value, places: &[&str]) {
    for place in places {
        assert_eq!(record.pointer(&format!("{place}/more")), Some(&more()), "{place} of {record}");
    }
}

async fn change_all_of_it(world: &World, uuid: &str, statement: &str) {
    let plane = &world.plane;
    world.describe("f", "changed by the older one").await;
    let request = UpdateAliasRequest {
        function_name: "f".into(),
        name: "live".into(),
        description: Some("changed".into()),
        ..Default::default()
    };
    plane.update_alias(&me(), request).await.unwrap();
    let request = AddPermissionRequest {
        function_name: "f".into(),
        statement_id: statement.into(),
        action: "lambda:InvokeFunction".into(),
        principal: "s3.amazonaws.com".into(),
        ..Default::default()
    };
    plane.add_permission(&me(), request).await.unwrap();
    let request = UpdateFunctionEventInvokeConfigRequest {
        function_name: "f".into(),
        maximum_retry_attempts: Some(1),
        ..Default::default()
    };
    plane.update_function_event_invoke_config(&me(), request).await.unwrap();
    let request = TagResourceRequest { resource: format!("{ARN}:f"), tags: [("a".to_owned(), "b".to_owned())].into() };
    plane.tag_resource(&me(), request).await.unwrap();
    let request = PutFunctionConcurrencyRequest { function_name: "f".into(), reserved_concurrent_executions: 3 };
    plane.put_function_concurrency(&me(), request).await.unwrap();
    let request = UpdateEventSourceMappingRequest { uuid: uuid.into(), batch_size: Some(2), ..Default::default() };
    plane.update_event_source_mapping(&me(), request).await.unwrap();
    plane.wait_idle().await;
}

#[tokio::test]
async fn what_a_newer_one_wrote_stays_when_an_older_one_changes_the_record() {
    let world = World::new().await;
    let plane = &world.plane;
    world.create("f").await;
    world.publish("f").await;
    world.alias("f", "live", "1").await;
    let request = AddPermissionRequest {
        function_name: "f".into(),
        statement_id: "one".into(),
        action: "lambda:InvokeFunction".into(),
        principal: "s3.amazonaws.com".into(),
        ..Default::default()
    };
    plane.add_permission(&me(), request).await.unwrap();
    let request = PutFunctionEventInvokeConfigRequest {
        function_name: "f".into(),
        maximum_retry_attempts: Some(0),
        ..Default::default()
    };
    plane.put_function_event_invoke_config(&me(), request).await.unwrap();
    let request = PutFunctionConcurrencyRequest { function_name: "f".into(), reserved_concurrent_executions: 2 };
    plane.put_function_concurrency(&me(), request).await.unwrap();
    let request = CreateEventSourceMappingRequest {
        function_name: "f".into(),
        event_source_arn: Some("arn:aws:sqs:us-east-1:111111111111:q".into()),
        ..Default::default()
    };
    let uuid = plane.create_event_source_mapping(&me(), request).await.unwrap().uuid.unwrap();
    plane.wait_idle().await;

    let of_function = ["", "/latest/settings", "/aliases/live", "/policies/$LATEST", "/event_invoke/$LATEST"];
    written_by_a_newer_one(&world, "function", &of_function).await;
    written_by_a_newer_one(&world, "version", &["", "/settings"]).await;
    written_by_a_newer_one(&world, "account", &[""]).await;
    written_by_a_newer_one(&world, "event-source-mapping", &[""]).await;
    let of_a_new_kind = Op::put("layer", "111111111111/us-east-1/l", "whatever it is");
    world.store.commit(vec![of_a_new_kind]).await.unwrap();

    change_all_of_it(&world, &uuid, "two").await;
    world.publish("f").await;
    let world = world.restart().await;
    change_all_of_it(&world, &uuid, "three").await;

    let function = only(&world, "function").await;
    assert_eq!(function["latest"]["settings"]["description"], "changed by the older one");
    keeps(&function, &of_function);
    keeps(&only(&world, "account").await, &[""]);
    keeps(&only(&world, "event-source-mapping").await, &[""]);
    let versions = records(&world, "version").await;
    assert_eq!(versions.len(), 2);
    keeps(&versions[0].1, &["", "/settings"]);
    // What the newer one knew of the function's settings is in what the older one published of them.
    keeps(&versions[1].1, &["/settings"]);
    let new_kind = world.store.get("layer", "111111111111/us-east-1/l").await.unwrap().unwrap();
    assert_eq!(new_kind.value, "whatever it is");
    assert_eq!(world.get("f", None).await.unwrap().description.as_deref(), Some("changed by the older one"));
}

/// Writes a state of `f` that no Emberbox knows. Returns the record and its revision.
async fn written_unreadably(world: &World) -> (Vec<u8>, u64) {
    let stored = world.store.get("function", KEY).await.unwrap().unwrap().value;
    let mut record: Value = serde_json::from_slice(&stored).unwrap();
    record["latest"]["state"] = json!({"Inactive": {"since": "yesterday"}});
    let newer = serde_json::to_vec(&record).unwrap();
    let revision = world.store.commit(vec![Op::put("function", KEY, newer.clone())]).await.unwrap();
    let Err(Behind::Unreadable(reason)) = world.plane.applied(revision).await else { panic!("it cannot be read") };
    assert!(reason.contains(KEY) && reason.contains("another version of Emberbox"), "{reason}");
    assert_eq!(world.plane.trouble(), Some(format!("1 record of the metadata cannot be read: {reason}")));
    (newer, revision)
}

/// A state that this one does not know is not taken for another, nor written over.
#[tokio::test]
async fn what_cannot_be_read_is_left_alone() {
    let world = World::new().await;
    let before = world.create("f").await;
    world.create("g").await;
    let (newer, revision) = written_unreadably(&world).await;
    // As it was known, for reading and running; a change is refused.
    assert_eq!(world.get("f", None).await.unwrap().code_sha256, before.code_sha256);
    world.plane.resolve(&me(), "f", None, 0.0).unwrap();
    let error = world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap_err();
    assert!(error.message.contains("does not write over it") && error.message.contains(KEY), "{}", error.message);
    assert_eq!(world.store.get("function", KEY).await.unwrap().unwrap().value, newer);
    // Others go on as ever, and whoever asks for their changes has them.
    world.describe("g", "changed").await;
    world.create("h").await;
    let later = world.store.scan("function", "").await.unwrap().revision;
    world.plane.applied(later).await.unwrap();
    assert!(world.plane.applied(revision).await.is_err(), "that one is missing still");
    assert_eq!((world.plane.unreadable_records(), world.plane.follows()), (1, true));
    let World { plane, store, owned, .. } = world;
    drop(plane);
    store.close().await;
    let error = World::try_in_dir(owned.unwrap().path()).await.err().expect("it does not start").to_string();
    assert!(error.contains(KEY) && error.contains("another version of Emberbox"), "{error}");
}

/// What the functions of an account share is a record like others.
#[tokio::test]
async fn of_an_account_that_cannot_be_read_the_rest_goes_on() {
    let world = World::new().await;
    world.create("f").await;
    let account = "111111111111/us-east-1";
    let revision = world.store.commit(vec![Op::put("account", account, "no")]).await.unwrap();
    assert!(world.plane.applied(revision).await.is_err());
    let request = || PutFunctionConcurrencyRequest { function_name: "f".into(), reserved_concurrent_executions: 3 };
    let error = world.plane.put_function_concurrency(&me(), request()).await.unwrap_err();
    assert!(error.message.contains("does not write over it"), "{}", error.message);
    world.describe("f", "changed").await;
    let revision = world.store.commit(vec![Op::delete("account", account)]).await.unwrap();
    world.plane.applied(revision).await.unwrap();
    world.plane.put_function_concurrency(&me(), request()).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_can_be_deleted() {
    let world = World::new().await;
    world.create("f").await;
    world.publish("f").await;
    // This one knows nothing of the second version.
    let second = world.store.scan("version", KEY).await.unwrap().records[0].1.value.clone();
    written_unreadably(&world).await;
    world.store.commit(vec![Op::put("version", format!("{KEY}/{:020}", 2), second)]).await.unwrap();
    world.delete("f", None).await.unwrap();
    assert_eq!(world.plane.trouble(), None);
    assert!(world.get("f", None).await.is_err());
    for kind in ["function", "version"] {
        assert_eq!(world.store.scan(kind, "").await.unwrap().records, []);
    }
    world.create("f").await;
    assert_eq!(world.publish("f").await.version.as_deref(), Some("3"), "no number comes a second time");
}

/// Also what was written with it, and was not followed then.
#[tokio::test]
async fn what_is_written_anew_is_read_with_all_that_was_missed() {
    let world = World::new().await;
    world.create("f").await;
    world.create("f-other").await;
    let readable = world.store.get("function", KEY).await.unwrap().unwrap().value;
    world.publish("f").await;
    let (function, version) = {
        let function = world.store.get("function", KEY).await.unwrap().unwrap().value;
        (function, world.store.scan("version", KEY).await.unwrap().records.remove(0))
    };
    let versions = format!("{KEY}/{:020}", 1);
    // As if it had never been published, and then in one commit with a record that cannot be read.
    world.store.commit(vec![Op::delete("version", &*versions), Op::put("function", KEY, readable)]).await.unwrap();
    let ops = vec![Op::put("version", version.0, version.1.value), Op::put("function", KEY, "{}")];
    let revision = world.store.commit(ops).await.unwrap();
    assert!(world.plane.applied(revision).await.is_err());
    assert!(world.get("f", Some("1")).await.is_err(), "it is as it was");
    let revision = world.store.commit(vec![Op::put("function", KEY, function)]).await.unwrap();
    world.plane.applied(revision).await.unwrap();
    assert_eq!(world.plane.trouble(), None);
    world.get("f", Some("1")).await.unwrap();
    world.describe("f", "changed").await;

    // The same where it is a version that cannot be read, and is deleted alone.
    let function = world.store.get("function", KEY).await.unwrap().unwrap().value;
    let ops = vec![Op::put("version", format!("{KEY}/{:020}", 2), "{}"), Op::put("function", KEY, function)];
    let revision = world.store.commit(ops).await.unwrap();
    assert!(world.plane.applied(revision).await.is_err());
    world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap_err();
    let revision = world.store.commit(vec![Op::delete("version", format!("{KEY}/{:020}", 2))]).await.unwrap();
    world.plane.applied(revision).await.unwrap();
    world.describe("f", "changed again").await;
}

/// The record is mended where no commit tells of it, and others commit all the time.
#[tokio::test]
async fn all_is_read_again_also_while_others_change() {
    let world = World::new().await;
    world.create("f").await;
    world.create("g").await;
    let other = world.beside().await;
    let readable = world.store.get("function", KEY).await.unwrap().unwrap();
    written_unreadably(&world).await;
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(world.dir.join("metadata.db"));
    let mut sql = sqlx::sqlite::SqliteConnection::connect_with(&file).await.unwrap();
    let mend = sqlx::query("UPDATE records SET value = ? WHERE kind = 'function' AND key = ?");
    mend.bind(readable.value.to_vec()).bind(KEY).execute(&mut sql).await.unwrap();
    let asked = std::time::Instant::now();
    for round in 0.. {
        if world.plane.trouble().is_none() {
            break;
        }
        assert!(asked.elapsed() < std::time::Duration::from_secs(20), "it is not read again");
        other.describe("g", &format!("round {round}")).await;
    }
    world.describe("f", "changed").await;
}

/// Who missed commits reads everything, and everything but what cannot be read is there.
#[test]
fn after_missed_commits_the_others_are_there() {
    // The follower runs only while the test waits here; the store runs always.
    let here = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let there = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = there.block_on(SqliteStore::open(dir.path().join("metadata.db"))).unwrap();
    let world = here.block_on(async {
        let world = World::with_store(dir.path(), Arc::new(store)).await;
        for name in ["f", "g", "h"] {
            world.create(name).await;
        }
        world
    });
    let (revision, last) = there.block_on(async {
        let [g, h] = ["g", "h"].map(|name| format!("111111111111/us-east-1/{name}"));
        let record = world.store.get("function", &g).await.unwrap().unwrap().value;
        let mut record: Value = serde_json::from_slice(&record).unwrap();
        record["latest"]["settings"]["description"] = "new".into();
        let ops =
            vec![Op::put("function", KEY, "{}"), Op::put("function", g, record.to_string()), Op::delete("function", h)];
        let revision = world.store.commit(ops).await.unwrap();
        let mut more = tokio::task::JoinSet::new();
        // More than the feed keeps for who is slow.
        for _ in 0..1100 {
            let store = Arc::clone(&world.store);
            more.spawn(async move { store.commit(vec![Op::put("other", "x", "x")]).await.unwrap() });
        }
        (revision, more.join_all().await.into_iter().max().unwrap())
    });
    here.block_on(async {
        world.plane.applied(last).await.unwrap();
        let Err(Behind::Unreadable(reason)) = world.plane.applied(revision).await else { panic!("it cannot be read") };
        assert!(reason.contains(KEY), "{reason}");
        world.get("f", None).await.unwrap();
        assert_eq!(world.get("g", None).await.unwrap().description.as_deref(), Some("new"));
        assert!(world.get("h", None).await.is_err());
        world.describe("g", "changed").await;
    });
}
