//! One sandbox of either kind, and what is run in it. `crate::support` says how a program is started there, and for how long
//! the kind is waited for.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use sandbox::{ExitStatus, ProcessId, Sandbox, SandboxError, SandboxEvent};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::support::{PATIENCE, command};

/// With its events.
pub struct Guest {
    pub sandbox: Box<dyn Sandbox>,
    pub events: UnboundedReceiver<SandboxEvent>,
}

impl Guest {
    pub fn of(sandbox: Box<dyn Sandbox>) -> Self {
        let events = sandbox.take_events().unwrap();
        Self { sandbox, events }
    }

    /// Runs a program to its end.
    pub async fn run(&mut self, argv: &[&str]) -> (String, ExitStatus) {
        let (process, output) = self.spawn(argv).await.unwrap();
        let (status, _) = self.exit_of(process).await;
        (read_all(output).await, status)
    }

    pub async fn spawn(&self, argv: &[&str]) -> Result<(ProcessId, OwnedFd), SandboxError> {
        let process = self.sandbox.spawn(command(argv)).await?;
        Ok((process.id, process.output))
    }

    /// Waits for the end of a process: how, and whether memory was short.
    pub async fn exit_of(&mut self, process: ProcessId) -> (ExitStatus, bool) {
        let end = async {
            loop {
                match self.events.recv().await.expect("the sandbox is there") {
                    SandboxEvent::Exited { process: ended, status, oom } if ended == process => return (status, oom),
                    SandboxEvent::Exited { .. } => {}
                    SandboxEvent::Gone => panic!("the sandbox is gone"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, end).await.expect("the process ends")
    }
}

pub async fn read_all(output: OwnedFd) -> String {
    rustix::io::ioctl_fionbio(&output, false).unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        File::from(output).read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    });
    tokio::time::timeout(PATIENCE, read).await.expect("the output ends").unwrap()
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
