//! The launcher: this program again, with one thread, which starts the processes that VMs are made of where they can do
//! little.
//!
//! ```text
//! server ── Order::Launch, descriptors ──► launcher ── clone, as its sibling ──► PID 1 of its namespaces ── exec ──► QEMU
//!    ◄───────────── Report, pidfd ───────────┘             maps its ids              confines itself (`confine.rs`)
//! ```
//!
//! A process with threads cannot fork and go on allocating, and namespaces take more than a few system calls. What is
//! launched is the server's child, as the launcher is: the kernel kills it with the thread that started the launcher.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest::protocol::{During, Failure, FailureKind, Spawn};
use guest::seccomp::Programs;
use guest::stage;
use guest::sys::{self, Cloned};
use guest::wire::Channel;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::confine::{self, GROUP, MORE_GROUP, USER};
use super::tree::Tree;
use crate::process::{blank, helper};

/// All that is made for a process. The network namespace is an empty one: a VM's frames cross by a descriptor.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;
/// A process has this long to confine itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// What may be read and executed, and nothing else.
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
/// Of the tree of a program: names and directories only.
const TREE: [(&str, &str); 3] = [("mode", "755"), ("size", "1m"), ("nr_inodes", "4096")];

/// What the launcher is told.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// First. Answered by [`Report::Started`].
    Start {
        /// A directory for each program, empty, and what it sees of the host's files besides devices and processes of its
        /// own, read-only.
        trees: Vec<(PathBuf, Tree)>,
    },
    /// Answered by [`Report::Launched`].
    Launch(Launch),
}

/// A process to start. Comes with the descriptors of its output and of all that it keeps: it has these from
/// [`confine::FIRST_KEPT`] on.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    /// Which of the trees it sees.
    pub tree: usize,
    /// Arguments and environment; its working directory is the one place where it can write.
    pub spawn: Spawn,
    /// What that is on the host.
    pub directory: PathBuf,
    /// The host's user and group that it is; `None`: the launcher's.
    pub user: Option<(u32, u32)>,
    /// A further group.
    pub more_group: Option<u32>,
    /// Names of devices that it sees beside the usual ones.
    pub devices: Vec<String>,
}

/// What the launcher answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// It is ready, or not.
    Started(Result<(), Failure>),
    /// The number of the process, which comes with its pidfd, once it runs the program. Or a failure, with the pidfd if the
    /// process had begun: it is dying, and its parent's to reap.
    Launched(Result<i32, Failure>),
}

/// Runs the launcher. Standard input is the socket to the server.
pub fn run() -> ! {
    let code = match serve() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("emberbox launcher of microVMs: {error}");
            1
        }
    };
    sys::exit(code)
}

fn serve() -> io::Result<()> {
    let server = helper::take_socket()?;
    // The trees are for other users to look through.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let Some((Order::Start { trees }, _)) = server.receive()? else { return Ok(()) };
    let launcher = match Launcher::start(trees) {
        Ok(launcher) => launcher,
        Err(failure) => return server.send(&Report::Started(Err(failure)), &[]),
    };
    server.send(&Report::Started(Ok(())), &[])?;
    while let Some((order, descriptors)) = server.receive()? {
        let Order::Launch(launch) = order else { return Err(io::ErrorKind::InvalidData.into()) };
        match launcher.launch(&launch, descriptors) {
            Ok((pid, pidfd)) => {
                if let Err(error) = server.send(&Report::Launched(Ok(pid)), &[pidfd.as_fd()]) {
                    // Its parent is gone, perhaps before it could ask to die with it.
                    kill(&pidfd);
                    return Err(error);
                }
            }
            Err((failure, dying)) => {
                let dying: Vec<_> = dying.iter().map(AsFd::as_fd).collect();
                server.send(&Report::Launched(Err(failure)), &dying)?;
            }
        }
    }
    Ok(())
}

struct Launcher {
    privileged: bool,
    filter: Programs,
    trees: Vec<PathBuf>,
}

impl Launcher {
    fn start(trees: Vec<(PathBuf, Tree)>) -> Result<Self, Failure> {
        let privileged = rustix::process::geteuid().is_root();
        match privileged {
            true => sys::unshare(libc::CLONE_NEWNS).during("make a mount namespace")?,
            false => helper::enter_user_namespace()?,
        }
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .during("make mounts private")?;
        for (place, tree) in &trees {
            plant(place, tree)?;
        }
        let filter = Programs::compile().map_err(io::Error::other).during("compile the system call filter")?;
        Ok(Self { privileged, filter, trees: trees.into_iter().map(|(place, _)| place).collect() })
    }

    fn launch(&self, launch: &Launch, descriptors: Vec<OwnedFd>) -> Result<(i32, OwnedFd), (Failure, Option<OwnedFd>)> {
        let (pid, pidfd, channel) = self.begin(launch, descriptors).map_err(|failure| (failure, None))?;
        match self.map(launch, pid).and_then(|()| go(&channel)) {
            Ok(()) => Ok((pid, pidfd)),
            Err(failure) => {
                kill(&pidfd);
                Err((failure, Some(pidfd)))
            }
        }
    }

