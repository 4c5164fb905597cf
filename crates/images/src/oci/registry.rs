//! A container image is pulled from a registry, into a cache that is a layout.
//!
//! What a digest names is pulled once; a tag is asked for each time, as it may have moved. The cache keeps what was pulled
//! before a failure, so that the next try goes on from there.

mod cache;
mod failure;
mod http;

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use oci_spec::distribution::{ParseError, Reference};
use oci_spec::image::{Descriptor, Digest, ImageManifest, MediaType};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use self::cache::Cache;
use self::failure::Problem;
use self::http::Http;
use super::media::{self, Document};
use super::{Layout, Pick, blob, layout};
use crate::Limits;
use crate::error::{ImageError, Refusal, at};

/// How a registry is spoken to. By default anonymously, and by HTTPS unless it is on this machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// For the registry, or for what gives tokens for it.
    pub credentials: Option<Login>,
    /// Plain HTTP, which anybody between can read and change.
    pub plain_http: bool,
}

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// An image in a registry: `REGISTRY/REPOSITORY`, with `:TAG` (`latest` where it is missing) or `@DIGEST`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    reference: Reference,
}

impl Remote {
    /// From what a user writes.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let refused = |reason: String| ImageError::Source { source_name: text.to_owned(), reason };
        if !super::is_remote(text) {
            return Err(refused("an image in a registry is REGISTRY/REPOSITORY[:TAG|@DIGEST], in full".to_owned()));
        }
        let reference: Reference = text.parse().map_err(|error: ParseError| refused(error.to_string()))?;
        if reference.digest().is_some_and(|digest| !digest.starts_with("sha256:")) {
            return Err(refused("only digests by sha256 are supported".to_owned()));
        }
        Ok(Self { reference })
    }

    /// Host, and port if there is one, of the registry.
    pub fn registry(&self) -> &str {
        self.reference.resolve_registry()
    }

    /// `REGISTRY/REPOSITORY`.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.registry(), self.repository())
    }

    fn repository(&self) -> &str {
        self.reference.repository()
    }

    /// The same repository's image of this digest.
    pub fn at(&self, digest: &str) -> Self {
        let (registry, repository) = (self.reference.registry().to_owned(), self.repository().to_owned());
        Self { reference: Reference::with_digest(registry, repository, digest.to_owned()) }
    }

    /// Whether the registry is on this machine: only there is plain HTTP spoken unasked.
    fn is_here(&self) -> bool {
        let registry = self.registry();
        let port = registry.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        http::is_loopback(port.map_or(registry, |(host, _)| host))
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference.whole().fmt(f)
    }
}

/// What the tag leads to now: the digest of an index or a manifest. Nothing is kept. Must run within tokio.
pub async fn resolve(remote: &Remote, access: &Access) -> Result<String, ImageError> {
    let http = Http::new(remote, access).map_err(|problem| no_client(remote, problem))?;
    let reference = remote.reference.digest().or_else(|| remote.reference.tag()).unwrap_or_default();
    let bytes = match http.manifest(reference).await {
        Ok(bytes) => bytes,
        Err(problem) => return Err(failure::explain(&http, remote, problem).await),
    };
    let invalid = |reason| failure::failed(remote, Refusal::Invalid, reason);
    media_type(&bytes).map_err(invalid)?;
    let digest = sha256(&bytes).to_string();
    match remote.reference.digest() {
        Some(wanted) if wanted != digest => Err(invalid(format!("the registry sent something else: {digest}"))),
        _ => Ok(digest),
    }
}

