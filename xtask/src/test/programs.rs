//! The test programs of the workspace, two at a time: most of them wait more than they compute, and `cargo test` runs one
//! after the other.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Those that use up the host's memory, or measure it, or emulate a machine beside which others come late: they run after all
/// others, alone.
const ALONE: &[&str] = &["sandbox::process", "sandbox::microvm", "worker::snap_start"];
/// Those that take longest: they begin first, so that none runs on by itself.
const FIRST: &[&str] = &["runtimes::install", "images::image", "event-queue::sqs"];
/// How many of the slowest are named at the end.
const SLOWEST: usize = 8;

/// Tells a program what its tests need to know.
type Prepare<'a> = dyn Fn(&mut Command) -> Result<()> + Sync + 'a;

/// A test program as cargo has built it.
#[derive(Debug)]
struct Program {
    /// `crate::target`.
    name: String,
    executable: PathBuf,
    /// Its crate's folder, in which cargo would start it.
    folder: PathBuf,
}

/// Builds and runs all, and the examples in the documentation. `prepare` tells each run what the tests need to know.
///
/// # Errors
/// Names the programs that failed; their output stands above.
pub fn run(cargo: impl Fn() -> Command, prepare: &Prepare) -> Result<()> {
    let all = ["test", "--workspace", "--all-features", "--quiet"];
    let programs = build(cargo().args(all))?;
    let (alone, mut together): (Vec<_>, Vec<_>) =
        programs.into_iter().partition(|program| ALONE.contains(&program.name.as_str()));
    together.sort_by_key(|program| !FIRST.contains(&program.name.as_str()));
    let mut done = lanes(together, 2, prepare)?;
    done.extend(lanes(alone, 1, prepare)?);
    done.sort_by(|a, b| b.1.total_cmp(&a.1));
    println!("{:>8}  the slowest of {} test programs", "seconds", done.len());
    for (name, seconds, _) in done.iter().take(SLOWEST) {
        println!("{seconds:>8.1}  {name}");
    }
    let failed: Vec<&str> = done.iter().filter(|(_, _, passed)| !passed).map(|(name, ..)| name.as_str()).collect();
    ensure!(failed.is_empty(), "tests failed in: {}", failed.join(", "));
    crate::run(cargo().args(all).arg("--doc"))
}

/// What has been run: name, seconds, whether it passed.
type Done = (String, f64, bool);

fn lanes(programs: Vec<Program>, lanes: usize, prepare: &Prepare) -> Result<Vec<Done>> {
    let waiting = Mutex::new(VecDeque::from(programs));
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let lane = || -> Result<()> {
            loop {
                let Some(program) = waiting.lock().expect("no lane panics").pop_front() else { return Ok(()) };
                let start = Instant::now();
                let (text, passed) = execute(&program, prepare)?;
                let mut done = done.lock().expect("no lane panics");
                // All of it at once, so that two do not mix.
                println!("{}\n{text}", program.name);
                done.push((program.name, start.elapsed().as_secs_f64(), passed));
            }
        };
        let running: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        running.into_iter().try_for_each(|lane| lane.join().expect("no lane panics"))
    })?;
    Ok(done.into_inner().expect("no lane panics"))
}

/// Its output, and whether it passed.
fn execute(program: &Program, prepare: &Prepare) -> Result<(String, bool)> {
    let folder = program.executable.parent().context("a program lies in a folder")?.join("output");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    // No pipe, which something that a test has left behind could keep open.
    let path = folder.join(program.name.replace("::", "-"));
    let output = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let mut command = Command::new(&program.executable);
    command.current_dir(&program.folder).arg("--quiet").stdin(Stdio::null());
    command.stdout(output.try_clone().context("copy a descriptor")?).stderr(output);
    prepare(&mut command)?;
    let status = command.status().with_context(|| format!("start {}", program.executable.display()))?;
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok((String::from_utf8_lossy(&text).trim().to_owned(), status.success()))
}

/// What cargo builds for this `cargo test`.
fn build(command: &mut Command) -> Result<Vec<Program>> {
    command.args(["--no-run", "--message-format=json-render-diagnostics"]).stdout(Stdio::piped());
    let mut child = command.spawn().context("start cargo")?;
    let mut programs = Vec::new();
    for line in BufReader::new(child.stdout.take().context("its output was piped")?).lines() {
        let message: Value =
            serde_json::from_str(&line.context("reading cargo's messages")?).context("cargo's message")?;
        programs.extend(program(&message));
    }
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("the tests cannot be built: {status}");
    }
    Ok(programs)
}

/// The test program that a message of cargo's is about.
fn program(message: &Value) -> Option<Program> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let of = folder.file_name()?.to_string_lossy().into_owned();
    let name = format!("{of}::{}", message["target"]["name"].as_str()?);
    Some(Program { name, executable: message["executable"].as_str()?.into(), folder })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn test_programs_are_told_from_the_rest() {
        let message = |test: bool, executable: Value| {
            json!({
                "reason": "compiler-artifact", "manifest_path": "/r/crates/sandbox/Cargo.toml", "executable": executable,
                "target": { "name": "process" }, "profile": { "test": test },
            })
        };
        let found = program(&message(true, json!("/r/target/debug/deps/process-1"))).unwrap();
        assert_eq!((found.name.as_str(), found.folder.to_str()), ("sandbox::process", Some("/r/crates/sandbox")));
        assert!(program(&message(false, json!("/r/target/debug/emberbox"))).is_none());
        assert!(program(&message(true, Value::Null)).is_none());
        assert!(program(&json!({ "reason": "build-finished" })).is_none());
    }
}
