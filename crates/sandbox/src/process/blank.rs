//! The birth of a blank sandbox: namespaces, cgroups, network link, and PID 1 in its stage.
//!
//! Entering cgroups and making network devices takes milliseconds in which the kernel waits for all its processors. So a
//! short-lived process does that, the *midwife*, and the helper goes on serving. Being in the cgroups itself, it bears
//! PID 1 into them, as its sibling: the child of the helper.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use guest::netlink::{Namespace, Netlink};
use guest::protocol::{During, Failure, Message, Prepare, Request, Uplink};
use guest::seccomp::Programs;
use guest::sys::{self, Cloned};
use guest::wire::Channel;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, Uid};
use rustix::thread::CapabilitySets;

use super::cgroup::Group;
use super::config::Range;
use super::instance::Slot;
use super::pasta::{self, Pasta};
use super::scratch::Scratch;
use crate::api::LINK_ADDRESS;

/// The function's user inside, as on AWS: `sbx_user1051`.
const USER: u32 = 993;
/// And its group.
const GROUP: u32 = 990;
/// Makes the kernel kill functions before anything else on the host when memory is short.
const OOM_SCORE: &str = "500";
/// PID 1 has this long to prepare itself.
const PATIENCE: Duration = Duration::from_secs(10);

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// What all blank sandboxes of an instance have in common.
#[derive(Debug)]
pub struct Pattern {
    /// Number of the instance.
    pub instance: u32,
    /// Whether ids can be mapped freely: the helper is root on the host.
    pub privileged: bool,
    /// How functions reach the network.
    pub way_out: WayOut,
    /// For the processes that PID 1 will start.
    pub filter: Programs,
    /// Makes the `/tmp`s.
    pub scratch: Scratch,
}

/// How functions reach the network.
#[derive(Debug)]
pub enum WayOut {
    /// Not at all.
    None,
    /// By links to the host, with these addresses.
    Links(Range),
    /// By a process for each sandbox.
    Pasta(Pasta),
}

impl Pattern {
    /// The host's user and group id of what belongs to root inside.
    pub fn owner(&self, slot: Slot) -> (u32, u32) {
        if self.privileged { (slot.init_id(), slot.init_id()) } else { (0, 0) }
    }
}

/// A sandbox without a purpose yet.
#[derive(Debug)]
pub struct Blank {
    /// To its PID 1.
    pub control: Channel,
    /// Its PID 1.
    pub pidfd: OwnedFd,
    /// Its user namespace.
    pub user_namespace: OwnedFd,
    /// The process that connects it with the network, if it takes one.
    pub pasta: Option<OwnedFd>,
    /// Its `/tmp`, should one of `tmp_mb` be wanted.
    pub tmp: OwnedFd,
    /// The size of that.
    pub tmp_mb: u32,
    /// Its cgroup.
    pub group: Option<Group>,
    /// Its ids and addresses.
    pub slot: Slot,
}

/// A blank sandbox that is being made.
#[derive(Debug)]
pub struct Birth {
    midwife: Channel,
    tmp_mb: u32,
    /// Its cgroup, which may exist.
    pub group: Option<Group>,
    /// Its ids and addresses.
    pub slot: Slot,
}

impl Birth {
    /// Begins. `tmp_mb`: the size of `/tmp` that will probably be wanted.
    pub fn start(pattern: &Pattern, slot: Slot, group: Option<Group>, tmp_mb: u32) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        match sys::clone(0)? {
            Cloned::Child => {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    sys::close_all_but(&[0, 1, 2, theirs.as_raw_fd()]);
                    deliver(pattern, slot, group.as_ref(), tmp_mb, &theirs)
                }));
                sys::exit(if matches!(outcome, Ok(Ok(()))) { 0 } else { 1 })
            }
            Cloned::Parent { .. } => Ok(Self { midwife: ours, tmp_mb, group, slot }),
        }
    }

    /// Readable when [`Birth::finish`] does not wait.
    pub fn done(&self) -> BorrowedFd<'_> {
        self.midwife.as_fd()
    }

    /// Waits for the end. After a failure, `group` is still to be removed.
    pub fn finish(&self) -> Result<Blank, Failure> {
        let (outcome, descriptors) = self
            .midwife
            .receive::<Result<(), Failure>>()
            .and_then(|message| message.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
            .during("make a blank sandbox")?;
        outcome?;
        let mut descriptors = descriptors.into_iter();
        let mut next = || {
            let missing = Failure::host("make a blank sandbox", &io::ErrorKind::InvalidData.into());
            descriptors.next().ok_or(missing)
        };
        Ok(Blank {
            control: Channel::new(next()?),
            pidfd: next()?,
            user_namespace: next()?,
            tmp: next()?,
            pasta: next().ok(),
            tmp_mb: self.tmp_mb,
            group: self.group.clone(),
            slot: self.slot,
        })
    }
}

/// In the midwife.
fn deliver(pattern: &Pattern, slot: Slot, group: Option<&Group>, tmp_mb: u32, helper: &Channel) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Before it enters the cgroup, so that the sandbox does not pay for the disk's buffers.
    let outcome = pattern.scratch.make(tmp_mb, pattern.owner(slot)).and_then(|tmp| {
        let (control, pidfd, raised) = bear(pattern, slot, group)?;
        Ok([control.into_socket(), pidfd, raised.user_namespace, tmp]
            .into_iter()
            .chain(raised.pasta)
            .collect::<Vec<_>>())
    });
    match outcome {
        Ok(descriptors) => {
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            helper.send(&Ok::<(), Failure>(()), &descriptors)
        }
        Err(failure) => helper.send(&Err::<(), Failure>(failure), &[]),
    }
}

