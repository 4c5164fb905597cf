//! Messages and file descriptors over a local socket.
//!
//! Each message is one packet of JSON. One too long for a packet travels as a memory file.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest packet, in bytes, and the size of the buffer for one.
const PACKET: usize = 32 * 1024;
/// Longest message, in bytes: the environment of a process may be large, not boundless.
const MESSAGE: u64 = 8 * 1024 * 1024;
/// Most descriptors with one message. The kernel takes 253.
pub const DESCRIPTORS: usize = 64;

/// First byte of a packet: the message follows.
const INLINE: u8 = 0;
/// First byte of a packet: the last descriptor holds the message.
const IN_FILE: u8 = 1;

/// One end of a two-way stream of messages, each with file descriptors.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, closed on exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// From one end of such a pair.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The socket.
    pub fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// Makes this end (not the other) fail with `WouldBlock` rather than wait.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.0, on)?)
    }

    /// Sends a message. Waits while the other end does not read.
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut packet = vec![INLINE];
        serde_json::to_writer(&mut packet, message)?;
        if packet.len() <= PACKET {
            return self.send_packet(&packet, descriptors);
        }
        let mut file = File::from(rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC)?);
        file.write_all(&packet[1..])?;
        file.rewind()?;
        let mut all = descriptors.to_vec();
        all.push(file.as_fd());
        self.send_packet(&[IN_FILE], &all)
    }

    fn send_packet(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if descriptors.len() > DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }

    /// Receives a message; `None` when the other end is closed. What is not a message is an error.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => other?,
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(invalid("message cut short"));
        }
        match buffer[..received.bytes].split_first() {
            None => Ok(None),
            Some((&INLINE, message)) => Ok(Some((serde_json::from_slice(message)?, descriptors))),
            Some((&IN_FILE, [])) => {
                let file = File::from(descriptors.pop().ok_or_else(|| invalid("message without its file"))?);
                // A pipe, say, could keep the reader waiting.
                if !file.metadata()?.is_file() {
                    return Err(invalid("message in what is no file"));
                }
                let mut message = Vec::new();
                file.take(MESSAGE).read_to_end(&mut message)?;
                Ok(Some((serde_json::from_slice(&message)?, descriptors)))
            }
            Some(_) => Err(invalid("unknown kind of message")),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Channel {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_short_and_long_messages_and_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let short = "x".repeat(10);
        let long = "y".repeat(300_000);
        a.send(&short, &[]).unwrap();
        a.send(&long, &[std::io::stdin().as_fd(), std::io::stdin().as_fd()]).unwrap();
        assert_eq!(b.receive::<String>().unwrap().unwrap().0, short);
        let (message, descriptors) = b.receive::<String>().unwrap().unwrap();
        assert_eq!(message, long);
        assert_eq!(descriptors.len(), 2);
        drop(a);
        assert!(b.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn rejects_what_is_no_message() {
        let (a, b) = Channel::pair().unwrap();
        for packet in [&b"\x07hello"[..], b"\x00{", b"\x01"] {
            a.send_packet(packet, &[]).unwrap();
            assert!(b.receive::<String>().is_err());
        }
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        a.send_packet(&[IN_FILE], &[pipe.as_fd()]).unwrap();
        assert!(b.receive::<String>().is_err());
    }
}
