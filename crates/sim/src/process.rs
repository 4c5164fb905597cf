//! What a process of the fleet runs: the real roles, wired as `emberbox serve` with `[cluster]` wires them
//! (`emberbox/src/serve/fleet.rs`), whose parts are compiled here from the same files.

#[path = "../../emberbox/src/serve/fleet/homes.rs"]
mod homes;
#[path = "../../emberbox/src/serve/fleet/managers.rs"]
mod managers;
#[path = "../../emberbox/src/serve/fleet/workers.rs"]
mod workers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use domain::Clock;
use frontend::router::Router;
use frontend::sync_path::SyncPath;
use membership::{Member, MemberId, MemberState, Membership, MemoryRegistry, Role};
use parking_lot::Mutex;
use rpc::{Channels, ManagerServer, QuotaServer, Server, Services, WorkerServer};
use tokio_util::sync::CancellationToken;
use worker_manager::Manager;

use crate::entropy::Rng;
use crate::host::Context;
use crate::net::HostId;
use crate::registry::RemoteRegistry;
use crate::sandboxes::{SimWorker, Size};
use crate::tasks::Tasks;
use crate::truth::Truth;

/// What all processes share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub database: HostId,
    pub registry: Arc<MemoryRegistry>,
    pub truth: Truth,
    pub manager: worker_manager::Config,
    pub size: Size,
}

/// What the simulation may use of a process that has started.
#[derive(Clone)]
pub(crate) struct Parts {
    pub membership: Membership,
    pub manager: Option<Manager>,
    pub sync_path: Option<SyncPath>,
}

/// Where a process leaves them.
pub(crate) type Slot = Arc<Mutex<Option<Parts>>>;

/// How long a process that ends waits for what runs.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A process, until it is killed.
pub(crate) async fn run(context: Context, roles: Vec<Role>, shared: Shared, rng: Rng, slot: Slot) {
    let clock: Arc<dyn Clock> = Arc::new(context.clock.clone());
    let id = Arc::clone(&context.name);
    let address = SocketAddr::from(([10, 0, 0, u8::try_from(context.id).unwrap_or(u8::MAX)], 1));
    let server = Server::over(Box::new(context.net.listen(context.id)), address);
    let channels = Channels::over(Arc::new(context.net.dialer(context.id)), Arc::clone(&clock));
    let membership = join(&context, &roles, &shared).await;
    let is = |role| roles.contains(&role);

    let mut services = Services::default();
    if is(Role::Worker) {
        let worker = SimWorker::new(&id, shared.size, rng, shared.truth.clone(), context.log.clone());
        let server = WorkerServer::new(Arc::new(worker.clone()), Arc::clone(&clock));
        worker.connect(Arc::new(server.clone()));
        services.worker = Some(server);
    }
    let manager = is(Role::WorkerManager).then(|| {
        let manager = Manager::new(Arc::clone(&clock), shared.manager, vec![]);
        services.quota = Some(QuotaServer::new(Arc::new(manager.clone())));
        services.manager = Some(ManagerServer::new(Arc::new(manager.clone()), Arc::clone(&clock)));
        let workers = workers::Workers::new(Arc::clone(&id), manager.clone(), channels.clone(), Tasks::new());
        tokio::spawn(workers.run(membership.changes()));
        tokio::spawn(manager.clone().run());
        let homes = homes::OtherManagers {
            me: Arc::clone(&id),
            own: manager.clone(),
            membership: membership.clone(),
            channels: channels.clone(),
        };
        tokio::spawn(manager.clone().share_accounts(Arc::new(homes)));
        manager
    });
    let stop = CancellationToken::new();
    tokio::spawn(server.serve(services, stop.clone(), STOP_LIMIT));
    let sync_path = is(Role::Frontend).then(|| {
        let own = manager.clone().map(|manager| (Arc::clone(&id), Arc::new(manager) as _));
        let (sender, receiver) = tokio::sync::watch::channel(Default::default());
        tokio::spawn(managers::follow(membership.changes(), own, channels.clone(), sender));
        let metrics = frontend::Metrics::register(&mut prometheus_client::registry::Registry::default());
        SyncPath::new(Arc::new(Router::new(receiver)), Arc::clone(&clock), metrics)
    });
    membership.activate();
    let mut views = membership.changes();
    let me = MemberId::new(Arc::clone(&id));
    let active = |view: &membership::View| view.member(&me).is_some_and(|m| m.state == MemberState::Active);
    let _ = views.wait_for(active).await;
    context.log.line(format_args!("{id} takes work"));
    *slot.lock() = Some(Parts { membership: membership.clone(), manager, sync_path });
    loop {
        let view = views.borrow_and_update().clone();
        let members: Vec<_> = view.members().iter().map(|member| format!("{}={}", member.id, member.state)).collect();
        context.log.line(format_args!("{id} sees epoch {}: {}", view.epoch(), members.join(" ")));
        if views.changed().await.is_err() {
            return;
        }
    }
}

async fn join(context: &Context, roles: &[Role], shared: &Shared) -> Membership {
    loop {
        let registry = RemoteRegistry::new(context, shared.database, &shared.registry);
        let member = Member {
            id: MemberId::new(Arc::clone(&context.name)),
            roles: roles.iter().copied().collect(),
            address: format!("{}:1", context.name),
            version: "simulated".to_owned(),
            state: MemberState::Joining,
            epoch: 0,
            labels: Default::default(),
        };
        match Membership::join(registry, member, membership::Config::default()).await {
            Ok(membership) => return membership,
            // The process would end, and be started again.
            Err(error) => context.log.line(format_args!("{} does not join: {error}", context.name)),
        }
    }
}
