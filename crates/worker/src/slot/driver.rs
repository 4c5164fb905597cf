//! The task that does for one sandbox what takes time, one thing after the other.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandbox::{Command, Process, SandboxError, SandboxEvent};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Operation, Slot};
use crate::api_server::ApiServer;
use crate::machine::StartError;
use crate::output::Output;

/// The engine answers within milliseconds. One that does not is broken, and the sandbox with it.
const ENGINE_LIMIT: Duration = Duration::from_secs(10);

impl Slot {
    /// Runs until the sandbox is destroyed. `running`: processes that are there already, of a sandbox that was restored.
    pub(crate) async fn drive(
        self: Arc<Self>,
        mut events: mpsc::UnboundedReceiver<SandboxEvent>,
        api: ApiServer,
        running: Vec<Process>,
    ) {
        let mut pumps = JoinSet::new();
        for process in running {
            if self.watch(process.output, &mut pumps).is_err() {
                let mut core = self.core.lock();
                core.machine.gone(self.now());
                self.settle(&mut core);
            }
        }
        let mut open = true;
        loop {
            let operation = self.core.lock().operations.pop_front();
            if let Some(operation) = operation {
                if self.operate(operation, &api, &mut pumps).await {
                    break;
                }
                continue;
            }
            let sleep = {
                let mut core = self.core.lock();
                let deadline = core.deadline();
                core.armed = deadline.unwrap_or(Duration::MAX);
                deadline.map(|d| d.saturating_sub(self.now()))
            };
            // No order needed: each branch is one event, and an unfinished one stays where it is.
            tokio::select! {
                () = self.wake.notified() => {}
                event = events.recv(), if open => match event {
                    Some(event) => self.sandbox_event(event),
                    None => {
                        open = false;
                        self.sandbox_event(SandboxEvent::Gone);
                    }
                },
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => self.timer(),
                Some(_) = pumps.join_next() => {}
            }
        }
        pumps.shutdown().await;
        let state = {
            let mut core = self.core.lock();
            core.outputs.clear();
            let state = core.state;
            self.write_log(core);
            state
        };
        self.host.metrics.state(Some(state), None);
    }

    fn timer(&self) {
        let now = self.now();
        let mut core = self.core.lock();
        if core.machine.deadline().is_some_and(|deadline| deadline <= now) {
            self.drain(&mut core);
            core.machine.timer(now);
            self.settle(&mut core);
        }
        if core.queue.due().is_some_and(|due| due <= now) {
            self.write_log(core);
        }
    }

    fn sandbox_event(&self, event: SandboxEvent) {
        let mut core = self.core.lock();
        self.drain_unheard(&mut core);
        match event {
            SandboxEvent::Exited { process, status, oom } => {
                tracing::debug!(sandbox = %self.id, state = core.state, ?process, ?status, oom, "a process ended");
                core.machine.exited(self.now(), process, status, oom);
            }
            SandboxEvent::Gone => {
                // Also said of one that was destroyed, which is no news.
                if !core.machine.is_ending() {
                    tracing::warn!(sandbox = %self.id, "a sandbox died");
                }
                core.machine.gone(self.now());
            }
        }
        self.settle(&mut core);
    }

