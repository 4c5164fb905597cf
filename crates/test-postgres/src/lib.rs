//! PostgreSQL for tests: Debian's, started in a temporary directory on a free port of the loopback address, with
//! everything that belongs to it gone when the test program ends, however it ends.
//!
//! ```text
//!  test program ── pipe ──► keeper (a shell): reads until the pipe breaks, then stops the server, removes its directory
//!       └── initdb, pg_ctl start/stop, psql ──► server
//! ```
//!
//! A test that breaks its server, or measures it, has one of its own ([`Server::start`]). All others of a program share one
//! ([`Server::shared`]), which does not wait for the disk, and take a database each ([`Server::database`]).
//!
//! Where PostgreSQL is missing, the test says so by its name and returns; with `EMBERBOX_REQUIRE_ALL` set it fails.
//! Whatever else goes wrong panics, with what the server had to say.
#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The role that owns everything. It has no password, and the server asks for none.
pub const USER: &str = "emberbox";

/// Below those that Linux gives to clients: one that tries to connect while the server is down could otherwise be given
/// the server's own port, and would be connected to itself.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// Connections that a server takes: many tests with pools of their own share it.
const CONNECTIONS: u32 = 300;

/// A server in a directory of its own.
#[derive(Debug)]
pub struct Server {
    dir: PathBuf,
    bin: PathBuf,
    port: u16,
    /// Whether commits wait for the disk.
    fsync: bool,
    databases: AtomicU64,
    keeper: Child,
}

impl Server {
    /// A server for this test alone, which may stop and start it. `None` where PostgreSQL is missing, after saying that
    /// `test` was skipped.
    ///
    /// # Panics
    /// Where PostgreSQL is missing and `EMBERBOX_REQUIRE_ALL` is set, or does not start.
    pub fn start(test: &str) -> Option<Self> {
        programs_or_skip(test).map(|bin| Self::in_own_directory(bin, true))
    }

