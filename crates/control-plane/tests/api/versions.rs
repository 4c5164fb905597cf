//! Published versions.

use lambda_api::ErrorCode::*;
use lambda_api::types::*;

use crate::support::*;

async fn listed(world: &World, name: &str) -> Vec<FunctionConfiguration> {
    let request = ListVersionsByFunctionRequest { function_name: name.into(), ..Default::default() };
    let response = world.plane.list_versions_by_function(&me(), request).await.unwrap();
    assert_eq!(response.next_marker, None);
    response.versions.unwrap()
}

fn names(versions: &[FunctionConfiguration]) -> Vec<&str> {
    versions.iter().map(|version| version.version.as_deref().unwrap()).collect()
}

/// Recorded: test_publish_version_on_create.
#[tokio::test]
async fn published_on_create() {
    let world = World::new().await;
    let request = CreateFunctionRequest { publish: Some(true), ..function("f") };
    let created = world.plane.create_function(&me(), request).await.unwrap();
    assert_eq!(members(&created), configuration_members(&["StateReason", "StateReasonCode"]));
    assert_eq!((created.version.as_deref(), created.function_arn), (Some("1"), Some(format!("{ARN}:f"))));
    assert_eq!(json(&created.state), "Pending");
    world.plane.wait_idle().await;
    assert_eq!(world.get("f", None).await.unwrap().version.as_deref(), Some("$LATEST"));
    let first = world.get("f", Some("1")).await.unwrap();
    assert_eq!(first.function_arn, Some(format!("{ARN}:f:1")));
    assert_eq!(members(&first), configuration_members(&["LastUpdateStatus"]));
    let versions = listed(&world, "f").await;
    assert_eq!(names(&versions), ["$LATEST", "1"]);
    for version in &versions {
        assert_eq!(members(version), LISTED);
    }
    assert_eq!(versions[0].function_arn, Some(format!("{ARN}:f:$LATEST")));
    let request = PublishVersionRequest {
        function_name: "f".into(),
        description: Some("Repeated version description :)".into()),
        ..Default::default()
    };
    assert_eq!(world.plane.publish_version(&me(), request).await.unwrap(), first, "the same version again");
    assert_eq!(listed(&world, "f").await, versions);
}

/// Recorded: test_version_lifecycle.
#[tokio::test]
async fn the_life_of_versions() {
    let world = World::new().await;
    world.create("f").await;
    world.describe("f", "First version :)").await;
    let publish = |description: Option<&str>| PublishVersionRequest {
        function_name: "f".into(),
        description: description.map(str::to_owned),
        ..Default::default()
    };
    let first = world.plane.publish_version(&me(), publish(Some("First version description :)"))).await.unwrap();
    assert_eq!(members(&first), configuration_members(&["LastUpdateStatus"]));
    assert_eq!(json(&first)["State"], "Active");
    assert_eq!(json(&first)["LastUpdateStatus"], "Successful");
    assert_eq!(first.description.as_deref(), Some("First version description :)"));
    assert_eq!(first.function_arn, Some(format!("{ARN}:f:1")));
    assert_eq!(world.get("f", Some("1")).await.unwrap(), first);

    world.describe("f", "Second version :))").await;
    assert_eq!(world.get("f", Some("1")).await.unwrap(), first, "versions never change");
    let second = world.plane.publish_version(&me(), publish(None)).await.unwrap();
    assert_eq!((second.version.as_deref(), second.description.as_deref()), (Some("2"), Some("Second version :))")));
    let third = world.plane.publish_version(&me(), publish(Some("Third version description :)))"))).await.unwrap();
    assert_eq!(third, second, "nothing changed since");
    assert_eq!(names(&listed(&world, "f").await), ["$LATEST", "1", "2"]);
    world.delete("f", Some("1")).await.unwrap();
    assert_eq!(names(&listed(&world, "f").await), ["$LATEST", "2"]);
}

/// Recorded: test_publish_with_update.
#[tokio::test]
async fn published_with_an_update() {
    let world = World::new().await;
    world.create("f").await;
    world.runtimes.open.send_replace(false);
    let request = UpdateFunctionCodeRequest { publish: Some(true), ..new_code("f", "v2") };
    let updated = world.plane.update_function_code(&me(), request).await.unwrap();
    assert_eq!(members(&updated), configuration_members(&["StateReason", "StateReasonCode"]));
    assert_eq!(updated.function_arn, Some(format!("{ARN}:f:1")));
    assert_eq!(world.get("f", Some("1")).await.unwrap(), updated);
    let latest = json(&world.get("f", Some("$LATEST")).await.unwrap());
    assert_eq!((&latest["LastUpdateStatus"], &latest["State"]), (&"InProgress".into(), &"Active".into()));
    assert_eq!(latest["CodeSha256"], json(&updated.code_sha256));
    world.runtimes.open.send_replace(true);
    world.plane.wait_idle().await;
    assert_eq!(json(&world.get("f", Some("1")).await.unwrap())["State"], "Active");
}

