//! The way out of VMs: for each a network namespace with a tap device, behind the same packet filter as process sandboxes.
//!
//! ```text
//!  guest                        │ the VM's namespace           │ the host's
//!  eth0, in the sandbox's own ──│── tap0 ── bridge ── eth0 ────│── ebox<instance>-<slot> ── filter, NAT ── outside
//! ```
//!
//! The link to the host has the name, the addresses and the rules of a process sandbox's (`process/firewall.rs`), so what one
//! kind of sandbox cannot reach, the other cannot either. The namespace has no address at all: it only carries frames, and
//! there is nothing in it to be reached. The tap stays there while nobody has it open, and belongs to the VM's user: an
//! engine opens it ([`Tap::open`]) or runs in the namespace and opens it by name, without privilege.
//!
//! None of this has a name but the host's end, which is gone with the namespace, with the last descriptor of it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use guest::netlink::{Namespace, Netlink};
use guest::protocol::{During, Failure, Uplink};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::SandboxError;
use crate::process::blank;
use crate::process::firewall::{self, Firewall};
use crate::process::instance::{Slot, device_prefix};
use crate::process::{Egress, Range, error_of, helper};

/// The tap's name in its namespace.
pub const TAP: &str = "tap0";
const BRIDGE: &str = "bridge";
const TUN: &str = "/dev/net/tun";

/// How VMs reach the outside.
#[derive(Debug)]
pub struct Outside {
    instance: u32,
    pool: Range,
    firewall: Firewall,
    dns: Vec<IpAddr>,
}

/// One VM's way to it.
#[derive(Debug)]
pub struct Tap {
    /// The namespace in which the tap is, by the name [`TAP`].
    pub namespace: OwnedFd,
    /// The address of the guest's network card, as text.
    pub mac: String,
}

/// The host's end of it. Removes all of it when dropped.
#[derive(Debug)]
pub struct Link(String);

impl Outside {
    /// Sets the filter up, for instance `instance`. Takes root.
    pub fn start(egress: &Egress, instance: u32) -> Result<Self, Failure> {
        // Once without a VM, so that a host on which it cannot work says so now.
        let trial = inside(None, || new_namespace().and_then(|_| connect_tap(None, None)));
        trial.during("make a tap device and a bridge (kernel modules tun and bridge)")?;
        let dns = helper::name_servers(egress);
        let firewall = Firewall::of(instance);
        firewall
            .install(egress, &dns, &device_prefix(instance))
            .during("set up the packet filter with nft (package nftables)")?;
        firewall::enable_forwarding().during("enable IP forwarding (net.ipv4.ip_forward)")?;
        Ok(Self { instance, pool: egress.pool, firewall, dns })
    }

    /// What is and what is not so, for the operator.
    pub fn notes(&self) -> Vec<String> {
        helper::notes_on_links(self.pool, &self.dns)
    }

    /// Contents of a function's `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> String {
        helper::resolv_conf(&self.dns)
    }

    /// Makes all of it for the VM in this slot, whose processes run as `owner`; and says what the guest is to make of its
    /// card.
    pub async fn connect(
        self: &Arc<Self>,
        slot: Slot,
        owner: Option<u32>,
    ) -> Result<(Tap, Link, Uplink), SandboxError> {
        let outside = Arc::clone(self);
        // The kernel takes milliseconds for it, in which the caller's thread would stand still.
        let made = tokio::task::spawn_blocking(move || outside.make(slot, owner)).await;
        made.map_err(|error| SandboxError::Host {
            operation: "connect a microVM to the network".to_owned(),
            source: io::Error::other(error),
        })?
        .map_err(error_of)
    }

    fn make(&self, slot: Slot, owner: Option<u32>) -> Result<(Tap, Link, Uplink), Failure> {
        let namespace = inside(None, new_namespace).during("make a network namespace")?;
        let uplink = blank::link(self.instance, slot, self.pool, Namespace::At(namespace.as_fd()))?;
        let link = Link(slot.device(self.instance));
        inside(Some(namespace.as_fd()), || connect_tap(Some(&uplink.device), owner))
            .during("connect a tap device with its link")?;
        // Locally administered; seen by nobody but the two ends of the link.
        let [a, b, c, d] = uplink.address.octets();
        let mac = format!("02:eb:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        Ok((Tap { namespace, mac }, link, uplink))
    }

    /// Takes the filter away.
    pub fn stop(&self) {
        if let Err(error) = self.firewall.remove() {
            tracing::warn!(%error, "cannot remove the packet filter of microVMs");
        }
    }
}

impl Tap {
    /// Opens the device. It carries frames behind the header of virtio, and can be open once at a time.
    pub fn open(&self) -> io::Result<OwnedFd> {
        inside(Some(self.namespace.as_fd()), open_tap)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may be gone by itself, with its other end.
        if let Ok(netlink) = Netlink::open()
            && let Ok(device) = netlink.device(&self.0)
            && let Err(error) = netlink.remove(device)
        {
            tracing::warn!(%error, "cannot remove the network device {}", self.0);
        }
    }
}

/// A namespace without any device but a loopback that is down.
pub fn nothing() -> io::Result<OwnedFd> {
    inside(None, new_namespace)
}

/// Does something in a network namespace, by a thread that ends there.
fn inside<T: Send>(namespace: Option<BorrowedFd<'_>>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("microvm-network".to_owned()).spawn_scoped(scope, || {
            if let Some(namespace) = namespace {
                rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
            }
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

fn new_namespace() -> io::Result<OwnedFd> {
    // SAFETY: a network namespace is a thread's own, and this one holds nothing that refers to the old.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    // Before there is any device, which would give itself an address.
    for scope in ["all", "default"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?)
}

/// Makes the tap, and lets it and `link` exchange frames.
fn connect_tap(link: Option<&str>, owner: Option<u32>) -> io::Result<()> {
    let netlink = Netlink::open()?;
    netlink.add_bridge(BRIDGE)?;
    let tap = open_tap()?;
    let id = owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    set(&tap, libc::TUNSETOWNER, id.into())?;
    set(&tap, libc::TUNSETPERSIST, 1)?;
    let bridge = netlink.device(BRIDGE)?;
    for port in [Some(TAP), link].into_iter().flatten() {
        let port = netlink.device(port)?;
        netlink.join(port, bridge)?;
        netlink.up(port)?;
    }
    netlink.up(bridge)
}

/// The tap of the caller's namespace; makes it if it is not there.
fn open_tap() -> io::Result<OwnedFd> {
    attach(rustix::fs::open(TUN, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?)
}

fn attach(tun: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: all zeroes is a value of this struct of numbers and arrays.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the kernel reads and writes the struct, which lives until the call returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun)
}

fn set(tap: &OwnedFd, what: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these take a number, no pointer.
    if unsafe { libc::ioctl(tap.as_raw_fd(), what, value) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
