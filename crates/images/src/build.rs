//! From a source to an image.

use std::path::{Path, PathBuf};

use crate::debian::{self, Debian};
use crate::error::ImageError;
use crate::layer::Budget;
use crate::limits::Limits;
use crate::scratch::Scratch;
use crate::tree::{Content, Kind, Meta, Tree};
use crate::{directory, oci, squashfs, unpack as directories};

/// The time of whatever has none of its own: 1 January 2025. Any would do that no program takes for a mistake.
const EPOCH: u32 = 1_735_689_600;

/// What a sandbox mounts something on, and a root that nobody can write must have: directories with their modes.
const MOUNT_POINTS: &[(&str, u16)] = &[
    ("dev", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/runtime", 0o755),
    ("var/task", 0o755),
];

/// The same for files.
const MOUNTED_FILES: &[(&str, &[u8])] =
    &[("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n"), ("etc/resolv.conf", b"")];

/// What an image is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A directory of this host, whose files are to belong to root.
    Directory(PathBuf),
    /// A Debian release.
    Debian(Debian),
    /// A container image in a directory.
    Oci(oci::Layout),
}

/// How an image is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// How large it may be.
    pub limits: Limits,
    /// Time of the image and of files that have none of their own, in seconds since 1970.
    pub time: u32,
    /// Whether it is to be a root: what sandboxes mount upon is made where it is missing. Packages and layers are none.
    pub root: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { limits: Limits::default(), time: EPOCH, root: true }
    }
}

/// What was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Size in bytes, a multiple of 4096.
    pub bytes: u64,
    /// SHA-256 over the image, in hexadecimal: the same for the same source and options.
    pub sha256: String,
    /// Files, directories and links in it.
    pub entries: u64,
    /// Devices, pipes and sockets, which images never have: `/dev` is the sandbox's.
    pub left_out: u64,
    /// What a container image says beside its files; none of other sources.
    pub container: Option<oci::Container>,
}

/// Makes the squashfs image `output`, complete or not at all. Blocks, for as long as compressing it takes.
///
/// In the folder of `output` there has to be room for the image, and for the uncompressed contents beside it where they
/// come from an archive. `progress` hears each step in a few words.
pub fn build(source: &Source, options: &Options, output: &Path, progress: &dyn Fn(&str)) -> Result<Image, ImageError> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut tree = Tree::new(options.time);
    let mut budget = Budget::new(options.limits);
    let mut scratch = None;
    let mut container = None;
    let left_out = match source {
        Source::Directory(directory) => {
            progress(&format!("reading {}", directory.display()));
            directory::read(&mut tree, &mut budget, options.time, directory)?
        }
        Source::Debian(debian) => {
            progress(&format!("installing Debian {} with mmdebstrap", debian.release));
            let scratch = scratch.insert(Scratch::new(folder)?);
            debian::read(&mut tree, scratch, &mut budget, options.time, debian)?
        }
        Source::Oci(layout) => {
            progress(&format!("reading {layout}"));
            let scratch = scratch.insert(Scratch::new(folder)?);
            let read = oci::read(&mut tree, scratch, &mut budget, options.limits, layout, progress)?;
            container = Some(read.1);
            read.0
        }
    };
    if options.root {
        root(&mut tree)?;
    }
    progress("compressing");
    let written = squashfs::write(&tree, scratch.as_ref().map(Scratch::file), options.time, output)?;
    Ok(Image {
        bytes: written.bytes,
        sha256: hex::encode(written.sha256),
        entries: written.entries,
        left_out,
        container,
    })
}

/// What a sandbox mounts on whatever an image has there. A link in such a place would have the mount somewhere else.
const COVERED: &[(&str, u16)] = &[("dev", 0o755), ("proc", 0o555), ("tmp", 0o1777)];

/// Unpacks a container image into the directory `output`, which must not be there yet, to be a sandbox's root. After an
/// error part of it may be there. Blocks, for as long as decompressing takes.
///
/// In the folder of `output` there has to be room for the contents twice. Nothing of the image is trusted: neither what its
/// links lead to nor its special files, owners and modes have a meaning for the host.
pub fn unpack(
    layout: &oci::Layout,
    limits: Limits,
    output: &Path,
    progress: &dyn Fn(&str),
) -> Result<oci::Container, ImageError> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut tree = Tree::new(EPOCH);
    let mut scratch = Scratch::new(folder)?;
    let mut budget = Budget::new(limits);
    let (_, container) = oci::read(&mut tree, &mut scratch, &mut budget, limits, layout, progress)?;
    let meta = |mode| Meta { mode, uid: 0, gid: 0, mtime: EPOCH };
    let directories = COVERED.iter().map(|(path, mode)| (path, meta(*mode), Kind::Directory(Default::default())));
    let files = MOUNTED_FILES.iter().map(|(path, text)| (path, meta(0o644), Kind::File(Content::Bytes(text))));
    for (path, meta, kind) in directories.chain(files) {
        let refused = |reason| ImageError::Layer { layer: format!("the image's /{path}"), reason };
        tree.insert(path.as_bytes(), meta, kind).map_err(|error| refused(error.to_string()))?;
    }
    progress("unpacking");
    directories::write(&tree, scratch.file(), output)?;
    Ok(container)
}

fn root(tree: &mut Tree) -> Result<(), ImageError> {
    let directories = MOUNT_POINTS.iter().map(|(path, mode)| (path, *mode, Kind::Directory(Default::default())));
    let files = MOUNTED_FILES.iter().map(|(path, text)| (path, 0o644, Kind::File(Content::Bytes(text))));
    for (path, mode, kind) in directories.chain(files) {
        let refused = |reason| ImageError::Layer { layer: format!("the image's /{path}"), reason };
        tree.ensure(path, kind, mode).map_err(|error| refused(error.to_string()))?;
    }
    Ok(())
}
