//! A frontend's side of the fleet: the managers of each view, for the router.

use std::sync::Arc;

use domain::WorkerManager;
use frontend::router::Managers;
use membership::{Member, MemberState, Role, View};
use rpc::{Channels, RemoteManager};
use tokio::sync::watch;

/// Follows the views as long as there are any. `own` is the manager in this process, with its id, which needs no network.
pub async fn follow(
    mut views: watch::Receiver<View>,
    own: Option<(Arc<str>, Arc<dyn WorkerManager>)>,
    channels: Channels,
    managers: watch::Sender<Managers>,
) {
    loop {
        let view = views.borrow_and_update().clone();
        let manager = |member: &Member| -> (Arc<str>, Arc<dyn WorkerManager>) {
            let id: Arc<str> = member.id.as_str().into();
            match &own {
                Some((own, manager)) if *own == id => (id, Arc::clone(manager)),
                // Connections are shared by address, so this is cheap.
                _ => (Arc::clone(&id), Arc::new(RemoteManager::new(id, &member.address, &channels))),
            }
        };
        let all = view.active(Role::WorkerManager).map(manager).collect();
        let finishing = view.live(Role::WorkerManager).filter(|member| member.state == MemberState::Draining);
        let finishing = finishing.map(|member| member.id.as_str().into()).collect();
        managers.send_replace(Managers { epoch: view.epoch(), managers: all, finishing });
        if views.changed().await.is_err() {
            return;
        }
    }
}
