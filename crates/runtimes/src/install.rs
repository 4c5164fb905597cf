//! Puts an interpreter of this host and AWS's runtime interface client into a directory of their own.
//!
//! ```text
//!  <data>/runtimes/<name>-<recipe>-<interpreter>/lang     → /var/lang
//!                                               /runtime  → /var/runtime
//!                                               /version  what the interpreter says it is
//! ```

mod node;
mod python;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::recipe::{InstallKind, Recipe};
use crate::{Progress, RuntimeError, copy, libraries};

/// Changes when this module makes something else out of the same recipe and interpreter.
const FORMAT: u32 = 2;

/// The installation of a recipe, complete or not yet made.
pub(crate) struct Place {
    dir: PathBuf,
    recipe: String,
    interpreter: Option<String>,
    name: String,
}

impl Place {
    /// Where `recipe` with `interpreter` belongs.
    pub(crate) fn new(dir: &Path, recipe: &Recipe, interpreter: Option<&Path>) -> Self {
        let install = toml::to_string(&recipe.install).unwrap_or_default();
        let scripts = [python::BOOTSTRAP, python::START, python::ARCHIVE].join("\n");
        let own = short_hash(&format!("{FORMAT}\n{install}\n{scripts}\n{}", recipe.installation));
        let interpreter = interpreter.and_then(|path| {
            let meta = path.metadata().ok()?;
            Some(short_hash(&format!("{}\n{}\n{}.{}", path.display(), meta.size(), meta.mtime(), meta.mtime_nsec())))
        });
        Self { dir: dir.to_owned(), recipe: own, interpreter, name: recipe.installation.clone() }
    }

    /// The finished installation. One made from an interpreter that is gone serves on.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        if let Some(path) = self.target() {
            return path.is_dir().then_some(path);
        }
        let start = format!("{}-{}-", self.name, self.recipe);
        let entries = self.dir.read_dir().ok()?.flatten();
        let mut found: Vec<PathBuf> =
            entries.filter(|e| e.file_name().to_string_lossy().starts_with(&start)).map(|e| e.path()).collect();
        found.sort();
        found.pop()
    }

    fn target(&self) -> Option<PathBuf> {
        let interpreter = self.interpreter.as_ref()?;
        Some(self.dir.join(format!("{}-{}-{interpreter}", self.name, self.recipe)))
    }
}

fn short_hash(text: &str) -> String {
    hex::encode(Sha256::digest(text))[..8].to_owned()
}

/// Makes the installation and returns its directory.
pub(crate) fn install(
    place: &Place,
    recipe: &Recipe,
    interpreter: &Path,
    owner: Option<u32>,
    progress: &dyn Progress,
) -> Result<PathBuf, RuntimeError> {
    let Some(target) = place.target() else {
        let path = interpreter.to_owned();
        return Err(RuntimeError::Io { operation: "read", path, source: std::io::ErrorKind::NotFound.into() });
    };
    copy::directory(&place.dir)?;
    let temp = tempfile::Builder::new()
        .prefix(&format!(".{}-", recipe.name))
        .tempdir_in(&place.dir)
        .map_err(RuntimeError::io("create directory in", &place.dir))?;
    let version = match recipe.install.kind {
        InstallKind::Python => python::install(recipe, interpreter, temp.path(), progress)?,
        InstallKind::Node => node::install(recipe, interpreter, temp.path(), progress)?,
        InstallKind::None => String::new(),
    };
    copy::text(&version, &temp.path().join("version"))?;
    copy::finish(temp.path(), owner)?;
    copy::publish(temp, &target)?;
    Ok(target)
}

/// What the interpreter said it is, e.g. `3.12.1`.
pub(crate) fn version(installed: &Path) -> String {
    fs::read_to_string(installed.join("version")).unwrap_or_default()
}

/// Copies the libraries that these files need and the base root does not promise.
fn copy_libraries(files: &[PathBuf], to: &Path) -> Result<(), RuntimeError> {
    copy::directory(to)?;
    for (name, path) in libraries::closure(files)?.beyond_base() {
        copy::file(&path, &to.join(name))?;
    }
    Ok(())
}
