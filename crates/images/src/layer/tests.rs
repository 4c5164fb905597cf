use std::io::Cursor;

use super::*;

/// An archive of entries as they are given, which `tar`'s own builder would refuse.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, path: &str, kind: u8, target: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o4755);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(7);
        header.set_size(data.len() as u64);
        header.set_entry_type(EntryType::new(kind));
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn read(mut self, limits: Limits) -> Result<(Tree, u64), ImageError> {
        self.0.resize(self.0.len() + 1024, 0);
        let mut tree = Tree::new(0);
        let mut scratch = Scratch::new(&std::env::temp_dir())?;
        let rules = Rules { whiteouts: true, latest: None };
        let mut budget = Budget::new(limits);
        let left_out = apply(&mut tree, &mut scratch, &mut budget, "layer", rules, &mut Cursor::new(self.0))?;
        Ok((tree, left_out))
    }

    fn refused(self) -> String {
        self.read(Limits::default()).unwrap_err().to_string()
    }
}

fn names(tree: &Tree) -> Vec<String> {
    let Kind::Directory(children) = &tree.root().kind else { panic!() };
    children.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[test]
fn nothing_is_setuid_and_devices_are_left_out() {
    let archive = Archive::default()
        .entry("sudo", b'0', "", b"x")
        .entry("null", b'3', "", b"")
        .entry("sda", b'4', "", b"")
        .entry("pipe", b'6', "", b"")
        .entry("old/", 0, "", b"");
    let (tree, left_out) = archive.read(Limits::default()).unwrap();
    assert_eq!((names(&tree), left_out), (vec!["old".to_owned(), "sudo".into()], 3));
    let Kind::Directory(children) = &tree.root().kind else { panic!() };
    assert_eq!(children[&b"sudo"[..]].meta, Meta { mode: 0o755, uid: 5, gid: 6, mtime: 7 });
    assert!(matches!(children[&b"old"[..]].kind, Kind::Directory(_)));
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let up = Archive::default().entry("../../etc/cron.d/x", b'0', "", b"x").refused();
    assert!(up.contains("../../etc/cron.d/x") && up.contains("`..`"), "{up}");
    let out = Archive::default().entry("h", b'1', "/etc/shadow", b"").refused();
    assert!(out.contains("/etc/shadow is no file in this or a lower layer"), "{out}");
    let empty = Archive::default().entry("s", b'2', "", b"").refused();
    assert!(empty.contains("the symbolic link's target is empty"), "{empty}");
    let sparse = Archive::default().entry("s", b'S', "", b"").refused();
    assert!(sparse.contains("type 'S'"), "{sparse}");
    let loops = Archive::default().entry("a", b'2', "b", b"").entry("b", b'2', "a", b"").entry("a/x", b'0', "", b"");
    assert!(loops.refused().contains("symbolic links"));
}

#[test]
fn long_names_come_from_extended_headers() {
    let long = format!("{}/file", "d".repeat(200));
    let record = |key: &str, value: &str| {
        let rest = format!(" {key}={value}\n");
        // The length counts its own digits.
        let len = (rest.len()..).find(|len| len.to_string().len() + rest.len() == *len).unwrap();
        format!("{len}{rest}")
    };
    let pax = record("path", &long) + &record("mtime", "12.5") + &record("uid", "100000");
    let (tree, _) = Archive::default()
        .entry("x", b'x', "", pax.as_bytes())
        .entry("short", b'0', "", b"x")
        .entry("x", b'L', "", b"gnu\0")
        .entry("short", b'0', "", b"x")
        .entry("last", b'0', "", b"x")
        .read(Limits::default())
        .unwrap();
    assert_eq!(names(&tree), ["d".repeat(200), "gnu".into(), "last".into()]);
    let Kind::Directory(children) = &tree.root().kind else { panic!() };
    let Kind::Directory(inner) = &children["d".repeat(200).as_bytes()].kind else { panic!() };
    assert_eq!(inner[&b"file"[..]].meta, Meta { mode: 0o755, uid: 100_000, gid: 6, mtime: 12 });
    let climbing = Archive::default().entry("x", b'x', "", record("path", "../x").as_bytes()).entry("y", b'0', "", b"");
    assert!(climbing.refused().contains("`..`"));
    let resized = Archive::default().entry("x", b'x', "", record("size", "9").as_bytes()).entry("y", b'0', "", b"");
    assert!(resized.refused().contains("8 GiB"));
    let huge = Archive::default().entry("x", b'x', "", &vec![b'a'; 70_000]).refused();
    assert!(huge.contains("an extended header is longer"), "{huge}");
}

#[test]
fn limits_hold_while_reading() {
    let files =
        |count: usize| (0..count).fold(Archive::default(), |a, i| a.entry(&format!("f{i}"), b'0', "", &[7; 4096]));
    let bytes = Limits { unpacked: 100_000, ..Limits::default() };
    let error = files(50).read(bytes).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { limit: 100_000, unit: "bytes", .. }), "{error}");
    assert!(files(20).read(bytes).is_ok());
    let entries = Limits { entries: 10, ..Limits::default() };
    let error = files(11).read(entries).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { limit: 10, unit: "files", .. }), "{error}");
}

#[test]
fn damaged_archives_are_an_error() {
    let mut cut = Archive::default().entry("f", b'0', "", &[7; 4096]);
    cut.0.truncate(2000);
    assert!(matches!(
        apply(
            &mut Tree::new(0),
            &mut Scratch::new(&std::env::temp_dir()).unwrap(),
            &mut Budget::new(Limits::default()),
            "layer",
            Rules::default(),
            &mut Cursor::new(cut.0)
        ),
        Err(ImageError::Layer { .. })
    ));
    assert!(Archive(vec![0x5a; 4096]).refused().contains("cannot be read"));
}
