//! Updates, their states and revisions.

use std::collections::BTreeMap;

use lambda_api::ErrorCode::*;
use lambda_api::types::*;

use crate::support::*;

const IN_PROGRESS: &[&str] = &["LastUpdateStatus", "LastUpdateStatusReason", "LastUpdateStatusReasonCode"];

/// Recorded: test_function_lifecycle.
#[tokio::test]
async fn the_life_of_a_function() {
    let world = World::new().await;
    world.create("f").await;
    let request = UpdateFunctionConfigurationRequest {
        function_name: "f".into(),
        runtime: Some(Runtime::Python3_11),
        description: Some("Changed-Description".into()),
        memory_size: Some(512),
        timeout: Some(10),
        environment: Some(Environment { variables: Some(BTreeMap::from([("ENV_A".into(), "a".into())])) }),
        ..Default::default()
    };
    let updated = world.plane.update_function_configuration(&me(), request).await.unwrap();
    assert_eq!(members(&updated), configuration_members(&[IN_PROGRESS, &["Environment"]].concat()));
    let shown = json(&updated);
    assert_eq!(shown["LastUpdateStatus"], "InProgress");
    assert_eq!(shown["LastUpdateStatusReason"], "The function is being created.");
    assert_eq!(shown["LastUpdateStatusReasonCode"], "Creating");
    assert_eq!(shown["State"], "Active");
    assert_eq!(shown["RuntimeVersionConfig"]["RuntimeVersionArn"], "arn:aws:lambda:us-east-1::runtime:python3.11");
    world.plane.wait_idle().await;
    let after = world.get("f", None).await.unwrap();
    assert_eq!(members(&after), configuration_members(&["Environment", "LastUpdateStatus"]));
    assert_eq!(after.description.as_deref(), Some("Changed-Description"));

    let updated = world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap();
    assert_eq!(members(&updated), configuration_members(&[IN_PROGRESS, &["Environment"]].concat()));
    assert_ne!(updated.code_sha256, after.code_sha256);
    world.plane.wait_idle().await;
    assert_eq!(world.get("f", None).await.unwrap().code_sha256, updated.code_sha256);

    assert_eq!(json(&world.delete("f", None).await.unwrap()), serde_json::json!({"StatusCode": 204}));
}

/// Recorded: test_redundant_updates. The sandboxes are not thrown away for nothing.
#[tokio::test]
async fn an_update_that_changes_nothing() {
    let world = World::new().await;
    world.create("f").await;
    world.describe("f", "1st update description").await;
    let before = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    let mut retired = world.plane.retired();
    let updated = world.describe("f", "1st update description").await;
    assert_eq!(members(&updated), configuration_members(IN_PROGRESS));
    assert_eq!(world.plane.resolve(&me(), "f", None, 0.0).unwrap().version.key, before.key);
    assert!(retired.try_recv().is_err());
}

/// Recorded: test_lambda_concurrent_code_updates, test_lambda_concurrent_config_updates. While an update is under way
/// invocations run the old state.
#[tokio::test]
async fn one_update_at_a_time() {
    let world = World::new().await;
    world.create("f").await;
    let old = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    let mut retired = world.plane.retired();
    world.runtimes.open.send_replace(false);
    world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap();

    let busy =
        format!("The operation cannot be performed at this time. An update is in progress for resource: {ARN}:f");
    let again = world.plane.update_function_code(&me(), new_code("f", "v3")).await;
    refused(again, ResourceConflictException, &busy);
    let request = UpdateFunctionConfigurationRequest { function_name: "f".into(), ..Default::default() };
    let again = world.plane.update_function_configuration(&me(), request).await;
    refused(again, ResourceConflictException, &busy);
    let request = PublishVersionRequest { function_name: "f".into(), ..Default::default() };
    refused(world.plane.publish_version(&me(), request).await, ResourceConflictException, &busy);

    let meanwhile = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    assert_eq!((&meanwhile.key, &meanwhile.code), (&old.key, &old.code), "the old code");
    assert!(retired.try_recv().is_err());
    world.runtimes.open.send_replace(true);
    world.plane.wait_idle().await;
    let new = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    assert_ne!((&new.key, &new.code), (&old.key, &old.code));
    assert_eq!(retired.try_recv().unwrap(), old.key);
}

