//! A Firecracker that runs.

use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

use crate::client::Client;
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::jail::Jail;
use crate::jailer::SOCKET;
use crate::process;

/// From the jailer's start to the API's first answer. Both take milliseconds.
const START: Duration = Duration::from_secs(20);

/// For what is still in the console's pipe when all who write to it have ended: no time at all.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A Firecracker in its jail. Dropping it ends it and removes the jail, which blocks for some milliseconds;
/// [`Vmm::stop`] does not.
#[derive(Debug)]
pub struct Vmm {
    client: Client,
    console: Console,
    pid: i32,
    exit: AsyncFd<Arc<OwnedFd>>,
    /// Last: it is removed when the rest is gone.
    jail: Arc<Jail>,
}

impl Vmm {
    pub(crate) async fn start(mut jail: Jail) -> Result<Self> {
        let client = Client::new(&jail.root(), SOCKET)?;
        let (command, console) = command(&jail)?;
        let started = tokio::time::timeout(START, start(command, &mut jail, &client));
        let failure = match started.await {
            Ok(Ok((pid, exit))) => return Ok(Self { client, console, pid, exit, jail: Arc::new(jail) }),
            Ok(Err(How::Io(error))) => return Err(error),
            Ok(Err(How::Ended(how))) => how,
            Err(_) => format!("it did not answer within {START:?}"),
        };
        let id = jail.id().to_owned();
        // With it all ends that writes to the console.
        remove(Arc::new(jail)).await?;
        console.ended(LAST_WORDS).await;
        Err(Error::NotStarted { id, how: failure, output: console.text().trim().to_owned() })
    }

    /// Its API.
    pub fn api(&self) -> &Client {
        &self.client
    }

    /// What it and its guest write.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Its jail: what files are in it.
    pub fn jail(&self) -> &Jail {
        &self.jail
    }

    /// Its process id, on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until Firecracker has ended, killed or by itself: its guest has shut down or rebooted, or something went
    /// wrong, which the console tells; all of it is there then.
    pub async fn ended(&self) {
        // The only error is that the runtime shuts down.
        let _ = self.exit.readable().await;
        self.console.ended(LAST_WORDS).await;
    }

    /// Stops the process from running, by SIGSTOP: the VM stands still with it, and nothing answers. For its guest, time
    /// goes on meanwhile, as it does for a process. ([`Client::pause`] takes the API, and leaves that working.)
    ///
    /// # Errors
    /// Of the kernel; none if it has ended.
    pub fn freeze(&self) -> std::io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it run again, by SIGCONT. Without effect on one that does.
    ///
    /// # Errors
    /// Of the kernel; none if it has ended.
    pub fn thaw(&self) -> std::io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills it, frozen or not; returns before it has ended, and leaves the jail.
    ///
    /// # Errors
    /// Of the kernel; none if it has ended.
    pub fn kill(&self) -> std::io::Result<()> {
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match pidfd_send_signal(self.exit.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        !process::has_ended(self.exit.get_ref())
    }

    /// Ends it at once and removes all that belongs to it; without effect if that was done. A guest that should notice is
    /// to be told before. (The lock on the directory of all jails is let go of with the last value that has one.)
    ///
    /// # Errors
    /// [`Error::Io`]: something is left; the next [`crate::Jailer::open`] tries again.
    pub async fn stop(&self) -> Result<()> {
        remove(self.jail.clone()).await
    }
}

async fn remove(jail: Arc<Jail>) -> Result<()> {
    let removed = tokio::task::spawn_blocking(move || jail.remove()).await;
    removed.doing(|| "removing a jail".to_owned())?
}

/// The jailer's command, and the console that it writes to.
fn command(jail: &Jail) -> Result<(Command, Console)> {
    let config = jail.jailer.config();
    let mut command = Command::new(&config.jailer);
    command.args(config.arguments(&jail.spec)).env_clear().current_dir("/").stdin(Stdio::null());
    // A terminal's signals are for the server, which then stops its VMs.
    command.process_group(0).kill_on_drop(true);
    if jail.spec.console_bytes == 0 {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        return Ok((command, Console::none()));
    }
    let doing = || "making a console's pipe".to_owned();
    let (reader, writer) = std::io::pipe().doing(doing)?;
    command.stdout(writer.try_clone().doing(doing)?).stderr(writer);
    Ok((command, Console::read(reader, jail.spec.console_bytes)?))
}

/// Why a start failed.
enum How {
    Ended(String),
    Io(Error),
}

impl From<Error> for How {
    fn from(error: Error) -> Self {
        Self::Io(error)
    }
}

async fn start(mut command: Command, jail: &mut Jail, client: &Client) -> Result<(i32, AsyncFd<Arc<OwnedFd>>), How> {
    let program = jail.jailer.config().jailer.display().to_string();
    let mut jailer = command.spawn().doing(|| format!("starting {program}"))?;
    // Our copies of the console's pipe: it ends with the VM.
    drop(command);
    let status: ExitStatus = jailer.wait().await.doing(|| format!("waiting for {program}"))?;
    if !status.success() {
        return Err(How::Ended(status.to_string()));
    }
    // Nothing of a stranger runs in there yet.
    let pid_file = jail.jailer.config().pid_file(jail.id());
    let pid = std::fs::read_to_string(&pid_file).doing(|| format!("reading {}", pid_file.display()))?;
    let gone = || How::Ended("it ended at once".to_owned());
    let pid: i32 = pid.trim().parse().map_err(|_| gone())?;
    let process = Arc::new(process::open(pid).map_err(|_| gone())?);
    if !process::is_in(pid, &jail.root()) {
        return Err(gone());
    }
    jail.process = Some(process.clone());
    #[expect(deprecated, reason = "its successor is unsafe: the descriptor must live on, as one behind an Arc does")]
    let exit = AsyncFd::with_interest(process, Interest::READABLE).doing(|| "watching a process".to_owned())?;
    let answers = async {
        let mut every = tokio::time::interval(Duration::from_millis(1));
        while !client.listens().await {
            every.tick().await;
        }
    };
    tokio::select! {
        () = answers => Ok((pid, exit)),
        _ = exit.readable() => Err(gone()),
    }
}
