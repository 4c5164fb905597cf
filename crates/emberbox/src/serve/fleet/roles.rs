//! What a process runs for its roles.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use control_plane::ControlPlane;
use domain::{Clock, SlotPhase, VersionKey, Worker as _, WorkerId, WorkerManager as _};
use frontend::router::Router;
use frontend::sync_path::SyncPath;
use membership::Role;
use prometheus_client::registry::Registry;
use rpc::WorkerServer;
use sandbox::SandboxEngine;
use store::{Op, PostgresStore, Precondition, Store as _};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::event_sources::EventSources;
use super::super::events::Asynchronous;
use super::super::otlp::{Process, Tracing};
use super::super::parts::{self, Content};
use super::super::tasks::Tasks;
use super::super::{prepare, secrets, settings};
use super::peers::Barrier;
use crate::adapters;
use crate::config::{Cluster, Config, EventEngine};

/// How long a worker that drains waits for its managers while nothing runs.
const UNUSED: Duration = Duration::from_secs(3);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// The role `worker`.
pub struct Host {
    /// Its sandboxes, for the managers and frontends.
    pub server: WorkerServer,
    /// What makes them.
    pub engine: Arc<dyn SandboxEngine>,
    /// What functions wrote here.
    pub logs: worker::logs::LogStore,
    worker: worker::Service,
    preparing: JoinHandle<()>,
}

impl Host {
    /// Without sandboxes yet.
    pub async fn start(
        config: &Config,
        dir: &Path,
        id: &Arc<str>,
        content: &Content,
        clock: &Arc<dyn Clock>,
        registry: &mut Registry,
        tasks: &Tasks,
    ) -> Result<Self> {
        let engine = parts::engine(config, dir).await?;
        let named = WorkerId(Arc::clone(id));
        let (worker, logs) = parts::worker(config, dir, named, &engine, content, clock, registry)?;
        let server = WorkerServer::new(Arc::new(worker.clone()), Arc::clone(clock));
        worker.connect(Arc::new(server.clone()));
        let preparing = tasks.spawn("prepare runtimes", prepare(content.runtimes.clone()));
        Ok(Self { server, engine, logs, worker, preparing })
    }

    /// The sandboxes, and who hears of changes.
    pub fn worker(&self) -> (worker::Service, WorkerServer) {
        (self.worker.clone(), self.server.clone())
    }

    /// Takes no new sandboxes from now on.
    pub fn drain(&self) {
        self.worker.drain();
        self.server.report_changed();
    }

    /// Waits for running invocations, for at most `limit`, and ends all sandboxes.
    pub async fn stop(&self, limit: Duration) {
        let until = Instant::now() + limit;
        // The managers take the sandboxes down, so that nothing is sent to one that goes; unless there is no manager.
        let mut in_use = Instant::now();
        while Instant::now() < until && in_use.elapsed() < UNUSED {
            let sandboxes = self.worker.sandboxes();
            if sandboxes.is_empty() {
                break;
            }
            if sandboxes.iter().any(|sandbox| sandbox.phase != SlotPhase::Idle) {
                in_use = Instant::now();
            }
            tokio::time::sleep(LOOK).await;
        }
        self.worker.stop(until.duration_since(Instant::now())).await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.preparing.abort();
    }
}

/// What the roles of the API are made of.
pub struct Shared<'a> {
    /// The operator's.
    pub config: &'a Config,
    /// That of the fleet.
    pub cluster: &'a Cluster,
    /// The data directory.
    pub dir: &'a Path,
    /// Packages, images, runtimes.
    pub content: Content,
    /// Of this process.
    pub clock: Arc<dyn Clock>,
    /// The managers.
    pub router: Router,
    /// What functions wrote.
    pub logs: Arc<dyn frontend::ports::Logs>,
    /// Others with a copy of the metadata.
    pub barrier: Barrier,
    /// Whose traces they are.
    pub process: Process,
    /// Starts what goes on.
    pub tasks: &'a Tasks,
}

/// The roles `frontend` and `pollers`.
pub struct Api {
    store: Arc<PostgresStore>,
    control_plane: ControlPlane,
    asynchronous: Asynchronous,
    event_sources: Option<EventSources>,
    frontend: Option<Frontend>,
    tracing: Tracing,
    retiring: JoinHandle<()>,
}

