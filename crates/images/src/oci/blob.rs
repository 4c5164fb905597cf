//! The files of a layout. What has a digest is checked against it; nothing is held in memory that is larger than a limit.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256};

use crate::error::{ImageError, at};

/// Size in bytes of an index, a manifest or a configuration: what registries take, by OCI's distribution specification.
pub(crate) const DOCUMENT: u64 = 4 * 1024 * 1024;

/// A blob that is being read. Until [`finish`](Self::finish) nothing read from it is known to be right.
#[derive(Debug)]
pub(crate) struct Blob {
    file: io::Take<Hashed<File>>,
    name: String,
    path: PathBuf,
    digest: Digest,
    size: u64,
}

impl Blob {
    /// Opens what `descriptor` leads to, the `what` of an image, of at most `limit` bytes.
    pub(crate) fn open(layout: &Path, descriptor: &Descriptor, what: &str, limit: u64) -> Result<Self, ImageError> {
        let digest = descriptor.digest().clone();
        let name = format!("{what} {digest}");
        let size = descriptor.size();
        if size > limit {
            return Err(ImageError::TooLarge { what: name, limit, unit: "bytes" });
        }
        let path = path(layout, &digest, &name)?;
        let file = match open(&path) {
            Err(ImageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                let reason = format!("it is not in {}; copy or pull the image again", layout.display());
                return Err(ImageError::Oci { what: name, reason });
            }
            file => file?,
        };
        let len = file.metadata().map_err(at("read", &path))?.len();
        if len != size {
            let reason = format!("{} has {len} bytes, and should have {size}; {AGAIN}", path.display());
            return Err(ImageError::Oci { what: name, reason });
        }
        Ok(Self { file: Hashed::new(file).take(size), name, path, digest, size })
    }

    /// As messages call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Reads the rest, and checks all of it.
    pub(crate) fn finish(mut self) -> Result<(), ImageError> {
        io::copy(&mut self.file, &mut io::sink()).map_err(at("read", &self.path))?;
        let found = self.file.into_inner().digest();
        if found != self.digest.as_ref() {
            let reason = format!("{} is damaged: its digest is {found}; {AGAIN}", self.path.display());
            return Err(ImageError::Oci { what: self.name, reason });
        }
        Ok(())
    }

    /// All of it, checked.
    fn bytes(mut self) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.size).unwrap_or_default());
        self.file.read_to_end(&mut bytes).map_err(at("read", &self.path))?;
        self.finish()?;
        Ok(bytes)
    }
}

const AGAIN: &str = "remove it, and copy or pull the image again";

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// The document that `descriptor` leads to, checked.
pub(crate) fn document<T: serde::de::DeserializeOwned>(
    layout: &Path,
    descriptor: &Descriptor,
    what: &str,
) -> Result<T, ImageError> {
    let blob = Blob::open(layout, descriptor, what, DOCUMENT)?;
    let name = blob.name().to_owned();
    parse(&blob.bytes()?, &name)
}

/// A document that no digest is known of, at the layout's top.
pub(crate) fn top<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    let mut bytes = Vec::new();
    open(path)?.take(DOCUMENT + 1).read_to_end(&mut bytes).map_err(at("read", path))?;
    if bytes.len() as u64 > DOCUMENT {
        return Err(ImageError::TooLarge { what: path.display().to_string(), limit: DOCUMENT, unit: "bytes" });
    }
    parse(&bytes, &path.display().to_string())
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, ImageError> {
    let refused = |error: serde_json::Error| ImageError::Oci {
        what: what.to_owned(),
        reason: format!("it is not what OCI's image specification describes: {error}"),
    };
    serde_json::from_slice(bytes).map_err(refused)
}

/// Where the blob is. SHA-256 only: it is what every tool writes, and a name of 64 digits leads nowhere else.
pub(crate) fn path(layout: &Path, digest: &Digest, what: &str) -> Result<PathBuf, ImageError> {
    if *digest.algorithm() != DigestAlgorithm::Sha256 {
        let reason = format!("digests by {} are not supported, only sha256", digest.algorithm());
        return Err(ImageError::Oci { what: what.to_owned(), reason });
    }
    Ok(layout.join("blobs/sha256").join(digest.digest()))
}

/// Opens a file; a pipe, which would be waited for, or a directory is none.
fn open(path: &Path) -> Result<File, ImageError> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(at("read", path))?;
    if !file.metadata().map_err(at("read", path))?.is_file() {
        return Err(at("read", path)(io::Error::other("it is no file")));
    }
    Ok(file)
}

/// Keeps the digest of what was read.
#[derive(Debug)]
pub(crate) struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R> Hashed<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// In OCI's form.
    pub(crate) fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
