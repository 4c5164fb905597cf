//! Create, read, list, delete.

use std::collections::BTreeMap;

use lambda_api::ErrorCode::*;
use lambda_api::types::*;
use serde_json::json as j;

use crate::support::*;

/// Recorded: test_function_state, test_lambda_code_location_zipfile.
#[tokio::test]
async fn a_function_with_only_what_is_required() {
    let world = World::new().await;
    world.runtimes.open.send_replace(false);
    let created = world.plane.create_function(&me(), function("f")).await.unwrap();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
    let expected = j!({
        "Architectures": [arch], "CodeSha256": created.code_sha256, "CodeSize": created.code_size, "Description": "",
        "EphemeralStorage": {"Size": 512}, "FunctionArn": format!("{ARN}:f"), "FunctionName": "f",
        "Handler": "index.handler", "LastModified": created.last_modified,
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/f"}, "MemorySize": 128, "PackageType": "Zip",
        "RevisionId": created.revision_id, "Role": ROLE, "Runtime": "python3.12",
        "RuntimeVersionConfig": {"RuntimeVersionArn": "arn:aws:lambda:us-east-1::runtime:python3.12"},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"}, "State": "Pending",
        "StateReason": "The function is being created.", "StateReasonCode": "Creating", "Timeout": 3,
        "TracingConfig": {"Mode": "PassThrough"}, "Version": "$LATEST",
    });
    assert_eq!(json(&created), expected);
    assert_eq!(created.code_size, Some(zip("f").len() as i64));
    let modified = created.last_modified.clone().unwrap();
    assert!(modified.len() == 28 && modified.ends_with("+0000") && modified.as_bytes()[10] == b'T', "{modified}");

    // Members only in the CreateFunction response: StateReason, StateReasonCode; only later: LastUpdateStatus.
    world.runtimes.open.send_replace(true);
    world.plane.wait_idle().await;
    let active = world.get("f", None).await.unwrap();
    assert_eq!(members(&active), configuration_members(&["LastUpdateStatus"]));
    assert_eq!(json(&active)["State"], "Active");
    assert_eq!(json(&active)["LastUpdateStatus"], "Successful");
    assert_ne!(active.revision_id, created.revision_id);
    assert_eq!(active.last_modified, created.last_modified);
    assert_eq!(world.get("f", Some("$LATEST")).await.unwrap().function_arn, Some(format!("{ARN}:f:$LATEST")));
}

/// Recorded: test_function_advanced_configuration.
#[tokio::test]
async fn a_function_with_everything() {
    let world = World::new().await;
    let request = CreateFunctionRequest {
        description: Some("d".into()),
        timeout: Some(5),
        memory_size: Some(256),
        ephemeral_storage: Some(EphemeralStorage { size: 1024 }),
        environment: Some(Environment { variables: Some(BTreeMap::new()) }),
        tracing_config: Some(TracingConfig { mode: Some(TracingMode::Active) }),
        tags: Some(BTreeMap::from([("team".into(), "a".into())])),
        // Tools send the "off" form of features routinely.
        snap_start: Some(SnapStart { apply_on: Some(SnapStartApplyOn::None) }),
        vpc_config: Some(VpcConfig {
            subnet_ids: Some(vec![]),
            security_group_ids: Some(vec![]),
            ..Default::default()
        }),
        dead_letter_config: Some(DeadLetterConfig { target_arn: Some(String::new()) }),
        kms_key_arn: Some(String::new()),
        layers: Some(vec![]),
        ..function("f")
    };
    world.plane.create_function(&me(), request).await.unwrap();
    world.plane.wait_idle().await;
    let config = world.get("f", None).await.unwrap();
    assert_eq!(members(&config), configuration_members(&["Environment", "LastUpdateStatus"]));
    let config = json(&config);
    assert_eq!(config["Environment"], j!({"Variables": {}}));
    assert_eq!((&config["MemorySize"], &config["Timeout"]), (&j!(256), &j!(5)));
    assert_eq!(config["EphemeralStorage"], j!({"Size": 1024}));
    assert_eq!(config["TracingConfig"], j!({"Mode": "Active"}));
    let request = GetFunctionRequest { function_name: "f".into(), qualifier: None };
    let response = json(&world.plane.get_function(&me(), request).await.unwrap());
    assert_eq!(response["Tags"], j!({"team": "a"}));
    assert!(response.get("Concurrency").is_none());
}

