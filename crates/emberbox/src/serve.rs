//! The whole of Emberbox in one process: which part gets which, in which order they start, in which order they stop.
//!
//! ```text
//!  start                                         stop
//!  1 data directory, locked                      9 data directory, unlocked
//!  2 sandbox engine (its helper process)         8 sandbox engine: nothing of it is left on the host
//!  3 packages, images, runtimes, logs              (files only)
//!  4 metadata store, control plane               7 metadata store: commits under way, then closed
//!  5 worker manager                              3 worker manager: sandboxes go down, extensions are told
//!  6 worker (and the manager is told of it)      4 worker: what is left of them; logs are written out
//!  7 followers: retired versions, upkeep         5 followers
//!  8 address and port, SQS queues                  (freed by the frontend; polling clients are sent away)
//!  9 traces, event queue, pollers, event sources 2 running events and batches finish; 6 traces sent, event queue closed
//! 10 frontend, answering                         1 frontend: accepts nothing new, running requests finish
//! ```
//!
//! A part starts after those that it calls, and stops before them. What takes long (the userland of the sandboxes, the
//! runtime clients) is installed in the background or on first use, so that the API is there at once.

mod event_sources;
mod events;
#[cfg(feature = "cluster")]
pub mod fleet;
pub mod isolation;
mod otlp;
mod parts;
mod secrets;
pub mod settings;
mod tasks;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use domain::{Clock, SystemClock, VersionKey, WorkerId, WorkerManager};
use event_sources::EventSources;
use events::Asynchronous;
use frontend::BindError;
use frontend::sync_path::SyncPath;
use otlp::Tracing;
use parts::Content;
use prometheus_client::registry::Registry;
use runtimes::Runtimes;
use sandbox::SandboxEngine;
use tasks::Tasks;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

use crate::adapters;
use crate::config::Config;
use crate::data_dir::{self, DataDir};

/// The runtime that is nothing but the userland.
const PLAIN: &str = "provided.al2023";

/// A running Emberbox.
pub struct Emberbox {
    endpoint: String,
    stop_frontend: oneshot::Sender<()>,
    frontend: JoinHandle<()>,
    asynchronous: Asynchronous,
    event_sources: EventSources,
    tracing: Tracing,
    queues: sqs::SqsService,
    tasks: Tasks,
    followers: Vec<JoinHandle<()>>,
    manager: worker_manager::Manager,
    worker: worker::Service,
    store: Arc<store::SqliteStore>,
    engine: Arc<dyn SandboxEngine>,
    stop_limit: Duration,
    _data: DataDir,
}

