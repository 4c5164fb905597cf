//! The base root: the minimal Linux userland that most runtimes run in, copied from this host.
//!
//! It has one directory of libraries, `/usr/lib64` as on Amazon Linux, under all the names that loaders of the
//! distributions look for it. Nothing in it is setuid, private, or from a home directory or `/usr/local`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{Progress, RuntimeError, copy, host, libraries};

const RECIPE: &str = include_str!("../runtimes/base.toml");
/// Changes when this file makes another root out of the same sources.
const FORMAT: u32 = 3;

/// Empty directories: mount points, and places that programs expect.
const DIRECTORIES: [&str; 15] = [
    "dev",
    "etc",
    "home",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "sys",
    "usr/sbin",
    "var/lang",
    "var/log",
    "var/runtime",
    "var/task",
    "usr/share",
];

const FILES: [(&str, &str); 6] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/sbin/nologin\n\
         sbx_user1051:x:993:990::/home/sbx_user1051:/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nsbx_user1051:x:990:\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", ""),
    (
        "etc/os-release",
        "NAME=\"Emberbox\"\nID=emberbox\nID_LIKE=\"amzn fedora\"\nPRETTY_NAME=\"Emberbox function userland\"\n",
    ),
];

/// `/bin` and the like, and the names under which programs look for what has another here.
const LINKS: [(&str, &str); 11] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("usr/bin/sh", "bash"),
    // `import` of ECMAScript modules does not heed NODE_PATH, but looks here.
    ("node_modules", "var/runtime/node_modules"),
    // Where Debian's Node.js looks for parts of itself.
    ("usr/share/nodejs", "/var/lang/share/nodejs"),
    ("usr/lib/locale/en_US.utf8", "C.utf8"),
    ("etc/ssl/cert.pem", "certs/ca-certificates.crt"),
    ("etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt"),
    ("usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseFile {
    required: Vec<String>,
    programs: Vec<String>,
    libraries: Vec<String>,
    certificates: Vec<PathBuf>,
    trees: Vec<Tree>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tree {
    path: PathBuf,
    without: Vec<PathBuf>,
}

/// What goes where: path in the root → file on this host.
#[derive(Debug, Default)]
struct Sources {
    files: BTreeMap<PathBuf, PathBuf>,
    /// Where programs look for the dynamic loader.
    loader: Option<PathBuf>,
}

/// The base root for this host as it is now, made first if need be. `dir` holds roots.
pub(crate) fn ensure(dir: &Path, owner: Option<u32>, progress: &dyn Progress) -> Result<PathBuf, RuntimeError> {
    copy::directory(dir)?;
    if let Some(root) = current(dir) {
        return Ok(root);
    }
    progress.step("making the base userland from this host's programs");
    let sources = collect()?;
    let list = sources.list();
    let root = dir.join(format!("base-{}", &hex::encode(Sha256::digest(&list))[..16]));
    if !root.is_dir() {
        let temp = tempfile::Builder::new()
            .prefix(".base-")
            .tempdir_in(dir)
            .map_err(RuntimeError::io("create directory in", dir))?;
        sources.build(temp.path(), progress)?;
        copy::finish(temp.path(), owner)?;
        copy::publish(temp, &root)?;
    }
    // Last: a list stands for a complete root.
    let list_file = list_file(&root);
    let temp = tempfile::NamedTempFile::new_in(dir).map_err(RuntimeError::io("create file in", dir))?;
    fs::write(temp.path(), list).map_err(RuntimeError::io("write", &list_file))?;
    temp.persist(&list_file).map_err(|e| RuntimeError::io("rename to", &list_file)(e.error))?;
    Ok(root)
}

fn list_file(root: &Path) -> PathBuf {
    root.with_extension("sources")
}

/// A complete root whose sources are on this host just as they were.
fn current(dir: &Path) -> Option<PathBuf> {
    let lists = dir.read_dir().ok()?.flatten().map(|entry| entry.path());
    let mut lists: Vec<PathBuf> = lists.filter(|path| path.extension().is_some_and(|e| e == "sources")).collect();
    lists.sort();
    lists.into_iter().find_map(|list| {
        let text = fs::read_to_string(&list).ok()?;
        let root = list.with_extension("");
        (is_current(&text) && root.is_dir()).then_some(root)
    })
}

fn header() -> String {
    format!("{FORMAT} {}\n", hex::encode(Sha256::digest(RECIPE)))
}

fn is_current(list: &str) -> bool {
    let Some(lines) = list.strip_prefix(&header()) else { return false };
    lines.lines().all(|line| {
        let mut parts = line.splitn(3, '\t');
        let (Some(identity), Some(_), Some(source)) = (parts.next(), parts.next(), parts.next()) else { return false };
        identity == self::identity(Path::new(source))
    })
}

/// Changes when the file is replaced or written to.
fn identity(path: &Path) -> String {
    path.metadata().map(|meta| format!("{}:{}.{}", meta.size(), meta.mtime(), meta.mtime_nsec())).unwrap_or_default()
}

/// Decides what goes into the root.
fn collect() -> Result<Sources, RuntimeError> {
    let recipe: BaseFile =
        toml::from_str(RECIPE).map_err(|e| RuntimeError::File { path: "base.toml".into(), cause: e.to_string() })?;
    let mut sources = Sources::default();
    let dirs = || ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].into_iter().map(PathBuf::from);
    for name in recipe.required.iter().chain(&recipe.programs) {
        match host::program_in(dirs(), name).and_then(|path| path.canonicalize().ok()) {
            Some(path) => drop(sources.files.insert(Path::new("usr/bin").join(name), path)),
            None if recipe.required.contains(name) => {
                let hint = format!("the base userland needs the program {name} of this host");
                return Err(RuntimeError::Missing { name: "base".to_owned(), hint });
            }
            None => {}
        }
    }
    let mut needing: Vec<PathBuf> = sources.files.values().cloned().collect();
    let extra: BTreeMap<&String, PathBuf> =
        recipe.libraries.iter().filter_map(|name| Some((name, libraries::find(name)?))).collect();
    needing.extend(extra.values().cloned());
    let closure = libraries::closure(&needing)?;
    let found = closure.libraries.iter().chain(extra.iter().map(|(name, path)| (*name, path)));
    for (name, path) in found {
        sources.files.insert(Path::new("usr/lib64").join(name), path.clone());
    }
    if let Some(loader) = &closure.loader
        && let Some(name) = loader.file_name()
    {
        sources.files.insert(Path::new("usr/lib64").join(name), loader.clone());
        sources.loader = Some(loader.clone());
    }
    if let Some(bundle) = recipe.certificates.iter().find(|path| path.is_file()) {
        sources.files.insert("etc/ssl/certs/ca-certificates.crt".into(), bundle.clone());
    }
    for tree in recipe.trees.iter().filter(|tree| tree.path.is_dir()) {
        let target = tree.path.strip_prefix("/").unwrap_or(&tree.path);
        for file in copy::files_below(&tree.path, &|path| !tree.without.iter().any(|without| path == without))? {
            sources.files.insert(target.join(&file), tree.path.join(&file));
        }
    }
    Ok(sources)
}

