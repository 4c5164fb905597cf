//! What PID 1 and the function's processes give up.
//!
//! PID 1 keeps, inside its own user namespace, just what it takes to start processes as another user and to kill them.
//! A function's process keeps nothing.

use std::io;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope,
};
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::protocol::Prepare;
use crate::sys;

/// Of the capabilities, those that PID 1 needs after set-up.
const INIT_CAPABILITIES: CapabilitySet =
    CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::SETPCAP).union(CapabilitySet::KILL);

/// Resources of each process: resource, limit.
const LIMITS: [(Resource, u64); 5] = [
    (Resource::Nofile, 1024),
    (Resource::Nproc, 1024),
    // Not 0, with which a core_pattern that is a program would still be run, on the host. See core(5).
    (Resource::Core, 1),
    (Resource::Memlock, 64 * 1024),
    (Resource::Stack, 8 * 1024 * 1024),
];

/// Makes the caller the root (or the one user) of its user namespace, and hides its memory from everybody.
pub fn become_init(prepare: &Prepare) -> io::Result<()> {
    let (uid, gid) =
        (Uid::from_raw(prepare.init_id), Gid::from_raw(if prepare.init_id == 0 { 0 } else { prepare.group }));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    if prepare.drop_groups {
        rustix::thread::set_thread_groups(&[])?;
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // After the change of user, which would cancel it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// Bars PID 1, and all that it will start, from changing mounts, from gaining rights by exec, and from writing outside
/// `/tmp`.
pub fn lock_down_init() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    restrict_files().map_err(|error| io::Error::other(format!("Landlock: {error}")))?;
    drop_bounding(INIT_CAPABILITIES);
    set_capabilities(INIT_CAPABILITIES)
}

/// Makes the caller an ordinary process without any privilege; not yet its system calls, see [`crate::seccomp`].
pub fn become_user(prepare: &Prepare) -> io::Result<()> {
    for (resource, limit) in LIMITS {
        // The host's own limit may be lower, and is then kept.
        let allowed = rustix::process::getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit));
        rustix::process::setrlimit(resource, Rlimit { current: Some(allowed), maximum: Some(allowed) })?;
    }
    drop_bounding(CapabilitySet::empty());
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    rustix::thread::clear_ambient_capability_set()?;
    if prepare.drop_groups {
        rustix::thread::set_thread_groups(&[])?;
    }
    let (uid, gid) = (Uid::from_raw(prepare.user), Gid::from_raw(prepare.group));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    set_capabilities(CapabilitySet::empty())?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn set_capabilities(set: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn drop_bounding(keep: CapabilitySet) {
    for capability in 0..64 {
        if keep.bits() & (1 << capability) == 0 && !sys::drop_bounding(capability) {
            break; // there are no more
        }
    }
}

/// Everything may be read and executed; written: `/tmp`, devices, and the process's own files in `/proc` (thread names).
/// What the kernel's Landlock does not know yet is left out: the mounts are read-only anyway, this is the second wall.
fn restrict_files() -> Result<(), Box<dyn std::error::Error>> {
    let abi = ABI::V6;
    let file = AccessFs::from_file(abi);
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, AccessFs::from_read(abi)))?
        .add_rule(PathBeneath::new(PathFd::new("/tmp")?, AccessFs::from_all(abi)))?
        .add_rule(PathBeneath::new(PathFd::new("/dev")?, file))?
        .add_rule(PathBeneath::new(PathFd::new("/proc")?, file))?
        .restrict_self()?;
    Ok(())
}
