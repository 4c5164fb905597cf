//! Resource policies.

use lambda_api::ErrorCode::*;
use lambda_api::types::*;
use serde_json::{Value, json as j};

use crate::support::*;

fn s3(name: &str, sid: &str) -> AddPermissionRequest {
    AddPermissionRequest {
        function_name: name.into(),
        statement_id: sid.into(),
        action: "lambda:InvokeFunction".into(),
        principal: "s3.amazonaws.com".into(),
        source_arn: Some("arn:aws:s3:::test-bucket".into()),
        ..Default::default()
    }
}

fn s3_statement(sid: &str, resource: &str) -> Value {
    j!({
        "Sid": sid, "Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}, "Action": "lambda:InvokeFunction",
        "Resource": format!("{ARN}:{resource}"), "Condition": {"ArnLike": {"AWS:SourceArn": "arn:aws:s3:::test-bucket"}},
    })
}

impl World {
    async fn add(&self, request: AddPermissionRequest) -> Result<Value, lambda_api::ApiError> {
        let response = self.plane.add_permission(&me(), request).await?;
        Ok(serde_json::from_str(&response.statement.unwrap()).unwrap())
    }

    async fn policy(&self, name: &str, qualifier: Option<&str>) -> Result<(Value, String), lambda_api::ApiError> {
        let request = GetPolicyRequest { function_name: name.into(), qualifier: qualifier.map(str::to_owned) };
        let response = self.plane.get_policy(&me(), request).await?;
        Ok((serde_json::from_str(&response.policy.unwrap()).unwrap(), response.revision_id.unwrap()))
    }

    async fn remove(
        &self,
        name: &str,
        sid: &str,
        qualifier: Option<&str>,
        revision: Option<&str>,
    ) -> Result<(), lambda_api::ApiError> {
        let request = RemovePermissionRequest {
            function_name: name.into(),
            statement_id: sid.into(),
            qualifier: qualifier.map(str::to_owned),
            revision_id: revision.map(str::to_owned),
        };
        self.plane.remove_permission(&me(), request).await
    }
}

/// Recorded: test_permission_exceptions.
#[tokio::test]
async fn what_cannot_be_permitted() {
    let world = World::new().await;
    world.create("f").await;
    let qualified =
        |name: &str, qualifier: &str| AddPermissionRequest { qualifier: Some(qualifier.into()), ..s3(name, "s3") };
    refused(
        world.add(qualified("f:alias-not-42", "42")).await,
        InvalidParameterValueException,
        "The derived qualifier from the function name does not match the specified qualifier.",
    );
    refused(
        world.add(qualified("f:$LATEST", "$LATEST")).await,
        InvalidParameterValueException,
        "We currently do not support adding policies for $LATEST.",
    );
    let invalid = AddPermissionRequest { principal: "invalid.nonaws.com".into(), ..s3("f", "lambda") };
    refused(
        world.add(invalid).await,
        InvalidParameterValueException,
        "The provided principal was invalid. Please check the principal and try again.",
    );
    let no_policy = "The resource you requested does not exist.";
    refused(world.policy("doesnotexist", None).await, ResourceNotFoundException, no_policy);
    refused(world.policy("f", Some("77")).await, ResourceNotFoundException, no_policy);
    refused(
        world.add(s3("doesnotexist", "s3")).await,
        ResourceNotFoundException,
        &format!("Function not found: {ARN}:doesnotexist"),
    );
    refused(
        world.remove("f", "s3", None, None).await,
        ResourceNotFoundException,
        "No policy is associated with the given resource.",
    );
    let no_alias = format!("Cannot find alias arn: {ARN}:f:alias-doesnotexist");
    refused(world.add(s3("f:alias-doesnotexist", "s3")).await, ResourceNotFoundException, &no_alias);
    for qualifier in ["42", "valid-with-$-but-doesnotexist"] {
        refused(
            world.add(qualified("f", qualifier)).await,
            ResourceNotFoundException,
            &format!("Function not found: {ARN}:f:{qualifier}"),
        );
    }
    world.add(s3("f", "s3")).await.unwrap();
    refused(
        world.add(s3("f", "s3")).await,
        ResourceConflictException,
        "The statement id (s3) provided already exists. Please provide a new statement id, or remove the existing \
         statement.",
    );
    refused(
        world.remove("doesnotexist", "s3", None, None).await,
        ResourceNotFoundException,
        &format!("No policy found for: {ARN}:doesnotexist"),
    );
    refused(world.remove("f", "s3", Some("alias-doesnotexist"), None).await, ResourceNotFoundException, &no_alias);
}

