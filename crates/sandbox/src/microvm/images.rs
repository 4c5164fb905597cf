//! Directories of the host as read-only disk images, each made once, and the disks for `/tmp`.
//!
//! A directory that a sandbox sees (a runtime, an unpacked package, merged layers) never changes once it is published, so
//! an image is known by its directory's path and by what the kernel says of every file in it: number, time of last
//! change, size, mode. That takes no reading. All VMs, and later servers on the same data directory, share the image.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use guest::protocol::{During, Failure};
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::SandboxError;
use crate::process::{error_of, scratch};

const MKSQUASHFS: &str = "mksquashfs";
/// Same directory, same bytes, whoever owned the files. Times are kept: interpreters compare them with those in their
/// caches. Compression is quick rather than tight, since the guest has to undo it while its function starts.
const OPTIONS: [&str; 11] = [
    "-reproducible",
    "-mkfs-time",
    "0",
    "-all-root",
    "-no-xattrs",
    "-comp",
    "zstd",
    "-Xcompression-level",
    "2",
    "-no-progress",
    "-quiet",
];

/// Size of a disk that is to come, in bytes: one page.
const BLANK: u64 = 4096;

/// All images of a server.
#[derive(Debug)]
pub struct Images {
    directory: PathBuf,
    scratch: PathBuf,
    /// Those in use since the start. Held while one is made, which keeps a processor busy anyway.
    known: tokio::sync::Mutex<HashMap<PathBuf, (Stamp, Arc<File>)>>,
}

/// Changes when the directory itself does: a quick check that it is still the one that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

impl Stamp {
    fn of(directory: &Path) -> io::Result<Self> {
        let metadata = directory.metadata()?;
        Ok(Self(metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
    }
}

impl Images {
    /// Below `state`. Removes what was half done, and the images of directories that are no more.
    pub fn open(state: &Path) -> Result<Self, SandboxError> {
        let (directory, scratch) = (state.join("images"), state.join("scratch"));
        for path in [&directory, &scratch] {
            fs::create_dir_all(path).during(format!("make {}", path.display())).map_err(error_of)?;
        }
        tidy(&directory).during(format!("clear up {}", directory.display())).map_err(error_of)?;
        Ok(Self { directory, scratch, known: tokio::sync::Mutex::default() })
    }

    /// The image of a directory, open for reading. Makes it if need be, which takes seconds for a large one.
    pub async fn of(&self, source: &Path) -> Result<Arc<File>, SandboxError> {
        let mut known = self.known.lock().await;
        let stamp = Stamp::of(source).during(format!("look at {}", source.display())).map_err(error_of)?;
        if let Some((_, image)) = known.get(source).filter(|(before, _)| *before == stamp) {
            return Ok(Arc::clone(image));
        }
        let (directory, path) = (self.directory.clone(), source.to_owned());
        let image = blocking(move || image(&directory, &path)).await?;
        let image = Arc::new(image);
        known.insert(source.to_owned(), (stamp, Arc::clone(&image)));
        Ok(image)
    }

    /// A file of a few zeroes, in the place of a disk that is to come; with `owner`, one that this user can write.
    pub fn blank(&self, owner: Option<(u32, u32)>) -> Result<File, SandboxError> {
        let make = || -> io::Result<File> {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::open(&self.scratch, flags, Mode::from_raw_mode(0o644))?);
            file.set_len(BLANK)?;
            if let Some((user, group)) = owner {
                std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
            }
            Ok(file)
        };
        make().during(format!("make a file in {}", self.scratch.display())).map_err(error_of)
    }

    /// A new disk of `size_mb` for a `/tmp`, which belongs to `owner`, and vanishes when it is closed.
    pub async fn scratch(&self, size_mb: u32, owner: Option<(u32, u32)>) -> Result<File, SandboxError> {
        let directory = self.scratch.clone();
        blocking(move || {
            let disk = scratch::disk(&directory, size_mb)?;
            if let Some((user, group)) = owner {
                std::os::unix::fs::fchown(&disk, Some(user), Some(group)).during("give away the disk of /tmp")?;
            }
            Ok(disk)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    body: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, SandboxError> {
    let gone = |_| Failure::host("work in the background", &io::ErrorKind::Interrupted.into());
    tokio::task::spawn_blocking(body).await.map_err(gone).and_then(|done| done).map_err(error_of)
}

fn image(directory: &Path, source: &Path) -> Result<File, Failure> {
    let key = fingerprint(source).during(format!("look at the files in {}", source.display()))?;
    let path = directory.join(format!("{key}.squashfs"));
    if !path.exists() {
        let draft = directory.join(format!("{key}.new"));
        let made = make(source, &draft)
            .and_then(|()| fs::write(path.with_extension("source"), source.as_os_str().as_encoded_bytes()))
            .and_then(|()| fs::rename(&draft, &path));
        if made.is_err() {
            // The first error is the one that counts.
            let _ = fs::remove_file(&draft);
        }
        made.during(format!("make an image of {} with {MKSQUASHFS} (package squashfs-tools)", source.display()))?;
    }
    File::open(&path).during(format!("open {}", path.display()))
}

fn make(source: &Path, draft: &Path) -> io::Result<()> {
    let _ = fs::remove_file(draft);
    let output = Command::new(MKSQUASHFS).arg(source).arg(draft).args(OPTIONS).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    // The VM's user reads it by its descriptor.
    fs::set_permissions(draft, std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

/// Names the state of a directory.
fn fingerprint(source: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    hash.update(source.as_os_str().as_encoded_bytes());
    add(&mut hash, source, &source.metadata()?)?;
    Ok(format!("{:x}", hash.finalize())[..32].to_owned())
}

fn add(hash: &mut Sha256, path: &Path, metadata: &Metadata) -> io::Result<()> {
    let numbers = [metadata.ino(), metadata.ctime() as u64, metadata.ctime_nsec() as u64, metadata.size()];
    for number in numbers.into_iter().chain([u64::from(metadata.mode())]) {
        hash.update(number.to_le_bytes());
    }
    if !metadata.is_dir() {
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_encoded_bytes());
        add(hash, &entry.path(), &entry.metadata()?)?;
    }
    Ok(())
}

fn tidy(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let stale = match path.extension().and_then(|extension| extension.to_str()) {
            Some("new") => true,
            Some("source") => {
                let source = fs::read_to_string(&path).unwrap_or_default();
                let stale = !Path::new(&source).exists();
                if stale {
                    let _ = fs::remove_file(path.with_extension("squashfs"));
                }
                stale
            }
            _ => false,
        };
        if stale {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_known_again_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "1").unwrap();
        let first = fingerprint(dir.path()).unwrap();
        assert_eq!(fingerprint(dir.path()).unwrap(), first);
        // Same size, same name; the file is another.
        fs::remove_file(dir.path().join("d/f")).unwrap();
        fs::write(dir.path().join("d/f"), "2").unwrap();
        assert_ne!(fingerprint(dir.path()).unwrap(), first);
    }

    #[test]
    fn images_without_a_source_go() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("a.squashfs", "");
        write("a.source", "/there/is/no/such/place");
        write("b.squashfs", "");
        write("b.source", dir.path().to_str().unwrap());
        write("c.new", "");
        tidy(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["b.source", "b.squashfs"]);
    }
}
