//! A PostgreSQL for a fleet on one machine: Debian's programs, with a directory of its own, on the loopback address.

use std::fs::OpenOptions;
use std::io::Write as _;
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

/// A running server. It ends with this value, or with this process, however that ends.
pub struct Postgres {
    port: u16,
    password: String,
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
            let mut start = as_owner(&bin.join("pg_ctl"));
            start.arg("-D").arg(&data).args(["-w", "-o", &options, "-l"]).arg(&log).arg("start");
            // The server inherits them, and whoever reads what this program prints would wait for its end.
            start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // Somebody else may have taken the port in between.
            if start.status().context("run pg_ctl")?.success() {
                return Ok(Self { port, password, keeper: keeper(&bin, &data)? });
            }
        }
        bail!("PostgreSQL does not start; its log is {}", log.display())
    }

    /// How to connect to it.
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/postgres", self.password, self.port)
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

/// Stops the server once this process has ended, or has closed the pipe.
fn keeper(bin: &Path, data: &Path) -> Result<Child> {
    let mut command = as_owner(Path::new("/bin/sh"));
    command.args(["-c", r#"read -r _; "$0/pg_ctl" -D "$1" -w -m fast stop"#]).arg(bin).arg(data);
    // A group of its own: it has work to do after a Ctrl-C.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start what stops PostgreSQL in the end")
}
