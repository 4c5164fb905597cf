//! Code packages: zip files by content hash.
//!
//! ```text
//!  upload ──ingest──►  zips/<sha256>.zip  ──unpacked──►  unpacked/<sha256>/   (mounted as /var/task or into /opt)
//!  S3 ──fetch_s3──┘    durable                           a cache of this host, thrown away after a reboot
//! ```
//!
//! The zips of one process are in its directory; those of a fleet are in a directory that it shares, or in a bucket, of which
//! each host has a cache ([`Storage`]).
//!
//! A package is checked in full when it comes in ([`Packages::ingest`]): names, kinds, sizes and checksums of every
//! entry, by really decompressing it. What is stored was checked, so a worker unpacks it without surprises; it still
//! holds the zip against its hash while it does.
#![forbid(unsafe_code)]

mod archive;
mod error;
mod extract;
mod files;
mod host;
mod id;
mod retry;
mod s3;
mod storage;
mod zips;

pub use error::PackageError;
pub use retry::Retry;
pub use s3::{S3Config, S3Error, put_object};
pub use storage::{Config, Packages, Storage, Unpacked};
pub use zips::S3Storage;

/// What a package may be at most. The defaults are AWS's quotas, where AWS has one.
///
/// There is no limit of the compression ratio: the total of the unpacked sizes is bounded as it is decompressed, and
/// honest packages (a file of zeros) reach deflate's maximum of 1032.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Size of a zip uploaded directly, in bytes. One from S3 is bounded by `unzipped` alone, as on AWS.
    pub zipped: u64,
    /// Sum of the unpacked sizes, in bytes.
    pub unzipped: u64,
    /// Number of entries, directories included. Not an AWS quota; keeps the inodes of one package in bounds.
    pub entries: usize,
    /// Length of an entry's path in bytes.
    pub path: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { zipped: 52_428_800, unzipped: 262_144_000, entries: 250_000, path: 1024 }
    }
}
