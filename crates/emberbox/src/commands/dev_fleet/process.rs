//! One process of the fleet: its configuration, its output in the common stream, its end.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};

/// A line that a process wrote.
#[derive(Debug)]
pub struct Line {
    /// Which process.
    pub name: String,
    /// Without the end of line.
    pub text: String,
    /// It is the one that says that the process is ready: only its standard output can.
    pub ready: Option<Ready>,
}

/// What a process says once it is ready.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready {
    /// The URL of its API, if it has one.
    pub endpoint: Option<String>,
    /// Where it tells of its health and shows its metrics: `host:port`.
    pub admin: Option<String>,
}

impl Ready {
    /// The line of `emberbox serve` for a process of a fleet: `Emberbox VERSION is ready[ at URL]: NAME, with ROLES; the fleet reaches it on
    /// ADDRESS[, its metrics are on ADDRESS].`
    fn read(text: &str, name: &str) -> Option<Self> {
        let (_, text) = text.strip_prefix("Emberbox ")?.split_once(" is ready")?;
        let (endpoint, text) = match text.strip_prefix(" at ") {
            Some(text) => text.split_once(": ").map(|(url, rest)| (Some(url.to_owned()), rest))?,
            None => (None, text.strip_prefix(": ")?),
        };
        let text = text.strip_prefix(name)?.strip_prefix(", with ")?.strip_suffix('.')?;
        let admin = text.split_once(", its metrics are on ").map(|(_, admin)| admin.to_owned());
        Some(Self { endpoint, admin })
    }
}

/// How long a stop waits for what runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hurry {
    /// As long as the processes do.
    No,
    /// They are told a second time, and do not wait then.
    Ask,
    /// Not at all.
    Kill,
}

/// How often a process is told again not to wait: a second signal that comes too soon after the first is one with it.
const AGAIN: Duration = Duration::from_millis(500);

/// A running process.
#[derive(Debug)]
pub struct Process {
    /// e.g. `worker-2`.
    pub name: String,
    child: Child,
    /// Its end tells the process that this one is gone.
    stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts `emberbox serve` with a configuration of its own in `dir`; what it writes goes to `lines`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, dir: &Path, config: &toml::Table, lines: &mpsc::Sender<Line>) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let path: PathBuf = dir.join("emberbox.toml");
        // The database's password is in it.
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(config.to_string().as_bytes()))
            .with_context(|| format!("write {}", path.display()))?;
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(["serve", "--with-parent", "--config"]).arg(&path);
        // Not this process's group: a Ctrl-C in the terminal is for this process, which then tells the others in order.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        forward(name, child.stdout.take(), lines, true);
        forward(name, child.stderr.take(), lines, false);
        let stdin = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, stdin })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end. Safe to cancel.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("wait for {}", self.name))
    }

    /// Tells it to stop, and waits until it has.
    pub async fn stop(mut self, mut hurry: watch::Receiver<Hurry>) -> Result<()> {
        self.tell(Signal::TERM)?;
        let status = loop {
            let hurried = *hurry.borrow_and_update();
            let again = async {
                match hurried {
                    Hurry::No => std::future::pending().await,
                    Hurry::Ask | Hurry::Kill => tokio::time::sleep(AGAIN).await,
                }
            };
            tokio::select! {
                status = self.ended() => break status?,
                Ok(()) = hurry.changed() => {}
                () = again => {}
            }
            match *hurry.borrow() {
                Hurry::No => {}
                Hurry::Ask => self.tell(Signal::TERM)?,
                Hurry::Kill => self.tell(Signal::KILL)?,
            }
        };
        drop(self.stdin);
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }

    /// Sends it a signal, if it has not ended.
    fn tell(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // While nobody has waited for it, the id is its own.
        pid.map_or(Ok(()), |pid| kill_process(pid, signal)).with_context(|| format!("stop {}", self.name))
    }
}

fn forward(
    name: &str,
    output: Option<impl AsyncRead + Unpin + Send + 'static>,
    lines: &mpsc::Sender<Line>,
    says_ready: bool,
) {
    let Some(output) = output else { return };
    let (name, lines) = (name.to_owned(), lines.clone());
    tokio::spawn(async move {
        let mut output = BufReader::new(output).lines();
        while let Ok(Some(text)) = output.next_line().await {
            let ready = says_ready.then(|| Ready::read(&text, &name)).flatten();
            if lines.send(Line { name: name.clone(), text, ready }).await.is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_that_says_it_is_that_line() {
        let line = "Emberbox 0.1.0 is ready at http://127.0.0.1:4566: frontend-1, with frontend; the fleet reaches it on 127.0.0.1:5, \
                    its metrics are on 127.0.0.1:6.";
        let ready = |endpoint: Option<&str>, admin: Option<&str>| {
            Some(Ready { endpoint: endpoint.map(str::to_owned), admin: admin.map(str::to_owned) })
        };
        assert_eq!(Ready::read(line, "frontend-1"), ready(Some("http://127.0.0.1:4566"), Some("127.0.0.1:6")));
        let worker = "Emberbox 0.1.0 is ready: worker-1, with worker; the fleet reaches it on 127.0.0.1:5.";
        assert_eq!(Ready::read(worker, "worker-1"), ready(None, None));
        for other in [
            "2026-01-01 INFO a version is ready at http://127.0.0.1:4566",
            "Emberbox 0.1.0 is ready at http://127.0.0.1:4566. To use it, paste into another terminal:",
            worker,
            "",
        ] {
            assert_eq!(Ready::read(other, "frontend-1"), None, "{other}");
        }
    }
}
