//! A container image is pulled from a registry, into a cache that is a layout.
//!
//! What a digest names is pulled once; a tag is asked for each time, as it may have moved. The cache keeps what was pulled
//! before a failure, so that the next try goes on from there.

mod cache;
mod failure;

use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, errors::OciDistributionError};
use oci_spec::image::{Descriptor, Digest, ImageManifest, MediaType};
use sha2::Digest as _;
use tokio::io::AsyncWriteExt as _;

use self::cache::Cache;
use super::media::{self, Document};
use super::{Layout, Pick, blob, layout};
use crate::Limits;
use crate::error::{ImageError, at};

const CONNECT: Duration = Duration::from_secs(10);

/// Between two pieces of an answer.
const READ: Duration = Duration::from_secs(30);

/// For all of an index or a manifest.
const DOCUMENT: Duration = Duration::from_secs(60);

/// Which documents a tag may lead to.
const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// An image in a registry: `REGISTRY/REPOSITORY`, with `:TAG` (`latest` where it is missing) or `@DIGEST`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    reference: Reference,
}

impl Remote {
    /// Whether the first component of `text` is a registry's and not a folder's: a host with a dot or a port, or
    /// `localhost`. Docker's short names, such as `alpine:3`, are none: a misspelled folder would be one of them.
    pub fn is_named_by(text: &str) -> bool {
        let Some((registry, repository)) = text.split_once('/') else { return false };
        let host = !registry.starts_with('.') && (registry.contains(['.', ':']) || registry == "localhost");
        host && !repository.is_empty()
    }

    /// From what a user writes.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let refused = |reason: String| ImageError::Source { source_name: text.to_owned(), reason };
        if !Self::is_named_by(text) {
            return Err(refused("an image in a registry is REGISTRY/REPOSITORY[:TAG|@DIGEST], in full".to_owned()));
        }
        let reference: Reference = text.parse().map_err(|error: oci_client::ParseError| refused(error.to_string()))?;
        if reference.digest().is_some_and(|digest| !digest.starts_with("sha256:")) {
            return Err(refused("only digests by sha256 are supported".to_owned()));
        }
        Ok(Self { reference })
    }

    fn registry(&self) -> &str {
        self.reference.resolve_registry()
    }

    /// Whether the registry is on this machine: only there is plain HTTP spoken, which anybody between could change.
    fn is_here(&self) -> bool {
        let registry = self.registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference.whole().fmt(f)
    }
}

/// Pulls the image for this machine into the layout `cache`, which is made where it is missing; one pull at a time, others
/// wait. Gives what [`build`](crate::build()) takes.
///
/// Asks anonymously, also for a token where the registry wants one. Every digest is checked before a blob gets its name.
/// Nothing is ever removed from the cache. Must run within tokio.
pub async fn pull(
    remote: &Remote,
    cache: &Path,
    limits: Limits,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<Layout, ImageError> {
    let cache = Cache::open(cache, progress).await?;
    let puller = Puller::new(remote, &cache)?;
    progress(&format!("asking {} for {remote}", remote.registry()));
    puller.client.store_auth_if_needed(remote.registry(), &RegistryAuth::Anonymous).await;
    let top = puller.top().await?;
    let mut descriptor = top.clone();
    let mut indexes = 0;
    while media::document(descriptor.media_type()) == Some(Document::Index) {
        indexes += 1;
        // One less than in a layout, whose own index is one.
        if indexes == layout::NESTED {
            return Err(puller.failed(format!("it has indexes in indexes, more than {} deep", layout::NESTED)));
        }
        descriptor = layout::child(cache.path(), &descriptor)?;
        puller.document(&descriptor).await?;
    }
    let manifest: ImageManifest = blob::document(cache.path(), &descriptor, "the manifest")?;
    puller.blob(manifest.config(), "the configuration", blob::DOCUMENT).await?;
    let found = layout::manifest(cache.path(), &descriptor)?;
    let layers = found.manifest.layers();
    let mut left = limits.unpacked;
    for (index, layer) in layers.iter().enumerate() {
        let what = format!("layer {}", index + 1);
        media::known_layer(layer, &what)?;
        progress(&format!("pulling layer {} of {}: {} KiB", index + 1, layers.len(), layer.size().div_ceil(1024)));
        puller.blob(layer, &what, left).await?;
        left -= layer.size();
    }
    cache.name(&top, &remote.to_string())?;
    Ok(Layout { directory: cache.path().to_owned(), pick: Pick::Digest(top.digest().to_string()) })
}

struct Puller<'a> {
    client: Client,
    remote: &'a Remote,
    cache: &'a Cache,
}

