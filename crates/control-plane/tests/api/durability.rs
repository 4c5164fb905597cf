//! What outlives the process, and what is cleaned up after it.

use lambda_api::types::*;

use crate::support::*;

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let world = World::new().await;
    world.create("f").await;
    world.publish("f").await;
    world.alias("f", "live", "1").await;
    let put = PutFunctionConcurrencyRequest { function_name: "f".into(), reserved_concurrent_executions: 7 };
    world.plane.put_function_concurrency(&me(), put).await.unwrap();
    let latest = world.get("f", None).await.unwrap();
    let before = world.plane.resolve(&me(), "f:live", None, 0.0).unwrap();
    let world = world.restart().await;
    assert_eq!(world.get("f", None).await.unwrap(), latest);
    let after = world.plane.resolve(&me(), "f:live", None, 0.0).unwrap();
    assert_eq!((after.version, after.limits), (before.version, before.limits));
    assert!(world.has_package(&latest));
}

#[tokio::test]
async fn background_steps_go_on_after_a_restart() {
    let world = World::new().await;
    world.create("updated").await;
    world.runtimes.open.send_replace(false);
    world.plane.create_function(&me(), function("created")).await.unwrap();
    world.plane.update_function_code(&me(), new_code("updated", "v2")).await.unwrap();
    let world = world.restart().await;
    world.plane.wait_idle().await;
    for name in ["created", "updated"] {
        let config = json(&world.get(name, None).await.unwrap());
        assert_eq!((&config["State"], &config["LastUpdateStatus"]), (&"Active".into(), &"Successful".into()));
        world.plane.resolve(&me(), name, None, 0.0).unwrap();
    }
}

#[tokio::test]
async fn packages_go_with_their_last_user() {
    let world = World::new().await;
    let first = world.create("f").await;
    world.publish("f").await;
    world.plane.update_function_code(&me(), new_code("f", "v2")).await.unwrap();
    world.plane.wait_idle().await;
    let second = world.get("f", None).await.unwrap();
    // Another function with the same code as version 1.
    let same = CreateFunctionRequest { function_name: "g".into(), ..function("f") };
    world.plane.create_function(&me(), same).await.unwrap();
    world.plane.wait_idle().await;
    let world = world.restart().await;
    assert!(world.has_package(&first) && world.has_package(&second));

    world.delete("f", None).await.unwrap();
    let world = world.restart().await;
    assert!(world.has_package(&first), "g needs it");
    assert!(!world.has_package(&second));
    world.delete("g", None).await.unwrap();
    assert!(world.has_package(&first), "an invocation may be on its way to it");
    world.plane.remove_unused_packages().await;
    assert!(world.has_package(&first), "for a minute");
    let world = world.restart().await;
    assert!(!world.has_package(&first));
    world.create("f").await;
    assert!(world.has_package(&first));
}

/// Many clients at once: nothing is lost, and every answer is there to be read at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_changes_at_once() {
    let world = std::sync::Arc::new(World::new().await);
    world.create("f").await;
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let world = world.clone();
            tokio::spawn(async move {
                let request = CreateFunctionRequest { publish: Some(true), ..function(&format!("f{i}")) };
                world.plane.create_function(&me(), request).await.unwrap();
                world.plane.get_policy(&me(), GetPolicyRequest::default()).await.unwrap_err();
                let tags = [(format!("k{i}"), "v".to_owned())].into();
                let request = TagResourceRequest { resource: format!("{ARN}:f"), tags };
                world.plane.tag_resource(&me(), request).await.unwrap();
                let put = PutFunctionConcurrencyRequest {
                    function_name: format!("f{i}"),
                    reserved_concurrent_executions: 10,
                };
                world.plane.put_function_concurrency(&me(), put).await.unwrap();
                assert_eq!(world.get(&format!("f{i}"), Some("1")).await.unwrap().version.as_deref(), Some("1"));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let request = ListTagsRequest { resource: format!("{ARN}:f") };
    assert_eq!(world.plane.list_tags(&me(), request).await.unwrap().tags.unwrap().len(), 40);
    assert_eq!(world.plane.resolve(&me(), "f", None, 0.0).unwrap().limits.unreserved, 600);
    world.plane.wait_idle().await;
    let settings = world.plane.get_account_settings(&me()).await.unwrap();
    assert_eq!(settings.account_usage.unwrap().function_count, Some(41));
}

/// The child of the test below: makes, changes and deletes functions, and says what it was told is done.
#[tokio::test]
async fn child_that_works_until_killed() {
    use std::io::Write as _;
    let Ok(dir) = std::env::var("CONTROL_PLANE_TEST_CHILD") else { return };
    let world = World::in_dir(dir.as_ref(), Default::default()).await;
    let say = |text: String| writeln!(std::io::stdout(), "{text}").unwrap();
    let run = std::process::id();
    for i in 0.. {
        let name = format!("f-{run}-{i}");
        let request = CreateFunctionRequest { publish: Some(true), ..function(&name) };
        world.plane.create_function(&me(), request).await.unwrap();
        say(format!("+ {name}"));
        world.plane.wait_idle().await;
        world.plane.update_function_code(&me(), new_code(&name, &format!("{run}-{i}-v2"))).await.unwrap();
        if i % 3 == 0 {
            say(format!("? {name}"));
            world.delete(&name, None).await.unwrap();
            say(format!("- {name}"));
        }
    }
}

/// No function that was acknowledged is lost, none that was deleted comes back, and all can run: their packages are there.
#[tokio::test]
async fn survives_kill_9_at_any_point() {
    use std::collections::BTreeMap;
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let mut expected: BTreeMap<String, char> = BTreeMap::new();
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durability::child_that_works_until_killed", "--nocapture"])
            .env("CONTROL_PLANE_TEST_CHILD", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: String| {
            if let Some((sign @ ("+" | "?" | "-"), name)) = line.split_once(' ') {
                expected.insert(name.to_owned(), sign.chars().next().unwrap());
            }
        };
        for _ in 0..17 * round {
            note(lines.next().expect("the child works").unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines.map_while(Result::ok).for_each(&mut note);
        assert!(expected.len() >= 4 * round, "the child worked: {}", expected.len());

        let world = World::in_dir(dir.path(), Default::default()).await;
        world.plane.wait_idle().await;
        for (name, sign) in &expected {
            let found = world.get(name, None).await;
            match sign {
                '+' => assert!(found.is_ok(), "{name} was acknowledged"),
                '-' => assert!(found.is_err(), "{name} was deleted"),
                _ => {}
            }
            let Ok(latest) = found else { continue };
            let first = world.get(name, Some("1")).await.unwrap();
            assert!(world.has_package(&latest) && world.has_package(&first), "{name}");
            world.plane.resolve(&me(), name, None, 0.0).unwrap();
            world.plane.resolve(&me(), name, Some("1"), 0.0).unwrap();
        }
        world.store.close().await;
    }
}
