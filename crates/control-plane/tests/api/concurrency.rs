//! Reserved concurrency and account settings.

use control_plane::Config;
use lambda_api::ErrorCode::*;
use lambda_api::types::*;
use serde_json::json as j;

use crate::support::*;

fn put(name: &str, n: i32) -> PutFunctionConcurrencyRequest {
    PutFunctionConcurrencyRequest { function_name: name.into(), reserved_concurrent_executions: n }
}

/// Recorded: test_function_concurrency, test_lambda_concurrency_crud, test_function_concurrency_exceptions,
/// test_function_concurrency_limits.
#[tokio::test]
async fn reserved_concurrency() {
    let world = World::new().await;
    world.create("f").await;
    world.create("g").await;
    let plane = &world.plane;
    let get = || GetFunctionConcurrencyRequest { function_name: "f".into() };
    assert_eq!(json(&plane.get_function_concurrency(&me(), get()).await.unwrap()), j!({}));
    for n in [0, 1] {
        let reserved = plane.put_function_concurrency(&me(), put("f", n)).await.unwrap();
        assert_eq!(json(&reserved), j!({"ReservedConcurrentExecutions": n}));
        let limits = plane.resolve(&me(), "f", None, 0.0).unwrap().limits;
        assert_eq!((limits.reserved, limits.unreserved), (Some(n as u32), 1000 - n as u32));
    }
    assert_eq!(
        json(&plane.get_function_concurrency(&me(), get()).await.unwrap()),
        j!({"ReservedConcurrentExecutions": 1})
    );
    let request = GetFunctionRequest { function_name: "f".into(), qualifier: None };
    let function = json(&plane.get_function(&me(), request).await.unwrap());
    assert_eq!(function["Concurrency"], j!({"ReservedConcurrentExecutions": 1}));
    let request = DeleteFunctionConcurrencyRequest { function_name: "f".into() };
    plane.delete_function_concurrency(&me(), request).await.unwrap();
    assert_eq!(json(&plane.get_function_concurrency(&me(), get()).await.unwrap()), j!({}));

    let too_much = "Specified ReservedConcurrentExecutions for function decreases account's \
                    UnreservedConcurrentExecution below its minimum value of [100].";
    for n in [901, 1000, 1001] {
        let result = plane.put_function_concurrency(&me(), put("f", n)).await;
        refused_untyped(result, InvalidParameterValueException, too_much);
    }
    plane.put_function_concurrency(&me(), put("f", 900)).await.unwrap();
    refused_untyped(plane.put_function_concurrency(&me(), put("g", 1)).await, InvalidParameterValueException, too_much);
    plane.put_function_concurrency(&me(), put("f", 899)).await.unwrap();
    plane.put_function_concurrency(&me(), put("g", 1)).await.unwrap();

    for n in [1, -5] {
        refused(
            plane.put_function_concurrency(&me(), put("doesnotexist", n)).await,
            ResourceNotFoundException,
            &format!("Function not found: {ARN}:doesnotexist:$LATEST"),
        );
    }
    refused(
        plane.put_function_concurrency(&me(), put(&format!("{ARN}:f:1"), 1)).await,
        InvalidParameterValueException,
        "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. \
         Please specify either a function name or an unqualified function ARN.",
    );

    // A deleted function holds nothing back.
    world.delete("f", None).await.unwrap();
    assert_eq!(plane.resolve(&me(), "g", None, 0.0).unwrap().limits.unreserved, 999);
    world.create("f").await;
    assert_eq!(plane.resolve(&me(), "f", None, 0.0).unwrap().limits.reserved, None);
}

/// Recorded: test_account_settings, test_account_settings_total_code_size, …_config_update.
#[tokio::test]
async fn account_settings() {
    let world = World::new().await;
    let settings = async || json(&world.plane.get_account_settings(&me()).await.unwrap());
    let used = async || settings().await["AccountUsage"]["TotalCodeSize"].as_i64().unwrap();
    assert_eq!(
        settings().await,
        j!({
            "AccountLimit": {
                "TotalCodeSize": 80_530_636_800i64, "CodeSizeUnzipped": 262_144_000, "CodeSizeZipped": 52_428_800,
                "ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 1000,
            },
            "AccountUsage": {"TotalCodeSize": 0, "FunctionCount": 0},
        })
    );
    let size = world.create("f").await.code_size.unwrap();
    assert_eq!(used().await, size);
    world.describe("f", "no new code").await;
    assert_eq!(used().await, size);
    world.publish("f").await;
    assert_eq!(used().await, 2 * size, "every version counts by itself");
    world.plane.put_function_concurrency(&me(), put("f", 100)).await.unwrap();
    assert_eq!(settings().await["AccountLimit"]["UnreservedConcurrentExecutions"], 900);
    assert_eq!(settings().await["AccountUsage"]["FunctionCount"], 1);
}

#[tokio::test]
async fn code_storage_is_limited() {
    let limit = zip("f").len() as u64 + 10;
    let config = Config { total_code_size: limit, ..Config::default() };
    let world = World::at(tempfile::tempdir().unwrap(), config).await;
    world.create("f").await;
    let error = world.plane.create_function(&me(), function("g")).await.unwrap_err();
    assert_eq!(error.code, CodeStorageExceededException);
}