/// Recorded: test_publish_with_wrong_sha256, test_publish_with_wrong_revisionid.
#[tokio::test]
async fn guards_of_a_publication() {
    let world = World::new().await;
    let created = world.create("f").await;
    let sha256 = created.code_sha256.unwrap();
    let publish = |sha256: Option<&str>, revision: Option<String>| PublishVersionRequest {
        function_name: "f".into(),
        code_sha256: sha256.map(str::to_owned),
        revision_id: revision,
        ..Default::default()
    };
    refused(
        world.plane.publish_version(&me(), publish(Some("somenonexistentsha256"), None)).await,
        InvalidParameterValueException,
        &format!(
            "CodeSHA256 (somenonexistentsha256) is different from current CodeSHA256 in $LATEST ({sha256}). Please try \
             again with the CodeSHA256 in $LATEST."
        ),
    );
    let wrong = world.plane.publish_version(&me(), publish(None, created.revision_id)).await;
    refused(wrong, PreconditionFailedException, STALE);
    let right = Some(world.revision("f", None).await);
    world.plane.publish_version(&me(), publish(Some(&sha256), right)).await.unwrap();
}

/// Recorded: test_function_revisions_version_and_alias.
#[tokio::test]
async fn revisions_of_versions_and_aliases() {
    let world = World::new().await;
    world.create("f").await;
    let before = world.revision("f", None).await;
    let published = world.publish("f").await.revision_id.unwrap();
    assert_ne!(published, before);
    assert_eq!(world.revision("f", Some("1")).await, published);
    let latest = world.revision("f", None).await;
    assert_ne!(latest, before, "a publication changes the revision of $LATEST");
    let alias = world.alias("f", "revision_alias", "1").await.revision_id.unwrap();
    assert_ne!(alias, published);
    assert_eq!(world.revision("f", None).await, latest);
    assert_eq!(world.revision("f", Some("1")).await, published);
    let update = |revision: &str| UpdateAliasRequest {
        function_name: "f".into(),
        name: "revision_alias".into(),
        description: Some("something changed".into()),
        revision_id: Some(revision.into()),
        ..Default::default()
    };
    refused(world.plane.update_alias(&me(), update("wrong")).await, PreconditionFailedException, STALE);
    let updated = world.plane.update_alias(&me(), update(&alias)).await.unwrap();
    assert_ne!(updated.revision_id, Some(alias));
}

/// AWS: "Lambda never reuses version numbers, even after deleting and recreating a function."
#[tokio::test]
async fn numbers_are_never_used_twice() {
    let world = World::new().await;
    world.create("f").await;
    world.publish("f").await;
    world.describe("f", "2").await;
    world.publish("f").await;
    world.delete("f", Some("2")).await.unwrap();
    world.describe("f", "3").await;
    assert_eq!(world.publish("f").await.version.as_deref(), Some("3"));
    let old = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    world.delete("f", None).await.unwrap();
    world.create("f").await;
    assert_eq!(names(&listed(&world, "f").await), ["$LATEST"]);
    assert_eq!(world.publish("f").await.version.as_deref(), Some("4"));
    let new = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    assert_ne!(new.key, old.key, "sandboxes of the old function are not those of the new");
}

#[tokio::test]
async fn a_version_that_an_alias_needs_stays() {
    let world = World::new().await;
    world.create("f").await;
    world.publish("f").await;
    world.alias("f", "live", "1").await;
    refused(
        world.delete("f", Some("1")).await,
        ResourceConflictException,
        "Unable to delete version because the following aliases reference it: [live]",
    );
    let request = DeleteAliasRequest { function_name: "f".into(), name: "live".into() };
    world.plane.delete_alias(&me(), request).await.unwrap();
    let mut retired = world.plane.retired();
    let key = world.plane.resolve(&me(), "f:1", None, 0.0).unwrap().version.key.clone();
    world.delete("f", Some("1")).await.unwrap();
    assert_eq!(retired.try_recv().unwrap(), key);
}
