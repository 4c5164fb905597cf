//! What a sandbox is made from, as this crate needs it: code packages and runtimes, behind two small traits so that
//! tests need neither a storage nor an installed interpreter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use domain::{CodeRef, ImageConfig, ImageRef, WorkerError};
use runtimes::{Bootstrap, RuntimeImage};

/// An unpacked code package.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// Directory on the host.
    pub path: PathBuf,
    /// It was on this host already.
    pub cached: bool,
}

/// Code packages by content.
#[async_trait]
pub trait PackageSource: Send + Sync + 'static {
    /// Fetches and unpacks a package, or finds it.
    async fn unpacked(&self, code: &CodeRef) -> Result<Unpacked, WorkerError>;
    /// Whether it is on this host already.
    fn is_unpacked(&self, sha256: &str) -> bool;
    /// All that are on this host, for managers that place sandboxes where their package is. May read a directory.
    fn all(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A container image that is on this host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ContainerImage {
    /// Its root directory.
    pub root: PathBuf,
    /// `ENTRYPOINT`.
    pub entry_point: Vec<String>,
    /// `CMD`.
    pub command: Vec<String>,
    /// `ENV`.
    pub env: Vec<(String, String)>,
    /// `WORKDIR`.
    pub working_directory: Option<String>,
}

/// Container images by digest.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// Finds the image, or has it pulled once more.
    async fn image(&self, image: &ImageRef) -> Result<ContainerImage, WorkerError>;
    /// Whether it is on this host already.
    fn is_here(&self, digest: &str) -> bool;
    /// The digests of all that are on this host, as for packages.
    fn all(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A worker without container images.
#[derive(Clone, Copy, Debug)]
pub struct NoImages;

#[async_trait]
impl ImageSource for NoImages {
    async fn image(&self, image: &ImageRef) -> Result<ContainerImage, WorkerError> {
        Err(WorkerError::Image(format!("{}: this worker has none", image.resolved_uri)))
    }

    fn is_here(&self, _: &str) -> bool {
        false
    }
}

/// Where a worker has all of it from.
#[derive(Clone)]
pub struct Sources {
    /// Code packages.
    pub packages: Arc<dyn PackageSource>,
    /// Runtimes.
    pub runtimes: Arc<dyn RuntimeSource>,
    /// Container images.
    pub images: Arc<dyn ImageSource>,
}

/// The image as a runtime of its own, with what the function's `ImageConfig` puts in the place of what the image says; and
/// the directory it starts in.
pub(crate) fn runtime_of(image: ContainerImage, config: &ImageConfig) -> (RuntimeImage, PathBuf) {
    let entry_point = config.entry_point.clone().unwrap_or(image.entry_point);
    let command = config.command.clone().unwrap_or(image.command);
    let directory = config.working_directory.clone().or(image.working_directory);
    let runtime = RuntimeImage {
        name: String::new(),
        root: image.root,
        mounts: Vec::new(),
        bootstrap: Bootstrap::Command(entry_point.into_iter().chain(command).collect()),
        standby: false,
        env: image.env,
        execution_env: None,
        version: String::new(),
        version_arn_hash: String::new(),
    };
    (runtime, PathBuf::from(directory.unwrap_or_else(|| "/".to_owned())))
}

/// Runtimes by name.
#[async_trait]
pub trait RuntimeSource: Send + Sync + 'static {
    /// Installs the runtime on first use.
    async fn runtime(&self, name: &str) -> Result<Arc<RuntimeImage>, WorkerError>;
}

#[async_trait]
impl PackageSource for packages::Packages {
    async fn unpacked(&self, code: &CodeRef) -> Result<Unpacked, WorkerError> {
        let packages::Unpacked { path, cached } =
            Self::unpacked(self, code).await.map_err(|error| WorkerError::Package(error.to_string()))?;
        Ok(Unpacked { path, cached })
    }

    fn is_unpacked(&self, sha256: &str) -> bool {
        Self::is_unpacked(self, sha256)
    }

    fn all(&self) -> Vec<String> {
        self.all_unpacked().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell which packages are on this host; sandboxes are placed without regard to them");
            Vec::new()
        })
    }
}

#[async_trait]
impl RuntimeSource for runtimes::Runtimes {
    async fn runtime(&self, name: &str) -> Result<Arc<RuntimeImage>, WorkerError> {
        self.ensure(name, &Steps).await.map_err(|error| WorkerError::Runtime(error.to_string()))
    }
}

/// The steps of an installation, in the operator's log.
struct Steps;

impl runtimes::Progress for Steps {
    fn step(&self, what: &str) {
        tracing::info!("{what}");
    }
}