/// Recorded: the message (aws-lambda.md, section 7).
#[tokio::test]
async fn nothing_goes_while_a_function_is_pending() {
    let world = World::new().await;
    world.runtimes.open.send_replace(false);
    world.plane.create_function(&me(), function("f")).await.unwrap();
    let pending =
        "The operation cannot be performed at this time. The function is currently in the following state: Pending";
    refused(world.plane.resolve(&me(), "f", None, 0.0), ResourceConflictException, pending);
    let result = world.plane.update_function_code(&me(), new_code("f", "v2")).await;
    refused(result, ResourceConflictException, pending);
    let request = PublishVersionRequest { function_name: "f".into(), ..Default::default() };
    refused(world.plane.publish_version(&me(), request).await, ResourceConflictException, pending);
    world.delete("f", None).await.unwrap();
    world.runtimes.open.send_replace(true);
    world.plane.wait_idle().await;
    assert!(world.get("f", None).await.is_err());
}

/// Recorded: test_function_revisions_basic.
#[tokio::test]
async fn every_step_has_a_new_revision() {
    let world = World::new().await;
    let mut revisions = vec![world.create("f").await.revision_id.unwrap()];
    revisions.push(world.revision("f", None).await);
    let wrong = UpdateFunctionCodeRequest { revision_id: Some("wrong".into()), ..new_code("f", "v2") };
    refused(world.plane.update_function_code(&me(), wrong).await, PreconditionFailedException, STALE);
    let right = UpdateFunctionCodeRequest { revision_id: revisions.last().cloned(), ..new_code("f", "v2") };
    revisions.push(world.plane.update_function_code(&me(), right).await.unwrap().revision_id.unwrap());
    world.plane.wait_idle().await;
    revisions.push(world.revision("f", None).await);
    let update = |revision: Option<String>| UpdateFunctionConfigurationRequest {
        function_name: "f".into(),
        runtime: Some(Runtime::Python3_11),
        revision_id: revision,
        ..Default::default()
    };
    let wrong = world.plane.update_function_configuration(&me(), update(Some("wrong".into()))).await;
    refused(wrong, PreconditionFailedException, STALE);
    let right = update(revisions.last().cloned());
    revisions.push(world.plane.update_function_configuration(&me(), right).await.unwrap().revision_id.unwrap());
    world.plane.wait_idle().await;
    revisions.push(world.revision("f", None).await);
    let distinct: std::collections::HashSet<_> = revisions.iter().collect();
    assert_eq!(distinct.len(), 6);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let world = World::new().await;
    world.create("f").await;
    let before = world.get("f", None).await.unwrap();
    let request = UpdateFunctionCodeRequest { dry_run: Some(true), publish: Some(true), ..new_code("f", "v2") };
    let shown = world.plane.update_function_code(&me(), request).await.unwrap();
    assert_ne!(shown.code_sha256, before.code_sha256);
    assert_eq!(world.get("f", None).await.unwrap(), before);
    refused(world.get("f", Some("1")).await, ResourceNotFoundException, &format!("Function not found: {ARN}:f:1"));
    let request =
        UpdateFunctionCodeRequest { dry_run: Some(true), zip_file: Some("no zip".into()), ..new_code("f", "v2") };
    assert!(world.plane.update_function_code(&me(), request).await.is_err());
}

#[tokio::test]
async fn a_runtime_that_cannot_be_made_ready_fails_the_function_until_an_update() {
    let world = World::new().await;
    world.runtimes.broken.send_replace(true);
    world.create("f").await;
    let failed = json(&world.get("f", None).await.unwrap());
    assert_eq!((&failed["State"], &failed["StateReasonCode"]), (&"Failed".into(), &"InvalidRuntime".into()));
    assert_eq!(failed["StateReason"], "python3.12 could not be installed");
    assert!(failed.get("LastUpdateStatus").is_none());
    let in_failed =
        "The operation cannot be performed at this time. The function is currently in the following state: Failed";
    refused(world.plane.resolve(&me(), "f", None, 0.0), ResourceConflictException, in_failed);
    let request = PublishVersionRequest { function_name: "f".into(), ..Default::default() };
    refused(world.plane.publish_version(&me(), request).await, ResourceConflictException, in_failed);

    world.runtimes.broken.send_replace(false);
    let updated = world.describe("f", "again").await;
    assert_eq!(json(&updated)["State"], "Pending");
    let old = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;

    world.runtimes.broken.send_replace(true);
    world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap();
    world.plane.wait_idle().await;
    let config = json(&world.get("f", None).await.unwrap());
    assert_eq!((&config["State"], &config["LastUpdateStatus"]), (&"Active".into(), &"Failed".into()));
    assert_eq!(config["LastUpdateStatusReason"], "python3.12 could not be installed");
    assert_eq!(world.plane.resolve(&me(), "f", None, 0.0).unwrap().version, old, "the old code serves on");
    world.runtimes.broken.send_replace(false);
    world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap();
    world.plane.wait_idle().await;
    assert_ne!(world.plane.resolve(&me(), "f", None, 0.0).unwrap().version.code, old.code);
}
