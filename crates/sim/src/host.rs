//! One machine: a process with a runtime of its own, which dies with it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::clock::{self, HostClock};
use crate::log::Log;
use crate::net::{HostId, Net};

/// What runs in a host, and knows it.
#[derive(Clone)]
pub struct Context {
    /// Which host.
    pub id: HostId,
    /// Its name, which is the process' in the fleet.
    pub name: Arc<str>,
    /// Its clocks.
    pub clock: HostClock,
    /// The network.
    pub net: Net,
    /// What happened.
    pub log: Log,
}

pub(crate) struct Host {
    pub context: Context,
    running: Option<Running>,
}

struct Running {
    runtime: Runtime,
    start: Instant,
    booted: Duration,
}

impl Host {
    pub fn new(name: &str, net: &Net, log: &Log) -> Self {
        let id = net.add_host(name);
        let context =
            Context { id, name: name.into(), clock: HostClock::default(), net: net.clone(), log: log.clone() };
        Self { context, running: None }
    }

    pub fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// Starts its process.
    pub fn start(&mut self, process: impl Future<Output = ()> + Send + 'static) {
        let runtime =
            Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime needs no socket");
        let start = runtime.block_on(async { Instant::now() });
        self.context.net.started(self.context.id);
        runtime.spawn(process);
        self.running = Some(Running { runtime, start, booted: clock::now() });
    }

    /// Something more begins in its process, if there is one.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(running) = &self.running {
            running.runtime.spawn(work);
        }
    }

    /// The process ends at once. `silent`: with the machine, so that nobody is told.
    pub fn kill(&mut self, silent: bool) {
        if let Some(running) = self.running.take() {
            self.context.net.ended(self.context.id, silent);
            drop(running);
        }
    }

    /// Runs until its time is `end`.
    pub fn step(&self, end: Duration) {
        let Some(Running { runtime, start, booted }) = &self.running else { return };
        let mail = self.context.net.mail(self.context.id, end);
        let _entered = clock::enter(*start, *booted);
        runtime.block_on(async {
            for (at, letter) in mail {
                tokio::spawn(async move {
                    tokio::time::sleep_until(clock::instant(at)).await;
                    letter();
                });
            }
            tokio::time::sleep_until(clock::instant(end)).await;
        });
    }
}