    /// Does one thing; `true` when the sandbox is no more.
    async fn operate(self: &Arc<Self>, operation: Operation, api: &ApiServer, pumps: &mut JoinSet<()>) -> bool {
        match operation {
            Operation::StartExtension { epoch, name } => {
                let command = Command {
                    argv: vec![format!("/opt/extensions/{name}")],
                    env: self.programs.extension_env.clone(),
                    cwd: PathBuf::from("/"),
                };
                let result = self.spawn(command, pumps).await;
                let mut core = self.core.lock();
                core.machine.extension_started(self.now(), epoch, &name, result);
                self.settle(&mut core);
            }
            Operation::StartRuntime { epoch } => {
                let result = match &self.programs.runtime {
                    Ok(command) => {
                        let program = command.argv.first().cloned().unwrap_or_default();
                        self.spawn(command.clone(), pumps).await.map_err(|error| match error {
                            StartError::Exec(cause) if program.contains('/') => {
                                StartError::Exec(format!("fork/exec {program}: {cause}"))
                            }
                            // Go's words for a name that is in none of PATH's directories.
                            StartError::Exec(_) => {
                                StartError::Exec(format!("exec: \"{program}\": executable file not found in $PATH"))
                            }
                            other => other,
                        })
                    }
                    Err(missing) => Err(StartError::Exec(missing.clone())),
                };
                let now = self.now();
                let mut core = self.core.lock();
                if result.is_ok() {
                    core.runtime_started.get_or_insert(now);
                }
                core.machine.runtime_started(now, epoch, result);
                self.settle(&mut core);
            }
            Operation::Signal(process, signal) => {
                // One that waits for ever would keep the sandbox from being destroyed.
                match tokio::time::timeout(ENGINE_LIMIT, self.sandbox.signal(process, signal)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(sandbox = %self.id, %error, "cannot signal a process of a sandbox");
                    }
                    Err(_) => tracing::error!(sandbox = %self.id, "signalling a process of a sandbox took too long"),
                }
            }
            Operation::KillAll { epoch } => {
                let killed = match tokio::time::timeout(ENGINE_LIMIT, self.sandbox.kill_all()).await {
                    Ok(Ok(())) => true,
                    Ok(Err(error)) => {
                        tracing::error!(sandbox = %self.id, %error, "cannot kill the processes of a sandbox");
                        false
                    }
                    Err(_) => {
                        tracing::error!(sandbox = %self.id, "the processes of a sandbox do not die");
                        false
                    }
                };
                // Whatever dead processes still have on the way must not be taken for words of their successors.
                api.reset().await;
                let mut core = self.core.lock();
                core.runtime = None;
                core.restore = None;
                core.extensions.clear();
                self.drain_unheard(&mut core);
                core.machine.killed(self.now(), epoch, killed);
                self.settle(&mut core);
                self.write_log(core);
            }
            Operation::Destroy => {
                api.reset().await;
                self.sandbox.destroy().await;
                return true;
            }
        }
        false
    }

    async fn spawn(
        self: &Arc<Self>,
        command: Command,
        pumps: &mut JoinSet<()>,
    ) -> Result<sandbox::ProcessId, StartError> {
        let Process { id, output } = match tokio::time::timeout(ENGINE_LIMIT, self.sandbox.spawn(command)).await {
            Ok(Ok(process)) => process,
            Ok(Err(SandboxError::Exec { source, .. })) => return Err(StartError::Exec(kernel_words(&source))),
            Ok(Err(SandboxError::WorkingDirectory { directory, source })) => {
                return Err(StartError::WorkingDirectory(match source.kind() {
                    std::io::ErrorKind::NotFound => format!("the working directory doesn't exist: {directory}"),
                    _ => format!("chdir {directory}: {}", kernel_words(&source)),
                }));
            }
            Ok(Err(error)) => {
                tracing::error!(sandbox = %self.id, %error, "cannot start a process in a sandbox");
                return Err(StartError::Host(error.to_string()));
            }
            Err(_) => return Err(StartError::Host("starting a process took too long".into())),
        };
        self.watch(output, pumps)?;
        Ok(id)
    }

    /// Reads a process's output from here on.
    fn watch(self: &Arc<Self>, output: OwnedFd, pumps: &mut JoinSet<()>) -> Result<(), StartError> {
        match Output::new(output) {
            Ok(output) => {
                let output = Arc::new(output);
                self.core.lock().outputs.push(Arc::clone(&output));
                let slot = Arc::clone(self);
                pumps.spawn(async move { output.pump(|| slot.drain_output(&output)).await });
            }
            Err(error) => {
                tracing::error!(sandbox = %self.id, %error, "cannot watch the output of a process");
                return Err(StartError::Host(error.to_string()));
            }
        }
        Ok(())
    }
}

/// An error of the kernel in the words that Go, and so AWS, has for it.
fn kernel_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
