//! The guest kernel, from the distribution's kernel source and our configuration.
//!
//! ```text
//! linux-source-6.1.tar.xz ──unpack──► make allnoconfig, with kernel/x86_64.config ──► are all asked options there?
//!                                                                                         │
//!                        vmlinux, vmlinux.stamp ◄──strip── make vmlinux ◄─────────────────┘
//! ```
//!
//! The configuration was made for Linux 6.1, Debian 12's. Where that is not to be had, a newer one takes it too (6.12,
//! Debian 13's, lacks two, which are on by default there): what it calls otherwise is asked for by its words, and what it has not is left out and
//! said.
//!
//! The same source, configuration and compiler give the same bytes. The stamp beside the result tells what it was made
//! from: as long as that is the same, nothing is built.

mod config;
mod source;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};
pub use source::{installed as installed_source, package as source_package};

/// What is asked of the kernel, each option with its reason.
pub const CONFIG: &str = include_str!("../kernel/x86_64.config");

/// What newer kernels than 6.1 call otherwise, asked for as well.
pub const LATER_CONFIG: &str = include_str!("../kernel/x86_64.later.config");

/// Debian's package that depends on the kernel source of its release.
const SOURCE_PACKAGE: &str = "linux-source";

/// The program that building needs, and Debian's package with it.
const PROGRAMS: &[(&str, &str)] = &[
    ("bc", "bc"),
    ("bison", "bison"),
    ("flex", "flex"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("strip", "binutils"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];

/// Headers that the kernel's build tools include, and Debian's package with them.
const HEADERS: &[(&str, &str)] = &[("gelf.h", "libelf-dev"), ("openssl/opensslv.h", "libssl-dev")];

/// How many lines of what the compiler said an error shows at most.
const TAIL: usize = 20;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Only x86-64 has a configuration.
    #[error("build the guest kernel: there is a configuration for x86_64 only, and this machine is {0}")]
    Architecture(&'static str),
    /// The source is not installed.
    #[error(
        "build the guest kernel: there is no kernel source at {}; install it with `apt-get install {SOURCE_PACKAGE}`, or \
         name the tarball of a Linux from 6.1 on",
        path.display()
    )]
    NoSource {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Programs or headers are missing.
    #[error("build the guest kernel: this machine lacks {missing}; install with `apt-get install {packages}`")]
    Tools {
        /// What is missing.
        missing: String,
        /// The Debian packages that bring it.
        packages: String,
    },
    /// The kernel's configuration has not what was asked for, though the source has these options: they need others.
    #[error(
        "configure the guest kernel from {}: these options of crates/images/kernel/x86_64.config did not survive, so \
         with this source they need others: {options}",
        path.display()
    )]
    Options {
        /// The source.
        path: PathBuf,
        /// As asked, with commas between.
        options: String,
    },
    /// A program failed.
    #[error("{doing}: {program} failed ({status}):\n{output}")]
    Program {
        /// What was being done.
        doing: &'static str,
        /// Which program.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines that it wrote to stderr.
        output: String,
    },
    /// A file could not be read, written or started.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What [`build`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Built {
    /// Built now.
    New,
    /// It was there already, of the same source and configuration.
    Before,
}

/// What to build from, and whereto.
#[derive(Clone, Debug)]
pub struct Build {
    /// The source, a tarball whose one top folder is the kernel's tree. By default [`installed_source`].
    pub source: PathBuf,
    /// The kernel: an uncompressed ELF file, as Firecracker wants it, stripped.
    ///
    /// Beside it are kept its stamp and a lock file, and while building a folder of up to 1.7 GB.
    pub output: PathBuf,
    /// How many compilers run at once.
    pub jobs: usize,
}

