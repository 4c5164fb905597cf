//! The customers' environment variables in the store: encrypted, bound to their function, under keys that can be changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lambda_api::types::*;
use serde_json::{Value, json};
use store::{Op, SqliteStore, Store};

use crate::support::*;

const SECRET: &str = "hunter2-hunter2-hunter2";
const OTHER_SECRET: &str = "swordfish-swordfish";
const FUNCTION: &str = "111111111111/us-east-1/f";
const VERSION: &str = "111111111111/us-east-1/f/00000000000000000001";

fn environment(value: &str) -> Option<Environment> {
    Some(Environment { variables: Some(BTreeMap::from([("PASSWORD".to_owned(), value.to_owned())])) })
}

/// A world with a function of two versions: 1 with `SECRET`, `$LATEST` with `OTHER_SECRET`.
async fn world() -> World {
    let world = World::new().await;
    let request = CreateFunctionRequest { environment: environment(SECRET), publish: Some(true), ..function("f") };
    world.plane.create_function(&me(), request).await.unwrap();
    world.plane.wait_idle().await;
    change(&world, OTHER_SECRET).await;
    world
}

async fn change(world: &World, value: &str) {
    let request = UpdateFunctionConfigurationRequest {
        function_name: "f".into(),
        environment: environment(value),
        ..Default::default()
    };
    world.plane.update_function_configuration(&me(), request).await.unwrap();
    world.plane.wait_idle().await;
}

/// What a function and its workers get.
fn password(world: &World, qualifier: &str) -> String {
    let resolved = world.plane.resolve(&me(), "f", Some(qualifier), 0.0).unwrap();
    resolved.version.environment["PASSWORD"].clone()
}

fn assert_readable(world: &World) {
    assert_eq!((password(world, "1"), password(world, "$LATEST")), (SECRET.to_owned(), OTHER_SECRET.to_owned()));
}

async fn stop(world: World) -> tempfile::TempDir {
    let World { plane, store, owned, .. } = world;
    drop(plane);
    store.close().await;
    owned.unwrap()
}

/// A server starts, and can read everything.
async fn assert_starts(dir: &Path) {
    let world = World::try_in_dir(dir).await.unwrap();
    assert_readable(&world);
    world.store.close().await;
}

async fn open_store(dir: &Path) -> SqliteStore {
    SqliteStore::open(dir.join("metadata.db")).await.unwrap()
}

async fn record(store: &SqliteStore, kind: &str, key: &str) -> Value {
    serde_json::from_slice(&store.get(kind, key).await.unwrap().unwrap().value).unwrap()
}

async fn put(store: &SqliteStore, kind: &'static str, key: &str, record: &Value) {
    store.commit(vec![Op::put(kind, key, serde_json::to_vec(record).unwrap())]).await.unwrap();
}

/// The sealed environments of the function: of `$LATEST`, and of version 1.
async fn sealed(store: &SqliteStore) -> [String; 2] {
    let latest = record(store, "function", FUNCTION).await["latest"]["settings"]["environment"].clone();
    let version = record(store, "version", VERSION).await["settings"]["environment"].clone();
    [latest, version].map(|sealed| sealed.as_str().unwrap().to_owned())
}

fn key_of(sealed: &str) -> String {
    secrets::key_of(sealed).unwrap().to_owned()
}

/// Puts a new key before the others, and returns its name.
fn rotate(dir: &Path) -> String {
    let made = secrets::create(&dir.join("new.key")).unwrap();
    let (new, old) =
        (fs::read_to_string(dir.join("new.key")).unwrap(), fs::read_to_string(dir.join(KEY_FILE)).unwrap());
    fs::write(dir.join(KEY_FILE), format!("{new}{old}")).unwrap();
    fs::remove_file(dir.join("new.key")).unwrap();
    made.current().to_owned()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn no_file_of_the_store_holds_a_value() {
    let world = world().await;
    let shown = json(&world.get("f", None).await.unwrap());
    assert_eq!(shown["Environment"]["Variables"]["PASSWORD"], OTHER_SECRET, "the API shows it to its owner");
    let look = |dir: &Path| {
        let mut seen = 0;
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if !entry.file_type().unwrap().is_file() {
                continue;
            }
            let content = fs::read(entry.path()).unwrap();
            for text in [SECRET, OTHER_SECRET, "PASSWORD"] {
                assert!(!contains(&content, text), "{} holds {text}", entry.path().display());
            }
            seen += usize::from(contains(&content, FUNCTION));
        }
        assert!(seen > 0, "the records are in one of these files");
    };
    look(&world.dir);
    let world = world.restart().await;
    assert_readable(&world);
    let dir = stop(world).await;
    look(dir.path());
}

