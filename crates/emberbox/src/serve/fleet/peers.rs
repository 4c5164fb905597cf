//! The other processes with a copy of the metadata: a change is answered when they have it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use control_plane::ControlPlane;
use futures::future::join_all;
use membership::{MemberId, MemberState, Membership, Role, View};
use rpc::{Channels, MetadataCopy, RemoteFrontend};
use tokio::sync::watch;

/// How long a change waits for one that does not answer: it is dead, and soon out of the view, or cannot reach the database.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks them all.
pub struct Peers {
    me: MemberId,
    membership: Membership,
    channels: Channels,
}

impl Peers {
    /// Those in the views of this member.
    pub fn new(membership: Membership, channels: Channels) -> Self {
        Self { me: membership.id().clone(), membership, channels }
    }
}

#[async_trait]
impl control_plane::Peers for Peers {
    async fn caught_up(&self, revision: u64) {
        let view = self.membership.view();
        // One that joins catches up by itself before it answers anything.
        let others = view.members().iter().filter(|m| m.id != self.me && m.state != MemberState::Joining);
        let with_copy = others.filter_map(|member| {
            let role = match (member.is(Role::Frontend), member.is(Role::Pollers)) {
                (true, _) => rpc::Role::Frontend,
                (false, true) => rpc::Role::Pollers,
                (false, false) => return None,
            };
            let peer = rpc::Member::new(role, member.id.as_str());
            Some((member.id.clone(), RemoteFrontend::new(self.channels.channel(&member.address, &peer))))
        });
        let asked = with_copy.map(|(id, frontend)| async move {
            if let Err(error) = frontend.caught_up(revision, PATIENCE).await {
                tracing::warn!(member = %id, revision, error, "a change was answered before this process has it");
            }
        });
        join_all(asked).await;
    }
}

/// The ids of each view, for the server of this process, as long as there are views.
pub async fn follow(mut views: watch::Receiver<View>, present: watch::Sender<Arc<HashSet<String>>>) {
    loop {
        let ids = views.borrow_and_update().members().iter().map(|member| member.id.to_string()).collect();
        present.send_replace(Arc::new(ids));
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// This process' own copy, for the others; it comes after the socket that they ask on.
pub struct OwnCopy(pub watch::Receiver<Option<ControlPlane>>);

#[async_trait]
impl MetadataCopy for OwnCopy {
    async fn applied(&self, revision: u64) -> Result<(), String> {
        let mut copy = self.0.clone();
        let plane = copy.wait_for(Option::is_some).await.ok().and_then(|plane| plane.clone());
        match plane {
            Some(plane) => plane.applied(revision).await.map_err(|behind| behind.to_string()),
            // It stops.
            None => Ok(()),
        }
    }
}

/// What both take.
pub struct Barrier {
    /// Who are asked.
    pub peers: Arc<Peers>,
    /// What the others ask about.
    pub own: watch::Sender<Option<ControlPlane>>,
}
