//! The fleet's registry on the database's host: `membership`'s own in memory, with a network in between.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use membership::{Hold, Lease, Member, MemberState, MemoryRegistry, Registry, RegistryError, View};
use tokio::sync::watch;
use uuid::Uuid;

use crate::host::Context;
use crate::net::HostId;

/// One process' way to the registry.
pub struct RemoteRegistry {
    context: Context,
    database: HostId,
    all: Arc<MemoryRegistry>,
    heard: watch::Sender<u64>,
}

impl std::fmt::Debug for RemoteRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteRegistry").field("of", &self.context.name).finish_non_exhaustive()
    }
}

/// Between two looks of who listens at the database.
const LOOK: Duration = Duration::from_millis(50);

impl RemoteRegistry {
    /// Of a process that runs.
    pub fn new(context: &Context, database: HostId, all: &Arc<MemoryRegistry>) -> Arc<Self> {
        let heard = watch::Sender::new(0);
        let registry = Arc::new(Self { context: context.clone(), database, all: Arc::clone(all), heard });
        let (listening, mut news) = (Arc::downgrade(&registry), all.heard());
        // The database tells; what it tells while the link is cut is lost.
        tokio::spawn(async move {
            while let Some(registry) = listening.upgrade() {
                if news.has_changed().unwrap_or(false) {
                    let epoch = *news.borrow_and_update();
                    let heard = registry.heard.clone();
                    let (net, id) = (&registry.context.net, registry.context.id);
                    net.tell(registry.database, id, move || _ = heard.send_replace(epoch));
                }
                drop(registry);
                tokio::time::sleep(LOOK).await;
            }
        });
        registry
    }
}

#[async_trait]
impl Registry for RemoteRegistry {
    async fn join(&self, member: &Member, instance: Uuid, ttl: Duration) -> Result<Lease, RegistryError> {
        let (all, member) = (Arc::clone(&self.all), member.clone());
        let call = async move { all.join(&member, instance, ttl).await };
        self.context.net.call(self.context.id, self.database, call).await
    }

    async fn beat(&self, lease: &Lease) -> Result<Hold, RegistryError> {
        let (all, lease) = (Arc::clone(&self.all), lease.clone());
        self.context.net.call(self.context.id, self.database, async move { all.beat(&lease).await }).await
    }

    async fn set_state(&self, lease: &Lease, state: MemberState) -> Result<Hold, RegistryError> {
        let (all, lease) = (Arc::clone(&self.all), lease.clone());
        self.context.net.call(self.context.id, self.database, async move { all.set_state(&lease, state).await }).await
    }

    async fn leave(&self, lease: &Lease) -> Result<(), RegistryError> {
        let (all, lease) = (Arc::clone(&self.all), lease.clone());
        self.context.net.call(self.context.id, self.database, async move { all.leave(&lease).await }).await
    }

    async fn view(&self) -> Result<View, RegistryError> {
        let all = Arc::clone(&self.all);
        self.context.net.call(self.context.id, self.database, async move { all.view().await }).await
    }

    fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    fn place(&self) -> String {
        "simulated".to_owned()
    }

    async fn close(&self) {}
}
