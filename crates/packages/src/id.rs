//! What a package is called: by its content.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use crate::PackageError;

/// SHA-256 of the zip.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PackageId([u8; 32]);

impl PackageId {
    pub(crate) fn of(zip: &[u8]) -> Self {
        Self(Sha256::digest(zip).into())
    }

    /// Of `CodeSha256`. What is not the base64 of 32 bytes names no package.
    pub(crate) fn parse(sha256_base64: &str) -> Result<Self, PackageError> {
        let bytes = BASE64.decode(sha256_base64).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| PackageError::NotFound { sha256: sha256_base64.to_owned() })
    }

    pub(crate) fn base64(self) -> String {
        BASE64.encode(self.0)
    }

    /// The inverse of [`Self::hex`].
    pub(crate) fn from_hex(name: &str) -> Option<Self> {
        Some(Self(hex::decode(name).ok()?.try_into().ok()?))
    }

    /// The name of an unpacked package.
    pub(crate) fn hex(self) -> String {
        hex::encode(self.0)
    }

    /// The name of its zip, in a directory and in a bucket.
    pub(crate) fn file_name(self) -> String {
        format!("{}.zip", self.hex())
    }
}