impl Build {
    /// From Debian's source, with as many compilers as there are CPUs.
    pub fn new(output: impl Into<PathBuf>) -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        Self { source: installed_source(), output: output.into(), jobs }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.output.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    /// What the kernel would be made from. The source is known by name, size and time, as `make` knows files.
    fn stamp(&self) -> Result<String, KernelError> {
        let meta = self.source.metadata().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => KernelError::NoSource { path: self.source.clone() },
            _ => KernelError::Io { doing: "read the kernel source", path: self.source.clone(), source },
        })?;
        let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let name = self.source.file_name().unwrap_or_default().to_string_lossy();
        let config = hex::encode(Sha256::digest(if name == source::FIRST { CONFIG.into() } else { asked() }));
        Ok(format!("config {config}\nsource {name} {} bytes, changed {}\n", meta.len(), changed.as_secs()))
    }
}

/// Makes sure that the kernel is there. Blocks, for minutes where it has to build; two at once do the work once.
///
/// `progress` hears each step in a few words.
pub fn build(build: &Build, progress: &dyn Fn(&str)) -> Result<Built, KernelError> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(KernelError::Architecture(std::env::consts::ARCH));
    }
    let stamp = build.stamp()?;
    let stamp_file = build.beside(".stamp");
    let is_there = || build.output.is_file() && std::fs::read_to_string(&stamp_file).is_ok_and(|text| text == stamp);
    if is_there() {
        return Ok(Built::Before);
    }
    check_tools()?;
    if let Some(folder) = build.output.parent() {
        std::fs::create_dir_all(folder).map_err(at("create", folder))?;
    }
    let lock_file = build.beside(".lock");
    let lock = File::create(&lock_file).map_err(at("create", &lock_file))?;
    lock.lock().map_err(at("lock", &lock_file))?;
    if is_there() {
        return Ok(Built::Before);
    }
    let tree = build.beside(".build");
    // What a killed build left.
    remove(&tree)?;
    remove(&stamp_file)?;
    let result = in_tree(build, &tree, progress);
    // Also after a failure: it is large, and the error has what it would tell.
    let removed = remove(&tree);
    result?;
    removed?;
    std::fs::write(&stamp_file, stamp).map_err(at("write", &stamp_file))?;
    Ok(Built::New)
}

fn in_tree(build: &Build, tree: &Path, progress: &dyn Fn(&str)) -> Result<(), KernelError> {
    progress("unpacking the kernel source");
    std::fs::create_dir(tree).map_err(at("create", tree))?;
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&build.source).arg("-C").arg(tree).arg("--strip-components=1");
    run("unpack the kernel source", &mut unpack, &mut |_| {})?;

    progress("configuring the kernel");
    let file = tree.join("emberbox.config");
    std::fs::write(&file, asked()).map_err(at("write", &file))?;
    let mut configure = make(tree);
    configure.arg("-s").arg("KCONFIG_ALLCONFIG=emberbox.config").arg("allnoconfig");
    run("configure the guest kernel", &mut configure, &mut |_| {})?;
    let effective = tree.join(".config");
    let effective = std::fs::read_to_string(&effective).map_err(at("read", &effective))?;
    let asked = asked();
    let lost = config::lost(&asked, &effective);
    if !lost.is_empty() {
        let known = source::options(tree).map_err(at("read the options of", tree))?;
        let (refused, unknown): (Vec<&str>, Vec<&str>) =
            lost.into_iter().partition(|line| config::name(line).is_none_or(|name| known.contains(name)));
        if !refused.is_empty() {
            return Err(KernelError::Options { path: build.source.clone(), options: refused.join(", ") });
        }
        progress(&format!("this kernel has no such option, and is built without: {}", unknown.join(", ")));
    }

    progress("compiling the kernel; this takes some minutes");
    let mut files = 0;
    let mut compile = make(tree);
    compile.arg(format!("-j{}", build.jobs.max(1))).arg("vmlinux");
    run("compile the guest kernel", &mut compile, &mut |line| {
        // Lines are like `  CC      kernel/fork.o`.
        if line.trim_start().starts_with("CC ") {
            files += 1;
            if files % 100 == 0 {
                progress(&format!("compiling the kernel: {files} files of about {FILES}"));
            }
        }
    })?;

    let stripped = tree.join("vmlinux.stripped");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(tree.join("vmlinux"));
    run("strip the guest kernel", &mut strip, &mut |_| {})?;
    std::fs::rename(&stripped, &build.output).map_err(at("put in place", &build.output))
}