impl Sources {
    /// One line a file, in order: the same for the same host.
    fn list(&self) -> String {
        self.files.iter().fold(header(), |mut list, (target, source)| {
            let _ = writeln!(list, "{}\t{}\t{}", identity(source), target.display(), source.display());
            list
        })
    }

    fn build(&self, root: &Path, progress: &dyn Progress) -> Result<(), RuntimeError> {
        for dir in DIRECTORIES {
            copy::directory(&root.join(dir))?;
        }
        let tmp = root.join("tmp");
        copy::directory(&tmp)?;
        fs::set_permissions(&tmp, Permissions::from_mode(0o1777)).map_err(RuntimeError::io("set mode of", &tmp))?;
        for (path, content) in FILES {
            copy::text(content, &root.join(path))?;
        }
        for (done, (target, source)) in self.files.iter().enumerate() {
            progress.amount(done as u64, self.files.len() as u64);
            copy::file(source, &root.join(target))?;
        }
        for (path, target) in LINKS {
            copy::link(target, &root.join(path))?;
        }
        copy::link("../lib64", &root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)))?;
        // Where programs name the loader: in /lib64 it is already.
        if let Some(loader) = &self.loader
            && let (Some(dir), Some(name)) = (loader.parent(), loader.file_name())
            && dir != Path::new("/lib64")
        {
            copy::link(&format!("../lib64/{}", name.to_string_lossy()), &root.join("usr/lib").join(name))?;
        }
        Ok(())
    }
}
