//! One process of a fleet: some of the roles, over what all members share.
//!
//! ```text
//!  start                                               stop
//!  1 data directory, locked                            9 unlocked
//!  2 address for the other roles                       6 calls of other roles finish
//!  3 metadata, members (as one that joins)             1 draining: nothing new comes; 8 the fleet is left, metadata closed
//!  4 worker: engine, sandboxes                         5 worker: sandboxes end; 7 engine
//!  5 worker manager: follows the view, claims workers  4 worker manager: its functions are another's, as they are
//!  6 frontend and pollers: copy of the metadata,       2 frontend: running requests finish
//!    router, event queue                               3 pollers: running events and batches finish
//!  7 active: from here on the others send work
//! ```
//!
//! What the parts are and how they work does not differ from one process that does everything; who calls whom over a network is
//! in `rpc`, and who is there in `membership`.

mod logs;
mod managers;
mod peers;
mod roles;
pub mod status;
mod workers;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use domain::{Clock, SystemClock};
use membership::{Member, MemberId, MemberState, Membership, Role};
use prometheus_client::registry::Registry;
use rpc::{Channels, Credentials, FrontendServer, LogsServer, ManagerServer, Server, Services, StatusServer, Tls};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::parts::Content;
use super::refuse_open_house;
use crate::adapters;
use crate::config::{Cluster, Config};
use crate::data_dir::{self, DataDir};
use roles::{Api, Host};

/// A running process of a fleet.
pub struct Fleet {
    id: Arc<str>,
    roles: Vec<Role>,
    address: SocketAddr,
    api: Option<Api>,
    manager: Option<worker_manager::Manager>,
    host: Option<Host>,
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
        let id: Arc<str> = match &cluster.id {
            Some(id) => id.as_str().into(),
            None => super::settings::host_name(),
        };

        let credentials = cluster.tls.as_deref().map(read_tls).transpose()?;
        let server = Server::bind(cluster.bind, credentials.clone()).await?;
        let address = server.address();
        let channels = Channels::new(credentials, Arc::clone(&clock));
        let membership = join(&cluster, &id, address).await?;

        let content = Content::open(&config, dir)?;
        let mut services = Services::default();
        let mut followers = Vec::new();
        let host = if cluster.is(Role::Worker) {
            let host = Host::start(&config, dir, &id, &content, &clock, &mut registry).await?;
            services.worker = Some(host.server.clone());
            let own = logs::Own(Arc::new(adapters::Logs(host.logs.clone())));
            services.logs = Some(LogsServer::new(Arc::new(own)));
            Some(host)
        } else {
            None
        };
        let manager = cluster.is(Role::WorkerManager).then(|| {
            let manager = worker_manager::Manager::new(Arc::clone(&clock), super::settings::manager(&config), vec![]);
            services.manager = Some(ManagerServer::new(Arc::new(manager.clone()), Arc::clone(&clock)));
            let workers = workers::Workers::new(Arc::clone(&id), manager.clone(), channels.clone());
            followers.push(tokio::spawn(workers.run(membership.changes())));
            followers.push(tokio::spawn(manager.clone().run()));
            manager
        });
        let has_copy = cluster.is(Role::Frontend) || cluster.is(Role::Pollers);
        let (own, others) = tokio::sync::watch::channel(None);
        if has_copy {
            services.frontend = Some(FrontendServer::new(Arc::new(peers::OwnCopy(others))));
        }
        let queue = Arc::new(OnceLock::new());
        services.status = Some(StatusServer::new(Arc::new(status::Own::new(status::Parts {
            membership: membership.clone(),
            worker: host.as_ref().map(Host::worker),
            manager: manager.clone(),
            queue: Arc::clone(&queue),
        }))));
        let stop_rpc = CancellationToken::new();
        let rpc = tokio::spawn(server.serve(services, stop_rpc.clone(), config.stop_limit));
        let api = if has_copy {
            let peers = Arc::new(peers::Peers::new(membership.clone(), channels.clone()));
            let barrier = peers::Barrier { peers, own };
            let own = manager.clone().map(|manager| (Arc::clone(&id), Arc::new(manager) as _));
            let (sender, receiver) = tokio::sync::watch::channel(Default::default());
            followers.push(tokio::spawn(managers::follow(membership.changes(), own, channels.clone(), sender)));
            let router = frontend::router::Router::new(receiver);
            let logs = Arc::new(logs::Workers::new(membership.clone(), channels.clone()));
            let shared =
                roles::Shared { config: &config, cluster: &cluster, dir, content, clock, router, logs, barrier };
            let api = Api::start(shared, registry).await?;
            // Set once, here.
            let _ = queue.set(api.queue());
            Some(api)
        } else {
            None
        };
        membership.activate();
        let mut views = membership.changes();
        let me = MemberId::new(Arc::clone(&id));
        let active = |view: &membership::View| view.member(&me).is_some_and(|m| m.state == MemberState::Active);
        views.wait_for(active).await.context("the fleet does not take this process in")?;
        let (stop_limit, roles) = (config.stop_limit, cluster.roles);
        Ok(Self {
            id,
            roles,
            address,
            api,
            manager,
            host,
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

    /// Of the public API, e.g. `http://127.0.0.1:4566`; `None` of a process without frontend.
    pub fn endpoint(&self) -> Option<&str> {
        self.api.as_ref().and_then(Api::endpoint)
    }

    /// Stops in the order above. Running invocations may finish, until `hurry` is ready or [`Config::stop_limit`] is over.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        let until = tokio::time::Instant::now() + self.stop_limit;
        let left = || until.duration_since(tokio::time::Instant::now());
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
        if let Some(api) = self.api {
            api.close().await;
        }
        if let Some(host) = self.host {
            host.engine.stop().await;
        }
        // What it managed is another manager's, with the sandboxes as they are.
        drop(self.manager);
    }
}

/// What `emberbox fleet join` wrote into the directory.
pub fn read_tls(dir: &std::path::Path) -> Result<Credentials> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!("read {}; `emberbox fleet join` writes it, and cluster.tls names its directory", path.display())
        })
    };
    Ok(Credentials::new(&Tls { ca: read("ca.pem")?, cert: read("member.pem")?, key: read("member.key")? })?)
}

async fn join(cluster: &Cluster, id: &Arc<str>, address: SocketAddr) -> Result<Membership> {
    let registry =
        membership::postgres::PostgresRegistry::connect(membership::postgres::Options::new(&cluster.database));
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