/// Recorded: test_ops_on_nonexisting_fn, test_ops_with_arn_qualifier_mismatch, test_ops_on_nonexisting_version,
/// test_get_function_wrong_region, test_delete_on_nonexisting_version.
#[tokio::test]
async fn what_is_not_there() {
    let world = World::new().await;
    let not_found = |suffix: &str| format!("Function not found: {ARN}:{suffix}");
    refused(world.get("none", None).await, ResourceNotFoundException, &not_found("none"));
    refused(world.delete("none", None).await, ResourceNotFoundException, &not_found("none"));
    let request = GetFunctionConcurrencyRequest { function_name: "none".into() };
    let result = world.plane.get_function_concurrency(&me(), request).await;
    refused(result, ResourceNotFoundException, &not_found("none"));
    let request = GetFunctionCodeSigningConfigRequest { function_name: "none".into() };
    let result = world.plane.get_function_code_signing_config(&me(), request).await;
    refused(result, ResourceNotFoundException, &not_found("none"));

    let mismatch = "The derived qualifier from the function name does not match the specified qualifier.";
    let arn = format!("{ARN}:some-function");
    for name in [format!("{arn}:1"), "some-function:1".to_owned()] {
        refused(world.get(&name, Some("$LATEST")).await, InvalidParameterValueException, mismatch);
        refused(world.delete(&name, Some("$LATEST")).await, InvalidParameterValueException, mismatch);
    }
    let latest = format!("{arn}:$LATEST");
    refused(world.get(&latest, Some("$LATEST")).await, ResourceNotFoundException, &not_found("some-function:$LATEST"));
    refused(
        world.delete(&latest, Some("$LATEST")).await,
        InvalidParameterValueException,
        "$LATEST version cannot be deleted without deleting the function.",
    );

    let elsewhere = "arn:aws:lambda:eu-central-1:111111111111:function:f";
    let unreachable = "Functions from 'eu-central-1' are not reachable in this region ('us-east-1')";
    refused(world.get(elsewhere, None).await, ResourceNotFoundException, unreachable);
    refused(world.delete(elsewhere, None).await, ResourceNotFoundException, unreachable);
    refused(world.plane.resolve(&me(), elsewhere, None, 0.0), ResourceNotFoundException, unreachable);

    world.create("f").await;
    refused(world.get("f", Some("1221")).await, ResourceNotFoundException, &not_found("f:1221"));
    refused(world.get("f:none", None).await, ResourceNotFoundException, &not_found("f:none"));
    for _ in 0..2 {
        assert_eq!(world.delete("f", Some("1233")).await.unwrap().status_code, Some(204));
    }
    world.delete("f", None).await.unwrap();
    refused(world.delete("f", None).await, ResourceNotFoundException, &not_found("f"));
    refused(world.delete("f", Some("1233")).await, ResourceNotFoundException, &not_found("f"));
    refused(
        world.delete("f", Some("live")).await,
        InvalidParameterValueException,
        "Deletion of aliases is not currently supported.",
    );
}

