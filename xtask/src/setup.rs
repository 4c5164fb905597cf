//! What a fresh machine lacks: Debian packages, and the real clients that the tests drive.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// A program that the tests or the product need, the Debian package that brings it, and why.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("nft", "nftables", "network rules of the sandboxes"),
    ("pasta", "passt", "the network of sandboxes that are made without root"),
    ("ip", "iproute2", "the tests look at links and addresses"),
    ("mkfs.ext4", "e2fsprogs", "the sandboxes' /tmp"),
    ("python3", "python3", "Python functions, and the tests' clients"),
    ("node", "nodejs", "Node functions"),
    ("npm", "npm", "installs AWS's runtime client and the tests' client for Node"),
    ("cmake", "cmake", "builds AWS's runtime clients"),
    ("make", "make", "builds AWS's runtime clients"),
    ("g++", "g++", "builds AWS's runtime clients"),
    ("autoreconf", "autoconf", "builds AWS's runtime clients"),
    ("automake", "automake", "builds AWS's runtime clients"),
    ("libtoolize", "libtool", "builds AWS's runtime clients"),
    ("strace", "strace", "a test sees that an answer comes after the sync to disk"),
    ("openssl", "openssl", "makes the TLS test's certificate"),
    ("qemu-system-x86_64", "qemu-system-x86", "microVMs without KVM"),
    ("unsquashfs", "squashfs-tools", "the tests read images with it"),
    ("docker-registry", "docker-registry", "the tests pull container images from it"),
    ("mmdebstrap", "mmdebstrap", "images of a Debian release"),
    ("flex", "flex", "builds the guest kernel"),
    ("bison", "bison", "builds the guest kernel"),
    ("bc", "bc", "builds the guest kernel"),
    ("xz", "xz-utils", "unpacks the guest kernel's source"),
    ("haproxy", "haproxy", "a test has it balance the frontends of a fleet"),
    ("nginx", "nginx-light", "a test has it balance the frontends of a fleet"),
    ("systemd-analyze", "systemd", "a test has it look at the units in deploy/"),
    ("depmod", "kmod", "a test boots Debian's kernel with its modules"),
];

/// The same for what is no program.
const FILES: &[(&str, &str, &str)] = &[
    ("/usr/include/gelf.h", "libelf-dev", "builds the guest kernel"),
    ("/usr/include/openssl/opensslv.h", "libssl-dev", "builds the guest kernel"),
];

/// The other half of QEMU's vsock device, which Debian 12 has no package of.
const VSOCK_DEVICE: (&str, &str) = ("vhost-device-vsock", "0.3.0");

/// Installs what is missing, saying what and why; without root it says what to run. What this release of Debian does not
/// offer is named and left out: the tests that want it say so, each by its name.
pub fn debian_packages() -> Result<()> {
    let mut missing = missing_packages();
    let kernel_source = images::kernel::installed_source().is_file();
    if missing.is_empty() && kernel_source {
        return Ok(());
    }
    let may_install = succeeds(Command::new("sh").args(["-c", "test $(id -u) = 0 && command -v apt-get"]));
    if may_install {
        // Before anything is chosen: a fresh machine has no list of packages.
        let mut update = Command::new("apt-get");
        update.args(["update", "-q"]);
        run(&mut update)?;
    }
    let printed = printed_by(Command::new("apt-cache").args(["pkgnames", "linux-source-"]));
    match images::kernel::source_package(&printed) {
        _ if kernel_source => {}
        Some(package) => missing.push((package.to_owned(), "the guest kernel's source")),
        None => println!("No package linux-source-6.1 or newer is offered here: there will be no guest kernel."),
    }
    let names = missing.iter().map(|(package, _)| package);
    let policy = printed_by(Command::new("apt-cache").arg("policy").args(names).env("LC_ALL", "C"));
    let (offered, rest): (Vec<_>, Vec<_>) = missing.into_iter().partition(|(package, _)| is_offered(&policy, package));
    for (heading, packages) in [("Missing on this machine:", &offered), ("Missing, and not offered by its apt:", &rest)]
    {
        if !packages.is_empty() {
            println!("{heading}");
        }
        for (package, why) in packages {
            println!("  {package:<16} {why}");
        }
    }
    if offered.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = offered.iter().map(|(package, _)| package.as_str()).collect();
    let install = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !may_install {
        bail!("please run, as root: {install}");
    }
    println!("Running: {install}");
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(packages);
    run(&mut command)
}

/// Each package that this machine lacks, and why it is wanted.
fn missing_packages() -> Vec<(String, &'static str)> {
    let programs = PROGRAMS.iter().filter(|(program, ..)| !on_path(program));
    let files = FILES.iter().filter(|(file, ..)| !Path::new(file).exists());
    let mut missing: Vec<(String, &str)> =
        programs.chain(files).map(|(_, package, why)| ((*package).to_owned(), *why)).collect();
    let mut lacks = |package: &str, why| missing.push((package.to_owned(), why));
    if on_path("python3") && !succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])) {
        lacks("python3-venv", "the tests' own Python environment");
    }
    if !has_postgres() {
        lacks("postgresql", "metadata and the event queue in PostgreSQL; the tests start servers of their own");
    }
    missing
}

