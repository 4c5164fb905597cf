//! What a guest can do whose kernel is its own: here the test writes its frames.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Uid;

use super::{Outside, TUN, attach, inside};
use crate::process::Egress;
use crate::process::instance::Instance;

/// Of virtio, before each frame: no offloads.
const HEADER: [u8; 10] = [0; 10];
const PATIENCE: Duration = Duration::from_secs(30);

struct Card {
    tap: File,
    mac: [u8; 6],
}

impl Card {
    fn send(&mut self, to: [u8; 6], kind: u16, payload: &[u8]) {
        let frame = [&HEADER[..], &to, &self.mac, &kind.to_be_bytes(), payload].concat();
        self.tap.write_all(&frame).unwrap();
    }

    fn ask_for(&mut self, address: Ipv4Addr, own: Ipv4Addr) {
        let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1]; // Ethernet, IPv4, their lengths, request
        question.extend([&self.mac[..], &own.octets(), &[0; 6], &address.octets()].concat());
        self.send([0xff; 6], 0x0806, &question);
    }

    /// Asks for all of them, again and again as guests do (a link drops frames until it is all up), until there is an answer:
    /// who answered, for which address.
    fn first_answer(&mut self, addresses: &[Ipv4Addr], own: Ipv4Addr) -> ([u8; 6], Ipv4Addr) {
        let deadline = Instant::now() + PATIENCE;
        let mut frame = [0; 2048];
        let mut waits = 0;
        loop {
            assert!(Instant::now() < deadline, "nobody answers");
            if waits % 100 == 0 {
                addresses.iter().for_each(|address| self.ask_for(*address, own));
            }
            let Ok(length) = self.tap.read(&mut frame) else {
                std::thread::sleep(Duration::from_millis(2));
                waits += 1;
                continue;
            };
            let frame = &frame[HEADER.len()..length];
            if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
                let address: [u8; 4] = frame[28..32].try_into().unwrap();
                return (frame[22..28].try_into().unwrap(), address.into());
            }
        }
    }

    fn say(&mut self, host: [u8; 6], from: Ipv4Addr, to: SocketAddr, text: &str) {
        let SocketAddr::V4(to) = to else { panic!("{to}") };
        let length = 28 + text.len() as u16;
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, 17, 0, 0]); // 64 hops, UDP
        packet.extend([from.octets(), to.ip().octets()].concat());
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(4000_u16.to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend((length - 20).to_be_bytes());
        packet.extend([0, 0]); // without a checksum of its own
        packet.extend(text.as_bytes());
        self.send(host, 0x0800, &packet);
    }
}

#[tokio::test]
async fn a_hostile_guest_kernel_is_kept_to_its_link() {
    let nft = std::process::Command::new("nft").arg("--version").output().is_ok();
    if !rustix::process::geteuid().is_root() || !nft {
        let missing = "SKIPPED a_hostile_guest_kernel_is_kept_to_its_link: needs root and nft";
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none_or(|value| value != "1"), "{missing}");
        return eprintln!("{missing}");
    }
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe.connect("1.1.1.1:53").expect("a default route");
    let own = probe.local_addr().unwrap().ip();
    let std::net::IpAddr::V4(own_address) = own else { panic!("{own}") };
    let allowed = UdpSocket::bind((own, 0)).unwrap();
    let forbidden = UdpSocket::bind("0.0.0.0:0").unwrap();
    let (to, port) = (allowed.local_addr().unwrap(), forbidden.local_addr().unwrap().port());
    let pool = "100.103.0.0/16".parse().unwrap();
    let egress = Egress { allow: vec![to.to_string().parse().unwrap()], pool, ..Egress::default() };

    let mut instance = Instance::claim(64, None, &mut Vec::new()).unwrap();
    let outside = Arc::new(Outside::start(&egress, instance.number).unwrap());
    let (slot, neighbour) = (instance.take().unwrap(), instance.take().unwrap());
    let begin = Instant::now();
    let (tap, link, uplink) = outside.connect(slot, Some(slot.user_id())).await.unwrap();
    let (other, other_link, other_uplink) = outside.connect(neighbour, None).await.unwrap();
    eprintln!("two VMs connected in {:?}", begin.elapsed());
    // As Firecracker attaches to it: by name, as the VM's user.
    let open_as = |user: u32| {
        inside(Some(tap.namespace.as_fd()), move || {
            let tun = File::options().read(true).write(true).open(TUN)?;
            let user = Uid::from_raw(user);
            // Of this thread alone.
            rustix::thread::set_thread_res_uid(user, user, user)?;
            attach(tun.into()).map(drop)
        })
    };
    open_as(slot.user_id()).unwrap();
    assert_eq!(open_as(neighbour.user_id()).unwrap_err().raw_os_error(), Some(libc::EPERM));
    let mut card = Card { tap: tap.open().unwrap().into(), mac: [2, 0, 0, 0, 0, 1] };
    assert!(tap.open().is_err(), "one at a time");

    // The host answers for its end of the link, for no other of its addresses, and not for those of neighbours.
    let addresses = [own_address, Ipv4Addr::LOCALHOST, other_uplink.gateway, other_uplink.address, uplink.gateway];
    let (host, answered) = card.first_answer(&addresses, uplink.address);
    assert_eq!(answered, uplink.gateway);

    // What is not from its own address gets lost, what is arrives: the last word is the first to be heard.
    for from in [other_uplink.address, uplink.gateway, own_address, Ipv4Addr::LOCALHOST, "8.8.8.8".parse().unwrap()] {
        card.say(host, from, to, "false");
    }
    for address in [uplink.gateway, own_address, Ipv4Addr::LOCALHOST, other_uplink.gateway] {
        card.say(host, uplink.address, (address, port).into(), "forbidden");
    }
    card.say(host, uplink.address, to, "true");
    let mut word = [0; 64];
    allowed.set_read_timeout(Some(PATIENCE)).unwrap();
    let (length, _) = allowed.recv_from(&mut word).unwrap();
    assert_eq!(&word[..length], b"true");
    forbidden.set_nonblocking(true).unwrap();
    assert_eq!(forbidden.recv_from(&mut word).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

    // Of the namespace itself there is nothing to be reached.
    let (routes, addresses) = inside(Some(tap.namespace.as_fd()), || {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        Ok((read("route").lines().count(), read("if_inet6") + &read("fib_trie")))
    })
    .unwrap();
    assert!(routes <= 1 && !addresses.contains("host LOCAL"), "{routes} {addresses}");

    let device = |slot: crate::process::instance::Slot| {
        std::path::Path::new("/sys/class/net").join(slot.device(instance.number)).exists()
    };
    assert!(device(slot) && device(neighbour));
    drop(link);
    assert!(!device(slot), "at once, though the tap is still open");
    drop((other_link, other));
    assert!(!device(neighbour));
    outside.stop();
}
