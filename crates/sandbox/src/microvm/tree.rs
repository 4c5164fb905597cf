//! Which of the host's files a program sees: itself, its libraries, and what QEMU reads besides.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::protocol::{During, Failure};
use serde::{Deserialize, Serialize};

use super::confine::DIRECTORY;

/// Where the dynamic loader looks for libraries that are in no directory which it knows itself.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
/// QEMU's software emulation, which Debian builds as a module.
const EMULATION: &str = "qemu/accel-tcg-x86_64.so";

/// Files and directories: where the program sees them, and where they are.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tree(pub BTreeMap<PathBuf, PathBuf>);

impl Tree {
    /// That of a program which sees itself at `inside`, with its libraries.
    pub fn of(program: &Path, inside: &Path) -> Result<Self, Failure> {
        let mut tree = Self(BTreeMap::from([(inside.to_owned(), program.to_owned())]));
        tree.add_libraries(program)?;
        tree.add([LOADER_CACHE].into_iter().filter(|cache| Path::new(cache).exists()));
        tree.check()
    }

    /// That of QEMU: with its firmware, and its module for software emulation. It sees itself where it is, since it finds its
    /// firmware from there.
    pub fn of_qemu(program: &Path) -> Result<Self, Failure> {
        let mut tree = Self::of(program, program)?;
        let output = Command::new(program).args(["-L", "help"]).output();
        let output = output.during(format!("ask {} for its firmware", program.display()))?;
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        let firmware = listed.lines().filter_map(|line| Path::new(line).canonicalize().ok());
        let firmware: Vec<PathBuf> = firmware.filter(|path| path.is_dir()).collect();
        tree.add(firmware);
        if let Some(module) = tree.emulation() {
            tree.add_libraries(&module)?;
            tree.add([module]);
        }
        tree.check()
    }

    /// By the same names.
    fn add<P: Into<PathBuf>>(&mut self, files: impl IntoIterator<Item = P>) {
        self.0.extend(files.into_iter().map(Into::into).map(|file| (file.clone(), file)));
    }

    /// What the loader would load with it. Of a static program there are none.
    fn add_libraries(&mut self, program: &Path) -> Result<(), Failure> {
        let output = Command::new("ldd").arg(program).output();
        let output = output.during(format!("find the libraries of {} with ldd", program.display()))?;
        self.add(libraries(&String::from_utf8_lossy(&output.stdout)));
        Ok(())
    }

    /// The module, which is in a directory beside the libraries.
    fn emulation(&self) -> Option<PathBuf> {
        let beside = |file: &PathBuf| Some(file.canonicalize().ok()?.parent()?.join(EMULATION));
        self.0.values().filter_map(beside).find(|module| module.exists())
    }

    fn check(self) -> Result<Self, Failure> {
        match self.0.keys().find(|inside| inside.starts_with(DIRECTORY)) {
            None => Ok(self),
            Some(hidden) => Err(Failure::host(
                format!("show {} to a microVM's process, whose {DIRECTORY} is another (move it)", hidden.display()),
                &io::Error::from_raw_os_error(libc::EBUSY),
            )),
        }
    }
}

/// The paths in what the loader says: `libc.so.6 => /lib/libc.so.6 (0x7f…)`, `/lib64/ld-linux-x86-64.so.2 (0x7f…)`.
fn libraries(trace: &str) -> impl Iterator<Item = &str> {
    trace.lines().filter_map(|line| {
        let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
        path.starts_with('/').then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_loader_says() {
        let trace = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibpixman-1.so.0 => /lib/x/libpixman-1.so.0 (0x00007f1)\n\
                     \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n\tstatically linked\n";
        let found: Vec<_> = libraries(trace).collect();
        assert_eq!(found, ["/lib/x/libpixman-1.so.0", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn finds_the_libraries_of_a_program() {
        let tree = Tree::of(&std::env::current_exe().unwrap(), Path::new("/program")).unwrap();
        assert!(tree.0.keys().any(|file| file.to_string_lossy().contains("libc.so")), "{tree:?}");
        assert!(tree.0.values().all(|file| file.exists()), "{tree:?}");
    }
}