/// Recorded: test_create_lambda_exceptions (zip), test_create_deprecated_function_runtime_with_validation_enabled,
/// test_oversized_zipped_create_lambda, test_large_environment_fails_multiple_keys, test_lambda_zip_file_to_image.
#[tokio::test]
async fn what_cannot_be_created() {
    let world = World::new().await;
    let create = async |request: CreateFunctionRequest| world.plane.create_function(&me(), request).await;
    let code = |zip: &'static [u8]| FunctionCode { zip_file: Some(zip.into()), ..Default::default() };
    refused(
        create(CreateFunctionRequest { code: code(b"this is not a zipfile, just a random string"), ..function("f") })
            .await,
        InvalidParameterValueException,
        "Could not unzip uploaded file. Please check your file, then try to upload again.",
    );
    let oversized = FunctionCode { zip_file: Some(vec![0; 52_428_801].into()), ..Default::default() };
    refused(
        create(CreateFunctionRequest { code: oversized, ..function("f") }).await,
        RequestEntityTooLargeException,
        "Zipped size must be smaller than 52428800 bytes",
    );
    for runtime in ["go1.x", "java8", "nodejs12.x", "provided", "python3.7", "ruby2.7"] {
        refused(
            create(CreateFunctionRequest { runtime: Some(runtime.into()), ..function("f") }).await,
            InvalidParameterValueException,
            &format!(
                "The runtime parameter of {runtime} is no longer supported for creating or updating AWS Lambda functions. \
                 We recommend you use a supported runtime while creating or updating functions."
            ),
        );
    }
    refused(
        create(CreateFunctionRequest { runtime: Some("cobol".into()), ..function("f") }).await,
        InvalidParameterValueException,
        "There is no runtime cobol. Install it.",
    );
    let mandatory = "Runtime and Handler are mandatory parameters for functions created with deployment packages.";
    refused(
        create(CreateFunctionRequest { handler: None, ..function("f") }).await,
        InvalidParameterValueException,
        mandatory,
    );
    refused(
        create(CreateFunctionRequest { runtime: None, ..function("f") }).await,
        InvalidParameterValueException,
        mandatory,
    );
    refused(
        create(CreateFunctionRequest { code: FunctionCode::default(), ..function("f") }).await,
        InvalidParameterValueException,
        "Please provide a source for function code.",
    );
    let both = FunctionCode { s3_bucket: Some("b".into()), s3_key: Some("k".into()), ..function("f").code };
    refused(
        create(CreateFunctionRequest { code: both, ..function("f") }).await,
        InvalidParameterValueException,
        "Please do not provide other FunctionCode parameters when providing a ZipFile.",
    );
    let other = if cfg!(target_arch = "aarch64") { Architecture::X86_64 } else { Architecture::Arm64 };
    let error = create(CreateFunctionRequest { architectures: Some(vec![other]), ..function("f") }).await.unwrap_err();
    assert!(error.message.contains("cannot run here"), "{error}");

    let too_large = "x".repeat(4096);
    let variables = BTreeMap::from([("LARGE_VAR".into(), too_large.clone()), ("SMALL_VAR".into(), "ok".into())]);
    let environment = Some(Environment { variables: Some(variables) });
    refused(
        create(CreateFunctionRequest { environment, ..function("f") }).await,
        InvalidParameterValueException,
        &format!(
            "Lambda was unable to configure your environment variables because the environment variables you have \
             provided exceeded the 4KB limit. String measured: {{\"LARGE_VAR\":\"{too_large}\",\"SMALL_VAR\":\"ok\"}}"
        ),
    );
    assert!(world.get("f", None).await.is_err(), "nothing was created");

    world.create("f").await;
    refused(create(function("f")).await, ResourceConflictException, "Function already exist: f");
    let request =
        UpdateFunctionCodeRequest { function_name: "f".into(), image_uri: Some("i".into()), ..Default::default() };
    refused(
        world.plane.update_function_code(&me(), request).await,
        InvalidParameterValueException,
        "Please don't provide ImageUri when updating a function with packageType Zip.",
    );
}

/// Recorded: test_layer_function_exceptions, test_layer_function_quota_exception (what holds while there are no layers).
#[tokio::test]
async fn layers_that_do_not_exist() {
    let world = World::new().await;
    let with = |layers: &[&str]| CreateFunctionRequest {
        layers: Some(layers.iter().map(|layer| (*layer).to_owned()).collect()),
        ..function("f")
    };
    let layer = "arn:aws:lambda:us-east-1:111111111111:layer:doesnotexist:1";
    refused(
        world.plane.create_function(&me(), with(&[layer])).await,
        InvalidParameterValueException,
        &format!("Layer version {layer} does not exist."),
    );
    refused(
        world.plane.create_function(&me(), with(&["arn:aws:lambda:eu-west-1:111111111111:layer:l:1"])).await,
        InvalidParameterValueException,
        "Layers are not in the same region as the function. Layers are expected to be in region us-east-1.",
    );
    refused(
        world.plane.create_function(&me(), with(&[layer; 6])).await,
        InvalidParameterValueException,
        "Cannot reference more than 5 layers.",
    );
}

/// Never a fake success.
#[tokio::test]
async fn what_emberbox_lacks_is_refused_by_name() {
    let world = World::new().await;
    let arn = || Some("arn:aws:sqs:us-east-1:111111111111:q".to_owned());
    let requests = [
        (
            "VpcConfig",
            CreateFunctionRequest {
                vpc_config: Some(VpcConfig { subnet_ids: Some(vec!["subnet-1".into()]), ..Default::default() }),
                ..function("f")
            },
        ),
        ("KMSKeyArn", CreateFunctionRequest { kms_key_arn: arn(), ..function("f") }),
        ("DurableConfig", CreateFunctionRequest { durable_config: Some(DurableConfig::default()), ..function("f") }),
        ("TenancyConfig", CreateFunctionRequest { tenancy_config: Some(TenancyConfig::default()), ..function("f") }),
        (
            "FileSystemConfigs",
            CreateFunctionRequest { file_system_configs: Some(vec![FileSystemConfig::default()]), ..function("f") },
        ),
    ];
    for (name, request) in requests {
        refused(
            world.plane.create_function(&me(), request).await,
            InvalidParameterValueException,
            &format!("Emberbox does not support {name} yet. Leave it out."),
        );
    }
}

