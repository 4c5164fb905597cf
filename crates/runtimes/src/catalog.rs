//! The runtimes that there are, and those that are here.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::install::{self, Place};
use crate::interpreters::Interpreters;
use crate::progress::Forward;
use crate::recipe::{self, InstallKind, Recipe};
use crate::{Progress, RuntimeError, RuntimeImage, base};

/// In the data directory: the operator's runtime files.
const FILES: &str = "runtimes.d";

/// Where runtimes come from.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Roots and installations go below it; `runtimes.d/*.toml` in it are the user's runtimes.
    pub data_dir: PathBuf,
    /// More directories with the user's runtime files. A later file overrides an earlier one's runtimes.
    pub extra_dirs: Vec<PathBuf>,
    /// By runtime name, e.g. `python3.12` or `nodejs20.x`: the interpreter to use instead of looking for one.
    pub interpreters: BTreeMap<String, PathBuf>,
    /// Owner (user and group) of what is installed; needs root, and is ignored without.
    pub owner: Option<u32>,
}

/// Whether a runtime can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RuntimeState {
    /// Installed, or needs no installation.
    Ready,
    /// Will be installed on first use.
    Installable {
        /// From this interpreter.
        interpreter: PathBuf,
    },
    /// Something is missing.
    Missing {
        /// What, and how to get it.
        hint: String,
    },
}

/// One line of `emberbox runtime list`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuntimeStatus {
    /// e.g. `python3.12`.
    pub name: String,
    /// Whether it can be used.
    pub state: RuntimeState,
    /// Version of the installed interpreter, e.g. `3.12.1`.
    pub version: Option<String>,
    /// What is installed with it, e.g. `awslambdaric==4.2.2`.
    pub packages: Vec<String>,
    /// The file that it comes from; none for built-in ones.
    pub file: Option<PathBuf>,
}

struct Entry {
    recipe: Recipe,
    file: Option<PathBuf>,
    /// Held while it is being installed; whoever waits then finds it done.
    installing: tokio::sync::Mutex<()>,
}

/// The catalog of runtimes.
pub struct Runtimes {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    entries: BTreeMap<String, Entry>,
    interpreters: Interpreters,
    /// Those that [`Runtimes::ensure`] has answered with.
    images: Mutex<HashMap<String, Arc<RuntimeImage>>>,
    /// Held while the base root, which most runtimes need, is being made.
    making_base: Mutex<()>,
}

