//! `[[registries]]`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Deserialize;

/// How one registry of container images is spoken to.
#[derive(Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Host, and port if it has one, as in the names of its images.
    pub host: String,
    /// A user of it; with `password_file`.
    #[serde(default)]
    pub username: Option<String>,
    /// File with the user's password or token, read at the start.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Plain HTTP instead of HTTPS.
    #[serde(default)]
    pub plain_http: bool,
}

/// What no single value shows.
pub fn check(registries: &[Registry]) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for Registry { host, username, password_file, .. } in registries {
        if host.is_empty() || host.contains('/') {
            bail!("registries: `{host}` is no host; write it as in the names of its images, such as \"ghcr.io\"");
        }
        if username.is_some() != password_file.is_some() {
            bail!("registries: {host} has only one of username and password_file; give both, or none");
        }
        if !seen.insert(host) {
            bail!("registries: {host} is there twice; remove one");
        }
    }
    Ok(())
}