fn bear(pattern: &Pattern, slot: Slot, group: Option<&Group>) -> Result<(Channel, OwnedFd, Raised), Failure> {
    if let Some(group) = group {
        group.make().and_then(|()| group.enter()).during("put a sandbox into its cgroup")?;
    }
    fs::write("/proc/self/oom_score_adj", OOM_SCORE).during("raise the OOM score")?;
    let (ours, theirs) = Channel::pair().during("make a socket")?;
    let owner = pattern.privileged.then(|| slot.init_id());
    if let Some(owner) = owner {
        take_effective_user(owner).during("act as the owner of the sandbox")?;
    }
    let (pid, pidfd) = match sys::clone(NAMESPACES | libc::CLONE_PARENT).during("make namespaces")? {
        // This closes the other end as well, or PID 1 would never see it closed.
        Cloned::Child => guest::init::run(theirs, &pattern.filter),
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs);
    if owner.is_some() {
        take_effective_user(0).during("act as root again")?;
    }
    match raise(pattern, slot, pid, &ours) {
        Ok(raised) => Ok((ours, pidfd, raised)),
        Err(failure) => {
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            Err(failure)
        }
    }
}

/// Changes the effective user of the calling process, which stays root otherwise and keeps its capabilities. The kernel
/// counts what is in a user namespace (inotify instances, queued signals, message queues) for who made it as well: were
/// that root, one function could use up what root may have, on the whole host.
pub fn take_effective_user(id: u32) -> io::Result<()> {
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::from_raw(id), Uid::ROOT)?;
    let sets = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })?;
    // The change took this away.
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// What there is of a sandbox besides its PID 1.
struct Raised {
    user_namespace: OwnedFd,
    pasta: Option<OwnedFd>,
}

/// Maps the child's ids, links it to the host, and has it prepare itself.
fn raise(pattern: &Pattern, slot: Slot, pid: i32, control: &Channel) -> Result<Raised, Failure> {
    let map = |root: u32, user: u32, inside: u32| match pattern.privileged {
        true => format!("0 {root} 1\n{inside} {user} 1\n"),
        // The one id that there is: 0 in the helper's own user namespace.
        false => format!("{inside} 0 1\n"),
    };
    let maps = [("uid_map", USER), ("gid_map", GROUP)];
    for (file, inside) in maps {
        fs::write(format!("/proc/{pid}/{file}"), map(slot.init_id(), slot.user_id(), inside))
            .during(format!("write {file}"))?;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/user")).during("open the user namespace")?;
    let (uplink, pasta) = match &pattern.way_out {
        WayOut::None => (None, None),
        WayOut::Links(pool) => (Some(link(pattern.instance, slot, *pool, Namespace::Of(pid))?), None),
        WayOut::Pasta(_) if !pasta::host_is_connected() => (None, None),
        WayOut::Pasta(pasta) => (None, Some(pasta.connect(pid)?)),
    };
    let prepare = Prepare {
        init_id: if pattern.privileged { 0 } else { USER },
        user: USER,
        group: GROUP,
        drop_groups: pattern.privileged,
        link_address: LINK_ADDRESS,
        uplink,
        await_route: pasta.is_some(),
    };
    control.send(&Request::Prepare(prepare), &[]).during("speak to PID 1")?;
    let mut ready = [PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN)];
    let patience = Timespec::try_from(PATIENCE).expect("seconds fit");
    if rustix::event::poll(&mut ready, Some(&patience)).during("wait for PID 1")? == 0 {
        return Err(Failure::host("wait for PID 1", &io::Error::from_raw_os_error(libc::ETIMEDOUT)));
    }
    match control.receive().during("listen to PID 1")? {
        Some((Message::Reply(Ok(_)), _)) => Ok(Raised { user_namespace: namespace.into(), pasta }),
        Some((Message::Reply(Err(failure)), _)) => Err(failure),
        _ => Err(Failure::host("prepare PID 1: it died", &io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Connects a network namespace with the host's. The end there has no address yet.
pub fn link(instance: u32, slot: Slot, pool: Range, namespace: Namespace<'_>) -> Result<Uplink, Failure> {
    let (gateway, uplink) = slot.link(pool).ok_or_else(|| {
        Failure::host(format!("find an address in {pool}, it is too small"), &io::ErrorKind::AddrNotAvailable.into())
    })?;
    let name = slot.device(instance);
    let netlink = Netlink::open().during("open netlink socket")?;
    netlink.add_veth(&name, &uplink.device, namespace).during(format!("make veth {name}"))?;
    let device = netlink.device(&name).during(format!("find {name}"))?;
    netlink.add_address(device, gateway, uplink.prefix).during(format!("give {name} an address"))?;
    // The sandbox has none, and the host must not be reachable by its own.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    // Nobody who can make frames of his own (a VM) shall learn which other addresses the host has.
    let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{name}/arp_ignore"), "1");
    netlink.up(device).during(format!("switch on {name}"))?;
    Ok(uplink)
}
