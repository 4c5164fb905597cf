//! A directory of the host is read into a tree.

use std::fs::Metadata;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{ImageError, at};
use crate::layer::{Budget, permissions};
use crate::limits;
use crate::tree::{Content, Kind, Meta, Tree};

/// Adds what is in `directory`; returns how many devices, pipes and sockets were left out.
///
/// Everything belongs to root and has `time`: owner and time of a file on the machine that makes an image say nothing of
/// its contents. What is mounted below the directory is not part of it.
pub(crate) fn read(tree: &mut Tree, budget: &mut Budget, time: u32, directory: &Path) -> Result<u64, ImageError> {
    let meta = directory.metadata().map_err(at("read the directory", directory))?;
    let mut reader = Reader { tree, budget, time, device: meta.dev(), left_out: 0 };
    reader.add(&meta, b"/", Kind::Directory(Default::default()), directory)?;
    reader.children(directory, &mut Vec::new(), 0)?;
    Ok(reader.left_out)
}

struct Reader<'a> {
    tree: &'a mut Tree,
    budget: &'a mut Budget,
    time: u32,
    device: u64,
    left_out: u64,
}

impl Reader<'_> {
    fn children(&mut self, directory: &Path, path: &mut Vec<u8>, depth: usize) -> Result<(), ImageError> {
        if depth > limits::DEPTH {
            let (what, unit) = (format!("the depth of {}", directory.display()), "directories");
            return Err(ImageError::TooLarge { what, limit: limits::DEPTH as u64, unit });
        }
        let entries = directory.read_dir().map_err(at("read the directory", directory))?;
        let entries: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut entries = entries.map_err(at("read the directory", directory))?;
        // Which of several mistakes is reported shall not depend on the file system, either.
        entries.sort();
        for entry in entries {
            let name = entry.file_name().unwrap_or_default().to_owned().into_vec();
            let meta = entry.symlink_metadata().map_err(at("read", &entry))?;
            let len = path.len();
            path.push(b'/');
            path.extend(name);
            self.entry(&entry, &meta, path, depth)?;
            path.truncate(len);
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Path, meta: &Metadata, path: &mut Vec<u8>, depth: usize) -> Result<(), ImageError> {
        self.budget.entry("the directory")?;
        let kind = meta.file_type();
        if kind.is_dir() {
            self.add(meta, path, Kind::Directory(Default::default()), entry)?;
            if meta.dev() == self.device {
                self.children(entry, path, depth + 1)?;
            }
            Ok(())
        } else if kind.is_symlink() {
            let target = entry.read_link().map_err(at("read the link", entry))?;
            self.add(meta, path, Kind::Symlink(target.into_os_string().into_vec()), entry)
        } else if kind.is_file() {
            self.budget.bytes(meta.len(), "the directory")?;
            let content = Content::Host { path: entry.to_owned(), len: meta.len() };
            self.add(meta, path, Kind::File(content), entry)
        } else {
            self.left_out += 1;
            Ok(())
        }
    }

    fn add(&mut self, meta: &Metadata, path: &[u8], kind: Kind, entry: &Path) -> Result<(), ImageError> {
        let meta = Meta { mode: permissions(meta.mode().into()), uid: 0, gid: 0, mtime: self.time };
        let failed = |reason| ImageError::Layer { layer: entry.display().to_string(), reason };
        self.tree.insert(path, meta, kind).map_err(|error| failed(error.to_string()))
    }
}