    /// The server that all tests of a program share, started by the first that asks; its commits do not wait for the disk. `None` as in [`Server::start`].
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Server> = OnceLock::new();
        let bin = programs_or_skip(test)?;
        Some(SHARED.get_or_init(|| Self::in_own_directory(bin, false)))
    }

    /// How to connect to the database that every server has.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Makes an empty database and says how to connect to it.
    ///
    /// # Panics
    /// If the server does not make it.
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql(&self.url(), &format!("CREATE DATABASE {name}"));
        self.url_of(&name)
    }

    /// Runs SQL, and gives what it returns: a line for each row, columns separated by `|`.
    ///
    /// # Panics
    /// With PostgreSQL's message if it fails.
    pub fn psql(&self, url: &str, sql: &str) -> String {
        let mut command = Command::new(self.bin.join("psql"));
        let output = command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", url, "-c", sql]).output().expect("run psql");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("psql prints UTF-8").trim().to_owned()
    }

    /// Runs a script of psql's, with these variables of the environment.
    ///
    /// # Panics
    /// With PostgreSQL's message if it fails.
    pub fn script(&self, url: &str, script: &Path, variables: &[(&str, &str)]) {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", url, "-f"]).arg(script).envs(variables.iter().copied());
        let output = command.output().expect("run psql");
        assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    }

    /// Stops the server as a crash does: nothing is finished, connections break. What was committed is found again.
    ///
    /// # Panics
    /// If it cannot be stopped.
    pub fn stop(&self) {
        assert!(self.pg_ctl(&["-m", "immediate", "stop"]), "stop PostgreSQL: {}", self.log());
    }

    /// Starts the server again, on the port that it had, and waits until it takes connections.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_again(&self) {
        assert!(self.up(), "start PostgreSQL: {}", self.log());
    }

    /// [`Server::stop`], then [`Server::start_again`].
    ///
    /// # Panics
    /// As they do.
    pub fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// What the server has logged, from its first start on.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Nothing that is done to a server here loses what was written but not synced: only a power failure does.
    fn in_own_directory(bin: PathBuf, fsync: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("test-postgres-").tempdir().expect("make a directory");
        if rustix::process::geteuid().is_root() {
            let status = Command::new("chown").arg("postgres").arg(dir.path()).status();
            assert!(status.is_ok_and(|status| status.success()), "give {} to postgres", dir.path().display());
        }
        let dir = dir.keep();
        let keeper = keeper(&bin, &dir);
        let mut server = Self { dir, bin, port: 0, fsync, databases: AtomicU64::new(0), keeper };
        // `-N`: the files of an empty database need not reach the disk. What is committed later is synced.
        let output = server.as_owner("initdb").args(["-A", "trust", "-U", USER, "-N", "-E", "UTF8"]).output();
        let output = output.expect("run initdb");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        for port in free_ports().take(10) {
            server.port = port;
            // Somebody else may have taken it in between.
            if server.up() {
                return server;
            }
        }
        panic!("start PostgreSQL: {}", server.log());
    }

    fn up(&self) -> bool {
        let dir = self.dir.display();
        let options = format!("-p {} -k {dir} -h 127.0.0.1 -N {CONNECTIONS} -c fsync={}", self.port, self.fsync);
        self.pg_ctl(&["-o", &options, "-l", &format!("{dir}/log"), "start"])
    }

    fn pg_ctl(&self, arguments: &[&str]) -> bool {
        let mut command = self.as_owner("pg_ctl");
        // The server inherits them, and whoever reads this program's output would wait for the server's end.
        let command =
            command.arg("-w").args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().expect("run pg_ctl").success()
    }

    fn as_owner(&self, program: &str) -> Command {
        let mut command = as_owner(&self.bin.join(program));
        command.arg("-D").arg(self.dir.join("data"));
        command
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn programs_or_skip(test: &str) -> Option<PathBuf> {
    let programs = programs();
    if programs.is_none() {
        let missing = format!("{test}: needs the Debian package postgresql");
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{missing}");
        println!("SKIPPED {missing}");
    }
    programs
}

/// Where the newest installed PostgreSQL has its programs; Debian keeps those of the server out of the path.
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

/// Stops the server and removes `dir` once this process has ended or has closed the pipe.
fn keeper(bin: &Path, dir: &Path) -> Child {
    let mut command = as_owner(Path::new("/bin/sh"));
    let script = r#"read -r _; "$0/pg_ctl" -D "$1/data" -w -m immediate stop; rm -rf "$1""#;
    let command = command.args(["-c", script]).arg(bin).arg(dir);
    // A group of its own: it has work to do after a Ctrl-C.
    let command = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start the keeper of PostgreSQL")
}

/// Each was free when it was looked at.
fn free_ports() -> impl Iterator<Item = u16> {
    // Every `RandomState` differs.
    std::iter::repeat_with(|| PORTS.start + RandomState::new().build_hasher().finish() % (PORTS.end - PORTS.start))
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_survives_its_crash_and_is_gone_in_the_end() {
        let Some(server) = Server::start("a_server_survives_its_crash_and_is_gone_in_the_end") else { return };
        let (one, two) = (server.database(), server.database());
        server.psql(&one, "CREATE TABLE t AS SELECT 7 AS x");
        server.restart();
        assert_eq!(server.psql(&one, "SELECT x, x + 1 FROM t"), "7|8");
        assert_eq!(server.psql(&two, "SELECT count(*) FROM pg_tables WHERE tablename = 't'"), "0");
        server.stop();
        server.start_again();
        let (dir, port) = (server.dir.clone(), server.port);
        drop(server);
        assert!(!dir.exists(), "{} is left", dir.display());
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok());
    }

    #[test]
    fn tests_share_a_server() {
        let Some(server) = Server::shared("tests_share_a_server") else { return };
        assert_eq!(server.url(), Server::shared("tests_share_a_server").expect("the same").url());
    }
}
