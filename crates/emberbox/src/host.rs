//! Programs of the host that Emberbox makes use of, and how Debian's apt gets them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program and the package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Program, as in PATH.
    pub program: &'static str,
    /// Debian package.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Only of use to root, or to others.
    pub user: User,
}

/// Who has a use for a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Root.
    Root,
    /// Everybody else.
    Others,
    /// All.
    All,
}

/// What Emberbox can make use of.
pub const TOOLS: [Tool; 5] = [
    Tool {
        program: "mkfs.ext4",
        package: "e2fsprogs",
        purpose: "/tmp of functions on disk, limited in size",
        user: User::Root,
    },
    Tool {
        program: "nft",
        package: "nftables",
        purpose: "functions reach the internet, but nothing private",
        user: User::Root,
    },
    Tool {
        program: "pasta",
        package: "passt",
        purpose: "functions reach the internet without root",
        user: User::Others,
    },
    Tool { program: "python3", package: "python3", purpose: "Python functions", user: User::All },
    Tool { program: "pip3", package: "python3-pip", purpose: "AWS's client for Python functions", user: User::All },
];

/// Where a program is; the system's directories count even if PATH lacks them, as it often does for plain users.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The tools that this user has a use for and this host lacks.
pub fn missing_tools() -> Vec<Tool> {
    let relevant = |tool: &Tool| match tool.user {
        User::Root => is_root(),
        User::Others => !is_root(),
        User::All => true,
    };
    TOOLS.into_iter().filter(relevant).filter(|tool| find(tool.program).is_none()).collect()
}

/// The command that installs packages.
pub fn install_command(packages: &[&str]) -> String {
    format!("sudo apt-get install {}", packages.join(" "))
}

/// Installs Debian packages; needs root.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    let apt = |args: &[&str]| -> Result<bool> {
        let status = Command::new("apt-get")
            .args(["-q", "-y", "-o", "Dpkg::Use-Pty=0"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("run apt-get")?;
        Ok(status.success())
    };
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(packages);
    // A machine whose package lists are fresh needs no update; one that never had any does.
    if apt(&install)? || (apt(&["update"])? && apt(&install)?) {
        return Ok(());
    }
    bail!("apt-get could not install {}; try `{}` yourself", packages.join(", "), install_command(packages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
        assert_eq!(find("."), None, "a directory is no program");
    }
}
