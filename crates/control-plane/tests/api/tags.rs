//! Tags.

use std::collections::BTreeMap;

use lambda_api::ErrorCode::*;
use lambda_api::types::*;
use serde_json::json as j;

use crate::support::*;

fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Recorded: TestLambdaTag::test_tag_lifecycle, TestLambdaTags::test_tag_lifecycle, test_create_tag_on_fn_create,
/// test_tag_nonexisting_resource, test_tag_exceptions, test_tag_versions, test_tag_limits.
#[tokio::test]
async fn tags_of_functions() {
    let world = World::new().await;
    let plane = &world.plane;
    let arn = world.create("f").await.function_arn.unwrap();
    let add = async |resource: &str, pairs: &[(&str, &str)]| {
        let request = TagResourceRequest { resource: resource.into(), tags: tags(pairs) };
        plane.tag_resource(&me(), request).await
    };
    let remove = async |resource: &str, keys: &[&str]| {
        let tag_keys = keys.iter().map(|key| (*key).to_owned()).collect();
        plane.untag_resource(&me(), UntagResourceRequest { resource: resource.into(), tag_keys }).await
    };
    let list = async |resource: &str| plane.list_tags(&me(), ListTagsRequest { resource: resource.into() }).await;

    assert_eq!(json(&list(&arn).await.unwrap()), j!({"Tags": {}}));
    let before = world.revision("f", None).await;
    add(&arn, &[("A", "tag-a")]).await.unwrap();
    assert_ne!(world.revision("f", None).await, before);
    add(&arn, &[("B", "tag-b"), ("C", "tag-c")]).await.unwrap();
    add(&arn, &[("C", "tag-c-newsuffix"), ("D", "tag-d")]).await.unwrap();
    assert_eq!(
        json(&list(&arn).await.unwrap()),
        j!({"Tags": {"A": "tag-a", "B": "tag-b", "C": "tag-c-newsuffix", "D": "tag-d"}})
    );
    remove(&arn, &["A"]).await.unwrap();
    remove(&arn, &["B", "C"]).await.unwrap();
    remove(&arn, &["F"]).await.unwrap();
    assert_eq!(json(&list(&arn).await.unwrap()), j!({"Tags": {"D": "tag-d"}}));
    remove(&arn, &["D", "F"]).await.unwrap();
    assert_eq!(json(&list(&arn).await.unwrap()), j!({"Tags": {}}));

    refused(
        add(&arn, &[]).await,
        InvalidParameterValueException,
        "An error occurred and the request cannot be processed.",
    );
    let on_versions = "Tags on function aliases and versions are not supported. Please specify a function ARN.";
    for qualifier in ["1", "$LATEST", "alias"] {
        let resource = format!("{arn}:{qualifier}");
        refused(add(&resource, &[("A", "B")]).await, InvalidParameterValueException, on_versions);
        refused(remove(&resource, &["A"]).await, InvalidParameterValueException, on_versions);
        refused(list(&resource).await, InvalidParameterValueException, on_versions);
    }
    let missing = format!("Function not found: {ARN}:doesnotexist");
    let other = format!("{ARN}:doesnotexist");
    refused(add(&other, &[("A", "B")]).await, ResourceNotFoundException, &missing);
    refused(remove(&other, &["A"]).await, ResourceNotFoundException, &missing);
    refused(list(&other).await, ResourceNotFoundException, &missing);
    let mapping = "arn:aws:lambda:us-east-1:111111111111:event-source-mapping:00000000-0000-0000-0000-000000000000";
    refused(list(mapping).await, ResourceNotFoundException, &format!("Event source mapping not found: {mapping}"));

    let many: BTreeMap<String, String> = (0..51).map(|i| (format!("{i}_key"), "v".to_owned())).collect();
    let too_many = "Number of tags exceeds resource tag limit.";
    let request = TagResourceRequest { resource: arn.clone(), tags: many.clone() };
    refused(plane.tag_resource(&me(), request).await, InvalidParameterValueException, too_many);
    let fifty = many.clone().into_iter().take(50).collect();
    plane.tag_resource(&me(), TagResourceRequest { resource: arn.clone(), tags: fifty }).await.unwrap();
    refused(add(&arn, &[("one_more", "v")]).await, InvalidParameterValueException, too_many);
    let request = CreateFunctionRequest { tags: Some(many), ..function("g") };
    refused(plane.create_function(&me(), request).await, InvalidParameterValueException, too_many);
}
