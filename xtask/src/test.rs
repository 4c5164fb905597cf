//! `cargo xtask test`: set-up and every test, in the order in which failures are cheapest to find.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::setup::MicroVm;
use crate::{debian_kernel, firecracker, run, setup};

mod programs;

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
    // Side by side: one waits for registries and builds with few processors, the other is the compiler.
    let tools = std::thread::scope(|scope| {
        let tools = scope.spawn(|| Tools::set_up(root, args));
        if args.system {
            steps.run("building", || build(root))?;
        } else {
            steps.run("formatting", || run(cargo(root).args(["fmt", "--all", "--check"])))?;
            steps.run("wire model is the one that the generator makes", || crate::codegen::check(root))?;
            steps.run("lints", || lints(root))?;
        }
        steps.run("set-up: the rest of what went on beside", || tools.join().expect("set-up does not panic"))
    })?;
    if !args.system {
        steps.run("unit and integration tests", || {
            programs::run(|| cargo(root), &|test| {
                if let Some(folder) = &tools.firecracker {
                    test.env("EMBERBOX_TEST_FIRECRACKER", folder);
                }
                if let Some(folder) = &tools.debian_kernel {
                    test.env("EMBERBOX_TEST_DEBIAN_KERNEL", folder);
                }
                if args.full {
                    test.env("EVENT_QUEUE_BACKLOG", "1000000");
                }
                tools.micro_vm.tell(test)
            })
        })?;
    }
    if !args.unit {
        steps.run("set-up: emberbox, runtimes and clients for the whole-system suite", || system_set_up(root))?;
        steps.run("whole-system suite", || system(root, &tools.micro_vm, args, Isolation::Process))?;
        match &tools.micro_vm.lacking {
            None => {
                steps.run("whole-system suite in microVMs", || {
                    system(root, &tools.micro_vm, args, Isolation::MicroVm)
                })?;
            }
            Some(why) => println!("\nSKIPPED the whole-system suite in microVMs: {why}"),
        }
    }
    steps.print();
    Ok(())
}

/// What the tests need beside Debian's packages.
struct Tools {
    micro_vm: MicroVm,
    firecracker: Option<PathBuf>,
    debian_kernel: Option<PathBuf>,
}

impl Tools {
    fn set_up(root: &Path, args: &Args) -> Result<Self> {
        let bin = python(root)?;
        let firecracker = if args.system { None } else { firecracker::programs(root, &bin.join("python"))? };
        // Where there is no apt, or it has nothing to download from, the test that wants it says so.
        let debian_kernel = if args.system { Ok(None) } else { debian_kernel::set_up(root) };
        let debian_kernel = debian_kernel.unwrap_or_else(|error| {
            println!("Debian's kernel is not here, and its test is skipped: {error:#}");
            None
        });
        Ok(Self { micro_vm: MicroVm::set_up(root)?, firecracker, debian_kernel })
    }
}

fn lints(root: &Path) -> Result<()> {
    let all = ["clippy", "--workspace", "--all-targets", "--all-features", "--quiet", "--", "-D", "warnings"];
    run(cargo(root).args(all))?;
    // As it is built by default: without the engines that have a feature.
    run(cargo(root).args(["clippy", "-p", "emberbox", "--quiet", "--", "-D", "warnings"]))
}

/// What the whole-system suite runs in, and has the servers that some crates' tests want.
fn python(root: &Path) -> Result<PathBuf> {
    setup::python_environment(root, &root.join("tests/system/requirements.txt"))
}

/// What the suite's functions run in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    Process,
    /// By software emulation, so that every machine can. The tests of which this says nothing are left out, and named.
    MicroVm,
}

/// Builds the server with the engines that have a feature, which the suite tests as well. By the same choice of packages
/// as for the crates' tests, of which it is a part already.
fn build(root: &Path) -> Result<()> {
    run(cargo(root).args(["build", "--quiet", "--workspace", "--all-features", "--bin", "emberbox"]))
}

fn system_set_up(root: &Path) -> Result<()> {
    build(root)?;
    build_examples(root)?;
    setup::node_packages(root, &root.join("tests/system/package.json"))?;
    let emberbox = root.join("target/debug/emberbox");
    // Installed once and shared by the suite's servers: each would need a minute to install its own.
    for runtime in installable(&emberbox, &root.join("target/system"))? {
        println!("Installing runtime {runtime}");
        run(Command::new(&emberbox)
            .args(["runtime", "install", &runtime, "--data-dir"])
            .arg(root.join("target/system")))?;
    }
    Ok(())
}

fn system(root: &Path, micro_vm: &MicroVm, args: &Args, isolation: Isolation) -> Result<()> {
    let mut pytest = Command::new(python(root)?.join("python"));
    micro_vm.tell(&mut pytest)?;
    pytest.current_dir(root.join("tests/system")).args(["-m", "pytest", "--durations=20"]);
    // Each test has its own directories and ports, and what a file's tests share stays in one process.
    pytest.args(["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]);
    if isolation == Isolation::MicroVm {
        pytest.env("EMBERBOX_TEST_ISOLATION", "microvm");
    }
    if args.full {
        pytest.env("EMBERBOX_KILL_ROUNDS", "100");
    }
    if let Some(filter) = &args.filter {
        pytest.args(["-k", filter]);
    }
    let status = pytest.status().context("start pytest")?;
    // 5: a filter that leaves nothing of one of the two runs.
    let nothing = args.filter.is_some() && status.code() == Some(5);
    ensure!(status.success() || nothing, "pytest failed: {status}");
    Ok(())
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
