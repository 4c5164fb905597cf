//! An image's layers are read into a tree.

use std::io::Read;

use super::blob::{Blob, Hashed};
use super::media::{self, Compression};
use super::{Config, Container, Layout, layout};
use crate::Limits;
use crate::error::ImageError;
use crate::layer::{self, Budget, Rules};
use crate::scratch::Scratch;
use crate::tree::Tree;

/// Adds the image's files; returns how many devices, pipes and sockets were left out, and what else the image says.
pub(crate) fn read(
    tree: &mut Tree,
    scratch: &mut Scratch,
    budget: &mut Budget,
    limits: Limits,
    source: &Layout,
    progress: &dyn Fn(&str),
) -> Result<(u64, Container), ImageError> {
    let found = layout::find(source)?;
    let config = Config::new(&found.config).map_err(|reason| {
        let what = format!("the configuration {}", found.manifest.config().digest());
        ImageError::Oci { what, reason }
    })?;
    let layers = found.manifest.layers();
    let mut left_out = 0;
    // What is stored costs time as well, even where nothing comes out of it.
    let mut stored = limits.unpacked;
    for (index, (descriptor, id)) in layers.iter().zip(found.config.rootfs().diff_ids()).enumerate() {
        progress(&format!("layer {} of {}", index + 1, layers.len()));
        let what = format!("layer {}", index + 1);
        let compression = media::known_layer(descriptor, &what)?;
        let mut blob = Blob::open(&source.directory, descriptor, &what, stored)?;
        stored -= descriptor.size();
        let name = blob.name().to_owned();
        let mut archive = Hashed::new(decoder(compression, &mut blob, &name)?);
        let rules = Rules { whiteouts: true, latest: None };
        let applied = layer::apply(tree, scratch, budget, &name, rules, &mut archive);
        let found = archive.digest();
        // Where the file is damaged, this explains better what else went wrong.
        blob.finish()?;
        left_out += applied?;
        if found != *id {
            let reason = format!("uncompressed it has the digest {found}; the image's configuration says {id:?}");
            return Err(ImageError::Oci { what: name, reason });
        }
    }
    Ok((left_out, Container { digest: found.digest, config }))
}

fn decoder<'a>(compression: Compression, blob: &'a mut Blob, name: &str) -> Result<Box<dyn Read + 'a>, ImageError> {
    Ok(match compression {
        Compression::None => Box::new(blob),
        // Several streams in a row are one, as some tools write them.
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(blob)),
        // Its window, and so its memory, is at most 128 MiB.
        Compression::Zstd => {
            let refused = |error| ImageError::Oci { what: name.to_owned(), reason: format!("start zstd: {error}") };
            Box::new(zstd::stream::read::Decoder::new(blob).map_err(refused)?)
        }
    })
}
