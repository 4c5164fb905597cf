//! What a descriptor leads to, by its media type and its platform.

use oci_spec::image::{Arch, Descriptor, MediaType, Os};

use crate::error::ImageError;

/// Documents that lead further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Document {
    Index,
    Manifest,
}

/// How a layer's archive is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Which document it is; none of ours where it is an attestation, a signature or something else.
pub(crate) fn document(media: &MediaType) -> Option<Document> {
    match media.as_ref() {
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            Some(Document::Index)
        }
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
            Some(Document::Manifest)
        }
        _ => None,
    }
}

pub(crate) fn is_config(media: &MediaType) -> bool {
    matches!(
        media.as_ref(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// How the layer that `descriptor` leads to, the `what` of an image, is compressed.
pub(crate) fn known_layer(descriptor: &Descriptor, what: &str) -> Result<Compression, ImageError> {
    let media = descriptor.media_type();
    layer(media).ok_or_else(|| {
        let reason = format!("layers of the type {:?} are not supported", media.as_ref());
        ImageError::Oci { what: format!("{what} {}", descriptor.digest()), reason }
    })
}

/// Layers that may not be distributed are not read: they are Windows' own.
fn layer(media: &MediaType) -> Option<Compression> {
    match media.as_ref() {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Some(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Some(Compression::Gzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Some(Compression::Zstd)
        }
        _ => None,
    }
}

/// This machine's architecture in OCI's words, which are Go's.
pub(crate) fn host() -> Arch {
    Arch::from(match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    })
}

/// The images and indexes of these that may be for this machine, in their order: those that say that they are, or, where
/// there is none, those that do not say.
///
/// Entries of other types are passed over, as OCI's specification of the index wants it.
pub(crate) fn for_this_machine<'a>(entries: &[&'a Descriptor]) -> Result<Vec<&'a Descriptor>, String> {
    let known = entries.iter().copied().filter(|entry| document(entry.media_type()).is_some());
    let (said, silent): (Vec<_>, Vec<_>) = known.partition(|entry| entry.platform().is_some());
    let fits = |entry: &&Descriptor| {
        entry.platform().as_ref().is_some_and(|p| *p.os() == Os::Linux && *p.architecture() == host())
    };
    let fitting: Vec<_> = said.iter().copied().filter(fits).collect();
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    if !silent.is_empty() {
        return Ok(silent);
    }
    let there = if said.is_empty() {
        list(entries.iter().map(|entry| format!("something of the type {:?}", entry.media_type().as_ref())))
    } else {
        list(
            said.iter()
                .filter_map(|entry| entry.platform().as_ref())
                .map(|p| format!("{}/{}", p.os(), p.architecture())),
        )
    };
    Err(format!("it has no image for this machine, which is linux/{}; there is: {there}", host()))
}

/// The first twenty, with commas between: what comes from a stranger may be long.
pub(crate) fn list(words: impl Iterator<Item = String>) -> String {
    let mut words: Vec<String> = words.map(|word| word.chars().take(200).collect()).collect();
    words.sort();
    words.dedup();
    let more = words.len().saturating_sub(20);
    words.truncate(20);
    match (words.is_empty(), more) {
        (true, _) => "nothing".to_owned(),
        (_, 0) => words.join(", "),
        (_, more) => format!("{}, and {more} more", words.join(", ")),
    }
}
