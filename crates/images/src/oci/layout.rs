//! From a layout's `index.json` to the manifest and the configuration of one image.

use std::path::Path;

use oci_spec::image::{
    ANNOTATION_REF_NAME, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout, Os,
};

use super::blob;
use super::media::{self, Document};
use super::{Layout, Pick};
use crate::error::ImageError;

/// Indexes that lead to one another. Two are usual: the layout's own, and that of the platforms.
pub(crate) const NESTED: usize = 8;

/// An image of which all but the layers was read.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) digest: String,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: ImageConfiguration,
}

/// Finds the image for this machine.
pub(crate) fn find(layout: &Layout) -> Result<Found, ImageError> {
    let refused = |reason: String| ImageError::Source { source_name: layout.to_string(), reason };
    let directory = &layout.directory;
    let marker = directory.join("oci-layout");
    if !marker.is_file() {
        let reason = "a directory with the files oci-layout and index.json would be one; `skopeo copy`, `podman push` and \
                      `docker buildx build --output type=oci,tar=false` write such";
        return Err(refused(reason.to_owned()));
    }
    let version: OciLayout = blob::top(&marker)?;
    if !version.image_layout_version().starts_with("1.") {
        return Err(refused(format!("it is a layout of version {:?}, not 1", version.image_layout_version())));
    }
    let index: ImageIndex = blob::top(&directory.join("index.json"))?;
    let mut descriptor = start(&index, &layout.pick).map_err(refused)?.clone();
    for _ in 0..NESTED {
        if media::document(descriptor.media_type()) == Some(Document::Manifest) {
            return manifest(directory, &descriptor);
        }
        descriptor = child(directory, &descriptor)?;
    }
    Err(refused(format!("it has indexes in indexes, more than {NESTED} deep")))
}

/// The entry of the layout's own index that is meant.
fn start<'a>(index: &'a ImageIndex, pick: &Pick) -> Result<&'a Descriptor, String> {
    let all: Vec<_> = index.manifests().iter().collect();
    let tags = || media::list(all.iter().filter_map(|entry| tag(entry)).map(str::to_owned));
    let digests = || media::list(all.iter().map(|entry| entry.digest().to_string()));
    let named: Vec<_> = match pick {
        Pick::Only => all.clone(),
        Pick::Tag(wanted) => all.iter().copied().filter(|entry| tag(entry) == Some(wanted)).collect(),
        Pick::Digest(wanted) => all.iter().copied().filter(|entry| entry.digest().as_ref() == wanted).collect(),
    };
    match pick {
        Pick::Tag(tag) if named.is_empty() => return Err(format!("it has no tag {tag:?}; its tags are: {}", tags())),
        Pick::Digest(digest) if named.is_empty() => {
            return Err(format!("index.json has no {digest}; its digests are: {}", digests()));
        }
        _ => {}
    }
    let fitting = media::for_this_machine(&named)?;
    if *pick == Pick::Only && fitting.len() > 1 {
        return Err(format!("it holds several images; add :TAG (there is: {}) or @DIGEST ({})", tags(), digests()));
    }
    Ok(fitting[0])
}

fn tag(entry: &Descriptor) -> Option<&str> {
    entry.annotations().as_ref()?.get(ANNOTATION_REF_NAME).map(String::as_str)
}

/// The entry of an index that is for this machine: the first of them, as OCI's specification wants it.
pub(crate) fn child(layout: &Path, descriptor: &Descriptor) -> Result<Descriptor, ImageError> {
    let what = format!("the index {}", descriptor.digest());
    let index: ImageIndex = blob::document(layout, descriptor, "the index")?;
    same_type(index.media_type().as_ref(), descriptor.media_type(), &what)?;
    let entries: Vec<_> = index.manifests().iter().collect();
    let fitting = media::for_this_machine(&entries).map_err(|reason| ImageError::Oci { what, reason })?;
    Ok(fitting[0].clone())
}

/// What a manifest leads to, but its layers, which need not be there yet.
pub(crate) fn manifest(layout: &Path, descriptor: &Descriptor) -> Result<Found, ImageError> {
    let manifest: ImageManifest = blob::document(layout, descriptor, "the manifest")?;
    let what = format!("the manifest {}", descriptor.digest());
    same_type(manifest.media_type().as_ref(), descriptor.media_type(), &what)?;
    let refused = |reason: String| ImageError::Oci { what: what.clone(), reason };
    let media = manifest.config().media_type();
    if !media::is_config(media) {
        return Err(refused(format!("it is no image of a container: its configuration is of the type {media:?}")));
    }
    let config: ImageConfiguration = blob::document(layout, manifest.config(), "the configuration")?;
    let (os, architecture) = (config.os(), config.architecture());
    if *os != Os::Linux || *architecture != media::host() {
        let host = media::host();
        return Err(refused(format!("it is for {os}/{architecture}, and this machine is linux/{host}")));
    }
    let (layers, ids) = (manifest.layers().len(), config.rootfs().diff_ids().len());
    if layers != ids {
        return Err(refused(format!("it has {layers} layers, and its configuration lists {ids}")));
    }
    Ok(Found { digest: descriptor.digest().to_string(), manifest, config })
}

/// A document that says another type than its descriptor could be read as two images, by who looks at either.
fn same_type(own: Option<&MediaType>, wanted: &MediaType, what: &str) -> Result<(), ImageError> {
    match own {
        Some(own) if own != wanted => {
            let (own, wanted) = (own.as_ref(), wanted.as_ref());
            let reason = format!("it says that its type is {own:?}, and what leads to it says {wanted:?}");
            Err(ImageError::Oci { what: what.to_owned(), reason })
        }
        _ => Ok(()),
    }
}