#[tokio::test]
async fn what_is_moved_or_changed_is_refused_and_kept() {
    let dir = stop(world().await).await;
    let store = open_store(dir.path()).await;
    let (latest, version) = (record(&store, "function", FUNCTION).await, record(&store, "version", VERSION).await);
    let moved = {
        let mut moved = latest.clone();
        moved["latest"]["settings"]["environment"] = version["settings"]["environment"].clone();
        moved
    };
    let changed = {
        let mut changed = latest.clone();
        let sealed = changed["latest"]["settings"]["environment"].as_str().unwrap();
        // One letter of the ciphertext.
        let (head, text) = sealed.rsplit_once(':').unwrap();
        let other = if text.starts_with('A') { "B" } else { "A" };
        changed["latest"]["settings"]["environment"] = format!("{head}:{other}{}", &text[1..]).into();
        changed
    };
    store.close().await;
    for bad in [moved, changed] {
        let store = open_store(dir.path()).await;
        put(&store, "function", FUNCTION, &bad).await;
        store.close().await;
        let error = World::try_in_dir(dir.path()).await.err().unwrap().to_string();
        assert!(
            error.starts_with(&format!("read function {FUNCTION} of the metadata: its environment variables: ")),
            "{error}"
        );
        let store = open_store(dir.path()).await;
        assert_eq!(record(&store, "function", FUNCTION).await, bad, "it is left as it is");
        put(&store, "function", FUNCTION, &latest).await;
        store.close().await;
        assert_starts(dir.path()).await;
    }
}

#[tokio::test]
async fn keys_are_rotated_with_the_next_change() {
    let dir = stop(world().await).await;
    let store = open_store(dir.path()).await;
    let first = sealed(&store).await;
    store.close().await;
    let new = rotate(dir.path());

    let world = World::try_in_dir(dir.path()).await.unwrap();
    assert_readable(&world);
    assert_eq!(sealed(&world.store).await, first, "reading changes nothing");
    let request = PutFunctionConcurrencyRequest { function_name: "f".into(), reserved_concurrent_executions: 7 };
    world.plane.put_function_concurrency(&me(), request).await.unwrap();
    change(&world, OTHER_SECRET).await;
    let after = sealed(&world.store).await;
    assert_eq!(after.clone().map(|sealed| key_of(&sealed)), [new.clone(), new], "its published version, too");
    assert_readable(&world);
    world.store.close().await;
    drop(world);

    // The old key may go now.
    let keys = fs::read_to_string(dir.path().join(KEY_FILE)).unwrap();
    let first_key = keys.lines().find(|line| !line.starts_with('#')).unwrap();
    fs::write(dir.path().join(KEY_FILE), first_key).unwrap();
    assert_starts(dir.path()).await;
}

#[tokio::test]
async fn records_of_before_there_were_keys_are_encrypted_with_the_next_change() {
    let dir = stop(world().await).await;
    let store = open_store(dir.path()).await;
    let mut latest = record(&store, "function", FUNCTION).await;
    let mut version = record(&store, "version", VERSION).await;
    latest["latest"]["settings"]["environment"] = json!({"PASSWORD": OTHER_SECRET});
    version["settings"]["environment"] = json!({"PASSWORD": SECRET});
    put(&store, "function", FUNCTION, &latest).await;
    put(&store, "version", VERSION, &version).await;
    assert_eq!(control_plane::encrypted_with(&store).await.unwrap(), None);
    store.close().await;
    fs::remove_file(dir.path().join(KEY_FILE)).unwrap();

    let world = World::try_in_dir(dir.path()).await.unwrap();
    assert_readable(&world);
    assert_eq!(record(&world.store, "version", VERSION).await, version, "reading changes nothing");
    change(&world, OTHER_SECRET).await;
    let [latest, version] = sealed(&world.store).await;
    assert_eq!(key_of(&latest), key_of(&version));
    assert_eq!(control_plane::encrypted_with(&*world.store).await.unwrap(), Some(key_of(&latest)));
    assert_readable(&world);
}

#[tokio::test]
async fn a_missing_key_is_named_and_loses_nothing() {
    let dir = stop(world().await).await;
    let key_file = dir.path().join(KEY_FILE);
    let aside = dir.path().join("aside");
    fs::rename(&key_file, &aside).unwrap();
    let store = open_store(dir.path()).await;
    let before = sealed(&store).await;
    assert_eq!(control_plane::encrypted_with(&store).await.unwrap(), Some(key_of(&before[0])));
    store.close().await;

    // As somebody might try: a new key.
    let error = World::try_in_dir(dir.path()).await.err().unwrap().to_string();
    for words in [FUNCTION, &key_of(&before[0]), &key_file.display().to_string(), "Put that key back"] {
        assert!(error.contains(words), "{error} should say {words}");
    }
    fs::rename(&aside, &key_file).unwrap();
    let world = World::try_in_dir(dir.path()).await.unwrap();
    assert_eq!(sealed(&world.store).await, before);
    assert_readable(&world);
}
