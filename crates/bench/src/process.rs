//! Child processes that never outlive the benchmark, and what /proc says of them.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A child, ended when it is dropped.
pub struct Child {
    child: std::process::Child,
    name: String,
    lines: mpsc::Receiver<String>,
}

impl Child {
    /// Starts it with its output read and its standard error as the command says.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
        let stdout = child.stdout.take().context("its output was piped")?;
        let (sender, lines) = mpsc::channel();
        // Reads to the end, so that the child never waits for a reader.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self { child, name, lines })
    }

    /// What follows `prefix` in the first line that has it.
    pub fn wait_for_line(&mut self, prefix: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some((_, rest)) = line.split_once(prefix) {
                        return Ok(rest.split_whitespace().next().unwrap_or_default().to_owned());
                    }
                }
                Err(_) => bail!("{} printed no {prefix} within {limit:?}", self.name),
            }
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and SIGKILL if that is not enough.
    fn end(&mut self) {
        let pid = Pid::from_child(&self.child);
        // It may have ended on its own.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// `pid` and every process below it.
pub fn tree(pid: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        let Some(id) = entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        // It may have ended meanwhile.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut tree = vec![pid];
    let mut at = 0;
    while let Some(pid) = tree.get(at) {
        tree.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    Ok(tree)
}

/// The process's name: the kernel's, at most 15 bytes.
pub fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Processor time that a process and its children that have ended took. The kernel tells it in ticks, hundredths of a second.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name may have anything in it but stands in brackets. utime, stime, cutime and cstime are fields 14 to 17.
    let (_, rest) = stat.rsplit_once(") ").with_context(|| format!("{path} is no status"))?;
    let ticks: u64 = rest.split(' ').skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Resident memory of a process in bytes, all shared pages counted in full.
pub fn rss(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Its proportional share of resident memory in bytes: the sum over processes is what they take together.
pub fn pss(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Resident memory of a VM in bytes, as its emulator has it: a memory file.
pub fn guest_memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mut of_guest = false;
    let mut kb = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if of_guest => kb += words.next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0),
            Some(first) if !first.ends_with(':') => of_guest = line.contains("memfd:memory"),
            _ => {}
        }
    }
    Ok(kb * 1024)
}

/// Memory of a process that is in no file, in bytes.
pub fn anonymous(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/status"), "RssAnon:")
}

/// Memory that the kernel itself uses, in bytes: slab, stacks, page tables, per-CPU.
pub fn kernel_memory() -> Result<u64> {
    ["Slab:", "KernelStack:", "PageTables:", "Percpu:"].iter().map(|name| field("/proc/meminfo", name)).sum()
}

fn field(path: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let kb = text.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kb.with_context(|| format!("{path} has no {name}"))? * 1024)
}
