//! SnapStart: what goes with it, and the states of a version.

use std::collections::BTreeSet;

use control_plane::{Failure, FailureCode, SnapshotFault};
use lambda_api::ErrorCode::*;
use lambda_api::types::*;
use serde_json::json as j;

use crate::support::*;

fn on() -> Option<SnapStart> {
    Some(SnapStart { apply_on: Some(SnapStartApplyOn::PublishedVersions) })
}

fn off() -> Option<SnapStart> {
    Some(SnapStart { apply_on: Some(SnapStartApplyOn::None) })
}

async fn create(world: &World, name: &str) {
    let request = CreateFunctionRequest { snap_start: on(), ..function(name) };
    let created = world.plane.create_function(&me(), request).await.unwrap();
    assert_eq!(json(&created)["SnapStart"], j!({"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}));
    world.plane.wait_idle().await;
}

/// Recorded: test_snapstart_lifecycle (members), test_snapstart_update_function_configuration.
#[tokio::test]
async fn a_version_is_pending_until_its_snapshot_is_there() {
    let world = World::new().await;
    create(&world, "f").await;
    let latest = world.get("f", None).await.unwrap();
    assert_eq!(members(&latest), configuration_members(&["LastUpdateStatus"]));
    assert_eq!(json(&latest)["SnapStart"]["OptimizationStatus"], "Off", "of $LATEST, always");

    world.snapshots.outcome.send_replace(None);
    let published = world.publish("f").await;
    assert_eq!(members(&published), configuration_members(&["StateReason", "StateReasonCode"]));
    let shown = json(&published);
    assert_eq!((&shown["State"], &shown["StateReasonCode"]), (&j!("Pending"), &j!("Creating")));
    assert_eq!(shown["SnapStart"], j!({"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}));
    refused(
        world.plane.resolve(&me(), "f", Some("1"), 0.0),
        SnapStartNotReadyException,
        "Lambda is initializing your function. It will be ready to invoke once your function state becomes ACTIVE.",
    );
    assert!(world.plane.resolve(&me(), "f", None, 0.0).is_ok(), "$LATEST serves as ever");

    // Meanwhile $LATEST goes its own ways, also wrong ones.
    world.runtimes.broken.send_replace(true);
    let request =
        UpdateFunctionConfigurationRequest { function_name: "f".into(), snap_start: off(), ..Default::default() };
    let updated = world.plane.update_function_configuration(&me(), request).await.unwrap();
    let shown = json(&updated);
    assert_eq!(shown["SnapStart"], j!({"ApplyOn": "None", "OptimizationStatus": "Off"}));
    assert_eq!(
        (&shown["LastUpdateStatus"], &shown["LastUpdateStatusReasonCode"]),
        (&j!("InProgress"), &j!("Creating"))
    );

    world.snapshots.outcome.send_replace(Some(Ok(())));
    world.plane.wait_idle().await;
    let active = world.get("f", Some("1")).await.unwrap();
    assert_eq!(members(&active), configuration_members(&["LastUpdateStatus"]));
    let shown = json(&active);
    assert_eq!((&shown["State"], &shown["LastUpdateStatus"]), (&j!("Active"), &j!("Successful")));
    assert_eq!(shown["SnapStart"], j!({"ApplyOn": "PublishedVersions", "OptimizationStatus": "On"}));
    let version = world.plane.resolve(&me(), "f", Some("1"), 0.0).unwrap().version;
    assert!(version.snap_start && world.snapshots.kept.lock().contains(&version.key));
    let listed = ListVersionsByFunctionRequest { function_name: "f".into(), ..Default::default() };
    let listed = json(&world.plane.list_versions_by_function(&me(), listed).await.unwrap());
    assert_eq!(listed["Versions"][1]["SnapStart"]["OptimizationStatus"], "On");
    assert!(!world.plane.resolve(&me(), "f", None, 0.0).unwrap().version.snap_start, "$LATEST never is");
}

#[tokio::test]
async fn publishing_with_the_creation() {
    let world = World::new().await;
    world.runtimes.open.send_replace(false);
    let request = CreateFunctionRequest { snap_start: on(), publish: Some(true), ..function("f") };
    world.plane.create_function(&me(), request).await.unwrap();
    refused(
        world.plane.resolve(&me(), "f", Some("1"), 0.0),
        ResourceConflictException,
        "The operation cannot be performed at this time. The function is currently in the following state: Pending",
    );
    world.runtimes.open.send_replace(true);
    world.plane.wait_idle().await;
    let active = json(&world.get("f", Some("1")).await.unwrap());
    assert_eq!((&active["State"], &active["SnapStart"]["OptimizationStatus"]), (&j!("Active"), &j!("On")));
}

#[tokio::test]
async fn a_host_that_cannot_says_so_and_the_version_works() {
    let world = World::new().await;
    world.snapshots.outcome.send_replace(Some(Err(SnapshotFault::Unsupported("QEMU cannot.".into()))));
    create(&world, "f").await;
    world.publish("f").await;
    world.plane.wait_idle().await;
    let active = json(&world.get("f", Some("1")).await.unwrap());
    assert_eq!((&active["State"], &active["LastUpdateStatus"]), (&j!("Active"), &j!("Successful")));
    assert_eq!(active["SnapStart"], j!({"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}));
    assert_eq!(
        active["StateReason"],
        "SnapStart: no snapshot was taken, the version starts as any other does. QEMU cannot."
    );
    assert!(active.get("StateReasonCode").is_none());
    assert!(world.plane.resolve(&me(), "f", Some("1"), 0.0).is_ok());
}

#[tokio::test]
async fn a_version_whose_init_fails_is_failed() {
    let world = World::new().await;
    let failure = Failure { reason: "No module named 'x'".into(), code: FailureCode::RuntimeInitError };
    world.snapshots.outcome.send_replace(Some(Err(SnapshotFault::Failed(failure))));
    create(&world, "f").await;
    world.publish("f").await;
    world.plane.wait_idle().await;
    let failed = json(&world.get("f", Some("1")).await.unwrap());
    assert_eq!((&failed["State"], &failed["StateReason"]), (&j!("Failed"), &j!("No module named 'x'")));
    assert_eq!(failed["StateReasonCode"], "FunctionError.RuntimeInitError");
    refused(
        world.plane.resolve(&me(), "f", Some("1"), 0.0),
        ResourceConflictException,
        "The operation cannot be performed at this time. The function is currently in the following state: Failed",
    );
}

#[tokio::test]
async fn a_restart_takes_what_was_not_taken_and_removes_what_is_no_longer_wanted() {
    let world = World::new().await;
    create(&world, "f").await;
    world.publish("f").await;
    world.plane.wait_idle().await;
    world.describe("f", "other").await;
    world.snapshots.outcome.send_replace(None);
    world.publish("f").await;
    let first = world.plane.resolve(&me(), "f", Some("1"), 0.0).unwrap().version.key.clone();
    world.delete("f", Some("1")).await.unwrap();

    let world = world.restart().await;
    assert!(!world.snapshots.kept.lock().contains(&first), "swept");
    assert_eq!(json(&world.get("f", Some("2")).await.unwrap())["State"], "Pending");
    world.snapshots.outcome.send_replace(Some(Ok(())));
    world.plane.wait_idle().await;
    let second = world.plane.resolve(&me(), "f", Some("2"), 0.0).unwrap().version.key.clone();
    assert_eq!(*world.snapshots.kept.lock(), BTreeSet::from([second.clone()]));

    // Deleted while it is being taken: gone with the next look, at the latest with the next start.
    world.describe("f", "again").await;
    world.snapshots.outcome.send_replace(None);
    world.publish("f").await;
    world.delete("f", Some("3")).await.unwrap();
    world.snapshots.outcome.send_replace(Some(Ok(())));
    world.plane.wait_idle().await;
    assert_eq!(world.snapshots.kept.lock().len(), 2);
    let world = world.restart().await;
    assert_eq!(*world.snapshots.kept.lock(), BTreeSet::from([second]));
}

#[tokio::test]
async fn what_does_not_go_with_it_is_refused() {
    let world = World::new().await;
    for (runtime, works) in [
        ("java21", true),
        ("java25", true),
        ("python3.13", true),
        ("dotnet8", true),
        ("dotnet10", true),
        ("java8.al2", false),
        ("python3.11", false),
        ("dotnet6", false),
        ("nodejs22.x", false),
        ("provided.al2023", false),
    ] {
        let request = CreateFunctionRequest {
            snap_start: on(),
            runtime: Some(Runtime::from(runtime)),
            ..function(&runtime.replace('.', "-"))
        };
        let created = world.plane.create_function(&me(), request).await;
        match works {
            true => drop(created.unwrap()),
            false => {
                let words = format!("{runtime} is not supported for SnapStart enabled functions.");
                refused(created, InvalidParameterValueException, &words);
            }
        }
    }
    let large = || Some(EphemeralStorage { size: 1024 });
    let words = "SnapStart does not support an EphemeralStorage of more than 512 MB, and this function's is 1024 MB.";
    let request = CreateFunctionRequest { snap_start: on(), ephemeral_storage: large(), ..function("f") };
    refused(world.plane.create_function(&me(), request).await, InvalidParameterValueException, words);

    create(&world, "f").await;
    let update = || UpdateFunctionConfigurationRequest {
        function_name: "f".into(),
        ..UpdateFunctionConfigurationRequest::default()
    };
    let request = UpdateFunctionConfigurationRequest { ephemeral_storage: large(), ..update() };
    refused(world.plane.update_function_configuration(&me(), request).await, InvalidParameterValueException, words);
    let request = UpdateFunctionConfigurationRequest { runtime: Some(Runtime::Nodejs22X), ..update() };
    let words = "nodejs22.x is not supported for SnapStart enabled functions.";
    refused(world.plane.update_function_configuration(&me(), request).await, InvalidParameterValueException, words);
    let request = UpdateFunctionConfigurationRequest { snap_start: off(), ephemeral_storage: large(), ..update() };
    world.plane.update_function_configuration(&me(), request).await.unwrap();
}

#[tokio::test]
async fn a_stop_meanwhile_fails_nothing() {
    let world = World::new().await;
    world.snapshots.outcome.send_replace(Some(Err(SnapshotFault::Stopping)));
    create(&world, "f").await;
    world.publish("f").await;
    world.plane.wait_idle().await;
    assert_eq!(json(&world.get("f", Some("1")).await.unwrap())["State"], "Pending");
    world.snapshots.outcome.send_replace(Some(Ok(())));
    let world = world.restart().await;
    world.plane.wait_idle().await;
    let active = json(&world.get("f", Some("1")).await.unwrap());
    assert_eq!((&active["State"], &active["SnapStart"]["OptimizationStatus"]), (&j!("Active"), &j!("On")));
}
