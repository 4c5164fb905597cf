//! Finds the interpreters of this host.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::host;
use crate::recipe::{self, InstallKind, Recipe};

/// Looks in this order: configured, `PATH`, version managers, the system's directories.
#[derive(Default)]
pub(crate) struct Interpreters {
    /// By runtime name.
    pub configured: BTreeMap<String, PathBuf>,
    /// Versions of the Node.js binaries asked so far, valid while the file does not change.
    node_versions: Mutex<HashMap<PathBuf, (SystemTime, Option<String>)>>,
}

impl Interpreters {
    pub(crate) fn new(configured: BTreeMap<String, PathBuf>) -> Self {
        Self { configured, node_versions: Mutex::default() }
    }

    /// The interpreter for a runtime; `None` when there is none, or it needs none.
    pub(crate) fn find(&self, recipe: &Recipe) -> Option<PathBuf> {
        if let Some(path) = self.configured.get(&recipe.installation) {
            return host::is_executable(path).then(|| path.clone());
        }
        match recipe.install.kind {
            InstallKind::Python => find_python(&recipe.version),
            InstallKind::Node => self.find_node(&recipe.version),
            InstallKind::None => None,
        }
    }

    fn find_node(&self, major: &str) -> Option<PathBuf> {
        let nvm = home_dir("NVM_DIR", ".nvm").map(|dir| dir.join("versions/node")).unwrap_or_default();
        let in_nvm = newest(&nvm, &format!("v{major}.")).map(|dir| dir.join("bin/node"));
        let on_path = host::path_dirs().into_iter().chain(system_dirs());
        let candidates = on_path.flat_map(|dir| [dir.join("node"), dir.join("nodejs")]).chain(in_nvm);
        let wanted = format!("v{major}.");
        candidates
            .filter(|path| host::is_executable(path))
            .find(|path| self.node_version(path).is_some_and(|version| version.starts_with(&wanted)))
    }

    /// `v20.20.2`.
    fn node_version(&self, path: &Path) -> Option<String> {
        let modified = path.metadata().ok()?.modified().ok()?;
        let mut known = self.node_versions.lock();
        if let Some((at, version)) = known.get(path)
            && *at == modified
        {
            return version.clone();
        }
        let mut command = Command::new(path);
        let version = host::run("node --version", command.arg("--version").env_remove("NODE_OPTIONS")).ok();
        let version = version.map(|version| version.trim().to_owned());
        known.insert(path.to_owned(), (modified, version.clone()));
        version
    }
}

fn find_python(version: &str) -> Option<PathBuf> {
    let name = format!("python{version}");
    let on_path = host::program_in(host::path_dirs(), &name);
    let in_pyenv = || {
        let versions = home_dir("PYENV_ROOT", ".pyenv")?.join("versions");
        host::program_in([newest(&versions, &format!("{version}."))?.join("bin")], &name)
    };
    on_path.or_else(in_pyenv).or_else(|| host::program_in(system_dirs(), &name))
}

/// Every Python there is of those that functions can have, the newest first, for their pip.
pub(crate) fn all_pythons() -> Vec<PathBuf> {
    let recipes = recipe::BUILT_IN.iter().flat_map(|(file, text)| recipe::parse(text, &|_| None).expect(file));
    let mut pythons: Vec<_> = recipes.filter(|recipe| recipe.install.kind == InstallKind::Python).collect();
    pythons.reverse();
    pythons.iter().filter_map(|recipe| find_python(&recipe.version)).collect()
}

fn system_dirs() -> impl Iterator<Item = PathBuf> {
    ["/usr/local/bin", "/usr/bin"].into_iter().map(PathBuf::from)
}

fn home_dir(variable: &str, default: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).map(PathBuf::from);
    set.or_else(|| std::env::home_dir().map(|home| home.join(default))).filter(|dir| dir.is_dir())
}

/// The directory `<prefix><n>[.<n>…]` with the highest numbers; others, such as `3.13.0-dev`, do not count.
fn newest(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let numbers = |path: &Path| -> Option<Vec<u32>> {
        let rest = path.file_name()?.to_str()?.strip_prefix(prefix)?;
        rest.split('.').map(|part| part.parse().ok()).collect()
    };
    let entries = dir.read_dir().ok()?.flatten().map(|entry| entry.path());
    entries.filter_map(|path| Some((numbers(&path)?, path))).max().map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_patch_level_wins() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["3.13.2", "3.13.10", "3.13.11-dev", "3.1.99", "envs"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(newest(dir.path(), "3.13."), Some(dir.path().join("3.13.10")));
        assert_eq!(newest(dir.path(), "3.14."), None);
    }
}