/// All that is asked for. A kernel that does not know an option ignores it.
fn asked() -> String {
    [CONFIG, LATER_CONFIG].concat()
}

/// How many files are compiled, for the progress; nothing depends on it.
const FILES: u32 = 970;

/// `make` with everything fixed that would otherwise tell this build from another.
fn make(tree: &Path) -> Command {
    let mut command = Command::new("make");
    command.current_dir(tree).env("LC_ALL", "C").env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    for (name, value) in [("TIMESTAMP", "@0"), ("USER", "emberbox"), ("HOST", "emberbox"), ("VERSION", "1")] {
        command.env(format!("KBUILD_BUILD_{name}"), value);
    }
    command
}

/// Runs it, with its lines on stdout to `line` and the last ones on stderr into an error.
fn run(doing: &'static str, command: &mut Command, line: &mut dyn FnMut(&str)) -> Result<(), KernelError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = at("start", Path::new(&program));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(start)?;
    let stdout = child.stdout.take().expect("is piped");
    let stderr = child.stderr.take().expect("is piped");
    let tail = std::thread::spawn(move || {
        let mut tail = VecDeque::new();
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(String::from_utf8_lossy(&line).into_owned());
        }
        Vec::from(tail).join("\n")
    });
    for bytes in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        line(&String::from_utf8_lossy(&bytes));
    }
    let status = child.wait().map_err(at("wait for", Path::new(&program)))?;
    let output = tail.join().unwrap_or_default();
    if status.success() { Ok(()) } else { Err(KernelError::Program { doing, program, status, output }) }
}

fn check_tools() -> Result<(), KernelError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let included = |header: &str| {
        ["/usr/include", "/usr/include/x86_64-linux-gnu", "/usr/local/include"]
            .iter()
            .any(|folder| Path::new(folder).join(header).is_file())
    };
    let programs = PROGRAMS.iter().filter(|(program, _)| !on_path(program));
    let headers = HEADERS.iter().filter(|(header, _)| !included(header));
    let (missing, mut packages): (Vec<&str>, Vec<&str>) = programs.chain(headers).copied().unzip();
    if missing.is_empty() {
        return Ok(());
    }
    packages.dedup();
    Err(KernelError::Tools { missing: missing.join(", "), packages: packages.join(" ") })
}

fn remove(path: &Path) -> Result<(), KernelError> {
    let result = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    result.map_err(at("remove", path))
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_before_is_not_built_again() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("linux.tar.xz");
        std::fs::write(&source, "source").unwrap();
        let kernel = Build { source: source.clone(), output: dir.path().join("vmlinux"), jobs: 1 };
        std::fs::write(&kernel.output, "kernel").unwrap();
        std::fs::write(kernel.beside(".stamp"), kernel.stamp().unwrap()).unwrap();
        assert_eq!(build(&kernel, &|step| panic!("{step}")).unwrap(), Built::Before);
        // Another source: it is unpacked, and is none.
        std::fs::write(&source, "another").unwrap();
        match build(&kernel, &|_| {}) {
            Err(KernelError::Program { doing: "unpack the kernel source", program, .. }) => assert_eq!(program, "tar"),
            // On a machine that cannot build kernels.
            Err(KernelError::Tools { .. } | KernelError::Architecture(_)) => {}
            other => panic!("{other:?}"),
        }
        assert!(!kernel.beside(".build").exists());
    }

    #[test]
    fn a_missing_source_says_how_to_get_it() {
        let kernel = Build { source: "/nowhere/linux.tar.xz".into(), output: "/nowhere/vmlinux".into(), jobs: 1 };
        let error = kernel.stamp().unwrap_err().to_string();
        assert!(error.contains("/nowhere/linux.tar.xz") && error.contains("apt-get install linux-source`"), "{error}");
    }
}
