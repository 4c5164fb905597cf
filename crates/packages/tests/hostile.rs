//! Zips made to do harm: refused, or harmless.

#[path = "support/zips.rs"]
mod zips;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use packages::{Limits, PackageError, Packages};
use proptest::prelude::*;
use tempfile::tempdir;
use walkdir::WalkDir;
use zip::write::SimpleFileOptions;
use zips::{Entry, entry, file, open, open_with, symlink, zip};

async fn reason(packages: &Packages, bytes: Bytes) -> String {
    match packages.ingest(bytes).await {
        Err(PackageError::Unzip { reason }) => reason,
        other => panic!("not refused as a bad zip: {other:?}"),
    }
}

#[tokio::test]
async fn names_kinds_and_links_that_would_leave_the_package_are_refused() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("absolute", vec![file("/etc/cron.d/x", "")]),
        ("leads out", vec![file("../x", "")]),
        ("leads out", vec![file("a/b/../../../x", "")]),
        ("leads out", vec![symlink("a", "../../etc/passwd")]),
        ("leads out", vec![symlink("a", "/etc/passwd")]),
        ("leads out", vec![symlink("a/up", ".."), symlink("x", "a/up/..")]),
        ("no directory", vec![symlink("a", "/opt"), file("a/x", "")]),
        ("no directory", vec![file("a", ""), file("a/x", "")]),
        ("no directory", vec![file("a/b/c", ""), file("a", "")]),
        ("one name", vec![file("a", "1"), file("a", "2")]),
        ("two entries", vec![file("a", "1"), file("./a", "2")]),
        ("neither", vec![entry("null", b"", 0o020_666)]),
        ("neither", vec![entry("disk", b"", 0o060_666)]),
        ("neither", vec![entry("pipe", b"", 0o010_666)]),
        ("neither", vec![entry("socket", b"", 0o140_666)]),
        ("valid target", vec![symlink("a", "")]),
        ("valid name", vec![file("", "")]),
        ("valid name", vec![file("a\0b", "")]),
    ];
    for (expected, entries) in cases {
        let reason = reason(&packages, zip(&entries)).await;
        assert!(reason.contains(expected), "{reason:?} is not about {expected:?}");
    }
}

#[tokio::test]
async fn symlinks_that_would_take_an_hour_to_follow_are_refused() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let long_way = "a/../".repeat(200);
    let links: Vec<Entry> = (0..1000).map(|i| symlink(&format!("l{i}"), &format!("{long_way}l{}", i + 1))).collect();
    let reason = reason(&packages, zip(&links)).await;
    assert!(reason.contains("too many steps"), "{reason}");
}

#[tokio::test]
async fn lies_about_sizes_and_checksums_are_refused() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let mut longer = file("a", "abc");
    longer.claimed_size = Some(4_000_000);
    reason(&packages, zip(&[longer])).await;
    let mut bytes = zip(&[file("a", "abc")]).to_vec();
    let at = bytes.windows(3).position(|w| w == b"abc").unwrap();
    bytes[at] = b'x';
    reason(&packages, bytes.into()).await;
}

#[tokio::test]
async fn a_bomb_is_refused_after_at_most_the_limit() {
    let dir = tempdir().unwrap();
    let packages = open_with(&dir, Limits { unzipped: 1_000_000, ..Limits::default() });
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.start_file("zeros", SimpleFileOptions::default()).unwrap();
    writer.write_all(&vec![0; 2_000_000]).unwrap();
    let honest = writer.finish().unwrap().into_inner();
    assert!(honest.len() < 10_000);
    let mut lying = honest.clone();
    for i in 0..lying.len() - 4 {
        if lying[i..i + 4] == 2_000_000u32.to_le_bytes() {
            lying[i..i + 4].copy_from_slice(&10u32.to_le_bytes());
        }
    }
    let refused = packages.ingest(honest.into()).await.unwrap_err();
    assert!(matches!(refused, PackageError::UnzippedTooLarge { limit: 1_000_000 }), "{refused:?}");
    reason(&packages, lying.into()).await;
}

#[tokio::test]
async fn overlapping_entries_are_refused() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    // Two directory entries that share the local entry of the first: the zip of all famous bombs.
    let bytes = zip(&[file("aa", "data"), file("bb", "data")]);
    let mut bytes = bytes.to_vec();
    let second = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"PK\x01\x02").nth(1).unwrap().0;
    bytes[second + 42..second + 46].copy_from_slice(&0u32.to_le_bytes());
    let reason = reason(&packages, bytes.into()).await;
    assert!(reason.contains("overlap"), "{reason}");
}

#[tokio::test]
async fn strange_but_harmless_names_are_kept() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let bytes = zip(&[
        file("..\\..\\windows.txt", "1"),
        file("a b\n.py", "2"),
        file("grüße/日本.txt", "3"),
        entry(b"latin-\xff", b"4", 0o100_644),
        file("...", "5"),
    ]);
    let code = packages.ingest(bytes).await.unwrap();
    let path = packages.unpacked(&code).await.unwrap().path;
    assert_eq!(fs::read_to_string(path.join("..\\..\\windows.txt")).unwrap(), "1");
    assert_eq!(fs::read_to_string(path.join("grüße/日本.txt")).unwrap(), "3");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 5);
}

/// Everything below `dir` but its own packages directory.
fn outside(dir: &Path) -> BTreeSet<std::path::PathBuf> {
    let walk = WalkDir::new(dir).into_iter().filter_entry(|e| e.file_name() != "packages");
    walk.map(|e| e.unwrap().into_path()).collect()
}

fn inside_only(root: &Path) {
    let real = root.canonicalize().unwrap();
    for found in WalkDir::new(root) {
        let found = found.unwrap();
        assert!(found.file_type().is_file() || found.file_type().is_dir() || found.file_type().is_symlink());
        // Dangling links, loops and links to the mount points resolve to nothing here.
        if let Ok(target) = found.path().canonicalize() {
            let mounted =
                fs::read_link(found.path()).is_ok_and(|t| t.starts_with("/opt") || t.starts_with("/var/task"));
            assert!(target.starts_with(&real) || mounted, "{:?} leads to {target:?}", found.path());
        }
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        4 => "[ab]",
        2 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just(String::new()),
        1 => Just("\\..\\".to_owned()),
    ];
    prop_oneof![
        6 => proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/").into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let mode = prop_oneof![
        3 => Just(0o100_644u32), 3 => Just(0o120_777), 1 => Just(0o040_755), 1 => Just(0), 1 => 0u32..0o200_000
    ];
    (name(), name(), mode).prop_map(|(name, data, mode)| entry(name, &data, mode))
}

fn try_package(bytes: Bytes) -> bool {
    let dir = tempdir().unwrap();
    let before = outside(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let accepted = runtime.block_on(async {
        let packages = open(&dir);
        let Ok(code) = packages.ingest(bytes).await else { return false };
        inside_only(&packages.unpacked(&code).await.expect("what was accepted can be unpacked").path);
        true
    });
    assert_eq!(before, outside(dir.path()));
    accepted
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_entry_escapes(entries in proptest::collection::vec(any_entry(), 1..6)) {
        try_package(zip(&entries));
    }

    #[test]
    fn flipped_bytes_do_no_harm(
        entries in proptest::collection::vec(any_entry(), 1..4),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = zip(&entries).to_vec();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        try_package(bytes.into());
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(!try_package(bytes.into()));
    }
}