    /// A process that waits to go on.
    fn begin(&self, launch: &Launch, descriptors: Vec<OwnedFd>) -> Result<(i32, OwnedFd, Channel), Failure> {
        let place = self.trees.get(launch.tree).ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from);
        let root = place.and_then(|place| copy(place)).during("copy the tree of a program")?;
        let directory = writable(&launch.directory).during(format!("mount {}", launch.directory.display()))?;
        let (ours, theirs) = Channel::pair().during("make a socket")?;
        let user = launch.user.map(|(user, _)| user).filter(|_| self.privileged);
        if let Some(user) = user {
            blank::take_effective_user(user).during("act as the user of a VM")?;
        }
        let cloned = sys::clone(NAMESPACES | libc::CLONE_PARENT);
        if let Ok(Cloned::Child) = cloned {
            drop(ours);
            let files = confine::Files { root, directory, descriptors };
            confine::become_program(&theirs, launch, files, &self.filter, self.privileged)
        }
        drop(theirs);
        if user.is_some() {
            blank::take_effective_user(0).during("act as root again")?;
        }
        match cloned.during("make namespaces")? {
            Cloned::Child => unreachable!("it is another program by now"),
            Cloned::Parent { pid, pidfd } => Ok((pid, pidfd, ours)),
        }
    }

    /// Says who on the host the process is.
    fn map(&self, launch: &Launch, pid: i32) -> Result<(), Failure> {
        // Without privilege there is one id, which is 0 in the launcher's own user namespace.
        let (user, group) = launch.user.filter(|_| self.privileged).unwrap_or_default();
        let mut groups = format!("{GROUP} {group} 1\n");
        if let Some(more) = launch.more_group.filter(|_| self.privileged) {
            groups += &format!("{MORE_GROUP} {more} 1\n");
        }
        for (file, lines) in [("uid_map", format!("{USER} {user} 1\n")), ("gid_map", groups)] {
            fs::write(format!("/proc/{pid}/{file}"), lines).during(format!("write {file}"))?;
        }
        Ok(())
    }
}

/// Lets it go on, and waits until it runs the program.
fn go(process: &Channel) -> Result<(), Failure> {
    process.send(&(), &[]).during("speak to a process")?;
    let mut ready = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    let patience = Timespec::try_from(PATIENCE).expect("seconds fit");
    if rustix::event::poll(&mut ready, Some(&patience)).during("wait for a process")? == 0 {
        return Err(Failure::host("wait for a process", &io::Error::from_raw_os_error(libc::ETIMEDOUT)));
    }
    match process.receive::<Failure>().during("listen to a process")? {
        // Closed by exec. If it died before, its end will say so.
        None => Ok(()),
        // Whatever failed, it is nothing of the function's.
        Some((failure, _)) => Err(Failure { kind: FailureKind::Host, ..failure }),
    }
}

fn kill(process: &OwnedFd) {
    // An error: it has ended.
    let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
}

/// Makes the tree of a program at a place of this mount namespace.
fn plant(place: &Path, tree: &Tree) -> Result<(), Failure> {
    let at = place.to_str().ok_or(io::ErrorKind::InvalidFilename).map_err(io::Error::from);
    let at = at.during(format!("use {}", place.display()))?;
    stage::new_mount("tmpfs", &TREE, MountAttrFlags::empty())
        .and_then(|tree| stage::place(&tree, at))
        .during(format!("mount a tmpfs on {at}"))?;
    for directory in ["dev", "proc", "tmp"] {
        fs::create_dir(place.join(directory)).during(format!("make {directory} in {at}"))?;
    }
    for (inside, file) in &tree.0 {
        graft(at, inside, file).during(format!("mount {} in {at}", file.display()))?;
    }
    let tree = rustix::mount::open_tree(CWD, at, OpenTreeFlags::OPEN_TREE_CLOEXEC).map_err(io::Error::from);
    tree.and_then(|tree| sys::mount_setattr(&tree, READ_ONLY, true, None)).during(format!("make {at} read-only"))
}

fn graft(at: &str, inside: &Path, file: &Path) -> io::Result<()> {
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or(io::ErrorKind::InvalidFilename);
    let target = format!("{at}{}", text(inside)?);
    if file.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        if let Some(parent) = Path::new(&target).parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create(&target)?;
    }
    stage::place(&stage::clone_mount(&text(file)?)?, &target)
}

/// The same mounts again, mounted nowhere yet.
fn copy(place: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(CWD, place, flags)?)
}

fn writable(directory: &Path) -> io::Result<OwnedFd> {
    let mount = stage::clone_mount(directory.to_str().ok_or(io::ErrorKind::InvalidFilename)?)?;
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    sys::mount_setattr(&mount, attributes, false, None)?;
    Ok(mount)
}
