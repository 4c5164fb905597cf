//! The first file system of a guest: an archive with one file.

/// The agent, as `build.rs` made it.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/emberbox-guest"));

/// A `cpio` archive in the format "newc", which is what the kernel unpacks, with `program` as `/init`. (What every
/// initramfs has, a console among it, the kernel adds itself.)
pub fn archive(program: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(program.len() + 512);
    entry(&mut archive, "init", 0o100_755, program);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

/// Header of 13 numbers (8 hexadecimal digits each), name, contents; each part begins at a multiple of four.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    let size = u32::try_from(contents.len()).expect("the agent is small");
    let name_size = name.len() as u32 + 1;
    let (inode, links) = (archive.len() as u32 + 1, 1);
    archive.extend(b"070701");
    for number in [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend(format!("{number:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(contents);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_well_formed() {
        let archive = archive(b"hello");
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[110..116], b"init\0\0");
        assert_eq!(&archive[116..124], b"hello\0\0\0");
        assert_eq!(&archive[124..130], b"070701");
        assert!(archive.len().is_multiple_of(4) && archive.ends_with(b"TRAILER!!!\0\0\0\0"));
    }

    #[test]
    fn the_agent_is_small_and_static() {
        assert!(AGENT.starts_with(b"\x7fELF"));
        assert!(AGENT.len() < 2 << 20, "{} bytes", AGENT.len());
        let interpreter = b"/lib64/ld-linux";
        assert!(!AGENT.windows(interpreter.len()).any(|bytes| bytes == interpreter), "it needs a loader");
    }
}
