//! An engine, a root file system made of this host's libraries, and ways to run things in a sandbox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;
use sandbox::process::{Network, ProcessConfig, ProcessEngine};
use sandbox::{Command, ExitStatus, Mount, SandboxEngine, SandboxSpec};

pub use crate::guest::{Guest, eventually, read_all};

/// Nothing in these tests takes longer, on a busy machine that is emulated.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where this program is, inside.
pub const ATTACKER: &str = "/var/task/attacker";

/// An engine with all it needs.
pub struct Host {
    pub engine: ProcessEngine,
    pub directory: tempfile::TempDir,
}

/// Programs of the host that these tests use. (Sandboxes work without python3, ip and setpriv.)
const PROGRAMS: [&str; 5] = ["python3", "nft", "mkfs.ext4", "ip", "setpriv"];

/// What this host lacks, if anything.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let there = |program: &str| path.split(':').any(|place| Path::new(place).join(program).exists());
    PROGRAMS.iter().find(|program| !there(program)).map(|program| format!("the program {program}"))
}

/// A test that takes root, and some programs.
pub fn test<F: Future<Output = ()>>(name: &'static str, body: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        if let Some(missing) = missing() {
            let missing = format!("SKIPPED {name}: needs {missing}");
            if std::env::var_os("EMBERBOX_REQUIRE_ALL").is_some_and(|value| value == "1") {
                return Err(missing.into());
            }
            eprintln!("{missing}");
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(PATIENCE * 4, body()).await })?;
        Ok(())
    })
}

impl Host {
    pub async fn start(network: Network) -> Self {
        Self::start_with(|config| config.network = network).await
    }

    pub async fn start_with(choose: impl FnOnce(&mut ProcessConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // As an operator would have it: nobody else can enter.
        build_root(directory.path());
        let mut config = config(directory.path(), Network::None);
        choose(&mut config);
        let engine = ProcessEngine::start(config).await.unwrap();
        Self { engine, directory }
    }

    pub fn spec(&self) -> SandboxSpec {
        spec(self.directory.path())
    }

    pub async fn guest(&self) -> Guest {
        Guest::of(self.engine.create(self.spec()).await.unwrap())
    }
}

pub fn config(directory: &Path, network: Network) -> ProcessConfig {
    ProcessConfig { network, pool: 1, max_sandboxes: 64, ..ProcessConfig::new(directory.join("state")) }
}

pub fn spec(directory: &Path) -> SandboxSpec {
    let mount = |source: &Path, target: &str| Mount { source: source.to_owned(), target: target.to_owned() };
    SandboxSpec {
        id: domain::SandboxId(uuid::Uuid::new_v4()),
        root: directory.join("root"),
        mounts: vec![mount(Path::new("/usr"), "/usr"), mount(&directory.join("code"), "/var/task")],
        memory_mb: 256,
        vcpus: 1.0,
        ephemeral_mb: 64,
        hosts: vec![("192.0.2.7".parse().unwrap(), "db.internal".to_owned())],
        listen: vec![9001],
        standby: None,
    }
}

pub fn build_root(directory: &Path) {
    let root = directory.join("root");
    for path in ["proc", "dev", "tmp", "var/task", "opt", "usr", "etc"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for link in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nsbx_user1051:x:993:990::/tmp:/bin/sh\n").unwrap();
    fs::write(root.join("etc/hosts"), "").unwrap();
    fs::write(root.join("etc/resolv.conf"), "").unwrap();
    fs::create_dir(directory.join("code")).unwrap();
    fs::copy(std::env::current_exe().unwrap(), directory.join("code/attacker")).unwrap();
    fs::write(directory.join("code/secret.txt"), "the code of this function").unwrap();
}

impl Guest {
    /// Has the attacker try something; what it says.
    pub async fn attack(&mut self, arguments: &[&str]) -> String {
        let argv: Vec<&str> = [ATTACKER, crate::attacker::PART].iter().chain(arguments).copied().collect();
        let (output, status) = self.run(&argv).await;
        assert_eq!(status, ExitStatus::Code(0), "{arguments:?}: {output}");
        output
    }

    /// Asserts that what the attacker tries is denied, with one of these errors.
    pub async fn denied(&mut self, arguments: &[&str], errors: &[i32]) {
        let output = self.attack(arguments).await;
        let denied = errors.iter().any(|error| output.trim() == format!("denied {error}"));
        assert!(denied, "{arguments:?}: {output}, expected one of {errors:?}");
    }
}

pub fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(|text| (*text).to_owned()).collect(),
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        cwd: "/var/task".into(),
    }
}

/// The host's number of the process, in whatever sandbox, that has `mark` as its last argument.
pub async fn find_process(mark: &str) -> i32 {
    let mut found = None;
    eventually("the process is there", || {
        let is_it = |words: &[String]| {
            matches!(words, [program, .., last] if last == mark && [ATTACKER, "/bin/sh", "/usr/bin/python3"].contains(&program.as_str()))
        };
        found = processes().find(|(_, words)| is_it(words)).map(|(pid, _)| pid);
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Every process that this one can see, with its arguments.
pub fn processes() -> impl Iterator<Item = (i32, Vec<String>)> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        Some((pid, line.split_terminator('\0').map(str::to_owned).collect()))
    })
}
