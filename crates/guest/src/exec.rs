//! Starting one process.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;

use crate::protocol::{Failure, FailureKind, Prepare, Spawn};
use crate::seccomp::Programs;
use crate::sys::Cloned;
use crate::{privileges, sys};

/// Where in the new process something failed. Its number crosses the pipe.
#[derive(Clone, Copy)]
enum Step {
    Streams = 1,
    Privileges,
    WorkingDirectory,
    Filter,
    Execute,
}

impl Step {
    fn failure(number: u8, errno: i32, spawn: &Spawn) -> Failure {
        let error = io::Error::from_raw_os_error(errno);
        let (kind, operation) = match number {
            n if n == Self::Streams as u8 => (FailureKind::Host, "connect standard streams".to_owned()),
            n if n == Self::Privileges as u8 => (FailureKind::Host, "drop privileges".to_owned()),
            n if n == Self::WorkingDirectory as u8 => (FailureKind::WorkingDirectory, spawn.cwd.clone()),
            n if n == Self::Filter as u8 => (FailureKind::Host, "install system call filter".to_owned()),
            _ => (FailureKind::Program, spawn.argv.first().cloned().unwrap_or_default()),
        };
        Failure::new(kind, operation, &error)
    }
}

/// A program as exec takes it.
struct Image {
    programs: Vec<CString>,
    argv: Vec<CString>,
    envp: Vec<CString>,
}

impl Image {
    fn of(spawn: &Spawn) -> Result<Self, Failure> {
        let invalid =
            |_| Failure::new(FailureKind::Program, "zero byte in arguments", &io::ErrorKind::InvalidInput.into());
        let c_string = |text: &str| CString::new(text).map_err(invalid);
        let argv = spawn.argv.iter().map(|text| c_string(text)).collect::<Result<Vec<_>, _>>()?;
        let envp = spawn
            .env
            .iter()
            .map(|(name, value)| c_string(&format!("{name}={value}")))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(program) = spawn.argv.first() else {
            return Err(Failure::new(FailureKind::Program, "empty command", &io::ErrorKind::InvalidInput.into()));
        };
        let programs = candidates(program, &spawn.env).iter().map(|path| c_string(path)).collect::<Result<_, _>>()?;
        Ok(Self { programs, argv, envp })
    }
}

/// Becomes the program. `output` becomes its stdout and stderr; `inherited` stay open in it, with the numbers that they
/// have; `give_up` is called before the system call filter stands. Returns only on failure.
pub fn replace(
    spawn: &Spawn,
    output: &OwnedFd,
    inherited: &[BorrowedFd<'_>],
    give_up: impl FnOnce() -> io::Result<()>,
    filter: &Programs,
) -> Failure {
    let image = match Image::of(spawn) {
        Ok(image) => image,
        Err(failure) => return failure,
    };
    let (step, error) = become_process(spawn, &image, (output, inherited), give_up, filter);
    Step::failure(step as u8, error.raw_os_error().unwrap_or(libc::EINVAL), spawn)
}

/// Starts a process and returns its id once it runs the program. `output` becomes its stdout and stderr; `inherited`
/// stays open in it, with the number that it has.
pub fn start(
    spawn: &Spawn,
    output: OwnedFd,
    inherited: Option<BorrowedFd<'_>>,
    user: &Prepare,
    filter: &Programs,
) -> Result<i32, Failure> {
    let image = Image::of(spawn)?;
    // Closed by a successful exec; else it says what failed.
    let (errors, report) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::host("make pipe", &error.into()))?;
    let pid = match sys::clone(0).map_err(|error| Failure::host("fork", &error))? {
        Cloned::Child => {
            let mut report = File::from(report);
            let give_up = || privileges::become_user(user);
            let (step, error) = become_process(spawn, &image, (&output, inherited.as_slice()), give_up, filter);
            let mut bytes = vec![step as u8];
            bytes.extend(error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes());
            let _ = report.write_all(&bytes);
            sys::exit(127)
        }
        Cloned::Parent { pid, .. } => pid,
    };
    drop((report, output));
    let mut bytes = Vec::new();
    let read = File::from(errors).read_to_end(&mut bytes);
    match (read, bytes.split_first()) {
        (Ok(_), None) => Ok(pid),
        (Ok(_), Some((&step, errno))) if errno.len() == 4 => {
            let errno = i32::from_ne_bytes(errno.try_into().expect("four bytes were checked"));
            Err(Step::failure(step, errno, spawn))
        }
        (Err(error), _) => Err(Failure::host("wait for exec", &error)),
        _ => Err(Failure::host("wait for exec", &io::ErrorKind::InvalidData.into())),
    }
}

/// In the new process: gives up everything and becomes the program. Returns only on failure.
fn become_process(
    spawn: &Spawn,
    image: &Image,
    (output, inherited): (&OwnedFd, &[BorrowedFd<'_>]),
    give_up: impl FnOnce() -> io::Result<()>,
    filter: &Programs,
) -> (Step, io::Error) {
    if let Err(error) = connect_streams(output, inherited) {
        return (Step::Streams, error);
    }
    if let Err(error) = give_up() {
        return (Step::Privileges, error);
    }
    if let Err(error) = rustix::process::chdir(&spawn.cwd) {
        return (Step::WorkingDirectory, error.into());
    }
    if let Err(error) = filter.install() {
        return (Step::Filter, io::Error::other(error.to_string()));
    }
    let mut error = io::Error::from_raw_os_error(libc::ENOENT);
    for program in &image.programs {
        let refused = sys::execve(program, &image.argv, &image.envp);
        match refused.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            // As a shell does: another directory may have one that can be executed; if not, this says more.
            Some(libc::EACCES) => error = refused,
            _ => return (Step::Execute, refused),
        }
    }
    (Step::Execute, error)
}

/// Where a program may be: a name without a slash is looked for in the directories of its own `PATH`.
fn candidates(program: &str, env: &[(String, String)]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
    // An empty component, which stands for the working directory, is none: a name shall not depend on that.
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| format!("{directory}/{program}"))
        .collect()
}

fn connect_streams(output: &OwnedFd, inherited: &[BorrowedFd<'_>]) -> io::Result<()> {
    rustix::process::setsid()?;
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(output)?;
    sys::close_on_exec_from(3);
    for descriptor in inherited {
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    sys::reset_signals();
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for_in_path() {
        let env = |path: &str| vec![("A".to_owned(), "b".to_owned()), ("PATH".to_owned(), path.to_owned())];
        assert_eq!(candidates("python3", &env("/usr/bin::/bin")), ["/usr/bin/python3", "/bin/python3"]);
        assert_eq!(candidates("./app", &env("/bin")), ["./app"]);
        assert_eq!(candidates("/app", &[]), ["/app"]);
        assert!(candidates("app", &[]).is_empty() && candidates("", &env("")).is_empty());
    }
}
