//! `[cluster]`: this process is one of many.

use std::net::SocketAddr;
use std::path::PathBuf;

use membership::Role;
use serde::Deserialize;

/// `[cluster]`.
#[derive(Deserialize, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Name of this process in the fleet, and of its worker; default: the host's name.
    #[serde(default)]
    pub id: Option<String>,
    /// What it does.
    #[serde(default = "all")]
    pub roles: Vec<Role>,
    /// The database with the metadata, the members and the events. May hold a password.
    pub database: String,
    /// Where this process listens for the others; port 0 takes a free one.
    #[serde(default = "loopback")]
    pub bind: SocketAddr,
    /// Where the others reach it (`host:port`); default: `bind`.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Where this process tells of its health and shows its metrics, to whoever asks; `None`: nowhere.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Where the code packages are.
    pub packages: Shared,
    /// Directory with `ca.pem`, `member.pem` and `member.key`, as `emberbox fleet join` writes them.
    #[serde(default)]
    pub tls: Option<PathBuf>,
}

/// What all members reach.
#[derive(Deserialize, Clone, PartialEq)]
#[serde(untagged, deny_unknown_fields)]
pub enum Shared {
    /// A directory, over NFS for example.
    Directory(PathBuf),
    /// A bucket of the service in `[s3]`.
    Bucket {
        /// Its name. It must exist.
        bucket: String,
        /// What all keys begin with.
        #[serde(default)]
        prefix: String,
    },
}

fn all() -> Vec<Role> {
    Role::ALL.to_vec()
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

impl Cluster {
    /// Whether the process has the role.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

impl Cluster {
    /// What cannot be, in words.
    pub fn check(&self, s3: bool) -> Result<(), &'static str> {
        if self.roles.is_empty() {
            return Err("cluster.roles is empty; leave it out for all roles");
        }
        if matches!(self.packages, Shared::Bucket { .. }) && !s3 {
            return Err("cluster.packages is a bucket, but there is no [s3]; say which service has it");
        }
        if self.bind.ip().is_unspecified() && self.advertise.is_none() {
            return Err(
                "cluster.bind is every address of this machine; say by cluster.advertise by which one the others reach it",
            );
        }
        Ok(())
    }

    /// Paths that are relative to the file.
    pub fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let directory = match &mut self.packages {
            Shared::Directory(path) => Some(path),
            Shared::Bucket { .. } => None,
        };
        directory.into_iter().chain(self.tls.as_mut())
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("id", &self.id).field("roles", &self.roles).finish_non_exhaustive()
    }
}
