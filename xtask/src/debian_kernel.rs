//! Debian's kernel with its modules, unpacked and not installed: a test boots it to have cgroups of version 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// Depends on the newest kernel of the release, of the kind that has the drivers for virtual machines built in.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// Downloads and unpacks it into `target/debian-kernel`, once. `None` on machines of another kind, which cannot use it.
///
/// # Errors
/// What apt or dpkg said.
pub fn set_up(root: &Path) -> Result<Option<PathBuf>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(None);
    }
    let folder = root.join("target/debian-kernel");
    if folder.exists() {
        return Ok(Some(folder));
    }
    println!("Debian's kernel, in which the tests of cgroups run again (27 MB): {}", folder.display());
    let new = folder.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("removing {}", new.display()))?;
    }
    fs::create_dir_all(&new).with_context(|| format!("creating {}", new.display()))?;
    if download(&new).is_err() {
        // No list of packages yet, or one that names what is no longer there.
        run(Command::new("apt-get").args(["update", "-q"]))?;
        download(&new)?;
    }
    let archive =
        new.read_dir()?.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    let archive = archive.context("apt-get download left no package")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&new))?;
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
    fs::rename(&new, &folder).with_context(|| format!("renaming {}", new.display()))?;
    Ok(Some(folder))
}

fn download(folder: &Path) -> Result<()> {
    let output = Command::new("apt-cache").args(["depends", PACKAGE]).output().context("running apt-cache")?;
    ensure!(output.status.success(), "apt-cache depends {PACKAGE}: {}", String::from_utf8_lossy(&output.stderr));
    let Some(package) = newest(&String::from_utf8_lossy(&output.stdout)).map(str::to_owned) else {
        bail!("apt-cache depends {PACKAGE} names no kernel");
    };
    run(Command::new("apt-get").current_dir(folder).args(["download", "-q", &package]))
}

/// The kernel's own package in what `apt-cache depends` prints.
fn newest(depends: &str) -> Option<&str> {
    depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_the_kernel_is_found() {
        let printed = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Breaks: x\n";
        assert_eq!(newest(printed), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest("linux-image-cloud-amd64\n"), None);
    }
}
