//! Functions of container images.

use control_plane::ControlPlane;
use lambda_api::ErrorCode::*;
use lambda_api::types::*;

use crate::support::*;

fn image(name: &str, uri: &str) -> CreateFunctionRequest {
    CreateFunctionRequest {
        runtime: None,
        handler: None,
        package_type: Some(PackageType::Image),
        code: FunctionCode { image_uri: Some(uri.into()), ..Default::default() },
        ..function(name)
    }
}

fn new_image(name: &str, uri: &str) -> UpdateFunctionCodeRequest {
    UpdateFunctionCodeRequest { function_name: name.into(), image_uri: Some(uri.into()), ..Default::default() }
}

async fn get(plane: &ControlPlane, name: &str) -> GetFunctionResponse {
    let request = GetFunctionRequest { function_name: name.into(), qualifier: None };
    plane.get_function(&me(), request).await.unwrap()
}

#[tokio::test]
async fn an_image_is_resolved_once_and_shown_as_on_aws() {
    let world = World::new().await;
    let created = world.plane.create_function(&me(), image("f", "registry/app:1")).await.unwrap();
    assert_eq!((created.state, created.state_reason_code), (Some(State::Pending), Some(StateReasonCode::Creating)));
    world.plane.wait_idle().await;
    let shown = get(&world.plane, "f").await;
    let (configuration, code) = (shown.configuration.unwrap(), shown.code.unwrap());
    let members = members(&configuration);
    assert!(["Runtime", "Handler", "RuntimeVersionConfig"].iter().all(|name| !members.contains(&(*name).to_owned())));
    assert_eq!(configuration.package_type, Some(PackageType::Image));
    assert_eq!(configuration.code_sha256.as_deref(), Some("1".repeat(64).as_str()));
    assert_eq!((configuration.code_size, configuration.state), (Some(0), Some(State::Active)));
    assert_eq!((code.repository_type.as_deref(), code.image_uri.as_deref()), (Some("ECR"), Some("registry/app:1")));
    assert_eq!(code.resolved_image_uri.unwrap(), format!("registry/app@sha256:{}", "1".repeat(64)));
    assert_eq!(code.location, None);

    let published = world.publish("f").await;
    world.plane.update_function_code(&me(), new_image("f", "registry/app:2")).await.unwrap();
    world.plane.wait_idle().await;
    let version = world.plane.resolve(&me(), "f", Some("1"), 0.0).unwrap().version;
    assert_eq!(version.code.image.as_ref().unwrap().uri, "registry/app:1");
    assert_eq!(published.code_sha256, Some("1".repeat(64)));
    let latest = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    assert_eq!(latest.code.sha256, "2".repeat(64));
}

#[tokio::test]
async fn what_cannot_be_used_is_told_at_once_or_in_the_state() {
    let world = World::new().await;
    let caller = me();
    let create = |uri: &str| world.plane.create_function(&caller, image("f", uri));
    let missing = "Source image registry/app:9 does not exist. Provide a valid source image. as registry/app:9 is";
    refused(create("registry/app:9").await, InvalidParameterValueException, missing);
    let invalid = "Source image registry/app is not valid. Provide a valid source image. as registry/app is";
    refused(create("registry/app").await, InvalidParameterValueException, invalid);
    let denied = "Lambda does not have permission to access the ECR image. Check the ECR permissions. as \
                  registry/app:secret is";
    refused(create("registry/app:secret").await, AccessDeniedException, denied);

    create("registry/app:8").await.unwrap();
    world.plane.wait_idle().await;
    let failed = get(&world.plane, "f").await.configuration.unwrap();
    assert_eq!((failed.state, failed.state_reason_code), (Some(State::Failed), Some(StateReasonCode::ImageDeleted)));
    assert_eq!(failed.state_reason.as_deref(), Some("gone"));
    world.plane.update_function_code(&me(), new_image("f", "registry/app:1")).await.unwrap();
    world.plane.wait_idle().await;
    assert_eq!(get(&world.plane, "f").await.configuration.unwrap().state, Some(State::Active));

    world.plane.update_function_code(&me(), new_image("f", "registry/app:8")).await.unwrap();
    world.plane.wait_idle().await;
    let kept = get(&world.plane, "f").await.configuration.unwrap();
    assert_eq!(kept.last_update_status_reason_code, Some(LastUpdateStatusReasonCode::ImageDeleted));
    let serving = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    assert_eq!(serving.code.sha256, "1".repeat(64), "the old image serves on");
}

