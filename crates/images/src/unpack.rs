//! A tree becomes a directory of the host.
//!
//! The directory is new and nobody else's, a tree has nothing below a link, and every file is made anew: whatever names,
//! links and modes an image has, nothing outside is reached. All files are the caller's own; what the image says of owners
//! is dropped, and whoever is not the owner reads what the mode lets everybody read.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::{ImageError, at};
use crate::tree::{Content, Kind, Node, Tree};

/// Writes `tree` into the directory `output`, which must not be there yet.
pub(crate) fn write(tree: &Tree, scratch: &Arc<File>, output: &Path) -> Result<(), ImageError> {
    let mut writer = Writer { scratch, written: HashMap::new(), buffer: vec![0; 256 * 1024] };
    writer.directory(tree.root(), output)
}

struct Writer<'a> {
    scratch: &'a Arc<File>,
    /// Contents that are there already, as names of a file share them: a layer could name a large file a million times.
    written: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn directory(&mut self, node: &Node, path: &Path) -> Result<(), ImageError> {
        let Kind::Directory(children) = &node.kind else { return Ok(()) };
        fs::create_dir(path).map_err(at("create the directory", path))?;
        for (name, child) in children {
            let path = path.join(OsStr::from_bytes(name));
            match &child.kind {
                Kind::Directory(_) => self.directory(child, &path)?,
                Kind::Symlink(target) => {
                    symlink(OsStr::from_bytes(target), &path).map_err(at("create the link", &path))?;
                }
                Kind::File(content) => self.file(child, content, &path)?,
            }
        }
        // The caller has to be able to list and to remove it.
        let mode = Permissions::from_mode(u32::from(node.meta.mode) | 0o700);
        fs::set_permissions(path, mode).map_err(at("set the mode of", path))
    }

    fn file(&mut self, node: &Node, content: &Content, path: &Path) -> Result<(), ImageError> {
        if let Content::Scratch { offset, len } = *content
            && len > 0
        {
            if let Some(there) = self.written.get(&(offset, len)) {
                return fs::hard_link(there, path).map_err(at("link", path));
            }
            self.written.insert((offset, len), path.to_owned());
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(at("create", path))?;
        self.copy(content, &mut file).map_err(at("write", path))?;
        let mode = Permissions::from_mode(u32::from(node.meta.mode) | 0o400);
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(node.meta.mtime.into());
        file.set_permissions(mode).and_then(|()| file.set_modified(modified)).map_err(at("set mode and time of", path))
    }

    fn copy(&mut self, content: &Content, file: &mut File) -> io::Result<()> {
        let (mut at, mut left) = match content {
            Content::Bytes(bytes) => return file.write_all(bytes),
            Content::Host { path, .. } => return io::copy(&mut File::open(path)?, file).map(drop),
            Content::Scratch { offset, len } => (*offset, *len),
        };
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = self.scratch.read_at(&mut self.buffer[..most], at)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all(&self.buffer[..count])?;
            (at, left) = (at + count as u64, left - count as u64);
        }
        Ok(())
    }
}