/// Pulls the image for this machine into the layout `cache`, which is made where it is missing; one pull at a time, others
/// wait. Gives what [`build`](crate::build()) takes.
///
/// Every digest is checked before a blob gets its name; `siblings` are layouts whose blobs are linked instead of pulled, and
/// checked when they are read. Nothing is ever removed from the cache. Must run within tokio.
pub async fn pull(
    remote: &Remote,
    access: &Access,
    cache: &Path,
    siblings: &[PathBuf],
    limits: Limits,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<Layout, ImageError> {
    let cache = Cache::open(cache, progress).await?;
    let http = Http::new(remote, access).map_err(|problem| no_client(remote, problem))?;
    let puller = Puller { http, remote, cache: &cache, siblings };
    progress(&format!("asking {} for {remote}", remote.registry()));
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
    http: Http<'a>,
    remote: &'a Remote,
    cache: &'a Cache,
    siblings: &'a [PathBuf],
}

impl Puller<'_> {
    fn failed(&self, reason: String) -> ImageError {
        failure::failed(self.remote, Refusal::Invalid, reason)
    }

    async fn explained(&self, problem: Problem) -> ImageError {
        failure::explain(&self.http, self.remote, problem).await
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
            None => self.ask(reference.digest().or_else(|| reference.tag()).unwrap_or_default()).await?,
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
        let bytes = self.ask(digest.as_ref()).await?;
        if sha256(&bytes) != *digest {
            return Err(self.failed(format!("for {digest}, the registry sent {}", sha256(&bytes))));
        }
        self.store(descriptor, &bytes)
    }

    async fn ask(&self, reference: &str) -> Result<Vec<u8>, ImageError> {
        match self.http.manifest(reference).await {
            Ok(bytes) => Ok(bytes),
            Err(problem) => Err(self.explained(problem).await),
        }
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
        for sibling in self.siblings {
            let there = blob::path(sibling, digest, &what)?;
            let alike = there.symlink_metadata().is_ok_and(|it| it.is_file() && it.len() == descriptor.size());
            // A layout that is being removed, or another file system, is no sibling.
            if alike && std::fs::hard_link(&there, &path).is_ok() {
                return Ok(());
            }
        }
        let mut stream = match self.http.blob(digest.as_ref()).await {
            Ok(response) => response.bytes_stream(),
            Err(problem) => return Err(self.explained(problem).await),
        };
        let temp = self.cache.begin()?;
        let failed = |reason: String| self.failed(format!("{what}: {reason}"));
        let mut file = tokio::fs::File::from_std(temp.reopen().map_err(at("open", temp.path()))?);
        let mut left = descriptor.size();
        let mut hash = Sha256::new();
        while let Some(piece) = stream.next().await {
            let broken = |error: reqwest::Error| {
                failure::failed(self.remote, Refusal::Unavailable, format!("{what}: {}", failure::chain(&error)))
            };
            let piece = piece.map_err(broken)?;
            let more =
                || failed(format!("the registry sends more than the {} bytes it should have", descriptor.size()));
            left = left.checked_sub(piece.len() as u64).ok_or_else(more)?;
            hash.update(&piece);
            file.write_all(&piece).await.map_err(at("write", temp.path()))?;
        }
        if left > 0 {
            return Err(failed(format!("the registry sent {left} bytes less than it should have")));
        }
        let found = format!("sha256:{}", hex::encode(hash.finalize()));
        if found != digest.as_ref() {
            return Err(failed(format!("the registry sent something else: {found}")));
        }
        file.sync_all().await.map_err(at("write", temp.path()))?;
        self.cache.commit(temp, digest)
    }

    fn digest(&self, text: &str) -> Result<Digest, ImageError> {
        text.parse().map_err(|error| self.failed(format!("{text} is no digest: {error}")))
    }
}

fn no_client(remote: &Remote, problem: Problem) -> ImageError {
    match problem {
        Problem::Said(kind, reason) => failure::failed(remote, kind, reason),
        Problem::TooLarge(limit) => failure::failed(remote, Refusal::Invalid, format!("more than {limit} bytes")),
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    let text = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
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
            assert!(crate::oci::is_remote(text), "{text}");
        }
        for text in ["alpine:3", "alpine", "library/alpine", "./a/b", "../a.b/c", "/a.b/c", "example.org/", ".a/b"] {
            assert!(!crate::oci::is_remote(text) && Remote::parse(text).is_err(), "{text}");
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
