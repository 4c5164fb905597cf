//! Numbers that belong to one instance alone, and what dead instances left behind.
//!
//! Every sandbox on a host needs user ids and network addresses of its own, whichever Emberbox made it. They follow from
//! its slot. Slots come in blocks of 64; a block belongs to the process that holds its lock file, which the kernel lets
//! go of when that process dies. So who gets a block may remove whatever is still there in its name.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::netlink::Netlink;
use guest::protocol::Uplink;
use rustix::fs::FlockOperation;

use super::cgroup::Hierarchy;
use super::config::Range;
use super::firewall::Firewall;

const BLOCKS: u32 = 256;
const BLOCK: u32 = 64;
/// Below the ids of containers' users, as Linux distributions hand them out, and far above those of people.
const FIRST_ID: u32 = 700_000_000;

/// One instance's share of the host's slots.
#[derive(Debug)]
pub struct Instance {
    /// Its name in cgroups, devices and the packet filter: the number of its first block.
    pub number: u32,
    free: VecDeque<Slot>,
    _locks: Vec<File>,
}

/// The place of one sandbox on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    /// Host user (and group) id of root inside.
    pub fn init_id(self) -> u32 {
        FIRST_ID + 2 * self.0
    }

    /// Host user (and group) id of the function's processes.
    pub fn user_id(self) -> u32 {
        self.init_id() + 1
    }

    /// The host's end of the link, and what the sandbox knows of its own; `None` when the pool is too small.
    pub fn link(self, pool: Range) -> Option<(Ipv4Addr, Uplink)> {
        let base = self.0 * 4;
        let size = 1u64 << (32 - u32::from(pool.prefix));
        if u64::from(base) + 4 > size {
            return None;
        }
        let first = u32::from(pool.address) + base;
        let (gateway, address) = (Ipv4Addr::from(first + 1), Ipv4Addr::from(first + 2));
        Some((gateway, Uplink { device: "eth0".to_owned(), address, prefix: 30, gateway }))
    }

    /// Name of the host's end of the link.
    pub fn device(self, instance: u32) -> String {
        format!("{}{}", device_prefix(instance), self.0)
    }
}

/// What the names of an instance's devices begin with.
pub fn device_prefix(instance: u32) -> String {
    format!("ebox{instance}-")
}

impl Instance {
    /// Takes enough blocks for `sandboxes`, and sweeps what dead instances left.
    pub fn claim(sandboxes: u32, hierarchy: Option<&Hierarchy>, warnings: &mut Vec<String>) -> io::Result<Self> {
        let directory = lock_directory()?;
        let wanted = sandboxes.div_ceil(BLOCK).max(1);
        let (mut locks, mut blocks) = (Vec::new(), Vec::new());
        for block in 0..BLOCKS {
            if blocks.len() as u32 == wanted {
                break;
            }
            if let Some(lock) = try_lock(&directory, block)? {
                locks.push(lock);
                blocks.push(block);
            }
        }
        let Some(&number) = blocks.first() else {
            return Err(io::Error::other(format!(
                "all {} sandbox slots of this host are taken by other instances (locks in {})",
                BLOCKS * BLOCK,
                directory.display()
            )));
        };
        for block in 0..BLOCKS {
            let mine = blocks.contains(&block);
            if !mine && !is_left(block, hierarchy) {
                continue;
            }
            // Held until its remains are gone, so that nobody moves in meanwhile.
            let lock = if mine { None } else { try_lock(&directory, block)? };
            if mine || lock.is_some() {
                sweep(block, hierarchy).unwrap_or_else(|error| {
                    warnings.push(format!("cannot remove what a dead instance left (number {block}): {error}"));
                });
            }
        }
        let free = blocks.iter().flat_map(|block| block * BLOCK..(block + 1) * BLOCK).map(Slot).collect();
        Ok(Self { number, free, _locks: locks })
    }

    /// A slot that has been free the longest, since the kernel is still clearing up after the last.
    pub fn take(&mut self) -> Option<Slot> {
        self.free.pop_front()
    }

    /// Whether there is one.
    #[cfg(feature = "microvm")]
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Gives a slot back.
    pub fn put(&mut self, slot: Slot) {
        self.free.push_back(slot);
    }
}

fn lock_directory() -> io::Result<PathBuf> {
    let user = rustix::process::geteuid();
    let own = PathBuf::from(format!("/run/user/{}", user.as_raw()));
    let directory = match (user.is_root(), own.exists()) {
        (true, _) => PathBuf::from("/run/emberbox"),
        (false, true) => own.join("emberbox"),
        (false, false) => std::env::temp_dir().join(format!("emberbox-{}", user.as_raw())),
    };
    fs::create_dir_all(&directory)
        .map_err(|error| io::Error::new(error.kind(), format!("make {}: {error}", directory.display())))?;
    Ok(directory)
}

fn try_lock(directory: &Path, block: u32) -> io::Result<Option<File>> {
    let path = directory.join(format!("block-{block}.lock"));
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("open {}: {error}", path.display())))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_left(instance: u32, hierarchy: Option<&Hierarchy>) -> bool {
    hierarchy.is_some_and(|hierarchy| hierarchy.instance(instance).exists())
}

/// Removes the processes, cgroups, devices and packet filter of an instance that is dead.
pub fn sweep(instance: u32, hierarchy: Option<&Hierarchy>) -> io::Result<()> {
    if let Some(hierarchy) = hierarchy.filter(|_| is_left(instance, hierarchy)) {
        let group = hierarchy.instance(instance);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let children: Vec<_> = group.children().iter().map(|name| group.child(name)).collect();
            children.iter().for_each(super::cgroup::Group::thaw);
            for pid in group.processes() {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            let removed = children.iter().try_for_each(super::cgroup::Group::remove).and_then(|()| group.remove());
            match removed {
                Ok(()) => break,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        // Without cgroups there was no privilege to make one.
        let _ = Firewall::of(instance).remove();
    }
    let prefix = device_prefix(instance);
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            let netlink = Netlink::open()?;
            // It may vanish by itself, with its other end.
            if let Ok(device) = netlink.device(&name) {
                let _ = netlink.remove(device);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap() {
        let pool: Range = "100.96.0.0/16".parse().unwrap();
        let (gateway, uplink) = Slot(1).link(pool).unwrap();
        assert_eq!((gateway, uplink.address), (Ipv4Addr::new(100, 96, 0, 5), Ipv4Addr::new(100, 96, 0, 6)));
        assert_eq!(Slot(16_383).link(pool).unwrap().1.address, Ipv4Addr::new(100, 96, 255, 254));
        assert!(Slot(16_384).link(pool).is_none());
        assert!(Slot(0).user_id() < Slot(1).init_id());
        assert!(Slot(16_383).device(255).len() <= 15);
    }
}
