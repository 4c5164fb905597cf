//! Network devices, addresses and routes, by the kernel's route netlink protocol (rtnetlink(7)).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const HEADER: usize = 16;
const VETH_INFO_PEER: u16 = 1;

/// A conversation with the kernel about the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

/// A device, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device(u32);

impl Device {
    /// The loopback device of every network namespace.
    pub const LOOPBACK: Self = Self(1);
}

/// A network namespace that is not the one spoken about.
#[derive(Debug, Clone, Copy)]
pub enum Namespace<'a> {
    /// That of a process.
    Of(i32),
    /// The one that this refers to.
    At(BorrowedFd<'a>),
}

impl Netlink {
    /// About the namespace of the caller.
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // protocol 0 is NETLINK_ROUTE
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The device called `name`.
    pub fn device(&self, name: &str) -> io::Result<Device> {
        let name = std::ffi::CString::new(name)?;
        let mut request = Request::new(libc::RTM_GETLINK, 0);
        request.put(&[0; 16]);
        request.attribute(libc::IFLA_IFNAME, name.as_bytes_with_nul());
        let answer = self.ask(request)?;
        // struct ifinfomsg: family 1, pad 1, type 2, index 4
        let index = answer.get(HEADER + 4..HEADER + 8).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Device(u32::from_ne_bytes(index.try_into().expect("a slice of four bytes"))))
    }

    /// Makes a pair of connected devices: `name` here, `peer` in another namespace.
    pub fn add_veth(&self, name: &str, peer: &str, namespace: Namespace<'_>) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        request.put(&[0; 16]);
        request.text(libc::IFLA_IFNAME, name);
        request.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |end| {
                    end.put(&[0; 16]);
                    end.text(libc::IFLA_IFNAME, peer);
                    end.namespace(namespace);
                });
            });
        });
        self.ask(request).map(drop)
    }

    /// Makes a bridge, which has no ports yet.
    pub fn add_bridge(&self, name: &str) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        request.put(&[0; 16]);
        request.text(libc::IFLA_IFNAME, name);
        request.nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "bridge"));
        self.ask(request).map(drop)
    }

    /// Makes a device a port of a bridge.
    pub fn join(&self, device: Device, bridge: Device) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0);
        request.put(&link_message(device, 0));
        request.attribute(libc::IFLA_MASTER, &bridge.0.to_ne_bytes());
        self.ask(request).map(drop)
    }

    /// Moves a device to another namespace, where it is off.
    pub fn give(&self, device: Device, namespace: Namespace<'_>) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0);
        request.put(&link_message(device, 0));
        request.namespace(namespace);
        self.ask(request).map(drop)
    }

    /// Removes a device. For one of a pair: both.
    pub fn remove(&self, device: Device) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_DELLINK, 0);
        request.put(&link_message(device, 0));
        self.ask(request).map(drop)
    }

    /// Switches a device on.
    pub fn up(&self, device: Device) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0);
        request.put(&link_message(device, libc::IFF_UP as u32));
        self.ask(request).map(drop)
    }

    /// Gives a device an address.
    pub fn add_address(&self, device: Device, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct ifaddrmsg: family 1, prefix 1, flags 1, scope 1, index 4
        request.put(&[libc::AF_INET as u8, prefix, 0, 0]);
        request.put(&device.0.to_ne_bytes());
        request.attribute(libc::IFA_LOCAL, &address.octets());
        request.attribute(libc::IFA_ADDRESS, &address.octets());
        self.ask(request).map(drop)
    }

    /// Takes the (first) address of a device away, and with the last one its routes.
    pub fn remove_address(&self, device: Device) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_DELADDR, 0);
        // struct ifaddrmsg, as above; one without attributes means whichever comes first
        request.put(&[libc::AF_INET as u8, 0, 0, 0]);
        request.put(&device.0.to_ne_bytes());
        self.ask(request).map(drop)
    }

    /// Sends all that has no better route to `gateway`.
    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct rtmsg: family, destination bits, source bits, tos, table, protocol, scope, type, flags 4
        let (table, protocol, kind) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RTN_UNICAST);
        request.put(&[libc::AF_INET as u8, 0, 0, 0, table, protocol, libc::RT_SCOPE_UNIVERSE, kind]);
        request.put(&[0; 4]);
        request.attribute(libc::RTA_GATEWAY, &gateway.octets());
        self.ask(request).map(drop)
    }

    /// Sends one request and returns the first message of the answer.
    fn ask(&self, request: Request) -> io::Result<Vec<u8>> {
        rustix::net::send(&self.0, &request.finish(), SendFlags::empty())?;
        let mut answer = vec![0; 16 * 1024];
        let (length, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        answer.truncate(length);
        // struct nlmsghdr: length 4, type 2, flags 2, sequence 4, port 4; an error's number follows
        let kind = answer.get(4..6).map(|k| u16::from_ne_bytes([k[0], k[1]])).ok_or(io::ErrorKind::InvalidData)?;
        if i32::from(kind) == libc::NLMSG_ERROR {
            let number = answer.get(HEADER..HEADER + 4).ok_or(io::ErrorKind::InvalidData)?;
            let number = i32::from_ne_bytes(number.try_into().expect("a slice of four bytes"));
            if number != 0 {
                return Err(io::Error::from_raw_os_error(-number));
            }
        }
        Ok(answer)
    }
}

/// `struct ifinfomsg`
fn link_message(device: Device, flags: u32) -> [u8; 16] {
    let mut message = [0; 16];
    message[4..8].copy_from_slice(&device.0.to_ne_bytes());
    message[8..12].copy_from_slice(&flags.to_ne_bytes());
    message[12..16].copy_from_slice(&flags.to_ne_bytes()); // the mask of what changes
    message
}

/// A request under construction: a header, a fixed part, attributes.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: libc::c_int) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let asked = if kind == libc::RTM_GETLINK { 0 } else { libc::NLM_F_ACK };
        bytes[6..8].copy_from_slice(&((flags | asked | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        Self(bytes)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.nest(kind, |value| {
            value.put(text.as_bytes());
            value.put(&[0]);
        });
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |attribute| attribute.put(value));
    }

    fn namespace(&mut self, namespace: Namespace<'_>) {
        match namespace {
            Namespace::Of(pid) => self.attribute(libc::IFLA_NET_NS_PID, &pid.to_ne_bytes()),
            Namespace::At(file) => self.attribute(libc::IFLA_NET_NS_FD, &file.as_raw_fd().to_ne_bytes()),
        }
    }

    /// An attribute: length 2, type 2, value, padding to four bytes.
    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.put(&[0; 2]);
        self.put(&kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_has_its_length_and_is_padded() {
        let mut request = Request::new(libc::RTM_NEWLINK, 0);
        request.text(3, "ab");
        let bytes = request.finish();
        assert_eq!(bytes[..4], 24u32.to_ne_bytes());
        assert_eq!(bytes[HEADER..], [7, 0, 3, 0, b'a', b'b', 0, 0]);
    }

    #[test]
    fn finds_the_loopback_device() {
        assert_eq!(Netlink::open().unwrap().device("lo").unwrap(), Device::LOOPBACK);
        assert_eq!(Netlink::open().unwrap().device("no-such-device").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
