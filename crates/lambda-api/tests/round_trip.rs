//! What the client encodes the server decodes, and the other way round; nothing that comes in makes either panic.

use bytes::Bytes;
use http::{HeaderMap, Method};
use lambda_api::{
    ApiError, ErrorCode, Operation, OperationId, decode, decode_response, encode, encode_request, operations, route,
    types,
};
use proptest::prelude::*;

fn sent<Op: Operation>(input: &Op::Input) -> Result<Op::Input, ApiError> {
    let (head, body) = encode_request::<Op>(input).into_parts();
    let routed = route(&head.method, head.uri.path(), head.uri.query()).expect("an encoded request leads somewhere");
    assert_eq!(routed.operation, Op::ID);
    decode::<Op>(&routed, head.uri.query(), &head.headers, body)
}

fn answered<Op: Operation>(output: &Op::Output) -> Op::Output {
    decode_response::<Op>(encode::<Op>(output)).expect("an encoded output is a success")
}

prop_compose! {
    fn create_function()(
        function_name in "[a-zA-Z0-9_-]{1,64}",
        role in "[a-zA-Z0-9/]{1,20}",
        zip_file in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100)),
        handler in proptest::option::of("[a-z.]{1,20}"),
        runtime in proptest::option::of("[a-z0-9.]{1,12}"),
        description in proptest::option::of("\\PC{0,50}"),
        memory_size in proptest::option::of(128..10240),
        timeout in proptest::option::of(1..900),
        publish in proptest::option::of(any::<bool>()),
        variables in proptest::option::of(proptest::collection::btree_map("[a-zA-Z][a-zA-Z0-9_]{1,10}", "\\PC*", 0..5)),
        layers in proptest::option::of(proptest::collection::vec(
            "arn:aws:lambda:us-east-1:[0-9]{12}:layer:[a-z]{1,9}:[0-9]", 0..3)),
    ) -> types::CreateFunctionRequest {
        types::CreateFunctionRequest {
            function_name,
            role: format!("arn:aws:iam::000000000000:role/{role}"),
            code: types::FunctionCode { zip_file: zip_file.map(Bytes::from), ..Default::default() },
            handler,
            runtime: runtime.map(|runtime| types::Runtime::from(runtime.as_str())),
            description,
            memory_size,
            timeout,
            publish,
            environment: variables.map(|variables| types::Environment { variables: Some(variables) }),
            layers,
            ..Default::default()
        }
    }
}

prop_compose! {
    fn invoke()(
        function_name in "(arn:aws:lambda:us-east-1:[0-9]{12}:function:)?[a-zA-Z0-9_-]{1,64}",
        qualifier in proptest::option::of("[a-zA-Z0-9_-]{1,20}|\\$LATEST"),
        invocation_type in proptest::option::of(prop_oneof![
            Just(types::InvocationType::Event), Just(types::InvocationType::RequestResponse),
            Just(types::InvocationType::DryRun)]),
        client_context in proptest::option::of("[A-Za-z0-9+/=]{0,100}"),
        payload in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..200)),
    ) -> types::InvocationRequest {
        types::InvocationRequest {
            function_name, qualifier, invocation_type, client_context,
            payload: payload.map(Bytes::from),
            ..Default::default()
        }
    }
}