impl<'a> Puller<'a> {
    fn new(remote: &'a Remote, cache: &'a Cache) -> Result<Self, ImageError> {
        let here = if remote.is_here() { vec![remote.registry().to_owned()] } else { Vec::new() };
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(here),
            connect_timeout: Some(CONNECT),
            read_timeout: Some(READ),
            user_agent: concat!("emberbox/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| failure::no_client(remote, &error))?;
        Ok(Self { client, remote, cache })
    }

    fn failed(&self, reason: String) -> ImageError {
        failure::failed(self.remote, reason)
    }

    async fn explained(&self, error: &OciDistributionError) -> ImageError {
        failure::explain(&self.client, self.remote, error).await
    }

    /// What the tag or digest leads to, which is then in the cache.
    async fn top(&self) -> Result<Descriptor, ImageError> {
        let reference = &self.remote.reference;
        let cached = match reference.digest() {
            Some(digest) => self.cache.document(&self.digest(digest)?)?,
            None => None,
        };
        let is_new = cached.is_none();
        let bytes = match cached {
            Some(bytes) => bytes,
            None => self.ask(reference).await?,
        };
        let media = media_type(&bytes).map_err(|reason| self.failed(reason))?;
        let descriptor = Descriptor::new(media, bytes.len() as u64, sha256(&bytes));
        if reference.digest().is_some_and(|digest| digest != descriptor.digest().as_ref()) {
            return Err(self.failed(format!("the registry sent something else: {}", descriptor.digest())));
        }
        if is_new {
            self.store(&descriptor, &bytes)?;
        }
        Ok(descriptor)
    }

    /// The index or manifest that an index leads to.
    async fn document(&self, descriptor: &Descriptor) -> Result<(), ImageError> {
        let digest = descriptor.digest();
        blob::path(self.cache.path(), digest, &format!("the manifest {digest}"))?;
        if self.cache.document(digest)?.is_some() {
            return Ok(());
        }
        let bytes = self.ask(&self.remote.reference.clone_with_digest(digest.to_string())).await?;
        if sha256(&bytes) != *digest {
            return Err(self.failed(format!("for {digest}, the registry sent {}", sha256(&bytes))));
        }
        self.store(descriptor, &bytes)
    }

    async fn ask(&self, reference: &Reference) -> Result<Vec<u8>, ImageError> {
        let asked = self.client.pull_manifest_raw(reference, &RegistryAuth::Anonymous, ACCEPTED);
        let bytes = match tokio::time::timeout(DOCUMENT, asked).await {
            Ok(Ok((bytes, _))) => bytes,
            Ok(Err(error)) => return Err(self.explained(&error).await),
            Err(_) => return Err(self.failed(format!("the registry took more than {} s", DOCUMENT.as_secs()))),
        };
        if bytes.len() as u64 > blob::DOCUMENT {
            let what = format!("what {reference} is");
            return Err(ImageError::TooLarge { what, limit: blob::DOCUMENT, unit: "bytes" });
        }
        Ok(bytes.into())
    }

    fn store(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), ImageError> {
        let mut temp = self.cache.begin()?;
        temp.write_all(bytes).map_err(at("write", temp.path()))?;
        temp.as_file().sync_all().map_err(at("write", temp.path()))?;
        self.cache.commit(temp, descriptor.digest())
    }

    /// The configuration or a layer.
    async fn blob(&self, descriptor: &Descriptor, what: &str, limit: u64) -> Result<(), ImageError> {
        let digest = descriptor.digest();
        let what = format!("{what} {digest}");
        if descriptor.size() > limit {
            return Err(ImageError::TooLarge { what, limit, unit: "bytes" });
        }
        let path = blob::path(self.cache.path(), digest, &what)?;
        if path.metadata().is_ok_and(|there| there.is_file() && there.len() == descriptor.size()) {
            // Its digest is checked whenever it is read.
            return Ok(());
        }
        let pulled = self.client.pull_blob_stream(&self.remote.reference, digest.as_ref()).await;
        let mut stream = match pulled {
            Ok(stream) => stream,
            Err(error) => return Err(self.explained(&error).await),
        };
        let temp = self.cache.begin()?;
        let failed = |reason: String| self.failed(format!("{what}: {reason}"));
        let mut file = tokio::fs::File::from_std(temp.reopen().map_err(at("open", temp.path()))?);
        let mut left = descriptor.size();
        while let Some(piece) = stream.next().await {
            // The client checks the digest with the last piece.
            let piece = piece.map_err(|error| failed(failure::chain(&error)))?;
            let more =
                || failed(format!("the registry sends more than the {} bytes it should have", descriptor.size()));
            left = left.checked_sub(piece.len() as u64).ok_or_else(more)?;
            file.write_all(&piece).await.map_err(at("write", temp.path()))?;
        }
        if left > 0 {
            return Err(failed(format!("the registry sent {left} bytes less than it should have")));
        }
        file.sync_all().await.map_err(at("write", temp.path()))?;
        self.cache.commit(temp, digest)
    }

    fn digest(&self, text: &str) -> Result<Digest, ImageError> {
        text.parse().map_err(|error| self.failed(format!("{text} is no digest: {error}")))
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    let text = format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)));
    text.parse().expect("this is how OCI writes them")
}

