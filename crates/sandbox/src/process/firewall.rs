//! What a sandbox can reach, as one table of the kernel's packet filter.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::config::{Destination, Egress};

/// Never reached unless allowed: this network, private, CGNAT, loopback, link-local (with the metadata services of
/// clouds), protocol assignments, documentation, benchmarks, multicast, reserved, broadcast.
const FORBIDDEN: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, \
     192.0.2.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/3";

/// The helper has no environment.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Most connections of one sandbox at once that the host keeps track of: it has room for some hundred thousand.
const CONNECTIONS: u32 = 4096;

/// The table of an instance.
#[derive(Debug)]
pub struct Firewall {
    table: String,
}

impl Firewall {
    /// Of instance `instance`, whether it is there or not.
    pub fn of(instance: u32) -> Self {
        Self { table: format!("emberbox_{instance}") }
    }

    /// Makes it, in place of one that a dead instance left. `prefix`: what the names of this instance's devices begin
    /// with.
    pub fn install(&self, egress: &Egress, dns: &[IpAddr], prefix: &str) -> io::Result<()> {
        nft(&self.rules(egress, dns, prefix))
    }

    /// Removes it, if it is there.
    pub fn remove(&self) -> io::Result<()> {
        // Made first: removing what is not there is an error.
        nft(&format!("table inet {0}\ndelete table inet {0}\n", self.table))
    }

    fn rules(&self, egress: &Egress, dns: &[IpAddr], prefix: &str) -> String {
        let allowed = allowed(egress, dns);
        let (table, pool) = (&self.table, egress.pool);
        format!(
            r#"table inet {table}
delete table inet {table}
table inet {table} {{
  set connections {{
    type ipv4_addr
    flags dynamic
  }}
  chain from_sandbox {{
    meta nfproto ipv6 drop
    fib saddr . iif oif missing drop
    oifname "ebox*" reject with icmpx admin-prohibited
    ct state established,related accept
    ct state new add @connections {{ ip saddr ct count over {CONNECTIONS} }} reject with icmpx admin-prohibited
{allowed}    ip daddr {{ {FORBIDDEN} }} reject with icmpx admin-prohibited
    fib daddr type != unicast reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority -5; policy accept;
    iifname "{prefix}*" goto from_sandbox
    oifname "{prefix}*" ct state established,related accept
    oifname "{prefix}*" drop
  }}
  chain input {{
    type filter hook input priority -5; policy accept;
    iifname "{prefix}*" jump to_host
  }}
  chain to_host {{
    meta nfproto ipv6 drop
    fib saddr . iif oif missing drop
    ct state established,related accept
{allowed}    reject with icmpx admin-prohibited
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {pool} iifname "{prefix}*" masquerade
  }}
}}
"#
        )
    }
}

/// The rules that come before the forbidding ones.
fn allowed(egress: &Egress, dns: &[IpAddr]) -> String {
    let mut allowed = String::new();
    for Destination { range, port } in &egress.allow {
        match port {
            None => writeln!(allowed, "    ip daddr {range} accept"),
            Some(port) => {
                writeln!(allowed, "    ip daddr {range} meta l4proto {{ tcp, udp }} th dport {port} accept")
            }
        }
        .expect("a String takes everything");
    }
    for server in dns {
        if let IpAddr::V4(server) = server {
            writeln!(allowed, "    ip daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept")
                .expect("a String takes everything");
        }
    }
    allowed
}

/// The same filter for the inside of a network namespace, from which no other filter stands between a function and the
/// host's network.
pub fn rules_inside(egress: &Egress, dns: &[IpAddr]) -> String {
    let allowed = allowed(egress, dns);
    format!(
        r#"table inet emberbox {{
  chain output {{
    type filter hook output priority 0; policy accept;
    oifname "lo" accept
    meta nfproto ipv6 drop
{allowed}    ip daddr {{ {FORBIDDEN} }} reject with icmpx admin-prohibited
    fib daddr type != unicast reject with icmpx admin-prohibited
  }}
}}
"#
    )
}

/// Lets the host pass packets on. Global, hence said by `describe`.
pub fn enable_forwarding() -> io::Result<()> {
    let file = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(file)?.trim() == "0" {
        fs::write(file, "1")?;
    }
    Ok(())
}

/// Whether another packet filter on this host (Docker's, mostly) drops what it does not know, which an accepting table
/// cannot undo. Then says how to let sandboxes through.
pub fn obstacle() -> Option<String> {
    let listing = Command::new("nft").args(["list", "ruleset"]).env("PATH", PATH).output().ok()?;
    has_dropping_forward(&String::from_utf8_lossy(&listing.stdout)).then(|| {
        "network: another packet filter of this host drops forwarded packets by default; to let functions out: \
             iptables -I FORWARD -i ebox+ -j ACCEPT; \
             iptables -I FORWARD -o ebox+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
            .to_owned()
    })
}

fn has_dropping_forward(ruleset: &str) -> bool {
    ruleset.lines().any(|line| line.contains("hook forward") && line.contains("policy drop"))
}

/// The host's name servers that a sandbox can reach: not those on its loopback.
pub fn host_name_servers() -> Vec<IpAddr> {
    // A stub on loopback is in resolv.conf where systemd resolves; the servers behind it are in the other file.
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
        .iter()
        .map(|file| name_servers(&fs::read_to_string(file).unwrap_or_default()))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

fn name_servers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|server| server.trim().parse().ok())
        .filter(|server: &IpAddr| !server.is_loopback() && server.is_ipv4())
        .collect()
}

/// Has nft carry out a script, in the network namespace of the caller.
pub fn nft(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("stdin was asked for").write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_comes_before_what_is_forbidden() {
        let egress = Egress { allow: vec!["10.1.2.3:5432".parse().unwrap()], ..Egress::default() };
        let rules = Firewall::of(7).rules(&egress, &["10.0.0.53".parse().unwrap()], "ebox7-");
        let position = |text: &str| rules.find(text).unwrap_or_else(|| panic!("{text} in {rules}"));
        let forbidden = position("ip daddr { 0.0.0.0/8");
        assert!(position("ip daddr 10.1.2.3/32 meta l4proto { tcp, udp } th dport 5432 accept") < forbidden);
        assert!(position("ip daddr 10.0.0.53 meta l4proto { tcp, udp } th dport 53 accept") < forbidden);
        assert!(rules.contains("table inet emberbox_7 {"));
    }

    #[test]
    fn sees_a_filter_that_drops() {
        assert!(has_dropping_forward("type filter hook forward priority filter; policy drop;"));
        assert!(!has_dropping_forward("type filter hook forward priority filter; policy accept;"));
    }

    #[test]
    fn a_name_server_on_loopback_is_of_no_use() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\noptions edns0\n";
        assert_eq!(name_servers(text), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    }
}
