//! One process of a fleet: some of the roles, over what all members share.
//!
//! ```text
//!  start                                               stop
//!  1 data directory, locked                            9 unlocked
//!  2 address for the other roles                       6 calls of other roles finish
//!  3 metadata, members (as one that joins)             1 draining: nothing new comes; 8 the fleet is left, metadata closed
//!  4 worker: engine, sandboxes                         5 worker: sandboxes end; 7 engine
//!  5 placement: observes workers; worker manager:      4 worker manager: its functions are another's, as they are
//!    follows the view, claims workers
//!  6 frontend and pollers: copy of the metadata,       2 frontend: running requests finish
//!    router, event queue                               3 pollers: running events and batches finish
//!  7 active: from here on the others send work
//! ```
//!
//! What the parts are and how they work does not differ from one process that does everything; who calls whom over a network is
//! in `rpc`, and who is there in `membership`.

mod admin;
mod homes;
mod logs;
mod managers;
mod peers;
mod placement;
pub mod renewal;
mod roles;
pub mod status;
mod workers;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, bail};
use domain::{Clock, SystemClock};
use membership::postgres::{Options, PostgresRegistry};
use membership::{Member, MemberId, MemberState, Membership, Role, Standing};
use prometheus_client::registry::Registry;
use rpc::{
    Channels, Credentials, FrontendServer, LogsServer, ManagerServer, PlacementServer, QuotaServer, Server, Services,
    StatusServer,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::otlp::Process;
use super::parts::Content;
use super::refuse_open_house;
use super::tasks::Tasks;
use crate::adapters;
use crate::config::{Cluster, Config};
use crate::data_dir::{self, DataDir};
use admin::Admin;
use roles::{Api, Host};

/// The schemas of the members and of the metadata in the database. None of them may be called as the database's user: PostgreSQL
/// looks for tables without a schema, the event queue's, in that one first, as soon as it is there.
pub const MEMBERS: &str = "emberbox_members";
const METADATA: &str = "emberbox_metadata";

/// How long a process that has started may wait for the others to know.
const ACTIVATION: Duration = Duration::from_secs(30);
/// How long the database is waited for at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A running process of a fleet.
pub struct Fleet {
    id: Arc<str>,
    roles: Vec<Role>,
    address: SocketAddr,
    admin: Option<Admin>,
    api: Option<Api>,
    manager: Option<worker_manager::Manager>,
    host: Option<Host>,
    tasks: Tasks,
    followers: Vec<JoinHandle<()>>,
    membership: Membership,
    stop_rpc: CancellationToken,
    rpc: JoinHandle<()>,
    stop_limit: Duration,
    _data: DataDir,
}

impl Fleet {
    /// Starts the roles; they run, and the fleet knows, when this returns.
    pub async fn start(config: Config, cluster: Cluster) -> Result<Self> {
        refuse_open_house(&config)?;
        let dir = match &config.data_dir {
            Some(dir) => dir.clone(),
            None => data_dir::default_dir()?,
        };
        let data = DataDir::open(&dir)?;
        let dir = data.path();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let mut registry = Registry::with_prefix("emberbox");
        let tasks = Tasks::new();
        let admin = match cluster.admin {
            Some(address) => Some(Admin::start(address, &tasks).await?),
            None => None,
        };
        let id: Arc<str> = match (&cluster.tls, &cluster.id) {
            (Some(dir), _) => renewal::identity(dir, &cluster)?,
            (None, Some(id)) => id.as_str().into(),
            (None, None) => super::settings::host_name(),
        };

        let credentials =
            cluster.tls.as_deref().map(renewal::read).transpose()?.map(|tls| Credentials::new(&tls)).transpose()?;
        let server = Server::bind(cluster.bind, credentials.clone()).await?;
        let address = server.address();
        let mut followers = Vec::new();
        if let (Some(dir), Some(credentials)) = (&cluster.tls, &credentials) {
            followers.push(tasks.spawn("renew the certificate", renewal::run(dir.clone(), credentials.clone())));
            followers.push(tasks.spawn("ask who was denied", renewal::deny(dir.clone(), credentials.clone())));
        }
        let channels = Channels::new(credentials, Arc::clone(&clock));
        let membership = join(&cluster, &id, address).await?;
        let (present, members) = tokio::sync::watch::channel(Arc::default());
        followers.push(tasks.spawn("follow who is there", peers::follow(membership.changes(), present)));
        let server = server.with_members(members);

        let content = Content::open(&config, dir)?;
        let mut services = Services::default();
        let host = if cluster.is(Role::Worker) {
            let host = Host::start(&config, dir, &id, &content, &clock, &mut registry, &tasks).await?;
            services.worker = Some(host.server.clone());
            let own = logs::Own(Arc::new(adapters::Logs(host.logs.clone())));
            services.logs = Some(LogsServer::new(Arc::new(own)));
            Some(host)
        } else {
            None
        };
        let deciding = cluster.is(Role::Placement).then(|| {
            let deciding = placement::Deciding::new(Arc::clone(&clock));
            services.placement = Some(PlacementServer::new(Arc::new(deciding.clone())));
            let follow =
                deciding.clone().follow(membership.changes(), channels.clone(), Arc::clone(&id), tasks.clone());
            followers.push(tasks.spawn("follow the workers", follow));
            deciding
        });
        let manager = cluster.is(Role::WorkerManager).then(|| {
            let manager = worker_manager::Manager::new(Arc::clone(&clock), super::settings::manager(&config), vec![]);
            services.quota = Some(QuotaServer::new(Arc::new(manager.clone())));
            services.manager = Some(ManagerServer::new(Arc::new(manager.clone()), Arc::clone(&clock)));
            let who = placement::WhoDecides::new(membership.clone(), channels.clone(), deciding.clone());
            manager.place_by(Arc::new(who));
            let workers = workers::Workers::new(Arc::clone(&id), manager.clone(), channels.clone(), tasks.clone());
            followers.push(tasks.spawn("claim workers", workers.run(membership.changes())));
            followers.push(tasks.spawn("look after sandboxes", manager.clone().run()));
            let homes = homes::OtherManagers {
                me: Arc::clone(&id),
                own: manager.clone(),
                membership: membership.clone(),
                channels: channels.clone(),
            };
            followers.push(tasks.spawn("share accounts", manager.clone().share_accounts(Arc::new(homes))));
            manager
        });
        let has_copy = cluster.is(Role::Frontend) || cluster.is(Role::Pollers);
        let (own, others) = tokio::sync::watch::channel(None);
        admin::register(&mut registry, membership.clone(), manager.clone(), deciding.clone(), others.clone());
        if has_copy {
            services.frontend = Some(FrontendServer::new(Arc::new(peers::OwnCopy(others))));
        }
        let queue = Arc::new(OnceLock::new());
        services.status = Some(StatusServer::new(Arc::new(status::Own::new(status::Parts {
            tasks: tasks.clone(),
            membership: membership.clone(),
            worker: host.as_ref().map(Host::worker),
            manager: manager.clone(),
            deciding: deciding.clone(),
            queue: Arc::clone(&queue),
        }))));
        let stop_rpc = CancellationToken::new();
        let rpc = tasks.spawn("serve the other roles", server.serve(services, stop_rpc.clone(), config.stop_limit));
        let (api, registry) = if has_copy {
            let peers = Arc::new(peers::Peers::new(membership.clone(), channels.clone()));
            let barrier = peers::Barrier { peers, own };
            let own = manager.clone().map(|manager| (Arc::clone(&id), Arc::new(manager) as _));
            let (sender, receiver) = tokio::sync::watch::channel(Default::default());
            let following = managers::follow(membership.changes(), own, channels.clone(), sender);
            followers.push(tasks.spawn("follow the managers", following));
            let router = frontend::router::Router::new(receiver);
            let logs = Arc::new(logs::Workers::new(membership.clone(), channels.clone()));
            let process = process(&id, &cluster, membership.clone());
            let shared = roles::Shared {
                config: &config,
                cluster: &cluster,
                dir,
                content,
                clock,
                router,
                logs,
                barrier,
                process,
                tasks: &tasks,
            };
            let (api, registry) = Api::start(shared, registry).await?;
            // Set once, here.
            let _ = queue.set(api.queue());
            (Some(api), registry)
        } else {
            (None, Arc::new(registry))
        };
        if let Some(admin) = &admin {
            admin.running(membership.clone(), api.as_ref().map(Api::control_plane), registry);
        }
        if let Some(api) = &api {
            // Changes of before did not wait for this process.
            api.catch_up().await?;
        }
        membership.activate();
        let mut views = membership.changes();
        let me = MemberId::new(Arc::clone(&id));
        let active = |view: &membership::View| view.member(&me).is_some_and(|m| m.state == MemberState::Active);
        let mut standing = membership.standing();
        let in_time = tokio::time::timeout(ACTIVATION, async {
            tokio::select! {
                _ = views.wait_for(active) => Ok(()),
                _ = standing.wait_for(|standing| *standing == Standing::Replaced) => Err(()),
            }
        });
        match in_time.await {
            Ok(Ok(())) => {}
            Ok(Err(())) => bail!(
                "another process has joined the fleet as {id} meanwhile; give each a name of its own (cluster.id)"
            ),
            Err(_) => bail!("the fleet has not taken {id} in within {} s: is the database away?", ACTIVATION.as_secs()),
        }
        let (stop_limit, roles) = (config.stop_limit, cluster.roles);
        Ok(Self {
            id,
            roles,
            address,
            admin,
            api,
            manager,
            host,
            tasks,
            followers,
            membership,
            stop_rpc,
            rpc,
            stop_limit,
            _data: data,
        })
    }

    /// Its name in the fleet.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it does.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Where the other roles reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it tells of its health and shows its metrics, if it does.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// Of the public API, e.g. `http://127.0.0.1:4566`; `None` of a process without frontend.
    pub fn endpoint(&self) -> Option<&str> {
        self.api.as_ref().and_then(Api::endpoint)
    }

    /// Returns when another process has joined under this one's name: this one has no business any more.
    pub async fn replaced(&self) {
        // The sender goes with the membership.
        if self.membership.standing().wait_for(|standing| *standing == Standing::Replaced).await.is_err() {
            std::future::pending().await
        }
    }

    /// Returns why the process has to end, when one of its tasks has panicked.
    pub async fn failed(&self) -> String {
        self.tasks.failed().await
    }

    /// Stops in the order above. Running invocations may finish, until `hurry` is ready or [`Config::stop_limit`] is over.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        let until = tokio::time::Instant::now() + self.stop_limit;
        let left = || until.duration_since(tokio::time::Instant::now());
        if let Some(admin) = &self.admin {
            admin.stopping();
        }
        let gentle = async {
            if let Some(host) = &self.host {
                host.drain();
            }
            self.membership.drain();
            if let Some(api) = &mut self.api {
                api.stop(left()).await;
            }
            if let Some(host) = &self.host {
                host.stop(left()).await;
            }
            self.stop_rpc.cancel();
            let _ = tokio::time::timeout(left(), &mut self.rpc).await;
        };
        tokio::select! {
            () = gentle => {}
            () = hurry => tracing::warn!("stopping at once; running invocations are cut off"),
        }
        self.followers.iter().for_each(JoinHandle::abort);
        self.rpc.abort();
        if let Err(error) = self.membership.leave().await {
            tracing::warn!(%error, "the others find this process dead in a moment");
        }
        // Before what may wait for a database that is silent.
        if let Some(host) = self.host {
            host.engine.stop().await;
        }
        if let Some(api) = self.api
            && tokio::time::timeout(LAST_WORDS, api.close()).await.is_err()
        {
            tracing::warn!("the database does not answer; its connections are left to break");
        }
        // What it managed is another manager's, with the sandboxes as they are.
        drop(self.manager);
    }
}

/// This process and its members, as traces name them.
fn process(id: &Arc<str>, cluster: &Cluster, membership: Membership) -> Process {
    let text = |roles: &mut dyn Iterator<Item = Role>| {
        let roles: Vec<&str> = roles.map(Role::as_str).collect();
        Arc::<str>::from(roles.join(","))
    };
    Process {
        id: Arc::clone(id),
        roles: text(&mut cluster.roles.iter().copied()),
        roles_of: Arc::new(move |id| {
            let view = membership.view();
            view.member(&MemberId::new(id)).map(|member| text(&mut member.roles.iter().copied()))
        }),
    }
}

async fn join(cluster: &Cluster, id: &Arc<str>, address: SocketAddr) -> Result<Membership> {
    let options = Options { schema: MEMBERS.into(), ..Options::new(&cluster.database) };
    let registry = PostgresRegistry::connect(options);
    let member = Member {
        id: MemberId::new(Arc::clone(id)),
        roles: cluster.roles.iter().copied().collect(),
        address: cluster.advertise.clone().unwrap_or_else(|| address.to_string()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: MemberState::Joining,
        epoch: 0,
        labels: Default::default(),
    };
    Ok(Membership::join(Arc::new(registry.await?), member, membership::Config::default()).await?)
}
