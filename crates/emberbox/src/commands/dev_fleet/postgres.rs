//! A PostgreSQL for a fleet on one machine: Debian's programs, with a directory of its own, on the loopback address.

use std::fs::OpenOptions;
use std::io::{BufRead as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Who owns everything in it.
const USER: &str = "emberbox";
/// The file with the password, which is made with the files of the server: others on this machine can connect as well.
const PASSWORD: &str = "password";

/// Makes the role of workers. The other one is there already, and owns all of it.
const ROLES: &str = include_str!("../../../../../deploy/postgres/roles.sql");
/// That role.
const WORKER: &str = "emberbox_worker";

/// A running server. It ends with this value, or with this process, however that ends.
pub struct Postgres {
    port: u16,
    password: String,
    worker_password: String,
    keeper: Child,
}

impl Postgres {
    /// Starts the server whose files are in `dir`, and makes them if they are not there.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, or what it said when it did not start.
    pub fn start(dir: &Path) -> Result<Self> {
        let bin = programs().context(
            "a fleet needs PostgreSQL: install the Debian package postgresql, or name a database with --database URL",
        )?;
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        if rustix::process::geteuid().is_root() {
            let status = Command::new("chown").arg("postgres").arg(dir).status().context("run chown")?;
            ensure!(status.success(), "give {} to the user postgres", dir.display());
        }
        let (data, secret) = (dir.join("data"), dir.join(PASSWORD));
        if !data.join("PG_VERSION").exists() {
            let password = uuid::Uuid::new_v4().simple().to_string();
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&secret).context("make a password")?;
            file.write_all(password.as_bytes()).context("write the password")?;
            if rustix::process::geteuid().is_root() {
                let status = Command::new("chown").arg("postgres").arg(&secret).status().context("run chown")?;
                ensure!(status.success(), "give {} to the user postgres", secret.display());
            }
            let mut initdb = as_owner(&bin.join("initdb"));
            initdb.arg("-D").arg(&data).args(["-A", "scram-sha-256", "-U", USER, "-E", "UTF8"]);
            let output = initdb.arg(format!("--pwfile={}", secret.display())).output().context("run initdb")?;
            ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        }
        let password = std::fs::read_to_string(&secret).with_context(|| format!("read {}", secret.display()))?;
        let log = dir.join("log");
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            let port = port.context("find a free port")?.port();
            let options = format!("-p {port} -k {} -h 127.0.0.1 -N 200", dir.display());
            // Somebody else may have taken the port in between.
            if let Some(keeper) = keeper(&bin, &data, &options, &log)? {
                let worker_password = uuid::Uuid::new_v4().simple().to_string();
                let server = Self { port, password, worker_password, keeper };
                server.make_roles(&bin)?;
                return Ok(server);
            }
        }
        bail!("PostgreSQL does not start; its log is {}", log.display())
    }

    /// How to connect to it.
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }

    /// How workers do, who need little of it.
    pub fn worker_url(&self) -> String {
        format!("postgres://{WORKER}:{}@127.0.0.1:{}/postgres", self.worker_password, self.port)
    }

    fn make_roles(&self, bin: &Path) -> Result<()> {
        let mut psql = Command::new(bin.join("psql"));
        psql.args(["-X", "-q", "-f", "-", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER, "postgres"]);
        // Not on the command line, which everybody sees.
        psql.env("PGPASSWORD", &self.password).env("EMBERBOX_WORKER_PASSWORD", &self.worker_password);
        psql.env_remove("EMBERBOX_PASSWORD");
        psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = psql.spawn().context("run psql")?;
        let written = running.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(ROLES.as_bytes()));
        let output = running.wait_with_output().context("wait for psql")?;
        written.context("tell psql which roles to make")?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Where the newest has its programs; Debian keeps those of the server out of the path.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = versions.flatten().map(|entry| entry.path()).filter(|path| path.join("bin/initdb").exists());
    installed.max_by_key(|path| version(path)).map(|path| path.join("bin"))
}

/// PostgreSQL does not run as root.
fn as_owner(program: &Path) -> Command {
    let mut command;
    if rustix::process::geteuid().is_root() {
        command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
    } else {
        command = Command::new(program);
    }
    command.current_dir("/");
    command
}

/// Starts the server, and stops it once this process has ended, or has closed the pipe; from the beginning on, so that no moment
/// leaves a server behind. `None` if it did not start.
fn keeper(bin: &Path, data: &Path, options: &str, log: &Path) -> Result<Option<Child>> {
    let mut command = as_owner(Path::new("/bin/sh"));
    // The server must not inherit what the keeper has: whoever reads it would wait for the server's end.
    let script = r#"
        "$0/pg_ctl" -D "$1" -w -o "$2" -l "$3" start < /dev/null > /dev/null 2>&1 || exit 1
        echo started
        exec > /dev/null
        read -r _
        "$0/pg_ctl" -D "$1" -w -m fast stop
    "#;
    command.args(["-c", script]).arg(bin).arg(data).arg(options).arg(log);
    // A group of its own: it has work to do after a Ctrl-C.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut keeper = command.spawn().context("start what keeps PostgreSQL")?;
    let mut said = String::new();
    if let Some(stdout) = keeper.stdout.take() {
        std::io::BufReader::new(stdout).read_line(&mut said).context("hear of PostgreSQL")?;
    }
    if said.trim() == "started" {
        return Ok(Some(keeper));
    }
    keeper.wait().context("wait for pg_ctl")?;
    Ok(None)
}
