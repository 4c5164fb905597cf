//! What a blank sandbox is given: its limits, its files, its listeners, and perhaps a standby first.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use guest::protocol::{During, Failure, Request, SetUp};
use guest::sys;
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use super::Helper;
use crate::api::LINK_ADDRESS;
use crate::process::blank::Blank;
use crate::process::messages::Spec;
use crate::process::standbys::Kind;

impl Helper {
    /// Gives a blank sandbox its limits, its files and its listeners.
    pub(super) fn assign(&self, blank: &Blank, spec: &Spec) -> Result<(), Failure> {
        limit(blank, spec)?;
        self.furnish(blank, &spec.root, spec.ephemeral_mb, &spec.mounts, |targets| SetUp {
            targets,
            hosts: hosts_file(&spec.hosts),
            resolv_conf: resolv_conf(&self.dns),
            listen: spec.listen.clone(),
            standby: None,
        })
    }

    /// Gives a blank sandbox all but what is the function's own, and has it start its standby.
    pub(super) fn prepare(&self, blank: &Blank, kind: &Kind) -> Result<(), Failure> {
        self.furnish(blank, &kind.root, kind.ephemeral_mb, &kind.mounts, |targets| SetUp {
            targets,
            hosts: hosts_file(&kind.hosts),
            resolv_conf: resolv_conf(&self.dns),
            listen: kind.listen.clone(),
            standby: Some(kind.spawn.clone()),
        })
    }

    /// Gives a sandbox with a standby the rest.
    pub(super) fn complete(&self, blank: &Blank, spec: &Spec) -> Result<(), Failure> {
        limit(blank, spec)?;
        let there = spec.standby.as_ref().map_or(0, |(_, mounts)| *mounts);
        let rest = &spec.mounts[there..];
        let mounts = self.read_only_mounts(blank, rest)?;
        send(blank, &Request::Complete { targets: targets(rest) }, &mounts)
    }

    fn furnish(
        &self,
        blank: &Blank,
        root: &Path,
        tmp_mb: u32,
        directories: &[(PathBuf, String)],
        message: impl FnOnce(Vec<String>) -> SetUp,
    ) -> Result<(), Failure> {
        let tmp = if blank.tmp_mb == tmp_mb {
            blank.tmp.try_clone().during("copy a descriptor")?
        } else {
            self.pattern.scratch.make(tmp_mb, self.pattern.owner(blank.slot))?
        };
        let root = read_only(root, self.id_map(blank)).during(format!("mount {}", root.display()))?;
        let mut mounts = vec![root, tmp];
        mounts.extend(self.read_only_mounts(blank, directories)?);
        send(blank, &Request::SetUp(message(targets(directories))), &mounts)
    }

    fn read_only_mounts(&self, blank: &Blank, directories: &[(PathBuf, String)]) -> Result<Vec<OwnedFd>, Failure> {
        let mount = |(source, target): &(PathBuf, String)| {
            read_only(source, self.id_map(blank)).during(format!("mount {} on {target}", source.display()))
        };
        directories.iter().map(mount).collect()
    }

    fn id_map<'a>(&self, blank: &'a Blank) -> Option<BorrowedFd<'a>> {
        self.pattern.privileged.then(|| blank.user_namespace.as_fd())
    }
}

/// A mount of a host directory that can be read only, and attached in a sandbox. Where the file system can, its files
/// show the owners that they have for the host.
fn read_only(path: &Path, id_map: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mount = rustix::mount::open_tree(CWD, path, flags)?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if id_map.is_some() && sys::mount_setattr(&mount, attributes, true, id_map).is_ok() {
        return Ok(mount);
    }
    sys::mount_setattr(&mount, attributes, true, None)?;
    Ok(mount)
}

fn limit(blank: &Blank, spec: &Spec) -> Result<(), Failure> {
    let Some(group) = &blank.group else { return Ok(()) };
    group.limit(spec.memory_mb, spec.vcpus).during("limit a sandbox")
}

fn send(blank: &Blank, request: &Request, mounts: &[OwnedFd]) -> Result<(), Failure> {
    let descriptors: Vec<BorrowedFd<'_>> = mounts.iter().map(|mount| mount.as_fd()).collect();
    blank.control.send(request, &descriptors).during("speak to PID 1")
}

fn targets(mounts: &[(PathBuf, String)]) -> Vec<String> {
    mounts.iter().map(|(_, target)| target.clone()).collect()
}

/// Contents of `/etc/resolv.conf`.
pub fn resolv_conf(dns: &[IpAddr]) -> String {
    dns.iter().fold(String::new(), |text, server| text + &format!("nameserver {server}\n"))
}

/// Contents of `/etc/hosts`.
pub fn hosts_file(more: &[(IpAddr, String)]) -> String {
    let mut text = format!("127.0.0.1 localhost localhost.localdomain\n{LINK_ADDRESS} sandbox.localdomain sandbox\n");
    for (address, name) in more {
        writeln!(text, "{address} {name}").expect("a String takes everything");
    }
    text
}
