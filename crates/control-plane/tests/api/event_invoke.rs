//! Settings of asynchronous invocation.

use std::time::Duration;

use domain::{AccountId, FunctionArn};
use lambda_api::ErrorCode::*;
use lambda_api::types::*;
use serde_json::json as j;

use crate::support::*;

fn arn(name: &str) -> FunctionArn {
    FunctionArn { region: "us-east-1".into(), account: AccountId::parse("111111111111").unwrap(), name: name.into() }
}

fn put(name: &str, qualifier: Option<&str>) -> PutFunctionEventInvokeConfigRequest {
    PutFunctionEventInvokeConfigRequest {
        function_name: name.into(),
        qualifier: qualifier.map(str::to_owned),
        ..Default::default()
    }
}

fn get(name: &str, qualifier: Option<&str>) -> GetFunctionEventInvokeConfigRequest {
    GetFunctionEventInvokeConfigRequest { function_name: name.into(), qualifier: qualifier.map(str::to_owned) }
}

/// Without the time.
fn shown(config: &FunctionEventInvokeConfig) -> serde_json::Value {
    let mut shown = json(config);
    let time = shown.as_object_mut().unwrap().remove("LastModified").unwrap();
    assert!(time.as_f64().unwrap() > 1.7e9, "seconds since 1970");
    shown
}

/// Recorded: test_lambda_eventinvokeconfig_lifecycle, test_ops_on_nonexisting_version.
#[tokio::test]
async fn the_life_of_an_event_invoke_config() {
    let world = World::new().await;
    world.create("f").await;
    let plane = &world.plane;
    let latest = format!("{ARN}:f:$LATEST");
    let empty = || j!({"OnFailure": {}, "OnSuccess": {}});

    let request = PutFunctionEventInvokeConfigRequest { maximum_retry_attempts: Some(0), ..put("f", None) };
    let config = plane.put_function_event_invoke_config(&me(), request).await.unwrap();
    let expected = j!({"DestinationConfig": empty(), "FunctionArn": latest, "MaximumRetryAttempts": 0});
    assert_eq!(shown(&config), expected);
    let request = PutFunctionEventInvokeConfigRequest { maximum_event_age_in_seconds: Some(60), ..put("f", None) };
    let config = plane.put_function_event_invoke_config(&me(), request).await.unwrap();
    let expected = j!({"DestinationConfig": empty(), "FunctionArn": latest, "MaximumEventAgeInSeconds": 60});
    assert_eq!(shown(&config), expected, "it replaces");
    let request = UpdateFunctionEventInvokeConfigRequest {
        function_name: "f".into(),
        maximum_retry_attempts: Some(1),
        ..Default::default()
    };
    let config = plane.update_function_event_invoke_config(&me(), request).await.unwrap();
    let expected = j!({
        "DestinationConfig": empty(), "FunctionArn": latest, "MaximumEventAgeInSeconds": 60, "MaximumRetryAttempts": 1,
    });
    assert_eq!(shown(&config), expected, "it merges");
    for qualifier in [None, Some("$LATEST")] {
        let config = plane.get_function_event_invoke_config(&me(), get("f", qualifier)).await.unwrap();
        assert_eq!(shown(&config), expected);
    }
    world.publish("f").await;
    refused(
        plane.get_function_event_invoke_config(&me(), get("f", Some("1"))).await,
        ResourceNotFoundException,
        &format!("The function {ARN}:f:1 doesn't have an EventInvokeConfig"),
    );
    let request = PutFunctionEventInvokeConfigRequest { maximum_retry_attempts: Some(2), ..put("f", Some("1")) };
    plane.put_function_event_invoke_config(&me(), request).await.unwrap();
    world.alias("f", "live", "1").await;
    let request = PutFunctionEventInvokeConfigRequest { maximum_retry_attempts: Some(0), ..put("f:live", None) };
    plane.put_function_event_invoke_config(&me(), request).await.unwrap();
    assert_eq!(plane.event_settings(&arn("f"), Some("live")).unwrap().maximum_retry_attempts, 0);
    assert_eq!(plane.event_settings(&arn("f"), Some("1")).unwrap().maximum_retry_attempts, 2);

    let list =
        |marker, max_items| ListFunctionEventInvokeConfigsRequest { function_name: "f".into(), marker, max_items };
    let page = plane.list_function_event_invoke_configs(&me(), list(None, Some(2))).await.unwrap();
    let mut all = page.function_event_invoke_configs.unwrap();
    let page = plane.list_function_event_invoke_configs(&me(), list(page.next_marker, None)).await.unwrap();
    all.extend(page.function_event_invoke_configs.unwrap());
    assert_eq!((all.len(), page.next_marker), (3, None));

    let world = world.restart().await;
    let plane = &world.plane;
    assert_eq!(plane.event_settings(&arn("f"), None).unwrap().maximum_event_age, Duration::from_secs(60));
    let delete = || DeleteFunctionEventInvokeConfigRequest { function_name: "f".into(), qualifier: None };
    plane.delete_function_event_invoke_config(&me(), delete()).await.unwrap();
    refused(
        plane.delete_function_event_invoke_config(&me(), delete()).await,
        ResourceNotFoundException,
        &format!("The function {latest} doesn't have an EventInvokeConfig"),
    );
    // What is gone takes its settings along.
    let request = DeleteAliasRequest { function_name: "f".into(), name: "live".into() };
    plane.delete_alias(&me(), request).await.unwrap();
    world.alias("f", "live", "1").await;
    assert_eq!(plane.event_settings(&arn("f"), Some("live")).unwrap().maximum_retry_attempts, 2, "the default");
}

