//! One process of the fleet: its configuration, its output in the common stream, its end.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

/// A line that a process wrote.
#[derive(Debug)]
pub struct Line {
    /// Which process.
    pub name: String,
    /// Without the end of line.
    pub text: String,
}

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
        forward(name, child.stdout.take(), lines);
        forward(name, child.stderr.take(), lines);
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
    pub async fn stop(mut self) -> Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).with_context(|| format!("stop {}", self.name))?;
        }
        let status = self.ended().await?;
        drop(self.stdin);
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }
}

fn forward(name: &str, output: Option<impl AsyncRead + Unpin + Send + 'static>, lines: &mpsc::Sender<Line>) {
    let Some(output) = output else { return };
    let (name, lines) = (name.to_owned(), lines.clone());
    tokio::spawn(async move {
        let mut output = BufReader::new(output).lines();
        while let Ok(Some(text)) = output.next_line().await {
            if lines.send(Line { name: name.clone(), text }).await.is_err() {
                return;
            }
        }
    });
}
