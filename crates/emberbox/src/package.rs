//! Makes a deployment package from what the user points at: a folder, a zip, or one executable.

mod archive;
mod guess;
mod python;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use archive::{File, write_zip};
pub use guess::{Contents, Guess, Language, guess};
pub use python::install_requirements;

/// A package ready to be uploaded, or one that a step (pip) may still add files to.
pub enum Package {
    /// A zip that goes up byte for byte.
    Zip(Vec<u8>),
    /// Files that are still to be zipped.
    Files(BTreeMap<String, File>),
}

/// Names and directories that never belong into a package.
const LEFT_OUT: [&str; 9] =
    [".git", ".hg", ".svn", "__pycache__", ".venv", ".pytest_cache", ".mypy_cache", ".DS_Store", ".emberbox"];

/// Reads `path`.
pub fn read(path: &Path) -> Result<Package> {
    let meta = fs::metadata(path).with_context(|| format!("read {}", path.display()))?;
    if meta.is_dir() {
        return Ok(Package::Files(read_folder(path)?));
    }
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return Ok(Package::Zip(bytes));
    }
    let source = path.extension().is_some_and(|e| ["py", "js", "mjs", "cjs"].iter().any(|known| e == *known));
    if !source && (bytes.starts_with(b"\x7fELF") || bytes.starts_with(b"#!")) {
        return Ok(Package::Files(BTreeMap::from([("bootstrap".to_owned(), File { bytes, executable: true })])));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.ends_with(".zip") {
        bail!("{} is named .zip but is no zip file", path.display());
    }
    // A single source file: the package is that file.
    Ok(Package::Files(BTreeMap::from([(name, File { bytes, executable: false })])))
}

/// All files of a folder, following symbolic links as `zip -r` does.
pub fn read_folder(folder: &Path) -> Result<BTreeMap<String, File>> {
    let mut files = BTreeMap::new();
    let wanted = |entry: &walkdir::DirEntry| {
        let name = entry.file_name().to_string_lossy();
        entry.depth() == 0 || !(LEFT_OUT.contains(&name.as_ref()) || name.ends_with(".pyc"))
    };
    for entry in walkdir::WalkDir::new(folder).follow_links(true).into_iter().filter_entry(wanted) {
        let entry = entry.with_context(|| format!("read the folder {}", folder.display()))?;
        if !entry.file_type().is_file() {
            continue;
        }
        let relative: PathBuf = entry.path().strip_prefix(folder).expect("walkdir stays inside").into();
        let Some(name) = relative.to_str() else {
            bail!(
                "{} has a file name that is not UTF-8, which Lambda's zip format does not allow",
                entry.path().display()
            );
        };
        files.insert(name.to_owned(), File::read(entry.path())?);
    }
    if files.is_empty() {
        bail!("the folder {} has no files to deploy", folder.display());
    }
    Ok(files)
}

impl Package {
    /// The zip, and how many files it holds (`None` if it came as a zip).
    pub fn into_zip(self) -> Result<Vec<u8>> {
        match self {
            Self::Zip(bytes) => Ok(bytes),
            Self::Files(files) => write_zip(&files),
        }
    }
}

impl Contents for Package {
    fn names(&self) -> Vec<String> {
        match self {
            Self::Zip(bytes) => zip::ZipArchive::new(Cursor::new(bytes))
                .map(|zip| zip.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect())
                .unwrap_or_default(),
            Self::Files(files) => files.keys().cloned().collect(),
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        match self {
            Self::Zip(bytes) => {
                // A source file that is larger than this is not where a handler is looked for.
                const LIMIT: u64 = 4 << 20;
                let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).ok()?;
                let mut text = String::new();
                zip.by_name(name).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
                Some(text)
            }
            Self::Files(files) => String::from_utf8(files.get(name)?.bytes.clone()).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_folders_zips_and_executables() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("f/lib")).unwrap();
        fs::create_dir_all(at("f/__pycache__")).unwrap();
        fs::write(at("f/app.py"), "def handler(e, c): pass").unwrap();
        fs::write(at("f/lib/x.py"), "").unwrap();
        fs::write(at("f/__pycache__/app.pyc"), "").unwrap();
        let folder = read(&at("f")).unwrap();
        assert_eq!(folder.names(), ["app.py", "lib/x.py"]);
        assert_eq!(guess(&folder, None).unwrap().handler, "app.handler");

        let zip = folder.into_zip().unwrap();
        fs::write(at("f.zip"), &zip).unwrap();
        let package = read(&at("f.zip")).unwrap();
        assert_eq!(guess(&package, None).unwrap().handler, "app.handler");
        assert_eq!(package.into_zip().unwrap(), zip, "a zip is not repacked");

        fs::write(at("program"), b"\x7fELF...").unwrap();
        assert_eq!(read(&at("program")).unwrap().names(), ["bootstrap"]);
        fs::write(at("one.py"), "def handler(e, c): pass").unwrap();
        assert_eq!(guess(&read(&at("one.py")).unwrap(), None).unwrap().handler, "one.handler");
    }

    #[test]
    fn explains_what_it_cannot_read() {
        let dir = tempfile::tempdir().unwrap();
        let message = |path: &Path| format!("{:#}", read(path).err().expect("refused"));
        assert!(message(&dir.path().join("nothing")).contains("nothing"));
        assert!(message(dir.path()).contains("no files to deploy"));
        fs::write(dir.path().join("a.zip"), "text").unwrap();
        assert!(message(&dir.path().join("a.zip")).contains("is no zip file"));
    }
}
