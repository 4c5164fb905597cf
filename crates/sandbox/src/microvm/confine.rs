//! From the launcher's clone to QEMU or its vsock device: what stands between a hole in them and the host.
//!
//! They get what a function of a process sandbox gets, made by the same code: namespaces of their own, a root with their
//! program and its libraries only, read-only but for the VM's directory; no capability, none to be gained; a system call
//! filter. It is the function's filter ([`guest::seccomp`]) as well: both are ordinary programs, and what it denies neither
//! has a business with. QEMU adds a stricter one of its own once it is set up (`-sandbox on`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use guest::protocol::{During, Failure, Prepare, SetUp};
use guest::seccomp::Programs;
use guest::wire::Channel;
use guest::{exec, privileges, stage, sys};
use rustix::process::{Gid, Signal};

use super::launcher::Launch;
use crate::api::LINK_ADDRESS;

/// The one user that there is inside.
pub const USER: u32 = 993;
/// Its group.
pub const GROUP: u32 = 990;
/// And another, of a device.
pub const MORE_GROUP: u32 = 36;
/// The number of the first descriptor that the program keeps. Far above those that the launcher has open.
pub const FIRST_KEPT: i32 = 200;
/// Where the VM's directory is inside.
pub const DIRECTORY: &str = "/tmp";

/// What a process is given.
pub struct Files {
    /// Its tree.
    pub root: OwnedFd,
    /// The mount in which it can write.
    pub directory: OwnedFd,
    /// Its output, and what it keeps.
    pub descriptors: Vec<OwnedFd>,
}

/// In the new process: waits until its ids are mapped, and becomes the program; or says why not.
pub fn become_program(launcher: &Channel, launch: &Launch, files: Files, filter: &Programs, privileged: bool) -> ! {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        if let Ok(Some(((), _))) = launcher.receive() {
            let Err(failure) = confine_and_exec(launch, files, filter, privileged);
            let _ = launcher.send(&failure, &[]);
        }
    }));
    drop(outcome);
    sys::exit(127)
}

/// Returns only on failure.
fn confine_and_exec(
    launch: &Launch,
    files: Files,
    filter: &Programs,
    privileged: bool,
) -> Result<std::convert::Infallible, Failure> {
    let Files { root, directory, descriptors } = files;
    let mut descriptors = descriptors.into_iter();
    let output = descriptors.next().ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from);
    let output = output.during("find the output of a process")?;
    let kept = renumber(descriptors).during("number the descriptors of a process")?;
    let mut user = Prepare {
        init_id: USER,
        user: USER,
        group: GROUP,
        drop_groups: privileged,
        link_address: LINK_ADDRESS,
        uplink: None,
        await_route: false,
    };
    privileges::become_init(&user).during("take the user's id inside")?;
    rustix::system::sethostname(b"microvm").during("set the host name")?;
    let devices: Vec<&str> = launch.devices.iter().map(String::as_str).collect();
    stage::build(&devices)?;
    let nothing =
        SetUp { targets: vec![], hosts: String::new(), resolv_conf: String::new(), listen: vec![], standby: None };
    stage::enter(&nothing, &root, &directory, &[])?;
    drop((root, directory));
    if launch.more_group.is_some() && privileged {
        rustix::thread::set_thread_groups(&[Gid::from_raw(MORE_GROUP)]).during("take the device's group")?;
        user.drop_groups = false;
    }
    let kept: Vec<BorrowedFd<'_>> = kept.iter().map(AsFd::as_fd).collect();
    let give_up = || {
        privileges::become_user(&user)?;
        // Again: the change of user cancelled it.
        Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
    };
    Err(exec::replace(&launch.spawn, &output, &kept, give_up, filter))
}

/// Gives descriptors the numbers that the program's arguments name.
fn renumber(descriptors: impl Iterator<Item = OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    let numbered = (FIRST_KEPT..).zip(descriptors).map(|(number, descriptor)| {
        let numbered = rustix::io::fcntl_dupfd_cloexec(&descriptor, number)?;
        if numbered.as_raw_fd() == number { Ok(numbered) } else { Err(io::ErrorKind::AddrInUse.into()) }
    });
    numbered.collect()
}