/// Where a path of the sandbox lies on the host, by the longest mount that holds it.
pub(crate) fn host_path(root: &Path, mounts: &[(PathBuf, String)], path: &str) -> PathBuf {
    let best = mounts
        .iter()
        .filter_map(|(source, target)| {
            let rest = path.strip_prefix(target.trim_end_matches('/'))?;
            (rest.is_empty() || rest.starts_with('/'))
                .then(|| (target.len(), source.join(rest.trim_start_matches('/'))))
        })
        .max_by_key(|(length, _)| *length);
    best.map_or_else(|| root.join(path.trim_start_matches('/')), |(_, path)| path)
}

/// Whether a plain file or a link is there. A link is not followed: it means something else inside than outside.
pub(crate) fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| !m.is_dir())
}

/// The start command in the sandbox, or the words of `Runtime.InvalidEntrypoint`.
pub(crate) fn entrypoint(
    image: &RuntimeImage,
    mounts: &[(PathBuf, String)],
    wrapper: Option<&str>,
) -> Result<Vec<String>, String> {
    let Bootstrap::Search(paths) = &image.bootstrap else {
        let command = image.command(wrapper).unwrap_or_default();
        let nothing = "the image has neither ENTRYPOINT nor CMD, and the function's ImageConfig names no program";
        return if command.is_empty() { Err(nothing.to_owned()) } else { Ok(command) };
    };
    (paths.iter())
        .find(|path| is_file(&host_path(&image.root, mounts, path)))
        .map(|path| vec![path.clone()])
        .ok_or_else(|| format!("Couldn't find valid bootstrap(s): [{}]", paths.join(" ")))
}

/// File names of the external extensions, at most what may register; none if the layers disable them.
pub(crate) fn external_extensions(image: &RuntimeImage, mounts: &[(PathBuf, String)]) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;

    // An image's own link there would lead the host astray as well.
    if !host_path(&image.root, mounts, "/opt").symlink_metadata().is_ok_and(|m| m.is_dir()) {
        return Vec::new();
    }
    if is_file(&host_path(&image.root, mounts, "/opt/disable-extensions-jwigqn8j")) {
        return Vec::new();
    }
    let directory = host_path(&image.root, mounts, "/opt/extensions");
    // As for files: by a link in a layer the host would list a directory of its own.
    if !directory.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|e| e.path().symlink_metadata().is_ok_and(|m| !m.is_dir() && m.permissions().mode() & 0o111 != 0))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names.truncate(crate::machine::MAX_EXTENSIONS);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_in_the_longest_mount() {
        let mounts = [
            ("/h/opt".into(), "/opt".into()),
            ("/h/lang".into(), "/opt/lang/".into()),
            ("/h/task".into(), "/var/task".into()),
        ];
        let at = |path| host_path(Path::new("/root"), &mounts, path);
        assert_eq!(at("/opt/extensions/a"), Path::new("/h/opt/extensions/a"));
        assert_eq!(at("/opt/lang/x"), Path::new("/h/lang/x"));
        assert_eq!(at("/optional"), Path::new("/root/optional"));
        assert_eq!(at("/var/task"), Path::new("/h/task"));
    }

    fn image(root: &Path) -> RuntimeImage {
        RuntimeImage {
            name: "provided.al2023".into(),
            root: root.into(),
            mounts: Vec::new(),
            bootstrap: Bootstrap::Search(vec!["/var/task/bootstrap".into(), "/opt/bootstrap".into()]),
            standby: false,
            env: Vec::new(),
            execution_env: None,
            version: String::new(),
            version_arn_hash: String::new(),
        }
    }

    #[test]
    fn a_layer_cannot_have_the_host_list_its_own_directories() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let (image, layer) = (image(dir.path()), dir.path().join("layer"));
        let mounts = [(layer.clone(), "/opt".to_owned())];
        std::fs::create_dir_all(layer.join("extensions")).unwrap();
        symlink("/usr/bin/env", layer.join("extensions/own")).unwrap();
        assert_eq!(
            external_extensions(&image, &mounts),
            ["own"],
            "a link is started inside, where it means what it does"
        );
        std::fs::remove_dir_all(layer.join("extensions")).unwrap();
        symlink("/usr/bin", layer.join("extensions")).unwrap();
        assert!(external_extensions(&image, &mounts).is_empty());
    }

    #[test]
    fn the_first_bootstrap_wins_and_none_is_an_invalid_entrypoint() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let none = entrypoint(&image, &[], None).unwrap_err();
        assert_eq!(none, "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]");
        std::fs::create_dir_all(dir.path().join("opt")).unwrap();
        std::fs::write(dir.path().join("opt/bootstrap"), "").unwrap();
        assert_eq!(entrypoint(&image, &[], None).unwrap(), ["/opt/bootstrap"]);
    }
}
