//! `emberbox serve`: configuration, log, banner and signals around [`crate::serve`].

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::Serve;
use crate::config::Config;
use crate::serve::Emberbox;
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
    runtime.block_on(serve(config))
}

/// Half the cores, for the other half runs the functions. Fewer threads also hand work to each other less often, which is
/// most of what a warm invocation waits for.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

async fn serve(config: Config) -> Result<ExitCode> {
    // Before anything is started, so that no signal ends the process with something left behind.
    let mut signals = Signals::new()?;
    let limit = config.stop_limit.as_secs();
    let server = Emberbox::start(config).await?;
    banner(server.endpoint())?;
    signals.next().await;
    eprintln!(
        "Stopping: running invocations finish first, for {limit} s at most. A second signal does not wait for them."
    );
    server.stop(signals.next()).await;
    Ok(ExitCode::SUCCESS)
}

/// On stdout, at once: scripts wait for it.
fn banner(endpoint: &str) -> Result<()> {
    let text = format!(
        "Emberbox {} is ready at {endpoint}. To use it, paste into another terminal:\n\n\
         export AWS_ENDPOINT_URL_LAMBDA={endpoint}\n\
         export AWS_ENDPOINT_URL_SQS={endpoint}\n\n\
         then `emberbox deploy PATH --name NAME`, or any AWS tool. Ctrl-C stops it.\n",
        env!("CARGO_PKG_VERSION"),
    );
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to stdout")
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let catch = |kind| signal(kind).context("catch signals");
        Ok(Self { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