/// Recorded: test_add_lambda_permission_fields, test_add_lambda_permission_aws.
#[tokio::test]
async fn statements() {
    let world = World::new().await;
    world.create("f").await;
    assert_eq!(world.add(s3("f", "s3")).await.unwrap(), s3_statement("s3", "f"));
    let request = |sid: &str, principal: &str, account: bool| AddPermissionRequest {
        principal: principal.into(),
        source_arn: None,
        source_account: account.then(|| "111111111111".into()),
        ..s3("f", sid)
    };
    let user = "arn:aws:iam::222222222222:user/u";
    let by_account = j!({"StringEquals": {"AWS:SourceAccount": "111111111111"}});
    for (sid, principal, account, shown) in [
        ("wilcard", "*", true, j!("*")),
        ("lambda", "lambda.amazonaws.com", true, j!({"Service": "lambda.amazonaws.com"})),
        ("account-id", "222222222222", false, j!({"AWS": "arn:aws:iam::222222222222:root"})),
        ("user-arn", user, true, j!({"AWS": user})),
    ] {
        let statement = world.add(request(sid, principal, account)).await.unwrap();
        assert_eq!(statement["Principal"], shown);
        assert_eq!(statement.get("Condition"), account.then_some(&by_account));
        assert_eq!(statement["Resource"], format!("{ARN}:f"));
    }
    let all = AddPermissionRequest {
        action: "lambda:InvokeFunctionUrl".into(),
        principal: "*".into(),
        source_account: Some("111111111111".into()),
        principal_org_id: Some("o-1234567890".into()),
        function_url_auth_type: Some(FunctionUrlAuthType::None),
        ..s3("f", "urlPermission")
    };
    let text = world.plane.add_permission(&me(), all).await.unwrap().statement.unwrap();
    assert_eq!(
        text,
        j!({
            "Sid": "urlPermission", "Effect": "Allow", "Principal": "*", "Action": "lambda:InvokeFunctionUrl",
            "Resource": format!("{ARN}:f"),
            "Condition": {
                "StringEquals": {
                    "AWS:SourceAccount": "111111111111", "lambda:FunctionUrlAuthType": "NONE",
                    "aws:PrincipalOrgID": "o-1234567890",
                },
                "ArnLike": {"AWS:SourceArn": "arn:aws:s3:::test-bucket"},
            },
        })
        .to_string(),
        "also in this order"
    );
    let alexa = AddPermissionRequest {
        principal: "*".into(),
        source_arn: None,
        event_source_token: Some("amzn1.ask.skill.x".into()),
        ..s3("f", "alexaSkill")
    };
    assert_eq!(
        world.add(alexa).await.unwrap()["Condition"],
        j!({"StringEquals": {"lambda:EventSourceToken": "amzn1.ask.skill.x"}})
    );
}

