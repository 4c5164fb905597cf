//! The memory of a sandbox where no cgroup measures it: what the kernel knows of its processes.
//!
//! Less exact than a cgroup: what processes share counts for each, files in `/tmp` and processes that have ended count not
//! at all.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

const PROC: &str = "/proc";

/// The number of a process, by the caller's counting. None of one that has ended.
pub fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    field(&text, "Pid:").filter(|pid| *pid > 0).and_then(|pid| i32::try_from(pid).ok())
}

/// How many processes are counted, and the children of how many threads are looked for. A function may have 1,024 of both, and this is
/// work of the host's for each invocation, outside of the function's own limits.
const PROCESSES: usize = 64;
const THREADS: usize = 256;

/// The sum of the most memory that each descendant of process `init` has had at once, in bytes: of the nearest ones, where there are very
/// many. Zero where `/proc` does not tell, as with `hidepid`.
pub fn of_descendants(init: i32) -> u64 {
    descendants(init).into_iter().map(of).sum()
}

/// Parents before their children.
fn descendants(init: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut threads = THREADS;
    let mut parent = init;
    // They change while they are counted: nobody is counted for ever.
    for place in 0..PROCESSES {
        found.extend(children(parent, &mut threads));
        found.truncate(PROCESSES);
        let Some(next) = found.get(place) else { break };
        parent = *next;
    }
    found
}

/// Those of its first threads, which `threads` bounds and which are taken from it.
fn children(pid: i32, threads: &mut usize) -> Vec<i32> {
    let tasks = fs::read_dir(Path::new(PROC).join(pid.to_string()).join("task")).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for task in tasks.take(*threads) {
        *threads -= 1;
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    found
}

fn of(pid: i32) -> u64 {
    let status = fs::read_to_string(Path::new(PROC).join(pid.to_string()).join("status")).unwrap_or_default();
    let kibibytes = field(&status, "VmHWM:").and_then(|size| u64::try_from(size).ok());
    kibibytes.unwrap_or(0) * 1024
}

/// The number after `name` in lines of `name number`.
fn field(text: &str, name: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_childs_peak_is_read_and_an_end_is_no_error() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Until it has grown.
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let number = i32::try_from(child.id()).unwrap();
        assert!(children(pid, &mut 1000).contains(&number));
        let pidfd = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pidfd, rustix::process::PidfdFlags::empty()).unwrap();
        assert_eq!(pid_of(&pidfd), Some(number));
        let peak = of(number);
        assert!(peak > 100 * 1024 && of_descendants(pid) >= peak);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!((pid_of(&pidfd), of(number), of_descendants(number)), (None, 0, 0));
    }

    #[test]
    fn no_more_are_counted_than_so_many() {
        let script = "for n in $(seq 100); do cat & done; echo; cat";
        let mut parent =
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // All are there with the line.
        parent.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = i32::try_from(parent.id()).unwrap();
        assert!(children(pid, &mut 1000).len() >= 100);
        assert_eq!(descendants(pid).len(), PROCESSES);
        let mut threads = 0;
        assert_eq!((children(pid, &mut threads), threads), (vec![], 0));
        drop(parent.stdin.take());
        parent.wait().unwrap();
    }

    #[test]
    fn fields_are_found() {
        let status = "Name:\tcat\nVmPeak:\t  9000 kB\nVmHWM:\t  1234 kB\n";
        assert_eq!(
            (field(status, "VmHWM:"), field(status, "VmSwap:"), field("Pid:\t-1\n", "Pid:")),
            (Some(1234), None, Some(-1))
        );
    }
}
