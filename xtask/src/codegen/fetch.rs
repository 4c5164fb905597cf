//! Gets the service models: they travel inside the Python package botocore, pinned to one version.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The package that carries the models, pinned so that two people generate the same code.
pub const PACKAGE: &str = "botocore==1.44.5";
const WHEEL: &str = "botocore-1.44.5-py3-none-any.whl";

/// Path of the package's wheel inside `folder`; downloads it with pip if it is not there.
pub fn wheel(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join(WHEEL);
    if !path.exists() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let status = Command::new("pip")
            .args(["download", "--quiet", "--no-deps", "--dest"])
            .arg(folder)
            .arg(PACKAGE)
            .status()
            .context("start pip; codegen needs Python's pip to download the service models")?;
        ensure!(status.success(), "pip could not download {PACKAGE}: {status}");
    }
    Ok(path)
}

/// One gzipped member of the wheel, unpacked.
pub fn member(wheel: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let file = File::open(wheel).with_context(|| format!("open {}", wheel.display()))?;
    let mut archive = zip::ZipArchive::new(file).with_context(|| format!("read {}", wheel.display()))?;
    let member = archive.by_name(name).with_context(|| format!("find {name} in {}", wheel.display()))?;
    let mut content = Vec::new();
    flate2::read::GzDecoder::new(member).read_to_end(&mut content).with_context(|| format!("unpack {name}"))?;
    Ok(content)
}
