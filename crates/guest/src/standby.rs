//! A process that runs before its sandbox has a purpose: an interpreter, say, that has imported what every function of
//! its runtime needs. It is the sandbox's first process, has every limit that the others have, and sees a root without
//! the function's directories.
//!
//! ```text
//!  SetUp, with a standby          Complete + mounts            Spawn
//!  ─► root; fork the mounter;     ─► the mounter mounts        ─► purpose into the pipe: it becomes
//!     lock down; start standby       /var/task, and ends          the process, with its output
//! ```
//!
//! PID 1 has given up mounting by the time that the standby runs. The *mounter* has not: a fork of PID 1 from just
//! before, which takes one message, and is gone before anything of the function's is read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::pipe::PipeFlags;

use crate::protocol::{During, Failure, Prepare, Spawn};
use crate::seccomp::Programs;
use crate::sys::{self, Cloned};
use crate::wire::Channel;
use crate::{exec, stage};

/// Tells the standby the number of the descriptor on which it hears its purpose: its working directory, then its
/// environment as `NAME=value`, each ended by a zero byte; then the end.
pub const VARIABLE: &str = "_EMBERBOX_STANDBY";
/// Spaces behind that number: room in the memory of the process for the environment that it will have, so that
/// `/proc/self/environ` can show that. Lambda's limit is 4 KB, and what Lambda itself sets is less than 2.
const ROOM: usize = 8 * 1024;
/// Longest purpose, in bytes. A pipe takes more without a reader, so that PID 1 never waits for one.
const LONGEST: usize = 32 * 1024;

/// Attaches the mounts that come last.
pub struct Mounter(Channel);

impl Mounter {
    /// To be called while PID 1 may still mount.
    pub fn start() -> Result<Self, Failure> {
        let (ours, theirs) = Channel::pair().during("make a socket")?;
        match sys::clone(0).during("fork the mounter")? {
            Cloned::Child => {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    sys::close_all_but(&[0, 1, 2, theirs.as_raw_fd()]);
                    attach_all(&theirs)
                }));
                sys::exit(if matches!(outcome, Ok(Ok(()))) { 0 } else { 1 })
            }
            Cloned::Parent { .. } => Ok(Self(ours)),
        }
    }

    /// Attaches each mount at its target, and returns when the mounter has ended.
    pub fn attach(self, targets: &Vec<String>, mounts: &[OwnedFd]) -> Result<(), Failure> {
        let mounts: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
        self.0.send(targets, &mounts).during("speak to the mounter")?;
        let answer = self.0.receive::<Result<(), Failure>>().during("listen to the mounter")?;
        let outcome =
            answer.ok_or_else(|| Failure::host("mount: the mounter died", &io::ErrorKind::UnexpectedEof.into()))?.0;
        // Closed with the process.
        while self.0.receive::<()>().during("wait for the mounter")?.is_some() {}
        outcome
    }
}

/// In the mounter.
fn attach_all(channel: &Channel) -> io::Result<()> {
    let Some((targets, mounts)) = channel.receive::<Vec<String>>()? else { return Ok(()) };
    let outcome = targets.iter().zip(&mounts).try_for_each(|(target, mount)| stage::attach(mount, target));
    channel.send(&outcome, &[])
}

/// The process, waiting.
pub struct Standby {
    /// The kernel's number for it.
    pub pid: i32,
    argv: Vec<String>,
    purpose: OwnedFd,
    output: OwnedFd,
}

impl Standby {
    /// Starts it.
    pub fn start(spawn: &Spawn, user: &Prepare, filter: &Programs) -> Result<Self, Failure> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during("make pipe");
        let ((output, its_output), (its_purpose, purpose)) = (pipe()?, pipe()?);
        let mut spawn = spawn.clone();
        spawn.env.push((VARIABLE.to_owned(), format!("{}{}", its_purpose.as_raw_fd(), " ".repeat(ROOM))));
        let pid = exec::start(&spawn, its_output, Some(its_purpose.as_fd()), user, filter)?;
        Ok(Self { pid, argv: spawn.argv, purpose, output })
    }

    /// Has it become what is asked for: its id, and the read end of its output. `None`: it cannot, and is killed.
    pub fn become_process(self, spawn: &Spawn) -> Option<(i32, OwnedFd)> {
        let written = purpose(&self.argv, spawn).is_some_and(|text| File::from(self.purpose).write_all(&text).is_ok());
        if written {
            return Some((self.pid, self.output));
        }
        sys::kill_group(self.pid, libc::SIGKILL);
        None
    }
}

/// The words that make a process started as `argv` the one that is asked for, if some can.
fn purpose(argv: &[String], spawn: &Spawn) -> Option<Vec<u8>> {
    let variables = spawn.env.iter().map(|(name, value)| format!("{name}={value}"));
    let words: Vec<String> = std::iter::once(spawn.cwd.clone()).chain(variables).collect();
    let length: usize = words.iter().map(|word| word.len() + 1).sum();
    let fits = argv == spawn.argv && length <= LONGEST && !words.iter().any(|word| word.contains('\0'));
    fits.then(|| words.iter().flat_map(|word| word.bytes().chain([0])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn(value: &str) -> Spawn {
        Spawn { argv: vec!["/python".into()], env: vec![("A".into(), value.into())], cwd: "/var/task".into() }
    }

    #[test]
    fn a_purpose_is_directory_and_environment() {
        let argv = ["/python".to_owned()];
        assert_eq!(purpose(&argv, &spawn("1=2")).unwrap(), b"/var/task\0A=1=2\0");
        assert_eq!(purpose(&argv, &spawn("a\0b")), None, "it would end early");
        assert_eq!(purpose(&argv, &spawn(&"x".repeat(LONGEST))), None, "the pipe could be full");
        assert_eq!(purpose(&["/bash".to_owned()], &spawn("1")), None, "another program");
    }
}