/// What a document is: what it says, or, where it says nothing, what it holds.
fn media_type(bytes: &[u8]) -> Result<MediaType, String> {
    let document: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| format!("the registry sent no manifest: {error}"))?;
    let media = match document.get("mediaType").and_then(serde_json::Value::as_str) {
        Some(media) => MediaType::from(media),
        None => match (document.get("manifests").is_some(), document.get("layers").is_some()) {
            (true, false) => MediaType::ImageIndex,
            (false, true) => MediaType::ImageManifest,
            _ => return Err("the registry sent a document that is neither an index nor a manifest".to_owned()),
        },
    };
    match media::document(&media) {
        Some(_) => Ok(media),
        None => Err(format!("it is no image: its type is {:?}", media.as_ref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_complete() {
        for text in ["127.0.0.1:5000/a", "public.ecr.aws/lambda/python:3.12", "localhost/a/b:1", "[::1]:5000/a"] {
            assert!(Remote::is_named_by(text), "{text}");
        }
        for text in ["alpine:3", "alpine", "library/alpine", "./a/b", "../a.b/c", "/a.b/c", "example.org/", ".a/b"] {
            assert!(!Remote::is_named_by(text) && Remote::parse(text).is_err(), "{text}");
        }
        let sha512 = format!("example.org/a@sha512:{}", "a".repeat(128));
        for text in ["example.org/UPPER", "example.org/a:b:c", "example.org/a@sha256:abc", &sha512] {
            assert!(Remote::parse(text).unwrap_err().to_string().contains(text), "{text}");
        }
        assert_eq!(Remote::parse("example.org/a").unwrap().to_string(), "example.org/a:latest");
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        let here = |text: &str| Remote::parse(text).unwrap().is_here();
        assert!(here("127.0.0.1:5000/a") && here("localhost:5000/a") && here("localhost/a") && here("127.1.2.3/a"));
        for text in ["10.0.0.1:5000/a", "localhost.example.org/a", "127.0.0.1.example.org/a", "docker.io/library/a"] {
            assert!(!here(text), "{text}");
        }
    }

    #[test]
    fn a_document_says_what_it_is() {
        let media = |text: &str| media_type(text.as_bytes());
        assert_eq!(media(r#"{"manifests":[]}"#), Ok(MediaType::ImageIndex));
        assert_eq!(media(r#"{"layers":[]}"#), Ok(MediaType::ImageManifest));
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        assert_eq!(media(&format!(r#"{{"mediaType":"{docker}"}}"#)), Ok(MediaType::from(docker)));
        for wrong in [r#"{"manifests":[],"layers":[]}"#, r#"{"fsLayers":[]}"#, "[]", "<html>", r#"{"mediaType":"x"}"#] {
            assert!(media(wrong).is_err(), "{wrong}");
        }
    }
}
