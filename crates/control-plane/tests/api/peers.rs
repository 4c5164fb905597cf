//! Several processes with the same metadata.

use std::sync::Arc;

use async_trait::async_trait;
use control_plane::{ControlPlane, Peers};

use crate::support::{World, me};

struct Other(ControlPlane);

#[async_trait]
impl Peers for Other {
    async fn caught_up(&self, revision: u64) {
        self.0.applied(revision).await;
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