proptest! {
    #[test]
    fn create_function_arrives(input in create_function()) {
        prop_assert_eq!(sent::<operations::CreateFunction>(&input), Ok(input));
    }

    #[test]
    fn invoke_arrives(input in invoke()) {
        prop_assert_eq!(sent::<operations::Invoke>(&input), Ok(input));
    }

    #[test]
    fn query_lists_arrive(tag_keys in proptest::collection::vec("[a-zA-Z0-9 =+/@:]{1,20}", 1..5)) {
        let resource = "arn:aws:lambda:us-east-1:000000000000:function:f".to_owned();
        let input = types::UntagResourceRequest { resource, tag_keys };
        prop_assert_eq!(sent::<operations::UntagResource>(&input), Ok(input));
    }

    #[test]
    fn paging_arrives(marker in proptest::option::of("\\PC{0,40}"), max_items in proptest::option::of(1..10000)) {
        let input = types::ListFunctionsRequest { marker, max_items, ..Default::default() };
        prop_assert_eq!(sent::<operations::ListFunctions>(&input), Ok(input));
    }

    #[test]
    fn alias_weights_arrive(weights in proptest::collection::btree_map("[0-9]{1,4}", 0.0..=1.0, 0..3)) {
        let input = types::UpdateAliasRequest {
            function_name: "f".to_owned(),
            name: "live".to_owned(),
            routing_config: Some(types::AliasRoutingConfiguration { additional_version_weights: Some(weights) }),
            ..Default::default()
        };
        prop_assert_eq!(sent::<operations::UpdateAlias>(&input), Ok(input));
    }

    #[test]
    fn invoke_answers_arrive(
        payload in proptest::collection::vec(any::<u8>(), 1..200),
        function_error in proptest::option::of("Unhandled"),
    ) {
        let output = types::InvocationResponse {
            status_code: Some(200),
            function_error,
            executed_version: Some("$LATEST".to_owned()),
            payload: Some(payload.into()),
            ..Default::default()
        };
        prop_assert_eq!(answered::<operations::Invoke>(&output), output);
    }

    #[test]
    fn routing_takes_any_path(path in "(/|[a-z0-9{}%:?#-]|2015-03-31|functions|\\PC){0,12}", query in proptest::option::of("\\PC*")) {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let _ = route(&method, &path, query.as_deref());
        }
    }

    #[test]
    fn decoding_takes_any_json(body in json(), query in "\\PC*") {
        let body = Bytes::from(body.to_string());
        for (method, path) in [(Method::POST, "/2015-03-31/functions"), (Method::PUT, "/2015-03-31/functions/f/code")] {
            let routed = route(&method, path, None).expect("an operation");
            let _ = match routed.operation {
                OperationId::CreateFunction => {
                    decode::<operations::CreateFunction>(&routed, Some(&query), &HeaderMap::new(), body.clone()).err()
                }
                _ => decode::<operations::UpdateFunctionCode>(&routed, Some(&query), &HeaderMap::new(), body.clone()).err(),
            };
        }
    }

    #[test]
    fn decoding_takes_any_bytes(body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let routed = route(&Method::POST, "/2015-03-31/functions", None).expect("an operation");
        let _ = lambda_api::check_json_payload(&body);
        let _ = decode::<operations::CreateFunction>(&routed, None, &HeaderMap::new(), body.into());
    }
}

/// JSON whose objects often have the names of real members, with values of any type.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,10}".prop_map(Into::into),
    ];
    let name = prop_oneof![
        Just("FunctionName"),
        Just("Code"),
        Just("ZipFile"),
        Just("Role"),
        Just("VpcConfig"),
        Just("SubnetIds"),
        Just("Environment"),
        Just("Variables"),
        Just("Layers"),
        Just("Architectures"),
        Just("FileSystemConfigs"),
        Just("Arn"),
        Just("MemorySize"),
        Just("Tags"),
        Just("Runtime"),
        Just("SnapStart"),
        Just("Publish"),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            proptest::collection::vec((name.clone(), inner), 0..8).prop_map(|members| members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

#[test]
fn statuses_and_bodies_of_answers() {
    let created = encode::<operations::CreateFunction>(&types::FunctionConfiguration {
        function_name: Some("f".to_owned()),
        runtime: Some(types::Runtime::Python3_13),
        ..Default::default()
    });
    assert_eq!(created.status(), 201);
    assert_eq!(created.headers()["content-type"], "application/json");
    assert_eq!(created.body(), r#"{"FunctionName":"f","Runtime":"python3.13"}"#);

    let deleted = encode::<operations::DeleteAlias>(&types::DeleteAliasResponse);
    assert_eq!((deleted.status().as_u16(), deleted.body().len()), (204, 0));

    let deleted = encode::<operations::DeleteFunction>(&types::DeleteFunctionResponse { status_code: Some(204) });
    assert_eq!((deleted.status().as_u16(), deleted.body().len()), (204, 0));

    let accepted =
        encode::<operations::Invoke>(&types::InvocationResponse { status_code: Some(202), ..Default::default() });
    assert_eq!((accepted.status().as_u16(), accepted.body().len()), (202, 0));
}

#[test]
fn errors_travel_with_their_casing() {
    let throttled = ApiError::new(ErrorCode::TooManyRequestsException, "Rate Exceeded.")
        .with_reason("ReservedFunctionConcurrentInvocationLimitExceeded")
        .with_retry_after(1);
    let response = throttled.to_response();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["x-amzn-errortype"], "TooManyRequestsException");
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(
        response.body(),
        r#"{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}"#
    );
    assert_eq!(decode_response::<operations::Invoke>(response), Err(throttled));

    let missing = ApiError::new(ErrorCode::ResourceNotFoundException, "Function not found: f").to_response();
    assert_eq!(missing.body(), r#"{"Type":"User","Message":"Function not found: f"}"#);
    let failed = ApiError::new(ErrorCode::ServiceException, "x");
    assert_eq!((failed.kind, failed.without_type().kind), (Some("Service"), None));
    assert_eq!(ErrorCode::ALL.iter().filter(|code| ApiError::new(**code, "").kind.is_some()).count(), 58);
    assert_eq!(OperationId::ALL.len(), 91);
}
