//! Several processes with the same metadata.

use std::sync::Arc;

use async_trait::async_trait;
use control_plane::{Behind, ControlPlane, Peers};
use lambda_api::types::{CreateFunctionRequest, Environment};
use store::Store as _;

use crate::support::{World, function, me};

struct Other(ControlPlane);

#[async_trait]
impl Peers for Other {
    async fn caught_up(&self, revision: u64) {
        self.0.applied(revision).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_changed_is_seen_in_every_process() {
    let one = World::new().await;
    let other = one.beside().await;
    one.plane.with_peers(Arc::new(Other(other.plane.clone())));
    other.plane.with_peers(Arc::new(Other(one.plane.clone())));
    one.create("f").await;
    for round in 0..100 {
        let (here, there) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let description = format!("round {round}");
        here.describe("f", &description).await;
        let seen = there.get("f", None).await.unwrap();
        assert_eq!(seen.description.as_deref(), Some(description.as_str()));
        let runs = |world: &World| world.plane.resolve(&me(), "f", None, 0.0).unwrap().version;
        assert_eq!(runs(there).key, runs(here).key);
    }
    other.delete("f", None).await.unwrap();
    assert!(one.get("f", None).await.is_err());
}

#[tokio::test]
async fn a_process_that_starts_removes_nothing_that_another_one_stores() {
    let one = World::new().await;
    let created = one.create("f").await;
    one.delete("f", None).await.unwrap();
    // The function may be about to be created anew from the same package.
    let other = one.beside().await;
    other.plane.remove_unused_packages().await;
    assert!(other.has_package(&created));
    one.create("f").await;
    assert!(one.has_package(&created));
}

/// Of a process whose file of keys is another one.
#[tokio::test]
async fn who_cannot_read_a_function_says_so_until_it_can() {
    let one = World::new().await;
    one.create("plain").await;
    let other = one.beside_with("other.key").await;
    assert_eq!(other.plane.trouble(), None, "nothing is encrypted yet");

    let variables = [("PASSWORD".to_owned(), "hunter2".to_owned())];
    let environment = Some(Environment { variables: Some(variables.into()) });
    one.plane.create_function(&me(), CreateFunctionRequest { environment, ..function("f") }).await.unwrap();
    one.plane.wait_idle().await;
    let revision = one.store.scan("function", "").await.unwrap().revision;
    let Err(Behind::Unreadable(reason)) = other.plane.applied(revision).await else {
        panic!("it has not followed that commit")
    };
    for words in ["function 111111111111/us-east-1/f", "other.key", "is encrypted with the key"] {
        assert!(reason.contains(words), "{reason} should say {words}");
    }
    assert_eq!(other.plane.trouble(), Some(format!("1 record of the metadata cannot be read: {reason}")));
    assert!(!reason.contains("hunter2"), "{reason}");

    // It follows what it can read and changes it, but not this one.
    one.describe("plain", "new").await;
    let later = one.store.scan("function", "").await.unwrap().revision;
    other.plane.applied(later).await.unwrap();
    assert_eq!(other.get("plain", None).await.unwrap().description.as_deref(), Some("new"));
    other.describe("plain", "newer").await;
    other.create("mine").await;
    let before = one.store.scan("function", "").await.unwrap().records;
    let error = other.plane.create_function(&me(), function("f")).await.unwrap_err();
    assert!(error.message.contains("does not write over it"), "{}", error.message);
    assert_eq!(one.store.scan("function", "").await.unwrap().records, before);

    // The record goes, and with it the trouble.
    let revision = {
        one.delete("f", None).await.unwrap();
        one.store.scan("function", "").await.unwrap().revision
    };
    other.plane.applied(revision).await.unwrap();
    assert_eq!(other.plane.trouble(), None);
    other.create("f").await;
}
