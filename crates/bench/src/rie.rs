//! AWS's Runtime Interface Emulator with the Python echo function: the same interpreter, runtime client and handler as
//! Emberbox's, without isolation.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::emberbox::{PYTHON_ECHO, PYTHON_HANDLER, Python};
use crate::load::{Connection, Target};
use crate::process::Child;

/// A running emulator; ended when it is dropped.
pub struct Rie {
    /// Where it answers.
    pub target: Target,
    _process: Child,
    _task: TempDir,
}

impl Rie {
    /// Starts it and waits for its first answer.
    pub async fn start(emulator: &Path, python: &Python) -> Result<Self> {
        let task = TempDir::with_prefix("emberbox-rie-").context("make a task folder")?;
        fs::write(task.path().join("echo.py"), PYTHON_ECHO).context("write the handler")?;
        // It takes addresses as text, so the ports are chosen here; both are held until both are known.
        let (front, back) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let (address, runtime_api) = (front.local_addr()?, back.local_addr()?);
        drop((front, back));
        let process = Child::spawn(
            Command::new(std::path::absolute(emulator)?)
                .arg("--runtime-interface-emulator-address")
                .arg(address.to_string())
                .arg("--runtime-api-address")
                .arg(runtime_api.to_string())
                .args(["--log-level", "error"])
                .arg(&python.interpreter)
                .args(["-m", "awslambdaric", PYTHON_HANDLER])
                .current_dir(task.path())
                .env("LAMBDA_TASK_ROOT", task.path())
                .env("PYTHONPATH", &python.client)
                .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1769")
                .stderr(Stdio::null()),
        )?;
        let target = Target { address, path: "/2015-03-31/functions/function/invocations".into() };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = match Connection::open(address).await {
                Ok(mut connection) => connection.echo(&target.path).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(()) => return Ok(Self { target, _process: process, _task: task }),
                Err(error) if Instant::now() > deadline => bail!("AWS's emulator does not answer: {error:#}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}
