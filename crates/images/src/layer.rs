//! A layer, a tar archive, is read into a tree. Nothing of it is trusted.

use std::io::{self, Read};

use tar::{Entry, EntryType, PaxExtensions};

use crate::Limits;
use crate::error::ImageError;
use crate::limits;
use crate::scratch::Scratch;
use crate::tree::{Kind, Meta, Tree, TreeError};

/// Length of an extended header in bytes: paths of 4096 bytes and what else stands in them fit many times.
const EXTENDED: u64 = 64 * 1024;

/// What is left of the limits after the layers so far.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    bytes: u64,
    entries: u64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, bytes: limits.unpacked, entries: limits.entries }
    }

    pub(crate) fn entry(&mut self, what: &str) -> Result<(), ImageError> {
        let over = || ImageError::TooLarge { what: what.to_owned(), limit: self.limits.entries, unit: "files" };
        self.entries = self.entries.checked_sub(1).ok_or_else(over)?;
        Ok(())
    }

    pub(crate) fn bytes(&mut self, count: u64, what: &str) -> Result<(), ImageError> {
        self.bytes = self.bytes.checked_sub(count).ok_or_else(|| self.too_many_bytes(what))?;
        Ok(())
    }

    fn too_many_bytes(&self, what: &str) -> ImageError {
        ImageError::TooLarge { what: what.to_owned(), limit: self.limits.unpacked, unit: "bytes" }
    }
}

/// How an archive is read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// Names that begin with `.wh.` delete.
    pub(crate) whiteouts: bool,
    /// Later times become this one, in seconds since 1970.
    pub(crate) latest: Option<u32>,
}

/// Adds what `archive`, uncompressed, holds; returns how many devices, pipes and sockets were left out.
///
/// `archive` is read to its end, so that a digest over it is complete.
pub(crate) fn apply(
    tree: &mut Tree,
    scratch: &mut Scratch,
    budget: &mut Budget,
    name: &str,
    rules: Rules,
    archive: &mut dyn Read,
) -> Result<u64, ImageError> {
    tree.next_layer();
    let mut bounded = Bounded { left: budget.bytes, exceeded: false, inner: archive };
    let result = entries(tree, scratch, budget, name, rules, &mut bounded).and_then(|left_out| {
        io::copy(&mut bounded, &mut io::sink()).map_err(|error| unreadable(name, &error))?;
        Ok(left_out)
    });
    let Bounded { left, exceeded, .. } = bounded;
    budget.bytes = left;
    // The archive's reader takes the end for a truncated archive.
    if exceeded { Err(budget.too_many_bytes(name)) } else { result }
}

fn entries(
    tree: &mut Tree,
    scratch: &mut Scratch,
    budget: &mut Budget,
    name: &str,
    rules: Rules,
    archive: &mut dyn Read,
) -> Result<u64, ImageError> {
    let mut archive = tar::Archive::new(archive);
    let mut left_out = 0;
    let mut extended = Extended::default();
    // Raw: the crate would read extended headers of any length into memory.
    for entry in archive.entries().map_err(|error| unreadable(name, &error))?.raw(true) {
        let mut entry = entry.map_err(|error| unreadable(name, &error))?;
        budget.entry(name)?;
        let kind = entry.header().entry_type();
        if extended.take(kind, &mut entry).map_err(|reason| refused(name, reason))? {
            continue;
        }
        let extended = std::mem::take(&mut extended);
        let path = extended.path.clone().unwrap_or_else(|| entry.path_bytes().into_owned());
        let refused = |reason: String| refused(name, format!("{}: {reason}", String::from_utf8_lossy(&path)));
        if rules.whiteouts && tree.whiteout(&path).map_err(|error| refused(error.to_string()))? {
            continue;
        }
        let target = || extended.link.clone().or_else(|| entry.link_name_bytes().map(Into::into)).unwrap_or_default();
        let meta = extended.meta(entry.header(), rules.latest).map_err(&refused)?;
        let added: Result<(), TreeError> = match kind {
            // As archives of the seventies wrote directories.
            EntryType::Regular if path.ends_with(b"/") => tree.insert(&path, meta, Kind::Directory(Default::default())),
            EntryType::Directory => tree.insert(&path, meta, Kind::Directory(Default::default())),
            EntryType::Regular | EntryType::Continuous => {
                let len = entry.size();
                let content = scratch.append(&mut entry, len)?;
                let content = content.ok_or_else(|| unreadable(name, &io::ErrorKind::UnexpectedEof.into()))?;
                tree.insert(&path, meta, Kind::File(content))
            }
            EntryType::Symlink => {
                let target = target();
                if target.is_empty() || target.len() >= limits::PATH || target.contains(&0) {
                    return Err(refused("the symbolic link's target is empty, too long or has a zero byte".into()));
                }
                tree.insert(&path, meta, Kind::Symlink(target))
            }
            EntryType::Link => tree.hard_link(&path, &target()),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                left_out += 1;
                Ok(())
            }
            other => {
                return Err(refused(format!("entries of type {:?} are not supported", char::from(other.as_byte()))));
            }
        };
        added.map_err(|error| refused(error.to_string()))?;
    }
    Ok(left_out)
}

