//! The drives of a VM in a snapshot. What cannot be written is a link to the image, which then stays what it is even if the
//! image is made anew; `/tmp` is a copy, and of that each VM that is restored has a copy of its own.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, SeekFrom};

use super::machine::Drive;

/// Copied at once.
const PIECE: usize = 1 << 20;

/// Puts the drives into the directory of a snapshot. The VM must stand still.
pub fn keep(drives: &[Drive], directory: &Path) -> io::Result<()> {
    for (number, drive) in drives.iter().enumerate() {
        let path = path(directory, number, drive.writable);
        if drive.writable {
            copy(&drive.file, &File::create_new(&path)?)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        } else {
            let image = format!("/proc/self/fd/{}", drive.file.as_raw_fd());
            rustix::fs::linkat(CWD, &image, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
        }
    }
    Ok(())
}

/// The drives for a VM that is to be restored, `count` of them, of which the last is `/tmp`; that is copied into
/// `scratch`, whatever that holds.
pub fn drives(directory: &Path, count: usize, scratch: File) -> io::Result<Vec<Drive>> {
    let mut drives = Vec::new();
    for number in 0..count.saturating_sub(1) {
        drives.push(Drive { file: File::open(path(directory, number, false))?, writable: false });
    }
    scratch.set_len(0)?;
    copy(&File::open(path(directory, count.saturating_sub(1), true))?, &scratch)?;
    drives.push(Drive { file: scratch, writable: true });
    Ok(drives)
}

fn path(directory: &Path, number: usize, writable: bool) -> PathBuf {
    directory.join(format!("{}{number}", if writable { "disk" } else { "image" }))
}

/// Copies what is written in a file, and leaves out what never was. By positions alone: others may use the descriptor.
fn copy(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut buffer = vec![0; PIECE];
    // A descriptor of its own, as looking for data moves its position.
    let finder = File::open(format!("/proc/self/fd/{}", from.as_raw_fd()))?;
    let mut at = 0;
    while at < length {
        at = match rustix::fs::seek(&finder, SeekFrom::Data(at)) {
            Ok(at) => at,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&finder, SeekFrom::Hole(at))?;
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            from.read_exact_at(&mut buffer[..piece], at)?;
            to.write_all_at(&buffer[..piece], at)?;
            at += piece as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn drives_are_what_they_were() {
        let place = tempfile::tempdir().unwrap();
        let (kept, state) = (place.path().join("kept"), place.path().join("state"));
        fs::create_dir(&kept).unwrap();
        fs::create_dir(&state).unwrap();
        fs::write(state.join("image"), "an image").unwrap();
        let disk = tempfile::tempfile_in(&state).unwrap();
        disk.set_len(64 << 20).unwrap();
        disk.write_all_at(b"before", 10 << 20).unwrap();
        let image = Drive { file: File::open(state.join("image")).unwrap(), writable: false };
        keep(&[image, Drive { file: disk.try_clone().unwrap(), writable: true }], &kept).unwrap();

        // Whatever becomes of them.
        fs::remove_file(state.join("image")).unwrap();
        disk.write_all_at(b"behind", 10 << 20).unwrap();
        for _ in 0..2 {
            let own = tempfile::tempfile_in(&state).unwrap();
            let restored = drives(&kept, 2, own).unwrap();
            assert_eq!(io::read_to_string(&restored[0].file).unwrap(), "an image");
            let mut text = [0; 6];
            restored[1].file.read_exact_at(&mut text, 10 << 20).unwrap();
            assert_eq!(&text, b"before");
            let metadata = restored[1].file.metadata().unwrap();
            assert!(metadata.len() == 64 << 20 && metadata.blocks() * 512 < 4 << 20, "sparse: {metadata:?}");
            restored[1].file.write_all_at(b"own   ", 10 << 20).unwrap();
        }
    }
}
