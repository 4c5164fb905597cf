//! How large an image may be.

/// What an image may be at most. Held while reading, so that a bomb costs no more than this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sum of the uncompressed sizes of all layers, in bytes, with what later layers replace. AWS's quota of container
    /// images: 10 GB.
    pub unpacked: u64,
    /// Files, directories and links in all layers.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unpacked: 10 * 1024 * 1024 * 1024, entries: 1_000_000 }
    }
}

/// Length of a path in bytes: Linux's `PATH_MAX`.
pub(crate) const PATH: usize = 4096;

/// Memory for the tree of an image, in bytes: a path of an archive may name hundreds of directories at once.
pub(crate) const TREE: usize = 512 << 20;

/// Directories above one another. What walks a tree is recursive, and needs some stack for each.
pub(crate) const DEPTH: usize = 256;
