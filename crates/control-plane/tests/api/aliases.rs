//! Aliases.

use lambda_api::ErrorCode::*;
use lambda_api::types::*;
use serde_json::json as j;

use crate::support::*;

async fn two_versions(world: &World) {
    world.create("f").await;
    world.publish("f").await;
    world.describe("f", "2").await;
    world.publish("f").await;
}

/// Recorded: test_alias_lifecycle.
#[tokio::test]
async fn the_life_of_aliases() {
    let world = World::new().await;
    two_versions(&world).await;
    let request = CreateAliasRequest {
        description: Some("custom-alias".into()),
        routing_config: weights(&[("2", 0.2)]),
        ..new_alias("f", "aliasname1_1", "1")
    };
    let created = world.plane.create_alias(&me(), request).await.unwrap();
    assert_eq!(
        json(&created),
        j!({
            "AliasArn": format!("{ARN}:f:aliasname1_1"), "Description": "custom-alias", "FunctionVersion": "1",
            "Name": "aliasname1_1", "RevisionId": created.revision_id,
            "RoutingConfig": {"AdditionalVersionWeights": {"2": 0.2}},
        })
    );
    let get = |name: &str| GetAliasRequest { function_name: "f".into(), name: name.into() };
    assert_eq!(world.plane.get_alias(&me(), get("aliasname1_1")).await.unwrap(), created);
    let by_alias = world.get("f", Some("aliasname1_1")).await.unwrap();
    assert_eq!((by_alias.function_arn, by_alias.version.as_deref()), (created.alias_arn.clone(), Some("1")));
    assert_eq!(world.get(&created.alias_arn.unwrap(), None).await.unwrap().version.as_deref(), Some("1"));

    let plain = world.alias("f", "aliasname1_2", "1").await;
    assert_eq!(members(&plain), ["AliasArn", "Description", "FunctionVersion", "Name", "RevisionId"]);
    assert_eq!(plain.description.as_deref(), Some(""));
    world.alias("f", "aliasname1_3", "1").await;
    world.alias("f", "aliasname2", "2").await;

    let list = |version: Option<&str>, marker: Option<String>| ListAliasesRequest {
        function_name: "f".into(),
        function_version: version.map(str::to_owned),
        marker,
        max_items: Some(1),
    };
    for (version, expected) in [(None, 4), (Some("1"), 3)] {
        let (mut found, mut marker) = (0, None);
        loop {
            let page = world.plane.list_aliases(&me(), list(version, marker)).await.unwrap();
            found += page.aliases.unwrap().len();
            marker = page.next_marker;
            if marker.is_none() {
                break;
            }
        }
        assert_eq!(found, expected);
    }

    let update = |name: &str, routing_config| UpdateAliasRequest {
        function_name: "f".into(),
        name: name.into(),
        routing_config,
        ..Default::default()
    };
    let updated = world.plane.update_alias(&me(), update("aliasname1_1", weights(&[]))).await.unwrap();
    assert_eq!(members(&updated), ["AliasArn", "Description", "FunctionVersion", "Name", "RevisionId"]);
    assert_ne!(updated.revision_id, created.revision_id);
    let unchanged = world.plane.update_alias(&me(), update("aliasname1_2", None)).await.unwrap();
    assert_ne!(unchanged.revision_id, plain.revision_id);
    refused(
        world.plane.update_alias(&me(), update("none", None)).await,
        ResourceNotFoundException,
        &format!("Alias not found: {ARN}:f:none"),
    );

    // Recorded: test_non_existent_alias_deletion. No error the second time.
    for _ in 0..2 {
        let request = DeleteAliasRequest { function_name: "f".into(), name: "aliasname1_1".into() };
        world.plane.delete_alias(&me(), request).await.unwrap();
    }
    refused(
        world.plane.get_alias(&me(), get("aliasname1_1")).await,
        ResourceNotFoundException,
        &format!("Cannot find alias arn: {ARN}:f:aliasname1_1"),
    );
}

/// Recorded: test_notfound_and_invalid_routingconfigs (but what the service model's constraints refuse), test_alias_naming.
#[tokio::test]
async fn what_an_alias_cannot_be() {
    let world = World::new().await;
    two_versions(&world).await;
    let create = async |version: &str, pairs: &[(&str, f64)]| {
        let request = CreateAliasRequest { routing_config: weights(pairs), ..new_alias("f", "custom", version) };
        world.plane.create_alias(&me(), request).await
    };
    refused(
        create("1", &[("1", 0.8), ("2", 0.2)]).await,
        InvalidParameterValueException,
        "Number of items in AdditionalVersionWeights cannot be greater than 1",
    );
    refused(
        create("1", &[("1", 0.5)]).await,
        InvalidParameterValueException,
        "Invalid function version 1. Function version 1 is already included in routing configuration.",
    );
    let missing = format!("Function not found: {ARN}:f:10");
    refused(create("10", &[("2", 0.5)]).await, ResourceNotFoundException, &missing);
    refused(create("1", &[("10", 0.5)]).await, ResourceNotFoundException, &missing);
    refused_untyped(
        create("$LATEST", &[("1", 0.5)]).await,
        InvalidParameterValueException,
        "$LATEST is not supported for an alias pointing to more than 1 version",
    );
    world.alias("f", "custom-latest", "$LATEST").await;
    world.alias("f", "2024-01-02", "1").await;
    refused(
        world.plane.create_alias(&me(), new_alias("f-unknown", "custom", "1")).await,
        ResourceNotFoundException,
        &format!("Function not found: {ARN}:f-unknown:1"),
    );
    let empty = CreateAliasRequest { routing_config: weights(&[]), ..new_alias("f", "custom-empty", "1") };
    let empty = world.plane.create_alias(&me(), empty).await.unwrap();
    assert_eq!(empty.routing_config, None);
    create("1", &[("2", 0.5)]).await.unwrap();
    refused(
        create("1", &[("2", 0.5)]).await,
        ResourceConflictException,
        &format!("Alias already exists: {ARN}:f:custom"),
    );
    // The second version that stays must not become the first as well.
    let request = UpdateAliasRequest {
        function_name: "f".into(),
        name: "custom".into(),
        function_version: Some("2".into()),
        ..Default::default()
    };
    refused(
        world.plane.update_alias(&me(), request).await,
        InvalidParameterValueException,
        "Invalid function version 2. Function version 2 is already included in routing configuration.",
    );
}
