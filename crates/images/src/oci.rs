//! Images of containers, as the OCI image specification describes them.
//!
//! ```text
//!  layout:  index.json ──► (index) ──► manifest ──┬──► configuration ──► entry point, environment, folder
//!                       tag, platform             └──► layers, lowest first ──► tree
//! ```
//!
//! Each arrow is a descriptor, with type, size and SHA-256 of what it leads to, and each of them is checked: whoever
//! knows the manifest's digest knows every byte. Docker's media types are read beside OCI's, as they mean the same.

mod blob;
mod config;
mod layers;
mod layout;
mod media;
#[cfg(feature = "oci")]
mod registry;
#[cfg(feature = "oci")]
mod store;

use std::fmt;
use std::path::PathBuf;

pub use config::Config;
pub(crate) use layers::read;
#[cfg(feature = "oci")]
pub use registry::{Access, Login, Remote, pull, resolve};
#[cfg(feature = "oci")]
pub use store::{Store, StoreConfig, Unpacked};

/// Whether `text` is `REGISTRY/REPOSITORY…`: its first component is a registry's and not a folder's, a host with a dot or a
/// port, or `localhost`. Docker's short names, such as `alpine:3`, are none: a misspelled folder would be one of them.
pub fn is_remote(text: &str) -> bool {
    let Some((registry, repository)) = text.split_once('/') else { return false };
    let host = !registry.starts_with('.') && (registry.contains(['.', ':']) || registry == "localhost");
    host && !repository.is_empty()
}

/// An image in an OCI image layout: a directory as `skopeo copy`, `podman push` and `docker buildx` write it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The directory, which holds `oci-layout`, `index.json` and `blobs`.
    pub directory: PathBuf,
    /// Which of the images in it.
    pub pick: Pick,
}

/// Which image of several.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pick {
    /// The only one for this machine.
    Only,
    /// The one of this tag: OCI's annotation `org.opencontainers.image.ref.name`.
    Tag(String),
    /// The one of this digest, such as `sha256:` and 64 hexadecimal digits.
    Digest(String),
}

impl Layout {
    /// From `DIR`, `DIR:TAG` or `DIR@DIGEST`. What stands before the first colon is the directory, as in other tools.
    pub fn parse(text: &str) -> Self {
        if let Some((directory, digest)) = text.rsplit_once("@sha256:") {
            return Self { directory: directory.into(), pick: Pick::Digest(format!("sha256:{digest}")) };
        }
        let (directory, pick) = match text.split_once(':') {
            Some((directory, tag)) => (directory, Pick::Tag(tag.to_owned())),
            None => (text, Pick::Only),
        };
        Self { directory: directory.into(), pick }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci:{}", self.directory.display())?;
        match &self.pick {
            Pick::Only => Ok(()),
            Pick::Tag(tag) => write!(f, ":{tag}"),
            Pick::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// What a container image is, beside its files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    /// Digest of its manifest, which names it for good: `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// How it is to be started.
    pub config: Config,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_a_directory_with_a_tag_or_a_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, directory, pick) in [
            ("./image", "./image", Pick::Only),
            ("/var/image:1.0", "/var/image", Pick::Tag("1.0".into())),
            ("image:docker.io/library/x:1", "image", Pick::Tag("docker.io/library/x:1".into())),
            ("a@b/image", "a@b/image", Pick::Only),
            (&format!("image@{digest}"), "image", Pick::Digest(digest)),
        ] {
            let layout = Layout::parse(text);
            assert_eq!(layout, Layout { directory: directory.into(), pick });
            assert_eq!(layout.to_string(), format!("oci:{text}"));
        }
    }
}