struct Frontend {
    endpoint: String,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Api {
    /// Reads the metadata, and answers. The registry comes back with the figures of these roles.
    pub async fn start(shared: Shared<'_>, mut registry: Registry) -> Result<(Self, Arc<Registry>)> {
        let Shared { config, cluster, dir, content, clock, router, logs, barrier, process, tasks } = shared;
        // A fleet's events and queues are nobody's own.
        let mut config = config.clone();
        if config.events.engine == EventEngine::Sqlite {
            config.events.engine = EventEngine::Postgres;
            config.events.postgres_url.get_or_insert_with(|| cluster.database.clone());
        }
        config.events.sqs_endpoint.get_or_insert_with(|| "aws".to_owned());
        let store = PostgresStore::open_in(&cluster.database, super::METADATA).await;
        let store = Arc::new(store.context("cluster.database names a database that cannot be used")?);
        let keys = Arc::new(secrets::fleet_keys(&config, &*store).await?);
        let Content { packages, images, runtimes } = content;
        let control_plane = ControlPlane::open(
            control_plane::Config { shared: true, ..settings::control_plane(&config) },
            control_plane::Metadata { store: store.clone(), keys },
            packages.clone(),
            Arc::new(adapters::RuntimesOfWorkers(adapters::Catalog(runtimes))),
            Arc::new(images),
            Arc::new(adapters::NoSnapshots),
            Arc::clone(&clock),
        )
        .await?;
        control_plane.with_peers(barrier.peers);
        barrier.own.send_replace(Some(control_plane.clone()));
        let retiring = tasks.spawn("retire versions", retire(control_plane.retired(), router.clone()));
        let frontend_metrics = frontend::Metrics::register(&mut registry);
        let tracing = Tracing::start(&config.otlp, process, &mut registry)?;
        let traces = tracing.traces();
        let sync_path = SyncPath::with_traces(Arc::new(router), Arc::clone(&clock), frontend_metrics.clone(), traces);
        let direct = adapters::Direct {
            functions: adapters::Functions(control_plane.clone()),
            sync_path: sync_path.clone(),
            clock: Arc::clone(&clock),
        };
        let none = settings::OwnQueues { endpoint: String::new(), client: SharedHttpClient::new(adapters::NoQueues) };
        let polling = cluster.is(Role::Pollers).then_some(tasks);
        let delivery = settings::delivery(&config, &none);
        let asynchronous =
            Asynchronous::start(&config, dir, &control_plane, direct.clone(), delivery, polling, &mut registry).await?;
        let queues = settings::queues(&config, &none);
        let event_sources = match polling {
            Some(tasks) => Some(EventSources::start(queues, &control_plane, direct, &mut registry, tasks)),
            None => {
                EventSources::check(queues, &control_plane);
                None
            }
        };
        let registry = Arc::new(registry);
        let frontend = if cluster.is(Role::Frontend) {
            let key = shared_key(store.as_ref()).await?;
            let listener = frontend::Listener::bind(settings::frontend_with(&config, key)).await?;
            let endpoint = listener.endpoint();
            let deps = frontend::Deps {
                functions: Arc::new(adapters::Functions(control_plane.clone())),
                sync_path,
                events: Arc::new(asynchronous.port()),
                code: Arc::new(adapters::Code(packages)),
                logs,
                sqs: Arc::new(adapters::NoQueues),
                clock,
                metrics: frontend_metrics,
                registry: Arc::clone(&registry),
            };
            let server = frontend::Server::new(listener, deps);
            let (stop, stopped) = oneshot::channel();
            let running = tasks.spawn(
                "serve the API",
                server.run(async move {
                    // An error means that the sender is gone, and so is everything else.
                    let _ = stopped.await;
                }),
            );
            Some(Frontend { endpoint, stop: Some(stop), running })
        } else {
            None
        };
        Ok((Self { store, control_plane, asynchronous, event_sources, frontend, tracing, retiring }, registry))
    }

    /// Returns when the copy of the metadata has all that the store has now.
    pub async fn catch_up(&self) -> Result<()> {
        let now = self.store.scan(KIND, "").await?.revision;
        Ok(self.control_plane.applied(now).await?)
    }

    /// What follows the metadata.
    pub fn control_plane(&self) -> ControlPlane {
        self.control_plane.clone()
    }

    /// See [`super::Fleet::endpoint`].
    pub fn endpoint(&self) -> Option<&str> {
        self.frontend.as_ref().map(|frontend| frontend.endpoint.as_str())
    }

    /// The event queue.
    pub fn queue(&self) -> Arc<dyn event_queue::EventQueue> {
        self.asynchronous.queue()
    }

    /// Accepts nothing new, and waits `limit` at most for what runs.
    pub async fn stop(&mut self, limit: Duration) {
        let frontend = async {
            if let Some(frontend) = &mut self.frontend {
                if let Some(stop) = frontend.stop.take() {
                    let _ = stop.send(());
                }
                let _ = tokio::time::timeout(limit, &mut frontend.running).await;
            }
        };
        let sources = async {
            if let Some(sources) = &self.event_sources {
                sources.stop(limit).await;
            }
        };
        tokio::join!(frontend, self.asynchronous.stop(limit), sources);
    }

    /// After [`Self::stop`], or in its place.
    pub async fn close(mut self) {
        self.retiring.abort();
        self.tracing.stop().await;
        if let Some(frontend) = self.frontend {
            frontend.running.abort();
        }
        drop(self.event_sources);
        self.asynchronous.close().await;
        self.store.close().await;
    }
}

/// Of records that are the fleet's own.
const KIND: &str = "fleet";

/// Signs the addresses of packages: one that a frontend gave is good at any other.
async fn shared_key(store: &PostgresStore) -> Result<frontend::CodeUrlKey> {
    const KEY: &str = "code-url-key";
    let mut key = [0; 32];
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).context("get random bytes")?;
    let new = Op::put(KIND, KEY, key.to_vec()).when(Precondition::DoesNotExist);
    match store.commit(vec![new]).await {
        Ok(_) => return Ok(frontend::CodeUrlKey(key)),
        // Another one was first.
        Err(error) if error.retryable() => {}
        Err(error) => return Err(error.into()),
    }
    let record = store.get(KIND, KEY).await?.context("the metadata has no key for the addresses of packages")?;
    let key =
        <[u8; 32]>::try_from(record.value.as_ref()).context("the key for the addresses of packages is damaged")?;
    Ok(frontend::CodeUrlKey(key))
}

/// Tells all managers which versions have no future. Every frontend does: it changes nothing the second time.
async fn retire(mut retired: broadcast::Receiver<VersionKey>, router: Router) {
    loop {
        match retired.recv().await {
            Ok(version) => router.retire(&version),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "sandboxes of replaced versions stay until they have been idle for long enough");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
