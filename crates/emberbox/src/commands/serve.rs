//! `emberbox serve`: configuration, log, banner and signals around [`crate::serve`].

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::cli::Serve;
use crate::config::Config;
use crate::serve::Emberbox;
#[cfg(feature = "cluster")]
use crate::serve::fleet::Fleet;
use crate::{log, ui};

/// What is logged unless EMBERBOX_LOG says otherwise.
const LOG: &str = "info,timeline=off";

/// `emberbox serve`
pub fn run(args: Serve) -> Result<ExitCode> {
    let mut config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    config.listen = args.listen.unwrap_or(config.listen);
    config.data_dir = args.data_dir.or(config.data_dir);
    #[cfg(feature = "cluster")]
    if !args.roles.is_empty() {
        let cluster = config.cluster.as_mut();
        let cluster =
            cluster.context("--roles is for a process of a fleet: say by [cluster] in the configuration which")?;
        cluster.roles = args.roles;
    }
    let filter = EnvFilter::try_from_env("EMBERBOX_LOG").unwrap_or_else(|_| EnvFilter::new(LOG));
    // Invocations log, and none should wait for a terminal or for another's line. What is queued is written at the end.
    let (writer, _written_at_the_end) = log::gathered(std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(ui::coloured()).init();
    let workers = threads();
    // The runtime starts its workers first, and threads for what blocks when it needs them: those may wait for a core.
    let started = AtomicUsize::new(0);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .on_thread_start(move || {
            if started.fetch_add(1, Ordering::Relaxed) < workers
                && let Err(error) = sandbox::priority::before_functions()
            {
                tracing::debug!(%error, "the server's threads get no more of a busy host than functions");
            }
        })
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(serve(config, args.with_parent))
}

/// Half the cores, for the other half runs the functions. Fewer threads also hand work to each other less often, which is
/// most of what a warm invocation waits for.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

async fn serve(config: Config, with_parent: bool) -> Result<ExitCode> {
    // Before anything is started, so that no signal ends the process with something left behind.
    let mut signals = Signals::new(with_parent)?;
    let limit = config.stop_limit.as_secs();
    let server = tokio::select! {
        server = Running::start(config) => server?,
        // What was begun ends with the process: the engine's helper sees to sandboxes.
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    print(&server.banner())?;
    let asked = tokio::select! {
        () = signals.next() => Ok(ExitCode::SUCCESS),
        error = server.superseded() => Err(error),
    };
    if let Err(error) = &asked {
        tracing::error!("{error}");
    }
    eprintln!(
        "Stopping: running invocations finish first, for {limit} s at most. A second signal does not wait for them."
    );
    server.stop(signals.next()).await;
    asked
}

/// All roles, or those of a process of a fleet.
enum Running {
    Whole(Emberbox),
    #[cfg(feature = "cluster")]
    Part(Fleet),
}

impl Running {
    async fn start(config: Config) -> Result<Self> {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = config.cluster.clone() {
            return Ok(Self::Part(Fleet::start(config, cluster).await?));
        }
        Ok(Self::Whole(Emberbox::start(config).await?))
    }

    fn banner(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let endpoint = match self {
            Self::Whole(server) => server.endpoint(),
            #[cfg(feature = "cluster")]
            Self::Part(fleet) => {
                let roles: Vec<String> = fleet.roles().iter().map(ToString::to_string).collect();
                let (id, roles, address) = (fleet.id(), roles.join(", "), fleet.address());
                let at = fleet.endpoint().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
                let admin = fleet.admin().map(|admin| format!(", its metrics are on {admin}")).unwrap_or_default();
                return format!(
                    "Emberbox {version} is ready{at}: {id}, with {roles}; the fleet reaches it on {address}{admin}.\n"
                );
            }
        };
        format!(
            "Emberbox {version} is ready at {endpoint}. To use it, paste into another terminal:\n\n\
             export AWS_ENDPOINT_URL_LAMBDA={endpoint}\n\
             export AWS_ENDPOINT_URL_SQS={endpoint}\n\n\
             then `emberbox deploy PATH --name NAME`, or any AWS tool. Ctrl-C stops it.\n"
        )
    }

    /// Returns when this process has to end: another one has taken its place, or it is not whole any more.
    async fn superseded(&self) -> anyhow::Error {
        let broken = |failed: String| {
            anyhow::anyhow!(
                "{failed}; this process stops, for it would not do all of its work. Start it again, and please report this"
            )
        };
        match self {
            Self::Whole(server) => broken(server.failed().await),
            #[cfg(feature = "cluster")]
            Self::Part(fleet) => {
                tokio::select! {
                    () = fleet.replaced() => anyhow::anyhow!(
                        "another process has joined the fleet as {}, and this one stops. Give each process a name of its own (cluster.id)",
                        fleet.id()
                    ),
                    failed = fleet.failed() => broken(failed),
                }
            }
        }
    }

    async fn stop(self, hurry: impl Future<Output = ()>) {
        match self {
            Self::Whole(server) => server.stop(hurry).await,
            #[cfg(feature = "cluster")]
            Self::Part(fleet) => fleet.stop(hurry).await,
        }
    }
}

/// On stdout, at once: scripts wait for it.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to stdout")
}

/// SIGTERM and SIGINT, and the end of the process that started this one.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` where nobody looks for it.
    parent: Option<oneshot::Receiver<()>>,
}

impl Signals {
    pub(super) fn new(with_parent: bool) -> Result<Self> {
        let catch = |kind| signal(kind).context("catch signals");
        let parent = with_parent.then(|| {
            let (sender, receiver) = oneshot::channel();
            // It is blocked for good, and the process does not wait for it.
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                let _ = sender.send(());
            });
            receiver
        });
        Ok(Self { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())?, parent })
    }

    pub(super) async fn next(&mut self) {
        let parent = async {
            match &mut self.parent {
                Some(gone) => _ = gone.await,
                None => std::future::pending().await,
            }
            self.parent = None;
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = parent => {}
        }
    }
}
