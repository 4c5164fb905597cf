//! A tree becomes a squashfs image.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backhand::compression::{CompressionOptions, Compressor, Zstd};
use backhand::{BackhandError, FilesystemCompressor, FilesystemWriter, NodeHeader};
use sha2::{Digest as _, Sha256};

use crate::error::{ImageError, at};
use crate::tree::{Content, Kind, Meta, Node, Tree};

/// zstd's level. Reading is as fast at each; more would make images of a Debian 3 % smaller and take twice as long.
const LEVEL: u32 = 9;

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    /// Size of the image in bytes, a multiple of 4096.
    pub(crate) bytes: u64,
    /// SHA-256 over the image.
    pub(crate) sha256: [u8; 32],
    /// Files, directories and links.
    pub(crate) entries: u64,
}

/// Writes `tree` to `output`, complete or not at all; `time` is the image's own, in seconds since 1970.
pub(crate) fn write(tree: &Tree, scratch: Option<&Arc<File>>, time: u32, output: &Path) -> Result<Written, ImageError> {
    let refused =
        |error: BackhandError| ImageError::Squashfs { path: output.to_owned(), reason: reason(error).to_string() };
    let level = CompressionOptions::Zstd(Zstd { compression_level: LEVEL });
    let mut writer = FilesystemWriter::default();
    writer.set_compressor(FilesystemCompressor::new(Compressor::Zstd, Some(level)).map_err(refused)?);
    writer.set_time(time);
    // It would find duplicates by a hash of 64 bits, which can be forged: one file of an image could pass for another.
    writer.set_no_duplicate_files(false);
    let root = header(tree.root().meta);
    writer.set_root_mode(root.permissions);
    writer.set_root_uid(root.uid);
    writer.set_root_gid(root.gid);
    let mut adder = Adder { writer, scratch, entries: 0 };
    adder.children(tree.root(), Path::new("/")).map_err(refused)?;
    let Adder { mut writer, entries, .. } = adder;

    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let temp = tempfile::Builder::new().prefix(".emberbox-image-").tempfile_in(folder);
    let mut temp = temp.map_err(at("create a file in", folder))?;
    writer.write(BufWriter::with_capacity(1 << 20, temp.as_file_mut())).map_err(refused)?;
    let file = temp.as_file_mut();
    file.set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(at("set the mode of", output))?;
    file.sync_all().map_err(at("write", output))?;
    file.seek(SeekFrom::Start(0)).map_err(at("read", output))?;
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut hash).map_err(at("read", output))?;
    temp.persist(output).map_err(|error| at("put in place", output)(error.error))?;
    Ok(Written { bytes, sha256: hash.finalize().into(), entries })
}

struct Adder<'t> {
    writer: FilesystemWriter<'static, 'static, 't>,
    scratch: Option<&'t Arc<File>>,
    entries: u64,
}

impl<'t> Adder<'t> {
    fn children(&mut self, node: &'t Node, path: &Path) -> Result<(), BackhandError> {
        let Kind::Directory(children) = &node.kind else { return Ok(()) };
        for (name, child) in children {
            self.entries += 1;
            let path = path.join(OsStr::from_bytes(name));
            let header = header(child.meta);
            match &child.kind {
                Kind::Directory(_) => {
                    self.writer.push_dir(&path, header)?;
                    self.children(child, &path)?;
                }
                Kind::Symlink(target) => self.writer.push_symlink(OsStr::from_bytes(target), &path, header)?,
                Kind::File(content) => self.writer.push_file(self.open(content), &path, header)?,
            }
        }
        Ok(())
    }

    fn open(&self, content: &'t Content) -> Box<dyn Read + 't> {
        match (content, self.scratch) {
            (Content::Bytes(bytes), _) => Box::new(&bytes[..]),
            (Content::Host { path, len }, _) => Box::new(HostFile { path, left: *len, file: None }),
            (Content::Scratch { offset, len }, Some(file)) => Box::new(Range { file, at: *offset, left: *len }),
            (Content::Scratch { .. }, None) => unreachable!("what is in a scratch file was put there"),
        }
    }
}

fn header(meta: Meta) -> NodeHeader {
    NodeHeader::new(meta.mode, meta.uid, meta.gid, meta.mtime)
}

/// The error of the file that could not be read, where that is why.
fn reason(error: BackhandError) -> Box<dyn std::error::Error> {
    match error {
        BackhandError::StdIo(error) => Box::new(error),
        error => Box::new(error),
    }
}

/// A part of the scratch file.
struct Range<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A file of the host: opened at its first byte, closed after its last, since a tree has more files than may be open.
struct HostFile<'a> {
    path: &'a PathBuf,
    left: u64,
    file: Option<File>,
}

impl Read for HostFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("read {}: {error}", self.path.display()));
        if self.left == 0 || buffer.is_empty() {
            self.file = None;
            return Ok(0);
        }
        if self.file.is_none() {
            // It was a file when the directory was read; a link in its place is not followed, a pipe not waited for.
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
            let mut options = OpenOptions::new();
            let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(self.path).map_err(named)?;
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(0) };
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = file.read(&mut buffer[..most]).map_err(named)?;
        if count == 0 {
            return Err(named(io::Error::other("it became shorter while the image was made")));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
