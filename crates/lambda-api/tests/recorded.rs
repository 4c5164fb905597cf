//! The validation errors that were recorded from AWS, word for word.
//!
//! The service model is newer than some recordings and wins where they differ: the pattern of a taggable resource (now
//! without layers, with network connectors) and of a layer version's ARN (now with outer parentheses).

use bytes::Bytes;
use http::{HeaderMap, Method};
use lambda_api::{ApiError, ErrorCode, Operation, decode, operations, route};

/// The error of a request that the decoder refuses.
fn refused<Op: Operation>(method: Method, uri: &str, body: &str) -> ApiError {
    let (path, query) = match uri.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (uri, None),
    };
    let routed = route(&method, path, query).expect("an operation");
    assert_eq!(routed.operation, Op::ID);
    match decode::<Op>(&routed, query, &HeaderMap::new(), Bytes::copy_from_slice(body.as_bytes())) {
        Ok(_) => panic!("{uri} {body} was accepted"),
        Err(error) => error,
    }
}

#[track_caller]
fn assert_one_error(error: &ApiError, expected: &str) {
    assert_eq!(error.message, format!("1 validation error detected: {expected}"));
    assert_eq!((error.code, error.kind), (ErrorCode::ValidationException, None));
}

const FUNCTIONS: &str = "/2015-03-31/functions";
const ROLE: &str = "arn:aws:iam::111111111111:role/r";

/// The error of CreateFunction with a member changed or added.
fn create_function(members: &str) -> ApiError {
    let role = if members.contains("\"Role\"") { String::new() } else { format!("\"Role\": \"{ROLE}\",") };
    let body = format!("{{{role} \"FunctionName\": \"f\", \"Code\": {{}}, {members}}}");
    refused::<operations::CreateFunction>(Method::POST, FUNCTIONS, &body)
}

#[test]
fn function_url_qualifiers() {
    for qualifier in ["$LATEST", "1", "2"] {
        let uri = format!("/2021-10-31/functions/f/url?Qualifier={qualifier}");
        assert_one_error(
            &refused::<operations::GetFunctionUrlConfig>(Method::GET, &uri, ""),
            &format!(
                "Value '{qualifier}' at 'qualifier' failed to satisfy constraint: Member must satisfy regular expression \
                 pattern: ((?!^\\d+$)^[0-9a-zA-Z-_]+$)"
            ),
        );
    }
}

#[test]
fn layer_permission_action() {
    assert_one_error(
        &refused::<operations::AddLayerVersionPermission>(
            Method::POST,
            "/2018-10-31/layers/l/versions/1/policy",
            r#"{"StatementId": "s", "Action": "*", "Principal": "*"}"#,
        ),
        "Value '*' at 'action' failed to satisfy constraint: Member must satisfy regular expression pattern: \
         lambda:GetLayerVersion",
    );
}

#[test]
fn recursion_config() {
    assert_one_error(
        &refused::<operations::PutFunctionRecursionConfig>(
            Method::PUT,
            "/2024-08-31/functions/f/recursion-config",
            r#"{"RecursiveLoop": "InvalidValue"}"#,
        ),
        "Value 'InvalidValue' at 'recursiveLoop' failed to satisfy constraint: Member must satisfy enum value set: \
         [Terminate, Allow]",
    );
}