impl Runtimes {
    /// Reads the runtime files. Installs nothing.
    pub fn open(config: Config) -> Result<Self, RuntimeError> {
        let root = rustix::process::geteuid().is_root();
        let config = Config { owner: config.owner.filter(|_| root), ..config };
        let mut entries = BTreeMap::new();
        let mut add = |path: &Path, text: &str, file: Option<PathBuf>| {
            let known = |name: &str| entries.get(name).map(|entry: &Entry| entry.recipe.clone());
            let recipes =
                recipe::parse(text, &known).map_err(|cause| RuntimeError::File { path: path.to_owned(), cause })?;
            for recipe in recipes {
                entries.insert(
                    recipe.name.clone(),
                    Entry { recipe, file: file.clone(), installing: tokio::sync::Mutex::default() },
                );
            }
            Ok(())
        };
        for (name, text) in recipe::BUILT_IN {
            add(Path::new(name), text, None)?;
        }
        for dir in std::iter::once(config.data_dir.join(FILES)).chain(config.extra_dirs.iter().cloned()) {
            for path in toml_files(&dir)? {
                let text = fs::read_to_string(&path).map_err(RuntimeError::io("read", &path))?;
                add(&path, &text, Some(path.clone()))?;
            }
        }
        let interpreters = Interpreters::new(config.interpreters.clone());
        let inner = Inner { config, entries, interpreters, images: Mutex::default(), making_base: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where an operator's own runtime files are looked for, beside the configured directories.
    pub fn files_dir(&self) -> PathBuf {
        self.inner.files_dir()
    }

    /// Every known runtime, by name.
    pub fn list(&self) -> Vec<RuntimeStatus> {
        self.inner.entries.values().map(|entry| self.inner.status(entry)).collect()
    }

    /// Whether functions can have this runtime: it is here, or will be installed on first use. The message says how to
    /// get it, and is for the caller of the API.
    pub fn check(&self, runtime: &str) -> Result<(), String> {
        let entry = self.inner.entry(runtime).map_err(|e| e.to_string())?;
        match self.inner.status(entry).state {
            RuntimeState::Missing { hint } => Err(RuntimeError::Missing { name: runtime.to_owned(), hint }.to_string()),
            RuntimeState::Ready | RuntimeState::Installable { .. } => Ok(()),
        }
    }

    /// The runtime, installed first if need be; then cheap.
    pub async fn ensure(&self, runtime: &str, progress: &dyn Progress) -> Result<Arc<RuntimeImage>, RuntimeError> {
        if let Some(image) = self.inner.images.lock().get(runtime) {
            return Ok(image.clone());
        }
        let _installing = self.inner.entry(runtime)?.installing.lock().await;
        if let Some(image) = self.inner.images.lock().get(runtime) {
            return Ok(image.clone());
        }
        let (events, mut received) = mpsc::unbounded_channel();
        let (inner, name) = (self.inner.clone(), runtime.to_owned());
        let work = tokio::task::spawn_blocking(move || inner.make(&name, &Forward(events)));
        // Ends when the work drops its sender.
        while let Some(event) = received.recv().await {
            event.replay(progress);
        }
        let image = Arc::new(work.await.expect("installing neither panics nor is cancelled")?);
        self.inner.images.lock().insert(runtime.to_owned(), image.clone());
        Ok(image)
    }
}

impl Inner {
    fn entry(&self, runtime: &str) -> Result<&Entry, RuntimeError> {
        self.entries.get(runtime).ok_or_else(|| {
            if recipe::deprecated(runtime) {
                return RuntimeError::Deprecated(runtime.to_owned());
            }
            let known: Vec<&str> = self.entries.keys().map(String::as_str).collect();
            RuntimeError::Unknown { name: runtime.to_owned(), known: known.join(", "), add_to: self.files_dir() }
        })
    }

    fn files_dir(&self) -> PathBuf {
        self.config.data_dir.join(FILES)
    }

    fn installations(&self) -> PathBuf {
        self.config.data_dir.join("runtimes")
    }

    fn status(&self, entry: &Entry) -> RuntimeStatus {
        let recipe = &entry.recipe;
        let (state, version) = match recipe.install.kind {
            InstallKind::None => (directories_are_there(recipe), None),
            _ => {
                let interpreter = self.interpreters.find(recipe);
                let place = Place::new(&self.installations(), recipe, interpreter.as_deref());
                match (place.find(), interpreter) {
                    (Some(installed), _) => (RuntimeState::Ready, Some(install::version(&installed))),
                    (None, Some(interpreter)) => (RuntimeState::Installable { interpreter }, None),
                    (None, None) => (RuntimeState::Missing { hint: self.interpreter_hint(recipe) }, None),
                }
            }
        };
        RuntimeStatus {
            name: recipe.name.clone(),
            state,
            version,
            packages: recipe.install.packages.clone(),
            file: entry.file.clone(),
        }
    }

    fn interpreter_hint(&self, recipe: &Recipe) -> String {
        let Recipe { name, version, .. } = recipe;
        if let Some(path) = self.interpreters.configured.get(name) {
            return format!("the configured interpreter {} is not an executable file", path.display());
        }
        let get = match recipe.install.kind {
            InstallKind::Python => format!(
                "no python{version} on PATH, in ~/.pyenv or in /usr/bin; get it with apt-get install python{version} \
                 python3-pip, or pyenv install {version}"
            ),
            _ => format!(
                "no Node.js {version} on PATH or in ~/.nvm; get it with apt-get install nodejs npm (if your release has \
                 that version), or nvm install {version}"
            ),
        };
        format!("{get}; or name one in the configuration: [runtimes.interpreters] \"{name}\" = \"/path\"")
    }

    fn make(&self, runtime: &str, progress: &dyn Progress) -> Result<RuntimeImage, RuntimeError> {
        let recipe = &self.entry(runtime)?.recipe;
        let root = match &recipe.root {
            Some(root) => root.clone(),
            None => {
                let _making = self.making_base.lock();
                base::ensure(&self.config.data_dir.join("roots"), self.config.owner, progress)?
            }
        };
        if let RuntimeState::Missing { hint } = directories_are_there(recipe) {
            return Err(RuntimeError::Missing { name: runtime.to_owned(), hint });
        }
        let mut mounts: Vec<(PathBuf, String)> =
            recipe.mounts.iter().map(|mount| (mount.source.clone(), mount.target.clone())).collect();
        let mut version = String::new();
        if recipe.install.kind != InstallKind::None {
            let installed = self.installed(recipe, progress)?;
            version = install::version(&installed);
            mounts.push((installed.join("lang"), "/var/lang".to_owned()));
            mounts.push((installed.join("runtime"), "/var/runtime".to_owned()));
        }
        // Installation directories carry the hashes of what is in them.
        let identity = format!("{root:?} {mounts:?} {recipe:?}");
        Ok(RuntimeImage {
            name: runtime.to_owned(),
            root,
            mounts,
            bootstrap: recipe.bootstrap.clone(),
            standby: recipe.standby,
            env: recipe.environment.clone(),
            execution_env: recipe.execution_env.clone(),
            version: display_version(recipe, &version),
            version_arn_hash: hex::encode(Sha256::digest(identity)),
        })
    }

    fn installed(&self, recipe: &Recipe, progress: &dyn Progress) -> Result<PathBuf, RuntimeError> {
        let interpreter = self.interpreters.find(recipe);
        let place = Place::new(&self.installations(), recipe, interpreter.as_deref());
        if let Some(installed) = place.find() {
            return Ok(installed);
        }
        let Some(interpreter) = interpreter else {
            return Err(RuntimeError::Missing { name: recipe.name.clone(), hint: self.interpreter_hint(recipe) });
        };
        install::install(&place, recipe, &interpreter, self.config.owner, progress)
    }
}

/// For what the user's file names, on this host.
fn directories_are_there(recipe: &Recipe) -> RuntimeState {
    let named = recipe.root.iter().chain(recipe.mounts.iter().map(|mount| &mount.source));
    let targets = recipe.root.iter().flat_map(|root| {
        let needed = ["/proc", "/dev", "/tmp", "/var/task", "/opt"].into_iter();
        needed.chain(recipe.mounts.iter().map(|mount| mount.target.as_str())).map(|target| root.join(&target[1..]))
    });
    let missing: Vec<String> =
        named.cloned().chain(targets).filter(|path| !path.is_dir()).map(|path| path.display().to_string()).collect();
    if missing.is_empty() {
        RuntimeState::Ready
    } else {
        RuntimeState::Missing { hint: format!("no directory {}", missing.join(", ")) }
    }
}

/// As AWS writes it, `python:3.12.v1`: language, version of the runtime, and the number behind that.
fn display_version(recipe: &Recipe, installed: &str) -> String {
    let language = recipe.installation.trim_end_matches(".x").trim_end_matches(&recipe.version).trim_end_matches('.');
    let rest = installed.strip_prefix(&recipe.version).unwrap_or_default().trim_start_matches('.');
    let number = if rest.is_empty() { "1" } else { rest };
    format!("{language}:{}.v{number}", recipe.version)
}

fn toml_files(dir: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let Ok(entries) = dir.read_dir() else { return Ok(Vec::new()) };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(RuntimeError::io("list", dir))?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_on_aws() {
        let runtimes = Runtimes::open(Config::default()).unwrap();
        let version = |name: &str, installed| display_version(&runtimes.inner.entries[name].recipe, installed);
        assert_eq!(version("python3.12", "3.12.1"), "python:3.12.v1");
        assert_eq!(version("nodejs20.x", "20.20.2"), "nodejs:20.v20.2");
        assert_eq!(version("provided.al2023", ""), "provided:al2023.v1");
    }
}
