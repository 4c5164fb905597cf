//! A way out for sandboxes that are made without root: one `pasta` process for each.
//!
//! It passes a sandbox's connections on as the user's own. So the packet filter has to stand inside the sandbox's network
//! namespace; functions cannot change it, since they have no capability there either.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use guest::protocol::{During, Failure};
use guest::sys::{self, Cloned};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};

use super::firewall;

const PLACES: [&str; 3] = ["/usr/bin/pasta", "/usr/local/bin/pasta", "/bin/pasta"];
/// IPv4 only, no ports forwarded in either direction, no way to the host's loopback by the gateway's address.
const OPTIONS: [&str; 17] = [
    "-f",
    "-q",
    "-4",
    "--config-net",
    "--no-map-gw",
    "-I",
    "eth0",
    "-t",
    "none",
    "-u",
    "none",
    "-T",
    "none",
    "-U",
    "none",
    "-m",
    "1500",
];

/// The program, if it and what it needs are there for this user. The error says, in words, what is missing.
pub fn find() -> Result<PathBuf, &'static str> {
    let program = PLACES.iter().map(PathBuf::from).find(|path| path.exists());
    let program = program.ok_or("pasta (package passt) is not installed")?;
    if !["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].iter().any(|path| Path::new(path).exists()) {
        return Err("nft (package nftables) is not installed");
    }
    if File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        return Err("this user cannot open /dev/net/tun");
    }
    Ok(program)
}

/// Whether the host has a way out now, without which pasta ends at once: a laptop that is offline still runs functions.
pub fn host_is_connected() -> bool {
    std::fs::read_to_string("/proc/net/route").is_ok_and(|table| has_default_route(&table))
}

/// Flags of routes, `RTF_UP` and `RTF_REJECT`.
const UP: u32 = 0x0001;
const REJECT: u32 = 0x0200;

/// Looks for a route to everywhere in the kernel's table of IPv4 routes.
fn has_default_route(table: &str) -> bool {
    // Interface, destination, gateway, flags, three counters, mask.
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let flags = fields.get(3).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
        fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000") && flags & (UP | REJECT) == UP
    })
}

/// What it takes to connect sandboxes.
#[derive(Debug)]
pub struct Pasta {
    program: PathBuf,
    /// Script for nft.
    filter: String,
}

impl Pasta {
    /// Looks for it. The error says, in words, what is missing.
    pub fn find(filter: String) -> Result<Self, &'static str> {
        Ok(Self { program: find()?, filter })
    }

    /// Connects the network namespace of process `pid`, as a sibling of the caller. Returns before it is connected: see
    /// `Prepare::await_route`. The connection ends with the returned process.
    pub fn connect(&self, pid: i32) -> Result<OwnedFd, Failure> {
        self.raise_filter(pid)?;
        let namespaces = [format!("--userns=/proc/{pid}/ns/user"), format!("--netns=/proc/{pid}/ns/net")];
        let arguments = OPTIONS.iter().copied().chain(namespaces.iter().map(String::as_str));
        let c_string = |text: &str| CString::new(text).expect("no zero bytes in these");
        let program = c_string(&self.program.to_string_lossy());
        let argv: Vec<CString> = std::iter::once("pasta").chain(arguments).map(c_string).collect();
        match sys::clone(libc::CLONE_PARENT).during("fork for pasta")? {
            Cloned::Child => {
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                if let Ok(null) = File::options().write(true).open("/dev/null") {
                    let _ = rustix::stdio::dup2_stderr(&null);
                }
                sys::close_on_exec_from(3);
                // It insists on nobody having ignored SIGPIPE, as Rust does.
                sys::reset_signals();
                sys::execve(&program, &argv, &[]);
                sys::exit(127)
            }
            Cloned::Parent { pidfd, .. } => Ok(pidfd),
        }
    }

    /// Puts the packet filter into the network namespace of process `pid`.
    fn raise_filter(&self, pid: i32) -> Result<(), Failure> {
        let child = match sys::clone(0).during("fork for nft")? {
            Cloned::Child => sys::exit(i32::from(self.filter_in(pid).is_err())),
            Cloned::Parent { pid, .. } => pid,
        };
        let ended = rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty()).during("wait for nft")?;
        if ended.and_then(|(_, status)| status.exit_status()) == Some(0) {
            return Ok(());
        }
        let error = std::io::Error::from_raw_os_error(libc::EPERM);
        Err(Failure::host("set up the packet filter inside a sandbox with nft", &error))
    }

    fn filter_in(&self, pid: i32) -> std::io::Result<()> {
        for (name, kind) in [("user", LinkNameSpaceType::User), ("net", LinkNameSpaceType::Network)] {
            let namespace = File::open(format!("/proc/{pid}/ns/{name}"))?;
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))?;
        }
        // Not root inside: nft has only what is handed on.
        let all = rustix::thread::capabilities(None)?.permitted;
        let handed = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        rustix::thread::set_capabilities(None, CapabilitySets { effective: all, permitted: all, inheritable: handed })?;
        for capability in [CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW] {
            rustix::thread::configure_capability_in_ambient_set(capability, true)?;
        }
        firewall::nft(&self.filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_told_from_others() {
        const HEAD: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let table = |line: &str| format!("{HEAD}docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n{line}");
        assert!(has_default_route(&table("eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n")));
        // None; half of everything, as VPNs have it; one that is down; one that refuses.
        assert!(!has_default_route(&table("")) && !has_default_route(""));
        assert!(!has_default_route(&table("tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n")));
        assert!(!has_default_route(&table("eth0\t00000000\t0101A8C0\t0002\t0\t0\t100\t00000000\t0\t0\t0\n")));
        assert!(!has_default_route(&table("*\t00000000\t00000000\t0201\t0\t0\t100\t00000000\t0\t0\t0\n")));
    }
}