#[test]
fn vpc_config() {
    assert_one_error(
        &create_function(r#""VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg_1"]}"#),
        "Value '[sg_1]' at 'vpcConfig.securityGroupIds' failed to satisfy constraint: Member must satisfy constraint: \
         [Member must have length less than or equal to 1024, Member must have length greater than or equal to 0, Member \
         must satisfy regular expression pattern: sg-[0-9a-zA-Z]*]",
    );
    assert_one_error(
        &create_function(r#""VpcConfig": {"SubnetIds": ["bad"], "SecurityGroupIds": ["sg-1"]}"#),
        "Value '[bad]' at 'vpcConfig.subnetIds' failed to satisfy constraint: Member must satisfy constraint: [Member must \
         have length less than or equal to 1024, Member must have length greater than or equal to 0, Member must satisfy \
         regular expression pattern: subnet-[0-9a-z]*]",
    );
}

#[test]
fn architectures() {
    assert_one_error(
        &create_function(r#""Architectures": ["X86_64"]"#),
        "Value '[X86_64]' at 'architectures' failed to satisfy constraint: Member must satisfy constraint: [Member must \
         satisfy enum value set: [x86_64, arm64], Member must not be null]",
    );
    assert_one_error(
        &create_function(r#""Architectures": ["x86_64", "arm64"]"#),
        "Value '[x86_64, arm64]' at 'architectures' failed to satisfy constraint: Member must have length less than or \
         equal to 1",
    );
}

#[test]
fn role() {
    assert_one_error(
        &create_function(r#""Role": "r1""#),
        "Value 'r1' at 'role' failed to satisfy constraint: Member must satisfy regular expression pattern: \
         arn:(aws[a-zA-Z-]*)?:iam::\\d{12}:role/?[a-zA-Z_0-9+=,.@\\-_/]+",
    );
}

#[test]
fn layers() {
    let arn = "arn:aws:lambda:us-east-1:111111111111:layer:l";
    assert_one_error(
        &create_function(&format!(r#""Layers": ["{arn}"]"#)),
        &format!(
            "Value '[{arn}]' at 'layers' failed to satisfy constraint: Member must satisfy constraint: [Member must have \
             length less than or equal to 2048, Member must have length greater than or equal to 1, Member must satisfy \
             regular expression pattern: ((arn:(aws[a-zA-Z-]*)?:lambda:(eusc-)?[a-z]{{2}}((-gov)|(-iso([a-z]?)))?-[a-z]+\
             -\\d{{1}}:\\d{{12}}:layer:[a-zA-Z0-9-_]+:[0-9]+)|(arn:[a-zA-Z0-9-]+:lambda:::awslayer:[a-zA-Z0-9-_]+)), \
             Member must not be null]"
        ),
    );
}

#[test]
fn tagged_resources() {
    let pattern = "arn:(aws[a-zA-Z-]*):lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\\d{1}:\\d{12}:\
                   (function:[a-zA-Z0-9-_]+(:(\\$LATEST|[a-zA-Z0-9-_]+))?|code-signing-config:csc-[a-z0-9]{17}|\
                   event-source-mapping:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|\
                   (capacity-provider|network-connector):[a-zA-Z0-9-_]{1,64})";
    for resource in [
        "arn:aws:lambda:us-east-1:111111111111:capacity-provider:c:alias",
        "arn:aws:lambda:us-east-1:111111111111:event-source-mapping:e:alias",
        "arn:aws:lambda:us-east-1:111111111111:foobar:f",
        "arn:aws:something",
    ] {
        let uri = format!("/2017-03-31/tags/{}", resource.replace(':', "%3A"));
        assert_one_error(
            &refused::<operations::TagResource>(Method::POST, &uri, r#"{"Tags": {"a": "b"}}"#),
            &format!(
                "Value '{resource}' at 'resource' failed to satisfy constraint: Member must satisfy regular expression \
                 pattern: {pattern}"
            ),
        );
    }
}

#[test]
fn function_name_of_invoke() {
    assert_one_error(
        &refused::<operations::Invoke>(
            Method::POST,
            "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A123400000000%40function%3Amyfn/invocations",
            "",
        ),
        "Value 'arn:aws:lambda:us-east-1:123400000000@function:myfn' at 'functionName' failed to satisfy constraint: Member \
         must satisfy regular expression pattern: (arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?\
         -[a-z]+-\\d{1}:)?(\\d{12}:)?(function:)?([a-zA-Z0-9-_\\.]+)(:(\\$LATEST(\\.PUBLISHED)?|[a-zA-Z0-9-_]+))?",
    );
}

#[test]
fn permissions() {
    let permission = |qualifier: &str, statement: &str| {
        refused::<operations::AddPermission>(
            Method::POST,
            &format!("{FUNCTIONS}/f/policy{qualifier}"),
            &format!(r#"{{"StatementId": "{statement}", "Action": "lambda:InvokeFunction", "Principal": "p"}}"#),
        )
    };
    let error = permission("?Qualifier=invalid-qualifier-with-%3F-char", "s");
    assert_one_error(
        &error,
        "Value 'invalid-qualifier-with-?-char' at 'qualifier' failed to satisfy constraint: Member must satisfy regular \
         expression pattern: \\$(LATEST(\\.PUBLISHED)?)|[a-zA-Z0-9-_$]+",
    );
    assert_one_error(
        &permission("", "example.com"),
        "Value 'example.com' at 'statementId' failed to satisfy constraint: Member must satisfy regular expression pattern: \
         ([a-zA-Z0-9-_]+)",
    );
}

#[test]
fn starting_position() {
    assert_one_error(
        &refused::<operations::CreateEventSourceMapping>(
            Method::POST,
            "/2015-03-31/event-source-mappings",
            r#"{"FunctionName": "f", "StartingPosition": "invalid"}"#,
        ),
        "Value 'invalid' at 'startingPosition' failed to satisfy constraint: Member must satisfy enum value set: [LATEST, \
         AT_TIMESTAMP, TRIM_HORIZON]",
    );
}

#[test]
fn routing_config() {
    for (weights, expected) in [
        (
            r#"{"$LATEST": 0.5}"#,
            "Value '{$LATEST=0.5}' at 'routingConfig.additionalVersionWeights' failed to satisfy constraint: Map keys must \
             satisfy constraint: [Member must have length less than or equal to 1024, Member must have length greater than \
             or equal to 1, Member must satisfy regular expression pattern: [0-9]+]",
        ),
        (
            r#"{"2": -1.0}"#,
            "Value '{2=-1.0}' at 'routingConfig.additionalVersionWeights' failed to satisfy constraint: Map value must \
             satisfy constraint: [Member must have value less than or equal to 1.0, Member must have value greater than or \
             equal to 0.0, Member must not be null]",
        ),
        (
            r#"{"2": 2}"#,
            "Value '{2=2.0}' at 'routingConfig.additionalVersionWeights' failed to satisfy constraint: Map value must \
             satisfy constraint: [Member must have value less than or equal to 1.0, Member must have value greater than or \
             equal to 0.0, Member must not be null]",
        ),
    ] {
        let body = format!(
            r#"{{"Name": "a", "FunctionVersion": "1", "RoutingConfig": {{"AdditionalVersionWeights": {weights}}}}}"#
        );
        assert_one_error(
            &refused::<operations::CreateAlias>(Method::POST, &format!("{FUNCTIONS}/f/aliases"), &body),
            expected,
        );
    }
}

#[test]
fn missing_tag_keys() {
    assert_one_error(
        &refused::<operations::UntagResource>(
            Method::DELETE,
            "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A111111111111%3Afunction%3Af",
            "",
        ),
        "Value null at 'tagKeys' failed to satisfy constraint: Member must not be null",
    );
}

#[test]
fn several_errors_stand_in_one_message() {
    let error = create_function(r#""MemorySize": 1, "Role": "r1""#);
    assert!(error.message.starts_with("2 validation errors detected: Value 'r1' at 'role' "), "{error}");
    let second =
        "; Value '1' at 'memorySize' failed to satisfy constraint: Member must have value greater than or equal to 128";
    assert!(error.message.ends_with(second), "{error}");
}

#[test]
fn secrets_are_not_printed() {
    // From reports of users of AWS: no value is shown.
    assert_one_error(
        &create_function(r#""Environment": {"Variables": {"not-a-name": "secret"}}"#),
        "Value at 'environment.variables' failed to satisfy constraint: Map keys must satisfy constraint: [Member must \
         satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]",
    );
}

#[test]
fn nested_lists_of_structures_have_numbered_paths() {
    let error = create_function(r#""FileSystemConfigs": [{"Arn": "x", "LocalMountPath": "/mnt/a"}]"#);
    assert!(error.message.contains("Value 'x' at 'fileSystemConfigs.1.member.arn' failed"), "{error}");
}

#[test]
fn bodies_that_are_not_json_or_not_of_the_shape() {
    let error = refused::<operations::CreateFunction>(Method::POST, FUNCTIONS, "{\"FunctionName\": ");
    assert_eq!(error.code, ErrorCode::InvalidRequestContentException);
    assert!(error.message.starts_with("Could not parse request body into json: Unexpected end-of-input\n"), "{error}");

    let error = create_function(r#""MemorySize": "much""#);
    assert_eq!(error.code, ErrorCode::SerializationException);
    assert_eq!(error.message, "STRING_VALUE can not be converted to Integer");

    let error = create_function(r#""Code": {"ZipFile": "?"}"#);
    assert_eq!(error.code, ErrorCode::SerializationException);
}

#[test]
fn runtimes_are_left_to_the_server() {
    let routed = route(&Method::POST, FUNCTIONS, None).expect("CreateFunction");
    let body = format!(r#"{{"FunctionName": "f", "Code": {{}}, "Role": "{ROLE}", "Runtime": "mine"}}"#);
    let input = decode::<operations::CreateFunction>(&routed, None, &HeaderMap::new(), body.into()).expect("accepted");
    assert_eq!(input.runtime, Some(lambda_api::types::Runtime::Unknown("mine".to_owned())));
}
