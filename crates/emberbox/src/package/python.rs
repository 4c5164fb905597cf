//! pip, for what a function's `requirements.txt` asks for.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{File, read_folder};

/// What `requirements.txt` asks for, as the Python of `runtime` needs it.
pub fn install_requirements(folder: &Path, runtime: &str) -> Result<BTreeMap<String, File>> {
    let target = tempfile::tempdir().context("make a temporary directory for pip")?;
    let requirements = folder.join("requirements.txt");
    let (interpreter, cross) = interpreter(runtime);
    let output = Command::new(&interpreter)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-input"])
        .arg("--root-user-action=ignore")
        .arg("--target")
        .arg(target.path())
        .args(&cross)
        .arg("--requirement")
        .arg(&requirements)
        .stdin(Stdio::null())
        .output();
    let cause = match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()),
        Err(error) => Some(format!("{interpreter}: {error}")),
    };
    if let Some(cause) = cause {
        bail!(
            "pip could not install {}:\n{cause}\nInstall it into the folder yourself and deploy with --no-install, or get pip \
             with `sudo apt-get install python3-pip`.",
            requirements.display(),
        );
    }
    if std::fs::read_dir(target.path()).context("read what pip installed")?.next().is_none() {
        return Ok(BTreeMap::new());
    }
    let mut files = read_folder(target.path())?;
    files.retain(|name, _| !name.starts_with("bin/"));
    Ok(files)
}

/// The Python to run pip with, and what to tell pip when that is another version than the function's.
fn interpreter(runtime: &str) -> (String, Vec<String>) {
    let version: String =
        runtime.chars().skip_while(|c| !c.is_ascii_digit()).take_while(|c| matches!(c, '0'..='9' | '.')).collect();
    let same = format!("python{version}");
    // Version managers put programs for versions that are not there into PATH: ask, do not only look.
    let mut ask = Command::new(&same);
    ask.args(["-c", "import pip"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if ask.status().is_ok_and(|status| status.success()) {
        return (same, Vec::new());
    }
    let cross = ["--python-version", &version, "--only-binary=:all:"].map(str::to_owned).to_vec();
    ("python3".to_owned(), cross)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_to_pip() {
        let (interpreter, cross) = interpreter("python3.99-watched");
        assert_eq!(interpreter, "python3");
        assert_eq!(cross, ["--python-version", "3.99", "--only-binary=:all:"]);
    }
}
