//! Processes by descriptor, so that a reused id is never mistaken for one of ours.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

/// A descriptor of a process; [`io::ErrorKind::Other`] (ESRCH) if there is none.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// Kills it and waits until it has ended.
pub fn end(process: &OwnedFd, limit: Duration) -> io::Result<()> {
    // An error is that it has ended already.
    let _ = pidfd_send_signal(process, Signal::KILL);
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    if poll(&mut polled, Some(&limit))? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "a killed process did not end"));
    }
    reap(process);
    Ok(())
}

/// Whether it has.
pub fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready == 1)
}

/// Firecracker is a child of the jailer, and of init, or its next subreaper, after it. That can be us: in a container
/// that has nothing above us. It would stay a zombie then.
pub fn reap(process: &OwnedFd) {
    let _ = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

/// Whether this process has `root` as its root directory.
pub fn is_in(pid: i32, root: &Path) -> bool {
    // Through the link, which leads to the directory in whatever mount namespace it is.
    let of = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let theirs = of(Path::new(&format!("/proc/{pid}/root/")));
    theirs.is_some() && theirs == of(root)
}

/// All that have `root` as their root directory, and jailers on their way there. The latter are known by their command
/// line, which names the jail.
pub fn all_of(root: &Path, id: &str) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(process) = open(pid) else { continue };
        // After the descriptor was opened: what is found out now is true of its process.
        if is_in(pid, root) || is_jailer_of(pid, root, id) {
            found.push(process);
        }
    }
    Ok(found)
}

fn is_jailer_of(pid: i32, root: &Path, id: &str) -> bool {
    let Some(base) = root.ancestors().nth(3) else { return false };
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let has = |name: &str, value: &[u8]| arguments.windows(2).any(|pair| pair == [name.as_bytes(), value]);
    has("--id", id.as_bytes()) && has("--chroot-base-dir", base.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_jailer_is_known_by_its_command_line_and_ended() {
        // A process that has these arguments, which it ignores.
        let mut child = Command::new("sh")
            .args(["-c", "read line", "jailer", "--id", "vm-1", "--chroot-base-dir", "/var/none", "--uid", "1"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let root = |base: &str| Path::new(base).join("firecracker/vm-1/root");
        assert!(all_of(&root("/var/none"), "vm-2").unwrap().is_empty());
        assert!(all_of(&root("/var/other"), "vm-1").unwrap().is_empty());
        let found = all_of(&root("/var/none"), "vm-1").unwrap();
        assert_eq!(found.len(), 1);
        end(&found[0], Duration::from_secs(10)).unwrap();
        assert!(all_of(&root("/var/none"), "vm-1").unwrap().is_empty());
        // Reaped already, as it was our child.
        assert!(child.wait().is_err());
    }
}
