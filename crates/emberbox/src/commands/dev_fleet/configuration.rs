//! The configuration of each process: the user's, with what makes it that of one member.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use membership::Role;
use toml::{Table, Value};

/// Where paths stand in a configuration, as `Config::read` knows them; `*` is every key or element. What is made for each process anyhow is not
/// among them.
const PATHS: &[&[&str]] = &[
    &["secrets_file"],
    &["tls", "cert"],
    &["tls", "key"],
    &["runtimes", "dirs", "*"],
    &["runtimes", "interpreters", "*"],
    &["microvm", "kernel"],
    &["microvm", "qemu"],
    &["microvm", "vsock_device"],
    &["microvm", "firecracker"],
    &["microvm", "jailer"],
    &["microvm", "cpu_template"],
    &["registries", "*", "password_file"],
];

/// Reads the user's file, if there is one. Paths in it are relative to its own directory, and absolute in the result: each process has
/// a file of its own, somewhere else.
///
/// # Errors
/// If it cannot be read, or is no TOML. Whether its options are good, the processes say.
pub fn read(file: Option<&Path>) -> Result<Table> {
    let Some(file) = file else { return Ok(Table::new()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let mut config: Table = text.parse().with_context(|| format!("read the configuration {}", file.display()))?;
    let file = std::path::absolute(file).with_context(|| format!("find {}", file.display()))?;
    let dir = file.parent().unwrap_or(Path::new("/"));
    for path in PATHS {
        for (key, value) in &mut config {
            if *key == path[0] {
                make_absolute(value, &path[1..], dir)?;
            }
        }
    }
    Ok(config)
}

fn make_absolute(value: &mut Value, path: &[&str], dir: &Path) -> Result<()> {
    match (path, value) {
        ([], Value::String(value)) => *value = text(&dir.join(&*value))?,
        ([wanted, rest @ ..], Value::Table(table)) => {
            for (_, value) in table.iter_mut().filter(|(key, _)| *wanted == "*" || *wanted == key.as_str()) {
                make_absolute(value, rest, dir)?;
            }
        }
        (["*", rest @ ..], Value::Array(array)) => {
            for value in array {
                make_absolute(value, rest, dir)?;
            }
        }
        // Of another type than it should be: the processes say so.
        _ => {}
    }
    Ok(())
}

/// A path as TOML has it.
pub fn text(path: &Path) -> Result<String> {
    path.to_str().map(ToOwned::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// One process of the fleet.
pub struct Place<'a> {
    /// e.g. `worker-2`.
    pub name: &'a str,
    /// What it does.
    pub role: Role,
    /// The fleet's directory.
    pub dir: &'a Path,
    /// Where the database is, with the rights of this role.
    pub database: &'a str,
    /// Of a frontend.
    pub listen: SocketAddr,
}

impl Place<'_> {
    /// The user's configuration as this process has it; `certificate` is the directory with its own.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn configure(&self, base: &Table, certificate: &Path) -> Result<Table> {
        let own = |name: &str| -> PathBuf { self.dir.join(self.name).join(name) };
        let mut config = base.clone();
        config.insert("listen".into(), self.listen.to_string().into());
        config.insert("data_dir".into(), text(&own("data"))?.into());
        let mut cluster = match config.remove("cluster") {
            Some(Value::Table(cluster)) => cluster,
            _ => Table::new(),
        };
        cluster.insert("id".into(), self.name.into());
        cluster.insert("roles".into(), vec![self.role.to_string()].into());
        cluster.insert("database".into(), self.database.into());
        cluster.entry("bind").or_insert("127.0.0.1:0".into());
        cluster.insert("tls".into(), text(certificate)?.into());
        cluster.entry("admin").or_insert("127.0.0.1:0".into());
        cluster.insert("packages".into(), text(&self.dir.join("packages"))?.into());
        config.insert("cluster".into(), cluster.into());
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// Every path that there is; a new one that is forgotten above fails here as long as it stands in this file or in the example.
    const ALL: &str = "
        secrets_file = 'keys'
        tls = { cert = 'a', key = '/abs/b' }
        runtimes = { dirs = ['x', '/abs/y'], interpreters = { 'python3.12' = 'py' } }
        microvm = { kernel = 'k', qemu = 'q', vsock_device = 'v', firecracker = 'f', jailer = 'j', cpu_template = 'c' }
        registries = [{ host = 'r.example.com', username = 'u', password_file = 'p' }]
    ";

    #[test]
    fn paths_stay_what_they_were() {
        let (user, fleet) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = user.path().join("base.toml");
        // The example has an option in each line that has none by default.
        let example = include_str!("../../../../../emberbox.example.toml");
        let commented = regex::Regex::new(r"(?m)^#(\S.*)$").unwrap();
        for given in [ALL, &*commented.replace_all(example, "$1")] {
            std::fs::write(&file, given).unwrap();
            let base = read(Some(&file)).unwrap();
            let own = fleet.path().join("emberbox.toml");
            let mut moved = base.clone();
            // Of each process its own.
            moved.remove("data_dir");
            std::fs::write(&own, moved.to_string()).unwrap();
            let (here, there) = (Config::read(&file).unwrap(), Config::read(&own).unwrap());
            assert_eq!(Config { data_dir: None, ..here }, there);
        }
    }

    #[test]
    fn each_process_is_its_own() {
        let base: Table = "listen = '127.0.0.1:1'\n[cluster]\nadmin = '127.0.0.1:9'".parse().unwrap();
        let place = Place {
            name: "worker-1",
            role: Role::Worker,
            dir: Path::new("/fleet"),
            database: "postgres://w",
            listen: ([127, 0, 0, 1], 0).into(),
        };
        let config = place.configure(&base, Path::new("/fleet/worker-1/certificate")).unwrap();
        assert_eq!(config["data_dir"].as_str(), Some("/fleet/worker-1/data"));
        let cluster = config["cluster"].as_table().unwrap();
        assert_eq!(cluster["admin"].as_str(), Some("127.0.0.1:9"), "the user's");
        assert_eq!(cluster["roles"].as_array().unwrap().len(), 1);
        assert_eq!(cluster["database"].as_str(), Some("postgres://w"));
        assert_eq!(cluster["packages"].as_str(), Some("/fleet/packages"));
    }
}