impl Emberbox {
    /// Starts all parts; they run when this returns.
    pub async fn start(config: Config) -> Result<Self> {
        refuse_open_house(&config)?;
        let dir = match &config.data_dir {
            Some(dir) => dir.clone(),
            None => data_dir::default_dir()?,
        };
        let data = DataDir::open(&dir)?;
        let dir = data.path();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let mut registry = Registry::with_prefix("emberbox");

        let engine = parts::engine(&config, dir).await?;
        let content = Content::open(&config, dir)?;
        let id = WorkerId(settings::host_name());
        let (worker, logs) = parts::worker(&config, dir, id, &engine, &content, &clock, &mut registry)?;
        let Content { packages, images, runtimes } = content;

        let store = Arc::new(store::SqliteStore::open(dir.join("metadata.sqlite")).await?);
        let keys = Arc::new(secrets::own_keys(&config, dir, &*store).await?);
        let control_plane = control_plane::ControlPlane::open(
            settings::control_plane(&config),
            control_plane::Metadata { store: store.clone(), keys },
            packages.clone(),
            Arc::new(adapters::Catalog(runtimes.clone())),
            Arc::new(images),
            Arc::new(adapters::Snapshots(Arc::new(worker.clone()))),
            Arc::clone(&clock),
        )
        .await?;

        let manager = worker_manager::Manager::new(Arc::clone(&clock), settings::manager(&config), Vec::new());

        worker.connect(Arc::new(manager.clone()));
        manager.add_worker(Arc::new(worker.clone()));

        let tasks = Tasks::new();
        let followers = vec![
            tasks.spawn("retire versions", retire(control_plane.retired(), manager.clone())),
            tasks.spawn("look after sandboxes", manager.clone().run()),
            tasks.spawn("prepare runtimes", prepare(runtimes)),
        ];

        let listener = frontend::Listener::bind(settings::frontend(&config, dir)?).await?;
        let endpoint = listener.endpoint();
        let queues = sqs::SqsService::open(dir.join("queues.db"), Arc::clone(&clock)).await?;

        let frontend_metrics = frontend::Metrics::register(&mut registry);
        let tracing = Tracing::start(&config.otlp, own_process(), &mut registry)?;
        let sync_path = SyncPath::with_traces(
            Arc::new(manager.clone()),
            Arc::clone(&clock),
            frontend_metrics.clone(),
            tracing.traces(),
        );
        let direct = adapters::Direct {
            functions: adapters::Functions(control_plane.clone()),
            sync_path: sync_path.clone(),
            clock: Arc::clone(&clock),
        };
        let client = SharedHttpClient::new(adapters::OwnQueues(queues.clone()));
        let own_queues = settings::OwnQueues { endpoint: endpoint.clone(), client };
        let delivery = settings::delivery(&config, &own_queues);
        let polling = Some(&tasks);
        let asynchronous =
            Asynchronous::start(&config, dir, &control_plane, direct.clone(), delivery, polling, &mut registry).await?;
        let sources = settings::queues(&config, &own_queues);
        let event_sources = EventSources::start(sources, &control_plane, direct, &mut registry, &tasks);

        let deps = frontend::Deps {
            functions: Arc::new(adapters::Functions(control_plane)),
            sync_path,
            events: Arc::new(asynchronous.port()),
            code: Arc::new(adapters::Code(packages)),
            logs: Arc::new(adapters::Logs(logs)),
            sqs: Arc::new(adapters::Sqs(queues.clone())),
            clock,
            metrics: frontend_metrics,
            registry: Arc::new(registry),
        };
        let server = frontend::Server::new(listener, deps);
        let (stop_frontend, stopped) = oneshot::channel();
        let frontend = tasks.spawn(
            "serve the API",
            server.run(async move {
                // An error means that the sender is gone, and so is everything else.
                let _ = stopped.await;
            }),
        );
        Ok(Self {
            endpoint,
            stop_frontend,
            frontend,
            asynchronous,
            event_sources,
            tracing,
            queues,
            tasks,
            followers,
            manager,
            worker,
            store,
            engine,
            stop_limit: config.stop_limit,
            _data: data,
        })
    }

    /// e.g. `http://127.0.0.1:4566`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns why the process has to end, when one of its tasks has panicked.
    pub async fn failed(&self) -> String {
        self.tasks.failed().await
    }

    /// Stops in the order above. Running invocations may finish, until `hurry` is ready or [`Config::stop_limit`] is over;
    /// then they are cut off, and their callers' connections closed.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        let limit = self.stop_limit;
        let until = tokio::time::Instant::now() + limit;
        let left = || until.duration_since(tokio::time::Instant::now());
        let gentle = async {
            let _ = self.stop_frontend.send(());
            // Each may take the whole limit, and none waits for another. Clients that poll queues are sent away, or they
            // would hold up the rest.
            let _ = tokio::join!(
                self.queues.close(),
                self.frontend,
                self.asynchronous.stop(limit),
                self.event_sources.stop(limit),
            );
            self.manager.stop(left()).await;
            self.worker.stop(left()).await;
        };
        tokio::select! {
            () = gentle => {}
            () = hurry => tracing::warn!("stopping at once; running invocations are cut off"),
        }
        for follower in self.followers {
            follower.abort();
        }
        self.tracing.stop().await;
        self.queues.close().await;
        self.asynchronous.close().await;
        self.store.close().await;
        self.engine.stop().await;
    }
}

/// This one does everything, and there are no others.
fn own_process() -> otlp::Process {
    let roles = "frontend,worker-manager,placement,pollers,worker".into();
    otlp::Process { id: settings::host_name(), roles, roles_of: Arc::new(|_| None) }
}

/// Makes the userland of the sandboxes, which takes seconds the first time, while nobody waits for it yet.
async fn prepare(runtimes: Arc<Runtimes>) {
    if let Err(error) = runtimes.ensure(PLAIN, &adapters::Logged).await {
        tracing::error!(%error, "functions cannot run before this is mended");
    }
}

/// Before anything is opened: who could connect could run code here.
fn refuse_open_house(config: &Config) -> Result<(), BindError> {
    if config.credentials.is_empty() && !config.listen.ip().is_loopback() {
        return Err(BindError::OpenWithoutCredentials(config.listen));
    }
    Ok(())
}

/// Tells the manager which versions have no future. One that was missed goes when it has been idle for long enough.
async fn retire(mut retired: broadcast::Receiver<VersionKey>, manager: worker_manager::Manager) {
    loop {
        match retired.recv().await {
            Ok(version) => manager.retire(&version),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "sandboxes of replaced versions stay until they have been idle for long enough");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
