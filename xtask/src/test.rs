//! `cargo xtask test`: set-up and every test, in the order in which failures are cheapest to find.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup::MicroVm;
use crate::{firecracker, run, setup};

/// Which tests to run.
#[derive(clap::Args)]
pub struct Args {
    /// Only the checks and tests of the Rust crates.
    #[arg(long, conflicts_with = "system")]
    unit: bool,
    /// Only the whole-system suite.
    #[arg(long)]
    system: bool,
    /// The proofs that take long as well: 100 rounds of kill -9 against the whole system, a backlog of a million events
    #[arg(long)]
    full: bool,
    /// For the whole-system suite: only tests whose name matches (pytest -k).
    #[arg(short = 'k', value_name = "EXPRESSION")]
    filter: Option<String>,
}

/// Runs them; an error names the step that failed.
pub fn main(root: &Path, args: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("set-up: Debian packages", setup::debian_packages)?;
    steps.run("set-up: third parties' clients and servers", || python(root).map(drop))?;
    let micro_vm = steps.run("set-up: what microVMs need", || MicroVm::set_up(root))?;
    if !args.system {
        let firecracker =
            steps.run("set-up: Firecracker", || firecracker::programs(root, &python(root)?.join("python")))?;
        steps.run("formatting", || run(cargo(root).args(["fmt", "--all", "--check"])))?;
        steps.run("wire model is the one that the generator makes", || crate::codegen::check(root))?;
        steps.run("lints", || {
            let all = ["clippy", "--workspace", "--all-targets", "--all-features", "--quiet", "--", "-D", "warnings"];
            run(cargo(root).args(all))?;
            // As it is built by default: without the engines that have a feature.
            run(cargo(root).args(["clippy", "-p", "emberbox", "--quiet", "--", "-D", "warnings"]))
        })?;
        steps.run("unit and integration tests", || {
            let mut tests = cargo(root);
            if let Some(folder) = &firecracker {
                tests.env("EMBERBOX_TEST_FIRECRACKER", folder);
            }
            micro_vm.tell(&mut tests)?;
            if args.full {
                tests.env("EVENT_QUEUE_BACKLOG", "1000000");
            }
            run(tests.args(["test", "--workspace", "--all-features", "--quiet"]))
        })?;
    }
    if !args.unit {
        steps.run("whole-system suite", || system(root, &micro_vm, args))?;
    }
    steps.print();
    Ok(())
}

/// What the whole-system suite runs in, and has the servers that some crates' tests want.
fn python(root: &Path) -> Result<PathBuf> {
    setup::python_environment(root, &root.join("tests/system/requirements.txt"))
}

fn system(root: &Path, micro_vm: &MicroVm, args: &Args) -> Result<()> {
    // With the engines that have a feature, which the suite tests as well.
    run(cargo(root).args(["build", "--quiet", "-p", "emberbox", "--features", "postgres,sqs"]))?;
    build_examples(root)?;
    setup::node_packages(root, &root.join("tests/system/package.json"))?;
    let bin = python(root)?;
    let emberbox = root.join("target/debug/emberbox");
    // Installed once and shared by the suite's servers: each would need a minute to install its own.
    for runtime in installable(&emberbox, &root.join("target/system"))? {
        println!("Installing runtime {runtime}");
        run(Command::new(&emberbox)
            .args(["runtime", "install", &runtime, "--data-dir"])
            .arg(root.join("target/system")))?;
    }
    let mut pytest = Command::new(bin.join("python"));
    micro_vm.tell(&mut pytest)?;
    pytest.current_dir(root.join("tests/system")).args(["-m", "pytest", "--durations=10"]);
    if args.full {
        pytest.env("EMBERBOX_KILL_ROUNDS", "100");
    }
    if let Some(filter) = &args.filter {
        pytest.args(["-k", filter]);
    }
    run(&mut pytest)
}

/// Builds the Rust functions that the suite and the benchmark deploy.
pub fn build_examples(root: &Path) -> Result<()> {
    run(cargo(root)
        .args(["build", "--release", "--quiet", "--manifest-path", "examples/rust-echo/Cargo.toml", "--target-dir"])
        .arg(root.join("target/examples")))
}

/// The runtimes that the suite uses: the Python that runs the suite, one other, and the newest Node.
fn installable(emberbox: &Path, data_dir: &Path) -> Result<Vec<String>> {
    let output = Command::new(emberbox)
        .args(["runtime", "list", "--json", "--data-dir"])
        .arg(data_dir)
        .output()
        .with_context(|| format!("running {}", emberbox.display()))?;
    if !output.status.success() {
        bail!("emberbox runtime list: {}", String::from_utf8_lossy(&output.stderr));
    }
    let listed: Vec<serde_json::Value> =
        serde_json::from_slice(&output.stdout).context("emberbox runtime list --json")?;
    let own = Command::new("python3")
        .args(["-c", "import sys; print('python%d.%d' % sys.version_info[:2])"])
        .output()
        .context("running python3")?;
    let own = String::from_utf8_lossy(&own.stdout).trim().to_owned();
    let mut wanted = Vec::new();
    let mut pythons = 0;
    for runtime in &listed {
        let (Some(name), Some(state)) = (runtime["name"].as_str(), runtime["state"].as_str()) else { continue };
        if !matches!(state, "ready" | "installable") {
            continue;
        }
        let python = name.starts_with("python");
        if name == own || name.starts_with("nodejs") || (python && pythons < 2) {
            wanted.push(name.to_owned());
        }
        pythons += u32::from(python);
    }
    Ok(wanted)
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// What ran, and how long it took.
#[derive(Default)]
struct Steps(Vec<(&'static str, f64)>);

impl Steps {
    fn run<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n== {name}");
        let start = Instant::now();
        let made = step().with_context(|| format!("step failed: {name}"))?;
        self.0.push((name, start.elapsed().as_secs_f64()));
        Ok(made)
    }

    fn print(&self) {
        println!("\n{:>8}  step (all passed)", "seconds");
        for (name, seconds) in &self.0 {
            println!("{seconds:>8.1}  {name}");
        }
    }
}
