//! Removal of jails: after a VM, and of those that a killed server left. All of it blocks.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use crate::error::{Doing, Error, Result};
use crate::jailer::Swept;
use crate::process;

/// How long a killed process may take to end, and a cgroup to be empty.
const PATIENCE: Duration = Duration::from_secs(10);

/// Removes all jails in a directory that we have locked.
pub fn sweep(base: &Path, parent_cgroup: &str) -> Result<Swept> {
    let mut swept = Swept::default();
    // A directory for each name that the program had, and in it one for each jail.
    for program in directories(base)? {
        for jail in directories(&program)? {
            let id = jail.file_name().unwrap_or_default().to_string_lossy().into_owned();
            swept.processes += remove(&jail, &id, parent_cgroup, None)?;
            swept.jails.push(id);
        }
        fs::remove_dir(&program).doing(|| format!("removing {}", program.display()))?;
    }
    swept.jails.sort();
    Ok(swept)
}

/// Removes one jail: what runs in it (`process` if that is known, else what is found), its mounts, its cgroup, and its
/// directory last, so that after any interruption the next sweep finds it. Returns how many processes there were.
pub fn remove(jail: &Path, id: &str, parent_cgroup: &str, process: Option<&OwnedFd>) -> Result<usize> {
    let ended = end_processes(jail, id, process).doing(|| format!("ending the processes of jail {id}"))?;
    for mount in mounts_below(jail)? {
        rustix::mount::unmount(&mount, UnmountFlags::DETACH).doing(|| format!("unmounting {}", mount.display()))?;
    }
    for cgroup in cgroups(parent_cgroup)? {
        let cgroup = cgroup.join(id);
        remove_cgroup(&cgroup).doing(|| format!("removing the cgroup {}", cgroup.display()))?;
    }
    // Follows no link, even if something in it is exchanged meanwhile.
    match fs::remove_dir_all(jail) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::Io { doing: format!("removing {}", jail.display()), source: error })
        }
        _ => Ok(ended),
    }
}

fn end_processes(jail: &Path, id: &str, process: Option<&OwnedFd>) -> io::Result<usize> {
    if let Some(process) = process {
        // It is the first of a PID namespace: all in it end with it.
        process::end(process, PATIENCE)?;
        return Ok(1);
    }
    let mut ended = 0;
    let start = Instant::now();
    // Again until there is none: a jailer may have started its child meanwhile.
    loop {
        let found = process::all_of(&jail.join("root"), id)?;
        if found.is_empty() {
            return Ok(ended);
        }
        for process in &found {
            process::end(process, PATIENCE.saturating_sub(start.elapsed()))?;
            ended += 1;
        }
    }
}

/// Removes the parent of all VMs' cgroups if it is empty.
pub fn remove_parent_cgroup(parent: &str) {
    for cgroup in cgroups(parent).unwrap_or_default() {
        let _ = fs::remove_dir(cgroup);
    }
}

fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // The kernel counts a process that has ended for a moment more.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
}

/// Where a cgroup of this name can be: once in each hierarchy.
fn cgroups(parent: &str) -> Result<Vec<PathBuf>> {
    let mounts = read_mounts()?;
    let hierarchies = mounts.iter().filter(|(_, kind)| kind == "cgroup" || kind == "cgroup2");
    Ok(hierarchies.map(|(path, _)| path.join(parent)).collect())
}

/// Those mounted last come first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mounts = read_mounts()?.into_iter().rev();
    Ok(mounts.map(|(path, _)| path).filter(|path| path.starts_with(directory)).collect())
}

fn read_mounts() -> Result<Vec<(PathBuf, String)>> {
    let path = "/proc/self/mounts";
    Ok(parse_mounts(&fs::read_to_string(path).doing(|| format!("reading {path}"))?))
}

/// Mount points and types of file systems.
fn parse_mounts(mounts: &str) -> Vec<(PathBuf, String)> {
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        Some((unescape(fields.next()?), fields.next()?.to_owned()))
    };
    mounts.lines().filter_map(parse).collect()
}

/// The kernel writes white space and backslashes as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = rest.get(1..4).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &rest[4..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

fn directories(path: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("reading {}", path.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(path).doing(doing)? {
        let entry = entry.doing(doing)?;
        // Not through a symbolic link.
        if entry.file_type().doing(doing)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_with_odd_names() {
        let text = "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n/dev/vda /a\\040b\\134\\011c ext4 rw 0 0\nodd\n";
        let expected = [("/sys/fs/cgroup/pids", "cgroup"), ("/a b\\\tc", "ext4")];
        assert_eq!(parse_mounts(text), expected.map(|(path, kind)| (PathBuf::from(path), kind.to_owned())));
        assert_eq!(unescape("/x\\04"), Path::new("/x\\04"));
    }

    #[test]
    fn a_sweep_removes_directories_and_nothing_behind_links() {
        let base = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let root = base.path().join("firecracker/vm-1/root");
        fs::create_dir_all(&root).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("link")).unwrap();
        fs::create_dir_all(base.path().join("firecracker-old/vm-0")).unwrap();
        let swept = sweep(base.path(), "emberbox-none").unwrap();
        assert_eq!(swept, Swept { jails: vec!["vm-0".into(), "vm-1".into()], processes: 0 });
        assert!(directories(base.path()).unwrap().is_empty());
        assert!(outside.path().join("kept").exists());
    }
}
