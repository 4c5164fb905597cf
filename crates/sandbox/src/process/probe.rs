//! What this host can do, for `emberbox doctor`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use super::cgroup::Hierarchy;
use super::pasta;

/// What this host can do for sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReport {
    /// Whether this process is root.
    pub root: bool,
    /// One for each thing that matters, in order of importance.
    pub findings: Vec<Finding>,
}

/// One thing that a host has or lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is, in a word or two.
    pub name: &'static str,
    /// Whether it can be used.
    pub ok: bool,
    /// What was found, e.g. a version.
    pub detail: String,
    /// When it is missing: what does not work, and how to get it.
    pub advice: &'static str,
}

impl HostReport {
    /// Whether process sandboxes work here at all.
    pub fn usable(&self) -> bool {
        self.findings.iter().filter(|f| matches!(f.name, "user namespaces" | "seccomp")).all(|f| f.ok)
    }
}

/// Looks at this host. Changes nothing; takes some milliseconds.
pub fn probe() -> HostReport {
    let root = rustix::process::geteuid().is_root();
    let findings = vec![
        Finding {
            name: "root",
            ok: root,
            detail: format!("uid {}", rustix::process::geteuid().as_raw()),
            advice: "without root, functions share this user's id, reach the network by pasta alone, and memory and CPU are limited only \
                     where this user may make cgroups: run as root",
        },
        user_namespaces(),
        cgroups(),
        seccomp(),
        landlock(),
        file("loop devices", "/dev/loop-control", "without, /tmp is in memory: modprobe loop, and run as root"),
        command("nft", &["--version"], "makes functions' network: apt-get install nftables, or set network = \"none\""),
        command("mkfs.ext4", &["-V"], "without, /tmp is in memory: apt-get install e2fsprogs"),
        veth(),
        without_root(root),
        file(
            "/dev/kvm",
            "/dev/kvm",
            "needed for microVM sandboxes only: enable virtualisation, or take a host with it",
        ),
    ];
    HostReport { root, findings }
}

fn user_namespaces() -> Finding {
    let output = Command::new("unshare").args(["--user", "--map-root-user", "true"]).stdin(Stdio::null()).output();
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let limit = limit.trim();
    let (ok, detail) = match output {
        Ok(output) if output.status.success() => (true, format!("up to {limit}")),
        Ok(output) => (false, String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        // No unshare program: what the kernel says of its limit is all there is.
        Err(_) => (limit.parse().is_ok_and(|limit: u64| limit > 0), format!("up to {limit}")),
    };
    Finding {
        name: "user namespaces",
        ok,
        detail,
        advice: "no process sandboxes without: sysctl -w user.max_user_namespaces=15000, kernel.unprivileged_userns_clone=1 \
                 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); in Docker: --privileged",
    }
}

fn cgroups() -> Finding {
    let found = Hierarchy::detect();
    let crowded = found.as_ref().is_some_and(|hierarchy| hierarchy.crowd > 0);
    let (ok, detail) = match found {
        Some(hierarchy) => match hierarchy.closed() {
            Some(directory) => (false, format!("this user may not write to {}", directory.display())),
            None => (hierarchy.missing.is_empty() && !crowded, hierarchy.describe()),
        },
        None => (false, "none mounted at /sys/fs/cgroup".to_owned()),
    };
    if crowded {
        return Finding {
            name: "cgroups",
            ok,
            detail,
            advice: "give those processes a group of their own, as root and before `emberbox serve`: \
                     mkdir /sys/fs/cgroup/init && for p in $(cat /sys/fs/cgroup/cgroup.procs); do \
                     echo $p > /sys/fs/cgroup/init/cgroup.procs; done",
        };
    }
    Finding {
        name: "cgroups",
        ok,
        detail,
        advice: "without, memory and CPU are not limited, and sandboxes not frozen: run as root, on a host (or in a \
                 container) with its cgroups mounted and writable",
    }
}

fn seccomp() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Finding {
        name: "seccomp",
        ok: status.contains("Seccomp:"),
        detail: fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default().trim().to_owned(),
        advice: "no process sandboxes without: a kernel with CONFIG_SECCOMP_FILTER",
    }
}

fn landlock() -> Finding {
    let abi = guest::sys::landlock_abi();
    Finding {
        name: "Landlock",
        ok: abi.is_some(),
        detail: abi.map_or_else(|| "none".to_owned(), |abi| format!("ABI {abi}")),
        advice: "one wall less without: a kernel from 5.13 on, booted with lsm=landlock,…",
    }
}

/// A module that is not loaded is loaded when it is first used, and one that is built in does not show at all: missing
/// is only what a kernel with modules has no file of.
fn veth() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = Path::new("/lib/modules").join(release);
    let listed = ["modules.dep", "modules.builtin"]
        .iter()
        .any(|file| fs::read_to_string(modules.join(file)).is_ok_and(|list| list.contains("/veth.ko")));
    let ok = listed || Path::new("/sys/module/veth").exists() || !modules.exists();
    let detail = if ok { "loaded, loadable or built in" } else { "not in this kernel" };
    let advice = "without, functions have no network: a kernel with CONFIG_VETH";
    Finding { name: "veth", ok, detail: detail.to_owned(), advice }
}

/// The network of functions where this is not root: a program, and what it takes.
fn without_root(root: bool) -> Finding {
    let advice =
        "gives network to functions without root: apt-get install passt nftables, and /dev/net/tun open to this user";
    let found = command("pasta", &["--version"], advice);
    match pasta::find() {
        Err(why) if !root => Finding { ok: false, detail: why.to_owned(), ..found },
        _ => found,
    }
}

fn file(name: &'static str, path: &str, advice: &'static str) -> Finding {
    let ok = File::options().read(true).write(true).open(path).is_ok();
    let detail = if ok { format!("{path} is there") } else { format!("{path} cannot be opened") };
    Finding { name, ok, detail, advice }
}

fn command(name: &'static str, arguments: &[&str], advice: &'static str) -> Finding {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name).args(arguments).env("PATH", path).stdin(Stdio::null()).output();
    let text = output.as_ref().map(|output| [output.stdout.as_slice(), &output.stderr].concat()).unwrap_or_default();
    let detail = String::from_utf8_lossy(&text).lines().next().unwrap_or("not installed").to_owned();
    Finding { name, ok: output.is_ok(), detail, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_something_and_says_what_to_do() {
        let report = probe();
        assert!(report.findings.iter().all(|finding| !finding.advice.is_empty()));
        assert_eq!(report.root, rustix::process::geteuid().is_root());
    }
}