/// The messages are AWS's own.
#[tokio::test]
async fn event_invoke_configs_that_are_refused() {
    let world = World::new().await;
    world.create("f").await;
    let plane = &world.plane;
    refused(
        plane.put_function_event_invoke_config(&me(), put("f", None)).await,
        InvalidParameterValueException,
        "You must specify at least one of error handling or destination setting.",
    );
    for (name, qualifier) in [("gone", None), ("f", Some("7")), ("f", Some("nope"))] {
        let request = PutFunctionEventInvokeConfigRequest { maximum_retry_attempts: Some(0), ..put(name, qualifier) };
        refused(
            plane.put_function_event_invoke_config(&me(), request).await,
            ResourceNotFoundException,
            "The function doesn't exist.",
        );
    }
    let request = UpdateFunctionEventInvokeConfigRequest {
        function_name: "f".into(),
        maximum_retry_attempts: Some(1),
        ..Default::default()
    };
    refused(
        plane.update_function_event_invoke_config(&me(), request).await,
        ResourceNotFoundException,
        &format!("The function {ARN}:f:$LATEST doesn't have an EventInvokeConfig"),
    );
}

#[tokio::test]
async fn what_the_pollers_go_by() {
    let world = World::new().await;
    let plane = &world.plane;
    let queue = "arn:aws:sqs:us-east-1:111111111111:dead";
    let dead = |target: &str| Some(DeadLetterConfig { target_arn: Some(target.into()) });
    let request = CreateFunctionRequest { dead_letter_config: dead(queue), ..function("f") };
    let created = plane.create_function(&me(), request).await.unwrap();
    assert_eq!(created.dead_letter_config, dead(queue));
    world.plane.wait_idle().await;
    let settings = plane.event_settings(&arn("f"), None).unwrap();
    assert_eq!((settings.maximum_retry_attempts, settings.maximum_event_age), (2, Duration::from_secs(21_600)));
    assert_eq!((settings.dead_letter.as_deref(), settings.reserved_concurrency), (Some(queue), None));

    let request = PutFunctionConcurrencyRequest { function_name: "f".into(), reserved_concurrent_executions: 0 };
    plane.put_function_concurrency(&me(), request).await.unwrap();
    assert_eq!(plane.event_settings(&arn("f"), None).unwrap().reserved_concurrency, Some(0));

    let wrong = "arn:aws:s3:::bucket";
    let update = |target: &str| UpdateFunctionConfigurationRequest {
        function_name: "f".into(),
        dead_letter_config: dead(target),
        ..Default::default()
    };
    let error = plane.update_function_configuration(&me(), update(wrong)).await.unwrap_err();
    assert!(error.message.contains(wrong) && error.code == InvalidParameterValueException, "{error}");
    let updated = plane.update_function_configuration(&me(), update("")).await.unwrap();
    assert_eq!(updated.dead_letter_config, None, "an empty one removes");
    assert!(plane.event_settings(&arn("gone"), None).is_err());
    assert!(plane.event_settings(&arn("f"), Some("nope")).is_err());
}

#[tokio::test]
async fn recursion_is_stopped_unless_allowed() {
    let world = World::new().await;
    world.create("f").await;
    let plane = &world.plane;
    let get = || GetFunctionRecursionConfigRequest { function_name: "f".into() };
    let config = plane.get_function_recursion_config(&me(), get()).await.unwrap();
    assert_eq!(json(&config), j!({"RecursiveLoop": "Terminate"}));
    let request = PutFunctionRecursionConfigRequest { function_name: "f".into(), recursive_loop: RecursiveLoop::Allow };
    let config = plane.put_function_recursion_config(&me(), request).await.unwrap();
    assert_eq!(json(&config), j!({"RecursiveLoop": "Allow"}));
    assert_eq!(json(&plane.get_function_recursion_config(&me(), get()).await.unwrap()), json(&config));
    let request = PutFunctionRecursionConfigRequest { function_name: "g".into(), ..Default::default() };
    refused(
        plane.put_function_recursion_config(&me(), request).await,
        ResourceNotFoundException,
        &format!("Function not found: {ARN}:g"),
    );
}
