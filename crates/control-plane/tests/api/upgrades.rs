//! Records that a newer Emberbox has written, in the hands of this one: while a fleet is upgraded, and after a downgrade.

use lambda_api::types::*;
use serde_json::{Value, json};
use store::{Op, Store as _};

use crate::support::*;

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

/// A state that this one does not know is not taken for another, nor written over.
#[tokio::test]
async fn what_cannot_be_read_is_left_alone() {
    let world = World::new().await;
    let before = world.create("f").await;
    world.create("g").await;
    let key = "111111111111/us-east-1/f";
    let stored = world.store.get("function", key).await.unwrap().unwrap().value;
    let mut record: Value = serde_json::from_slice(&stored).unwrap();
    record["latest"]["state"] = json!({"Inactive": {"since": "yesterday"}});
    let newer = serde_json::to_vec(&record).unwrap();
    let revision = world.store.commit(vec![Op::put("function", key, newer.clone())]).await.unwrap();
    world.plane.applied(revision).await.unwrap();
    // As it was known, for reading and running; a change is refused.
    assert_eq!(world.get("f", None).await.unwrap().code_sha256, before.code_sha256);
    world.plane.resolve(&me(), "f", None, 0.0).unwrap();
    world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap_err();
    assert_eq!(world.store.get("function", key).await.unwrap().unwrap().value, newer);
    // Others go on as ever.
    world.describe("g", "changed").await;
    let World { plane, store, owned, .. } = world;
    drop(plane);
    store.close().await;
    let error = World::try_in_dir(owned.unwrap().path()).await.err().expect("it does not start").to_string();
    assert!(error.contains(key) && error.contains("another version of Emberbox"), "{error}");
}