/// Recorded: test_function_partial_advanced_logging_configuration_update.
#[tokio::test]
async fn logging_configuration_in_parts() {
    let world = World::new().await;
    let cases = [
        (
            LoggingConfig { log_format: Some(LogFormat::Json), ..Default::default() },
            j!({"ApplicationLogLevel": "INFO", "LogFormat": "JSON", "LogGroup": "/aws/lambda/f", "SystemLogLevel": "INFO"}),
        ),
        (
            LoggingConfig {
                log_format: Some(LogFormat::Json),
                application_log_level: Some(ApplicationLogLevel::Debug),
                ..Default::default()
            },
            j!({"ApplicationLogLevel": "DEBUG", "LogFormat": "JSON", "LogGroup": "/aws/lambda/f", "SystemLogLevel": "INFO"}),
        ),
        (
            LoggingConfig {
                log_format: Some(LogFormat::Json),
                system_log_level: Some(SystemLogLevel::Debug),
                ..Default::default()
            },
            j!({"ApplicationLogLevel": "INFO", "LogFormat": "JSON", "LogGroup": "/aws/lambda/f", "SystemLogLevel": "DEBUG"}),
        ),
        (
            LoggingConfig { log_group: Some("cool_lambda".into()), ..Default::default() },
            j!({"LogFormat": "Text", "LogGroup": "cool_lambda"}),
        ),
    ];
    for (config, expected) in cases {
        world.create("f").await;
        let request = UpdateFunctionConfigurationRequest {
            function_name: "f".into(),
            logging_config: Some(config),
            ..Default::default()
        };
        let updated = world.plane.update_function_configuration(&me(), request).await.unwrap();
        assert_eq!(json(&updated)["LoggingConfig"], expected);
        world.plane.wait_idle().await;
        assert_eq!(json(&world.get("f", None).await.unwrap())["LoggingConfig"], expected);
        world.delete("f", None).await.unwrap();
    }
}

#[tokio::test]
async fn lists_in_pages_and_accounts_apart() {
    let world = World::new().await;
    // In an order that no separator within the marker may disturb.
    for name in ["f0", "f-a", "f", "f3", "f30", "f_", "g"] {
        world.create(name).await;
    }
    world.publish("f3").await;
    world.plane.create_function(&caller("222222222222"), function("theirs")).await.unwrap();
    let elsewhere = control_plane::Caller { region: "eu-west-1".into(), ..me() };
    world.plane.create_function(&elsewhere, function("elsewhere")).await.unwrap();

    let mut request = ListFunctionsRequest::default();
    for size in [1, 3, 7, 50] {
        request.max_items = Some(size);
        let mut names = Vec::new();
        loop {
            let page = world.plane.list_functions(&me(), request.clone()).await.unwrap();
            for function in page.functions.unwrap() {
                assert_eq!(members(&function), LISTED);
                names.push(function.function_name.unwrap());
            }
            request.marker = page.next_marker;
            if request.marker.is_none() {
                break;
            }
        }
        assert_eq!(names, ["f", "f-a", "f0", "f3", "f30", "f_", "g"]);
    }

    let request = ListFunctionsRequest { function_version: Some(FunctionVersion::All), ..Default::default() };
    let all = world.plane.list_functions(&me(), request).await.unwrap().functions.unwrap();
    let arns: Vec<_> = all.iter().map(|f| f.function_arn.as_deref().unwrap()).collect();
    assert_eq!(arns.len(), 8);
    assert!(arns.contains(&format!("{ARN}:f3:$LATEST").as_str()) && arns.contains(&format!("{ARN}:f3:1").as_str()));

    let theirs = "arn:aws:lambda:us-east-1:222222222222:function:theirs";
    refused(
        world.get(theirs, None).await,
        AccessDeniedException,
        &format!(
            "User: arn:aws:iam::111111111111:user/someone is not authorized to perform: lambda:GetFunction on resource: \
             {theirs} because no resource-based policy allows the lambda:GetFunction action"
        ),
    );
}
