//! What worker and agent say to each other, and how it is framed.
//!
//! A frame is its length in bytes (4, big-endian) and that much JSON. The agent answers each [`Order`] with one
//! [`Word::Reply`], in their order; the worker has one order under way at a time.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::protocol::{Failure, Reply, Spawn, Status, Uplink};

/// Changes with the meaning of anything in here. Both sides come from one build; this is for mixed-up files.
pub const VERSION: u32 = 3;
/// The host's address, by virtio-vsock's definition.
pub const HOST: u32 = 2;
/// Where the agent connects first: once, and once more when the VM was restored from a snapshot.
pub const CONTROL_PORT: u32 = 1024;
/// Where it connects for the output of each process, before that is started.
pub const OUTPUT_PORT: u32 = 1025;
/// Longest frame to the guest, in bytes: the environment of a process may be large, not boundless.
pub const LONGEST_ORDER: usize = 8 << 20;
/// Longest frame from the guest, in bytes. The host refuses more.
pub const LONGEST_WORD: usize = 64 << 10;

/// The host's port behind a TCP port of the sandbox's link address.
pub fn link_port(tcp: u16) -> u32 {
    0x1_0000 + u32::from(tcp)
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Before [`Order::Start`], in a VM that waits for somebody to need it. Answered by [`Reply::Done`].
    Wait {
        /// Let go of the drives until then: they become others, and this machine does not tell its guest.
        detach: bool,
    },
    /// The first, once; or the second, after [`Order::Wait`].
    Start(Start),
    /// Answered by [`Reply::Spawned`]. The output's connection was made before, also if this fails.
    Spawn(Spawn),
    /// Answered by [`Reply::Done`], also when the process is gone.
    Signal {
        /// As given by [`Reply::Spawned`].
        process: u32,
        /// The kernel's number.
        signal: i32,
    },
    /// Kill every process of the sandbox but its PID 1. Answered by [`Reply::Done`] when all are gone.
    KillAll,
    /// Let no process of the sandbox run until the next order, while the kernel runs to give free memory back to the host.
    /// Answered by [`Reply::Done`].
    Rest,
    /// Let them run again. Answered by [`Reply::Done`]. Every other order but [`Order::Rest`] does the same first.
    Wake,
    /// The last before a snapshot. Answered by [`Reply::Done`], and from then on the agent sends nothing: once this
    /// connection has ended, it makes another, greets, and takes [`Order::Resume`].
    Hold,
    /// The first after a restore. Answered by [`Reply::Done`]; before that the output of each of these processes was
    /// connected, in their order, and every connection that waited for an answer has asked again.
    Resume(Resume),
}

/// What has changed for a sandbox that was restored.
#[derive(Debug, Serialize, Deserialize)]
pub struct Resume {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Fresh random bytes.
    pub seed: Vec<u8>,
    /// What its network card is now to be, if it has one.
    pub uplink: Option<Uplink>,
    /// Its processes that run, as given by [`Reply::Spawned`].
    pub running: Vec<u32>,
}

/// What the sandbox is made of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// Memory limit in bytes.
    pub memory: u64,
    /// Most processes and threads.
    pub pids: u32,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Fresh random bytes.
    pub seed: Vec<u8>,
    /// Drive of the root.
    pub root: String,
    /// Drive of `/tmp`.
    pub tmp: String,
    /// Further drives, and where their contents go.
    pub mounts: Vec<(String, String)>,
    /// Drives that became others since the VM has booted, and their sizes in bytes, by which that is seen.
    pub exchanged: Vec<(String, u64)>,
    /// What becomes of the VM's network card, if it has one.
    pub uplink: Option<Uplink>,
    /// Contents of `/etc/hosts`.
    pub hosts: String,
    /// Contents of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// TCP ports on which to listen for the host.
    pub listen: Vec<u16>,
}

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Word {
    /// The first.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// To the order under way.
    Reply(Result<Reply, Failure>),
    /// A spawned process ended.
    Exited {
        /// As given by [`Reply::Spawned`].
        process: u32,
        /// How.
        status: Status,
        /// What the sandbox has used until then.
        used: Used,
    },
    /// Said before the sandbox's next words on any other connection, when it grew.
    Used(Used),
}

/// What all processes of the sandbox together have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Peak of memory in bytes.
    pub memory_peak: u64,
    /// Memory now, in bytes.
    pub memory_now: u64,
    /// How often the memory limit's killer struck.
    pub oom_kills: u64,
    /// CPU time in microseconds.
    pub cpu_us: u64,
}

/// One frame with this message.
pub fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - 4).map_err(|_| io::ErrorKind::InvalidInput)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// The length of the body that follows this head; an error when it is more than `longest`.
pub fn body_length(head: [u8; 4], longest: usize) -> io::Result<usize> {
    let length = u32::from_be_bytes(head) as usize;
    if length > longest {
        let text = format!("a frame of {length} bytes, the most is {longest}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(length)
}

/// Writes one message.
pub fn write(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&frame(message)?)
}

/// Reads one message of at most `longest` bytes.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read, longest: usize) -> io::Result<T> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; body_length(head, longest)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back_and_bounded() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Word::Hello { version: 7 }).unwrap();
        assert!(matches!(read(&mut bytes.as_slice(), 100).unwrap(), Word::Hello { version: 7 }));
        assert!(read::<Word>(&mut bytes.as_slice(), 10).is_err(), "longer than allowed");
        assert!(read::<Word>(&mut &bytes[..bytes.len() - 1], 100).is_err(), "cut short");
        assert!(read::<Word>(&mut &b"\x00\x00\x00\x02{}"[..], 100).is_err(), "no such word");
        assert!(read::<Word>(&mut &b"\xff\xff\xff\xff"[..], LONGEST_WORD).is_err(), "4 GiB are not allocated");
    }
}
