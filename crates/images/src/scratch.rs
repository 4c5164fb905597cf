//! Where the contents of layers are between reading and writing.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{ImageError, at};
use crate::tree::Content;

/// One file without a name: it is gone with the process, whatever ends that.
#[derive(Debug)]
pub(crate) struct Scratch {
    file: Arc<File>,
    directory: PathBuf,
    len: u64,
}

impl Scratch {
    /// In `directory`, which needs room for all layers of an image.
    pub(crate) fn new(directory: &Path) -> Result<Self, ImageError> {
        let file = tempfile::tempfile_in(directory).map_err(at("create a scratch file in", directory))?;
        Ok(Self { file: Arc::new(file), directory: directory.to_owned(), len: 0 })
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Adds the next `len` bytes of `reader`; none where it ends before, or breaks.
    pub(crate) fn append(&mut self, reader: &mut dyn Read, len: u64) -> Result<Option<Content>, ImageError> {
        let mut buffer = [0; 64 * 1024];
        let mut reader = reader.take(len);
        let offset = self.len;
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(None),
            };
            (&*self.file).write_all(&buffer[..count]).map_err(at("write to a scratch file in", &self.directory))?;
            self.len += count as u64;
        }
        Ok((self.len - offset == len).then_some(Content::Scratch { offset, len }))
    }
}
