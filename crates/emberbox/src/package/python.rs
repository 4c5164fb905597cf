//! Python on the machine of the one who deploys: which version to name, and pip for `requirements.txt`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{File, read_folder};

/// The versions that Lambda has (or has had) a runtime for, newest first.
const MINOR_VERSIONS: [u32; 6] = [14, 13, 12, 11, 10, 9];

/// The newest Python of this machine, as a runtime's name.
pub fn newest_python() -> Option<String> {
    MINOR_VERSIONS.iter().map(|minor| format!("python3.{minor}")).find(|name| {
        // Version managers put programs for versions that are not there into PATH: ask, do not only look.
        let mut ask = Command::new(name);
        ask.args(["-c", ""]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ask.status().is_ok_and(|status| status.success())
    })
}

/// What `requirements.txt` asks for, installed by the pip of `runtime`'s Python.
pub fn install_requirements(folder: &Path, runtime: &str) -> Result<BTreeMap<String, File>> {
    let target = tempfile::tempdir().context("make a temporary directory for pip")?;
    let requirements = folder.join("requirements.txt");
    let output = Command::new(runtime)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-input"])
        .arg("--root-user-action=ignore")
        .arg("--target")
        .arg(target.path())
        .arg("--requirement")
        .arg(&requirements)
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!("run {runtime} for pip, to install {}; or install it into the folder yourself and deploy with --no-install", requirements.display())
        })?;
    if !output.status.success() {
        bail!(
            "`{runtime} -m pip install --requirement {}` failed:\n{}\nInstall it into the folder yourself and deploy with --no-install, if pip cannot.",
            requirements.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    if std::fs::read_dir(target.path()).context("read what pip installed")?.next().is_none() {
        return Ok(BTreeMap::new());
    }
    let mut files = read_folder(target.path())?;
    files.retain(|name, _| !name.starts_with("bin/"));
    Ok(files)
}