/// Whether apt could install a package, by what `apt-cache policy` printed. Where it printed nothing at all, apt shall say.
fn is_offered(policy: &str, package: &str) -> bool {
    let lines = policy.lines().skip_while(|line| line.strip_suffix(':') != Some(package)).skip(1);
    let mut own = lines.take_while(|line| line.starts_with(' '));
    let candidate = own.find_map(|line| line.trim().strip_prefix("Candidate: "));
    policy.is_empty() || candidate.is_some_and(|candidate| candidate != "(none)")
}

fn printed_by(command: &mut Command) -> String {
    command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// A virtual environment in `target/venv` with `requirements`; made again when they change. Returns its `bin`.
pub fn python_environment(root: &Path, requirements: &Path) -> Result<PathBuf> {
    let venv = root.join("target/venv");
    let stamp = venv.join("requirements.txt");
    let wanted =
        std::fs::read_to_string(requirements).with_context(|| format!("reading {}", requirements.display()))?;
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(venv.join("bin"));
    }
    println!("Installing the tests' clients and servers (boto3, AWS CLI, pytest, moto) into {}", venv.display());
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    run(Command::new(venv.join("bin/python"))
        .args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"])
        .arg(requirements))?;
    std::fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(venv.join("bin"))
}

/// The packages of `manifest` (a package.json) in `target/node`; installed again when it changes.
pub fn node_packages(root: &Path, manifest: &Path) -> Result<()> {
    let folder = root.join("target/node");
    let copy = folder.join("package.json");
    let wanted = std::fs::read_to_string(manifest).with_context(|| format!("reading {}", manifest.display()))?;
    // npm writes this file last.
    let done = folder.join("node_modules/.package-lock.json").exists();
    if done && std::fs::read_to_string(&copy).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    println!("Installing the tests' Node client (the AWS SDK for JavaScript) into {}", folder.display());
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    std::fs::write(&copy, wanted).with_context(|| format!("writing {}", copy.display()))?;
    let modules = folder.join("node_modules");
    if modules.exists() {
        std::fs::remove_dir_all(&modules).with_context(|| format!("removing {}", modules.display()))?;
    }
    run(Command::new("npm").current_dir(&folder).args([
        "install",
        "--no-audit",
        "--no-fund",
        "--no-package-lock",
        "--loglevel=error",
    ]))
}

/// What the tests of microVMs need beside Debian's packages.
pub struct MicroVm {
    kernel: PathBuf,
    tools: PathBuf,
    /// Why there is none. Nothing but the tests of microVMs needs it: each says by its name that it was skipped.
    pub lacking: Option<String>,
}

impl MicroVm {
    /// Builds what is missing in `target`: minutes at first, then nothing. Where that fails, on another release of Debian
    /// perhaps, it is said and the rest goes on; with EMBERBOX_REQUIRE_ALL it is an error.
    pub fn set_up(root: &Path) -> Result<Self> {
        let kernel = root.join("target/guest-kernel/vmlinux");
        let mut made = Self { kernel, tools: root.join("target/tools"), lacking: None };
        let built = made.build_kernel().and_then(|()| made.install_vsock_device());
        match built {
            Err(error) if std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none() => {
                println!("MicroVMs cannot be set up, and their tests are skipped: {error:#}");
                made.lacking = Some(format!("{error:#}"));
            }
            other => other?,
        }
        Ok(made)
    }

    /// Tells a test where they are.
    pub fn tell(&self, command: &mut Command) -> Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.tools.join("bin")).chain(std::env::split_paths(&path));
        command.env("EMBERBOX_TEST_KERNEL", &self.kernel).env("PATH", std::env::join_paths(path)?);
        Ok(())
    }

    fn build_kernel(&self) -> Result<()> {
        println!("Guest kernel, which the tests' microVMs boot: {}", self.kernel.display());
        let build = images::kernel::Build::new(&self.kernel);
        images::kernel::build(&build, &|step| println!("  {step}"))?;
        Ok(())
    }

    fn install_vsock_device(&self) -> Result<()> {
        let (name, version) = VSOCK_DEVICE;
        let program = self.tools.join("bin").join(name);
        println!("{name} {version}, by which the tests' microVMs talk to the worker: {}", program.display());
        let installed = Command::new(&program).arg("--version").output();
        if installed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim_end().ends_with(version)) {
            return Ok(());
        }
        println!("  compiling it from crates.io");
        let mut install = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        install.args(["install", "--quiet", "--locked", "--force", name, "--version", version, "--root"]);
        // A folder of its own and kept, so that an interrupted build goes on where it was.
        install.arg(&self.tools).arg("--target-dir").arg(self.tools.join("build"));
        run(&mut install)
    }
}

/// Whether `program` is on PATH, or where Debian keeps an administrator's programs.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|directory| directory.join(program).is_file())
}

/// Debian keeps each version's programs in a directory of its own, which is not on PATH.
fn has_postgres() -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin/initdb")).any(|initdb| initdb.is_file())
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_does_not_offer_is_told_from_the_rest() {
        let policy = "passt:\n  Installed: (none)\n  Candidate: 0.0~git20230309\n  Version table:\n     0.0~git20230309 500\n\
                      docker-registry:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n\
                      systemd:\n  Installed: 252.38-1\n  Candidate: 252.39-1\n";
        assert!(is_offered(policy, "passt") && is_offered(policy, "systemd"));
        assert!(!is_offered(policy, "docker-registry"), "it has no candidate, whatever the next package has");
        assert!(!is_offered(policy, "never-heard-of"));
        assert!(is_offered("", "passt"), "apt itself shall say");
    }
}
