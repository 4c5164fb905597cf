//! Files of one log group: where they are, and the form of a line.

use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::GroupId;

/// Kept as they are in a directory's name.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'#');

/// The file in a group's directory that holds its name.
pub(super) const NAME_FILE: &str = "name";

/// Directory of a group. A name that is too long for a directory is represented by its hash.
pub(super) fn directory(root: &Path, id: &GroupId) -> PathBuf {
    let encoded = utf8_percent_encode(&id.group, NAME).to_string();
    let name = if encoded.len() <= 200 { encoded } else { hex::encode(Sha256::digest(&id.group)) };
    let region = utf8_percent_encode(&id.region, NAME).to_string();
    root.join(id.account.as_str()).join(region).join(name)
}

/// Path of a segment.
pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:08}.log"))
}

/// Numbers of the segments of a directory, ascending; empty if it does not exist.
pub(super) fn numbers(directory: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut numbers: Vec<u64> = entries
        .filter_map(Result::ok)
        .filter_map(|e| e.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Appends the line of one event.
pub(super) fn encode(out: &mut Vec<u8>, timestamp: u64, stream: &str, message: &str) {
    out.extend_from_slice(timestamp.to_string().as_bytes());
    out.push(b'\t');
    out.extend_from_slice(stream.as_bytes());
    out.push(b'\t');
    for byte in message.bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            _ => out.push(byte),
        }
    }
    out.push(b'\n');
}

/// Takes a line apart: timestamp, stream, message. `None` for a damaged line, e.g. one cut off by a power loss.
pub(super) fn decode(line: &[u8]) -> Option<(u64, &str, String)> {
    let text = std::str::from_utf8(line).ok()?;
    let (timestamp, rest) = text.split_once('\t')?;
    let (stream, escaped) = rest.split_once('\t')?;
    let mut message = String::with_capacity(escaped.len());
    let mut chars = escaped.chars();
    while let Some(c) = chars.next() {
        message.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                other => other,
            },
            other => other,
        });
    }
    Some((timestamp.parse().ok()?, stream, message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_message_survives(timestamp: u64, message in ".*") {
            let mut line = Vec::new();
            encode(&mut line, timestamp, "s", &message);
            prop_assert_eq!(line.pop(), Some(b'\n'));
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(decode(&line), Some((timestamp, "s", message)));
        }
    }

    #[test]
    fn no_group_name_leaves_the_directory() {
        for name in ["..", ".", "/", "../../etc", &"x".repeat(512)] {
            let id = GroupId { account: domain::AccountId::local(), region: "..".into(), group: name.into() };
            let path = directory(Path::new("/root"), &id);
            assert!(path.components().count() == 5 && !path.to_string_lossy().contains(".."), "{path:?}");
        }
    }
}