/// Recorded: test_lambda_permission_fn_versioning.
#[tokio::test]
async fn every_qualifier_has_its_own_policy() {
    let world = World::new().await;
    world.create("f").await;
    world.add(s3("f", "s3")).await.unwrap();
    let (policy, revision) = world.policy("f", None).await.unwrap();
    assert_eq!(policy, j!({"Version": "2012-10-17", "Id": "default", "Statement": [s3_statement("s3", "f")]}));
    world.publish("f").await;
    assert_eq!(world.policy("f", None).await.unwrap().1, revision, "not changed by the publication");
    assert_ne!(world.revision("f", None).await, revision);
    refused(
        world.policy("f", Some("1")).await,
        ResourceNotFoundException,
        "The resource you requested does not exist.",
    );

    // The same statement id, for the version.
    let request = AddPermissionRequest { qualifier: Some("1".into()), ..s3("f:1", "s3") };
    world.add(request).await.unwrap();
    assert_eq!(world.policy("f", Some("1")).await.unwrap().0["Statement"], j!([s3_statement("s3", "f:1")]));
    assert_eq!(world.policy("f:1", None).await.unwrap().1, world.revision("f", Some("1")).await);

    let alias = world.alias("f", "permission-alias", "1").await;
    let with_revision = |revision: Option<String>| AddPermissionRequest {
        qualifier: Some("permission-alias".into()),
        revision_id: revision,
        ..s3("f", "s3")
    };
    refused(world.add(with_revision(Some("wrong".into()))).await, PreconditionFailedException, STALE_POLICY);
    world.add(with_revision(alias.revision_id)).await.unwrap();
    let (policy, _) = world.policy("f", Some("permission-alias")).await.unwrap();
    assert_eq!(policy["Statement"], j!([s3_statement("s3", "f:permission-alias")]));

    let (policy, unchanged) = world.policy("f", None).await.unwrap();
    assert_eq!((policy["Statement"].as_array().unwrap().len(), &unchanged), (1, &revision));
    world.add(AddPermissionRequest { revision_id: Some(revision.clone()), ..s3("f", "s3_2") }).await.unwrap();
    let (policy, changed) = world.policy("f", None).await.unwrap();
    assert_eq!(policy["Statement"], j!([s3_statement("s3", "f"), s3_statement("s3_2", "f")]));
    assert_ne!(changed, revision);
}

/// Recorded: test_remove_multi_permissions, test_function_revisions_permissions.
#[tokio::test]
async fn permissions_are_taken_back() {
    let world = World::new().await;
    world.create("f").await;
    let stale = AddPermissionRequest { revision_id: Some("wrong".into()), ..s3("f", "s3") };
    refused(world.add(stale).await, PreconditionFailedException, STALE_POLICY);
    let current = world.revision("f", None).await;
    world.add(AddPermissionRequest { revision_id: Some(current.clone()), ..s3("f", "s3") }).await.unwrap();
    let (_, revision) = world.policy("f", None).await.unwrap();
    assert_ne!(revision, current);
    assert_eq!(world.revision("f", None).await, revision, "that of the function is that of its policy");
    world.add(AddPermissionRequest { principal: "sqs.amazonaws.com".into(), ..s3("f", "sqs") }).await.unwrap();
    refused(
        world.remove("f", "non-existent", None, None).await,
        ResourceNotFoundException,
        "Statement non-existent is not found in resource policy.",
    );
    refused(world.remove("f", "sqs", None, Some("wrong")).await, PreconditionFailedException, STALE);
    world.remove("f", "sqs", None, None).await.unwrap();
    let (policy, revision) = world.policy("f", None).await.unwrap();
    assert_eq!(policy["Statement"], j!([s3_statement("s3", "f")]));
    world.remove("f", "s3", None, Some(&revision)).await.unwrap();
    refused(world.policy("f", None).await, ResourceNotFoundException, "The resource you requested does not exist.");
}

#[tokio::test]
async fn a_policy_has_a_limit() {
    let world = World::new().await;
    world.create("f").await;
    let mut added = 0;
    let error = loop {
        match world.add(s3("f", &format!("statement-{added}"))).await {
            Ok(_) => added += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, PolicyLengthExceededException);
    let (policy, _) = world.policy("f", None).await.unwrap();
    assert_eq!(policy["Statement"].as_array().unwrap().len(), added);
    assert!(policy.to_string().len() <= 20 * 1024 && policy.to_string().len() > 20 * 1024 - 400);
}