/// What extended headers, PAX's and GNU's, say of the entry after them.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<u64>,
}

impl Extended {
    /// Takes an extended header; false for every other entry.
    fn take<R: Read>(&mut self, kind: EntryType, entry: &mut Entry<'_, R>) -> Result<bool, String> {
        if !matches!(
            kind,
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
        ) {
            return Ok(false);
        }
        if entry.size() > EXTENDED {
            return Err(format!("an extended header is longer than {EXTENDED} bytes"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let until_zero = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            EntryType::GNULongName => self.path = Some(until_zero(&bytes)),
            EntryType::GNULongLink => self.link = Some(until_zero(&bytes)),
            EntryType::XHeader => self.pax(&bytes)?,
            // Of the archive as a whole: a comment, as `git archive` writes it.
            _ => {}
        }
        Ok(true)
    }

    fn pax(&mut self, bytes: &[u8]) -> Result<(), String> {
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(|error| format!("a PAX header is damaged: {error}"))?;
            let key = record.key().map_err(|_| "a PAX header has a key that is no text".to_owned())?;
            let value = record.value_bytes();
            // Fractions of seconds are cut off; a time before 1970 is none.
            let number = || {
                let text = std::str::from_utf8(value).ok()?;
                text.split('.').next()?.parse::<i64>().ok()?.max(0).try_into().ok()
            };
            let wrong = || format!("the PAX header's {key} is no number");
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "uid" => self.uid = Some(number().ok_or_else(wrong)?),
                "gid" => self.gid = Some(number().ok_or_else(wrong)?),
                "mtime" => self.mtime = Some(number().ok_or_else(wrong)?),
                // The length in the header proper would be another one, and what follows be read as headers.
                "size" => return Err("files of 8 GiB and more are not supported".into()),
                _ if key.starts_with("GNU.sparse.") => return Err("sparse files are not supported".into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn meta(&self, header: &tar::Header, latest: Option<u32>) -> Result<Meta, String> {
        let field = |name: &str, pax: Option<u64>, header: io::Result<u64>| {
            let value = pax.map_or(header, Ok).map_err(|error| format!("its {name} is no number: {error}"))?;
            Ok::<u64, String>(value)
        };
        let id = |name: &str, pax, header| {
            u32::try_from(field(name, pax, header)?).map_err(|_| format!("its {name} does not fit into 32 bits"))
        };
        let mode = field("mode", None, header.mode().map(u64::from))?;
        let mtime = u32::try_from(field("time", self.mtime, header.mtime())?).unwrap_or(u32::MAX);
        Ok(Meta {
            mode: permissions(mode),
            uid: id("owner", self.uid, header.uid())?,
            gid: id("group", self.gid, header.gid())?,
            mtime: latest.map_or(mtime, |latest| mtime.min(latest)),
        })
    }
}

/// Without setuid and setgid: no function becomes another user.
pub(crate) fn permissions(mode: u64) -> u16 {
    u16::try_from(mode & 0o1777).unwrap_or_default()
}

fn unreadable(layer: &str, error: &io::Error) -> ImageError {
    ImageError::Layer { layer: layer.to_owned(), reason: format!("cannot be read: {error}") }
}

fn refused(layer: &str, reason: String) -> ImageError {
    ImageError::Layer { layer: layer.to_owned(), reason }
}

/// Ends where the budget does, and remembers that there was more.
struct Bounded<'a> {
    inner: &'a mut dyn Read,
    left: u64,
    exceeded: bool,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            self.exceeded |= self.inner.read(&mut [0])? > 0;
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
