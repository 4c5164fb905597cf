//! Which kernel source: Debian's packages of it, and which of them is taken.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// The tarball that the configuration was made for, and the tests' kernel is built from where there is a choice.
pub(super) const FIRST: &str = "linux-source-6.1.tar.xz";
/// Where Debian's packages put their tarballs.
const DIRECTORY: &str = "/usr/src";
const PREFIX: &str = "linux-source-";

/// The kernel source that is installed: 6.1's, or else the newest. Where there is none, the place where 6.1's would be.
pub fn installed() -> PathBuf {
    let names = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let versions = names.iter().filter_map(|name| Some((version(name.strip_suffix(".tar.xz")?)?, name.as_str())));
    Path::new(DIRECTORY).join(best(versions).unwrap_or(FIRST))
}

/// The package with the kernel source to install, of those that `apt-cache pkgnames linux-source-` (or `apt-cache search`)
/// printed: 6.1's, which the configuration was made for, or else the newest. None where apt offers none.
pub fn package(printed: &str) -> Option<&str> {
    let names = printed.lines().filter_map(|line| line.split_whitespace().next());
    best(names.filter_map(|name| Some((version(name)?, name))))
}

fn best<'a>(offered: impl Iterator<Item = ((u32, u32), &'a str)>) -> Option<&'a str> {
    offered.max_by_key(|(version, _)| (*version == (6, 1), *version)).map(|(_, name)| name)
}

/// Of `linux-source-6.12` (6, 12). Of a kernel before 6.1, or with anything after the version, none.
fn version(name: &str) -> Option<(u32, u32)> {
    let (major, minor) = name.strip_prefix(PREFIX)?.split_once('.')?;
    let version = (major.parse().ok()?, minor.parse().ok()?);
    (version >= (6, 1)).then_some(version)
}

/// The names of all options that a kernel's tree has, with `CONFIG_` before them.
pub(super) fn options(tree: &Path) -> io::Result<HashSet<String>> {
    let mut found = HashSet::new();
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.file_name().to_string_lossy().starts_with("Kconfig") {
                let text = std::fs::read(entry.path())?;
                found.extend(String::from_utf8_lossy(&text).lines().filter_map(option));
            }
        }
    }
    Ok(found)
}

/// The option that a line of Kconfig begins to describe.
fn option(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let begins = matches!(words.next()?, "config" | "menuconfig");
    words.next().filter(|_| begins).map(|name| format!("CONFIG_{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_that_the_configuration_is_for_or_the_newest() {
        // Debian 12, where security support brings a newer one as well; then Debian 13 and later.
        let twelve = "linux-source-6.12\nlinux-source-6.1\n";
        assert_eq!(package(twelve), Some("linux-source-6.1"));
        let searched = "linux-source - Linux kernel source (meta-package)\n\
                        linux-source-6.12 - Linux kernel source for version 6.12 with Debian patches\n";
        assert_eq!(package(searched), Some("linux-source-6.12"));
        assert_eq!(package("linux-source-6.9\nlinux-source-6.18\nlinux-source-6.12\n"), Some("linux-source-6.18"));
        assert_eq!(package("linux-source-6.18\nlinux-source-7.0\n"), Some("linux-source-7.0"));
        // Debian 11; names of another kind; no lists at all.
        assert_eq!(package("linux-source-5.10\nlinux-source\n"), None);
        assert_eq!(package("linux-source-6.12-rt\nlinux-sources-6.12\nlinux-source-6\n"), None);
        assert_eq!(package(""), None);
    }

    #[test]
    fn a_trees_options_are_found() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("fs/squashfs")).unwrap();
        std::fs::write(tree.path().join("Kconfig"), "source fs/Kconfig\nconfig A\n\tbool \"config B\"\n").unwrap();
        std::fs::write(tree.path().join("fs/squashfs/Kconfig.debug"), "menuconfig C_1\n\tdepends on A\n").unwrap();
        std::fs::write(tree.path().join("fs/squashfs/main.c"), "config D\n").unwrap();
        let found = options(tree.path()).unwrap();
        assert_eq!(found, HashSet::from(["CONFIG_A".to_owned(), "CONFIG_C_1".to_owned()]));
    }
}