#[tokio::test]
async fn parameters_of_zips_and_images_do_not_mix() {
    let world = World::new().await;
    let plane = &world.plane;
    let zip_only = "Please don't provide Handler or Runtime or Layer when the intended function PackageType is Image.";
    for wrong in [
        CreateFunctionRequest { runtime: Some(Runtime::Python3_12), ..image("f", "registry/app:1") },
        CreateFunctionRequest { handler: Some("a.b".into()), ..image("f", "registry/app:1") },
        CreateFunctionRequest { layers: Some(vec!["l".into()]), ..image("f", "registry/app:1") },
    ] {
        refused(plane.create_function(&me(), wrong).await, InvalidParameterValueException, zip_only);
    }
    let config = ImageConfig { command: Some(vec!["a".into()]), ..Default::default() };
    let wrong = CreateFunctionRequest { image_config: Some(config.clone()), ..function("f") };
    let message = "Please don't provide ImageConfig when the intended function PackageType is Zip.";
    refused(plane.create_function(&me(), wrong).await, InvalidParameterValueException, message);
    let wrong = CreateFunctionRequest { code: image("f", "registry/app:1").code, ..function("f") };
    let message = "Please don't provide ImageUri when the intended function PackageType is Zip.";
    refused(plane.create_function(&me(), wrong).await, InvalidParameterValueException, message);
    let wrong = CreateFunctionRequest { code: function("f").code, ..image("f", "registry/app:1") };
    let message = "Please provide ImageUri when the intended function PackageType is Image.";
    refused(plane.create_function(&me(), wrong).await, InvalidParameterValueException, message);

    let config = Some(ImageConfig { working_directory: Some("/srv".into()), ..config });
    let request = CreateFunctionRequest { image_config: config.clone(), ..image("f", "registry/app:1") };
    let created = plane.create_function(&me(), request).await.unwrap();
    plane.wait_idle().await;
    assert_eq!(created.image_config_response.unwrap().image_config, config);
    let message = "Please provide ImageUri when updating a function with packageType Image.";
    refused(plane.update_function_code(&me(), new_code("f", "x")).await, InvalidParameterValueException, message);
    let caller = me();
    let update = |request| plane.update_function_configuration(&caller, request);
    let mine = || UpdateFunctionConfigurationRequest { function_name: "f".into(), ..Default::default() };
    let wrong = UpdateFunctionConfigurationRequest { runtime: Some(Runtime::Python3_12), ..mine() };
    refused(update(wrong).await, InvalidParameterValueException, zip_only);
    let before = world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
    assert_eq!(before.image_config.working_directory.as_deref(), Some("/srv"));
    let cleared = UpdateFunctionConfigurationRequest { image_config: Some(ImageConfig::default()), ..mine() };
    assert_eq!(update(cleared).await.unwrap().image_config_response, None);
}

#[tokio::test]
async fn images_that_nothing_needs_go_with_the_next_start() {
    let world = World::new().await;
    for (name, uri) in [("f", "registry/app:1"), ("g", "registry/app:1"), ("h", "registry/app:2")] {
        world.plane.create_function(&me(), image(name, uri)).await.unwrap();
    }
    world.plane.wait_idle().await;
    for name in ["f", "h"] {
        world.delete(name, None).await.unwrap();
    }
    world.plane.remove_unused_packages().await;
    assert_eq!(world.images.pulled.lock().len(), 2, "a sandbox may still run on one");
    let pulled = world.images.pulled.lock().clone();
    let (one, two) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
    assert!(pulled.contains(&one) && pulled.contains(&two));
    let world = world.restart_with(pulled).await;
    assert_eq!(*world.images.pulled.lock(), std::collections::BTreeSet::from([one]));
}
