//! What an invocation runs.

use lambda_api::ErrorCode::*;
use lambda_api::types::*;

use crate::support::*;

/// Recorded: test_lambda_alias_moving, test_invocation_with_qualifier, test_invoke_exceptions (names).
#[tokio::test]
async fn names_qualifiers_and_aliases() {
    let world = World::new().await;
    let resolve = |name: &str, qualifier: Option<&str>| world.plane.resolve(&me(), name, qualifier, 0.0);
    refused(
        resolve("doesnotexist", None),
        ResourceNotFoundException,
        &format!("Function not found: {ARN}:doesnotexist:$LATEST"),
    );
    world.create("f").await;
    world.publish("f").await;
    world.alias("f", "live", "1").await;
    for (name, qualifier, version, arn) in [
        ("f".to_owned(), None, "$LATEST", format!("{ARN}:f")),
        (format!("{ARN}:f"), None, "$LATEST", format!("{ARN}:f")),
        ("f".to_owned(), Some("$LATEST"), "$LATEST", format!("{ARN}:f:$LATEST")),
        ("111111111111:function:f:1".to_owned(), None, "1", format!("{ARN}:f:1")),
        ("f".to_owned(), Some("live"), "1", format!("{ARN}:f:live")),
        (format!("{ARN}:f:live"), Some("live"), "1", format!("{ARN}:f:live")),
    ] {
        let resolved = resolve(&name, qualifier).unwrap();
        assert_eq!((resolved.version.version.as_str(), &resolved.invoked_arn), (version, &arn), "{name}");
        assert_eq!(resolved.version.arn.to_string(), format!("{ARN}:f"));
    }
    world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap();
    world.plane.wait_idle().await;
    let before = resolve("f", Some("live")).unwrap().version;
    world.publish("f").await;
    assert_eq!(resolve("f", Some("live")).unwrap().version.key, before.key, "not moved by the publication");
    let request = UpdateAliasRequest {
        function_name: "f".into(),
        name: "live".into(),
        function_version: Some("2".into()),
        ..Default::default()
    };
    world.plane.update_alias(&me(), request).await.unwrap();
    let after = resolve("f", Some("live")).unwrap().version;
    assert_eq!(after.version, "2");
    assert_ne!(after.code, before.code);
    refused(
        resolve("f", Some("non-existent-alias")),
        ResourceNotFoundException,
        &format!("Function not found: {ARN}:f:non-existent-alias"),
    );
}

#[tokio::test]
async fn weights_divide_the_invocations() {
    let world = World::new().await;
    world.create("f").await;
    world.publish("f").await;
    world.describe("f", "2").await;
    world.publish("f").await;
    let request = CreateAliasRequest { routing_config: weights(&[("2", 0.2)]), ..new_alias("f", "live", "1") };
    world.plane.create_alias(&me(), request).await.unwrap();
    let second = (0..1000).filter(|i| {
        let resolved = world.plane.resolve(&me(), "f:live", None, f64::from(*i) / 1000.0).unwrap();
        resolved.version.version == "2"
    });
    assert_eq!(second.count(), 200);
}

/// Only what a policy says opens a function to another account.
#[tokio::test]
async fn other_accounts_need_a_policy() {
    let world = World::new().await;
    world.create("f").await;
    world.publish("f").await;
    let arn = format!("{ARN}:f");
    let them = caller("222222222222");
    let denied = |arn: &str| {
        let error = world.plane.resolve(&them, arn, None, 0.0).unwrap_err();
        assert_eq!(error.code, AccessDeniedException, "{error}");
    };
    denied(&arn);
    denied(&format!("{ARN}:doesnotexist"));
    let permit = async |sid: &str, principal: &str, qualifier: Option<&str>, source: Option<&str>| {
        let request = AddPermissionRequest {
            function_name: "f".into(),
            statement_id: sid.into(),
            action: "lambda:InvokeFunction".into(),
            principal: principal.into(),
            qualifier: qualifier.map(str::to_owned),
            source_arn: source.map(str::to_owned),
            ..Default::default()
        };
        world.plane.add_permission(&me(), request).await
    };
    permit("service", "s3.amazonaws.com", None, None).await.unwrap();
    permit("conditional", "*", None, Some("arn:aws:s3:::b")).await.unwrap();
    permit("another", "333333333333", None, None).await.unwrap();
    permit("version", "222222222222", Some("1"), None).await.unwrap();
    denied(&arn);
    let resolved = world.plane.resolve(&them, &format!("{arn}:1"), None, 0.0).unwrap();
    assert_eq!((resolved.version.account.as_str(), resolved.version.version.as_str()), ("111111111111", "1"));
    permit("account", "222222222222", None, None).await.unwrap();
    world.plane.resolve(&them, &arn, None, 0.0).unwrap();
    let theirs = world.plane.resolve(&them, "f", None, 0.0).unwrap_err();
    assert_eq!(theirs.code, ResourceNotFoundException, "by name it is their own function");
}
