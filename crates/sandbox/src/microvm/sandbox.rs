//! A sandbox in a VM.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use domain::SandboxId;
use guest::protocol::Reply;
use guest::vm::protocol::Order;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::control::Control;
use super::kept;
use super::machine::{Drive, Machine};
use super::rest::Rest;
use crate::api::{Command, Listener, Process, ProcessId, Sandbox, SandboxError, SandboxEvent, Signal, Usage};
use crate::process::error_of;

/// A sandbox whose agent has made it ready.
pub struct MicrovmSandbox {
    pub id: SandboxId,
    pub control: Arc<Control>,
    pub listeners: Mutex<HashMap<u16, Listener>>,
    /// Where the connections for output arrive. Locked from order to connection, so that they belong together.
    pub outputs: tokio::sync::Mutex<UnixListener>,
    pub events: Mutex<Option<mpsc::UnboundedReceiver<SandboxEvent>>>,
    pub rest: Arc<Rest>,
    /// Its VM had booted before anybody asked for it.
    pub waited: bool,
    /// Its drives, to be kept in a snapshot.
    pub drives: Vec<Drive>,
    pub machine: Arc<dyn Machine>,
    pub answer_limit: Duration,
    /// Kills it.
    pub end: CancellationToken,
    /// Set when nothing is left of it.
    pub gone: CancellationToken,
}

/// Kills the VM unless what was asked of it was answered: one that does not answer is broken.
struct Unanswered<'a>(Option<&'a MicrovmSandbox>);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(sandbox) = self.0 {
            tracing::warn!(sandbox = %sandbox.id, "a microVM does not answer, and is killed");
            sandbox.end.cancel();
        }
    }
}

impl MicrovmSandbox {
    async fn ask(&self, order: &Order) -> Result<Reply, SandboxError> {
        self.thaw()?;
        let mut unanswered = Unanswered((!self.end.is_cancelled()).then_some(self));
        match self.control.ask(order, self.answer_limit).await {
            Ok(answer) => {
                unanswered.0 = None;
                answer.map_err(error_of)
            }
            Err(error) => {
                tracing::debug!(sandbox = %self.id, %error, "no answer");
                Err(SandboxError::Gone(self.id))
            }
        }
    }
}

#[async_trait]
impl Sandbox for MicrovmSandbox {
    fn id(&self) -> SandboxId {
        self.id
    }

    fn is_from_pool(&self) -> bool {
        self.waited
    }

    fn take_listener(&self, port: u16) -> Option<Listener> {
        self.listeners.lock().remove(&port)
    }

    fn take_events(&self) -> Option<mpsc::UnboundedReceiver<SandboxEvent>> {
        self.events.lock().take()
    }

    async fn spawn(&self, command: Command) -> Result<Process, SandboxError> {
        let outputs = self.outputs.lock().await;
        let reply = self.ask(&Order::Spawn(command.into())).await;
        if let Err(gone @ SandboxError::Gone(_)) = reply {
            return Err(gone);
        }
        // It comes also when the start failed.
        let mut unanswered = Unanswered((!self.end.is_cancelled()).then_some(self));
        let accepted = tokio::time::timeout(self.answer_limit, outputs.accept()).await;
        let Ok(Ok((output, _))) = accepted else { return Err(SandboxError::Gone(self.id)) };
        unanswered.0 = None;
        let output = output.into_std().map(OwnedFd::from).map_err(|source| {
            let operation = format!("take the output of a process of sandbox {}", self.id);
            SandboxError::Host { operation, source }
        })?;
        match reply? {
            Reply::Spawned { process } => Ok(Process { id: ProcessId(process), output }),
            Reply::Done => {
                self.end.cancel();
                Err(SandboxError::Gone(self.id))
            }
        }
    }

    async fn signal(&self, process: ProcessId, signal: Signal) -> Result<(), SandboxError> {
        let signal = match signal {
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
        };
        self.ask(&Order::Signal { process: process.0, signal }).await.map(drop)
    }

    async fn kill_all(&self) -> Result<(), SandboxError> {
        self.ask(&Order::KillAll).await.map(drop)
    }

    fn freeze(&self) -> Result<(), SandboxError> {
        self.rest
            .freeze()
            .map_err(|source| SandboxError::Host { operation: format!("freeze sandbox {}", self.id), source })
    }

    fn thaw(&self) -> Result<(), SandboxError> {
        self.rest.thaw().map_err(|source| SandboxError::Host { operation: format!("thaw sandbox {}", self.id), source })
    }

    async fn keep(&self, directory: &Path) -> Result<(), SandboxError> {
        self.ask(&Order::Hold).await?;
        let host = |source| SandboxError::Host { operation: format!("keep the drives of sandbox {}", self.id), source };
        let drives = self.drives.iter().map(Drive::try_clone).collect::<Result<Vec<_>, _>>().map_err(host)?;
        let place = directory.to_owned();
        self.machine.snapshot(directory, Box::new(move || kept::keep(&drives, &place))).await
    }

    fn usage(&self) -> Usage {
        let used = self.control.used();
        Usage {
            memory_peak: used.memory_peak,
            memory_now: used.memory_now,
            oom_kills: used.oom_kills,
            cpu: Duration::from_micros(used.cpu_us),
        }
    }

    async fn destroy(&self) {
        self.end.cancel();
        self.gone.cancelled().await;
    }
}

impl Drop for MicrovmSandbox {
    fn drop(&mut self) {
        self.end.cancel();
    }
}
