//! What a function in a VM can reach, and what not.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Trial;
use rustix::thread::LinkNameSpaceType;
use sandbox::process::{Egress, Network, Range};
use sandbox::{ExitStatus, SandboxEngine};

use crate::support::{Guest, Host, test_with};

/// What these tests take besides.
pub const PROGRAMS: &[&str] = &["nft", "ip"];

pub fn tests() -> Vec<Trial> {
    vec![test_with(PROGRAMS, "microvm_network_egress", egress), test_with(PROGRAMS, "microvm_network_none", none)]
}

/// Another host: a network namespace with an address that is forbidden unless allowed.
struct Elsewhere {
    name: String,
}

impl Elsewhere {
    const HERE: &str = "198.51.100.1/30";
    const THERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

    fn start() -> Self {
        let number = std::process::id() % 100_000;
        let (name, link) = (format!("elsewhere-{number}"), format!("elsew{number}"));
        let elsewhere = Self { name: name.clone() };
        let in_there = ["netns", "exec", &name, "ip"];
        let address = format!("{}/30", Self::THERE);
        for arguments in [
            &["netns", "add", &name][..],
            &["link", "add", &link, "type", "veth", "peer", "name", "there", "netns", &name],
            &["address", "add", Self::HERE, "dev", &link],
            &["link", "set", &link, "up"],
            &[&in_there[..], &["address", "add", &address, "dev", "there"]].concat(),
            &[&in_there[..], &["link", "set", "there", "up"]].concat(),
            &[&in_there[..], &["route", "add", "default", "via", "198.51.100.1"]].concat(),
        ] {
            assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
        }
        elsewhere
    }

    /// Does something there.
    fn there<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        let thread = std::thread::spawn(move || {
            use std::os::fd::AsFd;
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // The link goes with it.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Addresses for one test, by which its devices and rules are known.
pub fn pool(number: u32) -> Range {
    format!("100.{}.0.0/16", 100 + number).parse().unwrap()
}

/// The devices of the host with such an address.
pub fn devices(number: u32) -> Vec<String> {
    let listing = Command::new("ip").args(["-oneline", "-4", "address"]).output().unwrap();
    let word = format!(" {}.", pool(number).to_string().trim_end_matches(".0.0/16"));
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    listing.lines().filter(|line| line.contains(&word)).map(str::to_owned).collect()
}

/// Whether there are rules of these tests.
pub fn is_filtered(number: u32) -> bool {
    let rules = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    String::from_utf8_lossy(&rules.stdout).contains(&pool(number).to_string())
}

async fn address_of(guest: &mut Guest) -> Ipv4Addr {
    let (text, _) = guest.inside(&["address"]).await;
    text.trim().parse().unwrap_or_else(|_| panic!("{text}"))
}

async fn egress() {
    let elsewhere = Elsewhere::start();
    let there = Elsewhere::THERE;
    let (allowed, words) = elsewhere.there(|| {
        loop {
            // The same port for both, as the permission will be.
            let allowed = TcpListener::bind("0.0.0.0:0").unwrap();
            if let Ok(words) = UdpSocket::bind(allowed.local_addr().unwrap()) {
                break (allowed, words);
            }
        }
    });
    let forbidden = elsewhere.there(|| TcpListener::bind("0.0.0.0:0").unwrap());
    // The host's own, on all its addresses.
    let own = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let permission = format!("{there}:{}", port(&allowed));
    let egress =
        Egress { allow: vec![permission.parse().unwrap()], dns: vec!["198.51.100.53".parse().unwrap()], pool: pool(0) };
    let host = Host::start_with(Network::Egress(egress)).await;
    let (mut guest, mut neighbour) = (host.guest().await, host.guest().await);
    let (address, other) = (address_of(&mut guest).await, address_of(&mut neighbour).await);
    assert_ne!(address, other);
    let gateway = Ipv4Addr::from(u32::from(address) - 1);

    assert_eq!(guest.inside(&["connect", &permission]).await.0, "connected\n");
    let (_, seen) = allowed.accept().unwrap();
    assert_eq!(seen.ip(), Ipv4Addr::new(198, 51, 100, 1), "by the host's address, not its own");
    let (text, _) = guest.sh("cat /etc/resolv.conf").await;
    assert_eq!(text, "nameserver 198.51.100.53\n");

    let loopback = format!("127.0.0.1:{}", port(&own));
    for target in [
        loopback.as_str(),
        &format!("{gateway}:{}", port(&own)),
        &format!("198.51.100.1:{}", port(&own)),
        &format!("{there}:{}", port(&forbidden)),
        &format!("{other}:9001"),
        "169.254.169.254:80",
        "10.1.2.3:80",
        "172.16.0.1:80",
        "192.168.1.1:80",
        "100.64.0.1:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
    ] {
        let (text, status) = guest.inside(&["connect", target]).await;
        assert!(status == ExitStatus::Code(0) && text.starts_with("denied "), "{target}: {text}");
    }
    // The neighbour's listener is its own loopback's, and is there.
    assert!(neighbour.inside(&["connect", "169.254.100.1:9001"]).await.0.starts_with("connected"));

    // A word in the neighbour's name gets lost, one in its own arrives: the second is the first to be heard.
    for from in [other, gateway, there, address] {
        let arguments = ["say", &from.to_string(), &permission];
        assert_eq!(guest.inside(&arguments).await.0, "said\n", "{arguments:?}");
    }
    let mut word = [0; 64];
    words.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (length, seen) = words.recv_from(&mut word).unwrap();
    assert_eq!(String::from_utf8_lossy(&word[..length]), address.to_string());
    assert_eq!(seen.ip(), Ipv4Addr::new(198, 51, 100, 1));

    // The network of VMs that are gone is gone; and another in its place works as well.
    assert_eq!(devices(0).len(), 2);
    assert!(is_filtered(0));
    guest.sandbox.destroy().await;
    neighbour.sandbox.destroy().await;
    assert_eq!(devices(0), Vec::<String>::new());
    let mut guest = host.guest().await;
    assert_eq!(guest.inside(&["connect", &permission]).await.0, "connected\n");
    host.engine.stop().await;
    assert_eq!(devices(0), Vec::<String>::new());
    assert!(!is_filtered(0));
}

async fn none() {
    let own = TcpListener::bind("0.0.0.0:0").unwrap();
    let own: SocketAddr = own.local_addr().unwrap();
    let host = Host::start().await;
    let mut guest = host.guest().await;
    for target in [format!("127.0.0.1:{}", own.port()), "198.51.100.1:80".to_owned(), "1.1.1.1:53".to_owned()] {
        let (text, _) = guest.inside(&["connect", &target]).await;
        assert!(text.starts_with("denied "), "{target}: {text}");
    }
    host.engine.stop().await;
}
