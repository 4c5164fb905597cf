//! Images through the public API, read back by squashfs-tools.
#![cfg(feature = "image")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use images::{Debian, Image, ImageError, Limits, Options, Source, build};

/// Whether the program is there; where it is not the test is skipped, or fails where nothing may be skipped.
fn has(test: &str, program: &str) -> bool {
    given(test, program, Command::new(program).arg("-version").output().is_ok())
}

/// The same for whatever a test needs.
fn given(test: &str, need: &str, there: bool) -> bool {
    if !there {
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{test} needs {need}");
        eprintln!("SKIPPED {test}: needs {need}");
    }
    there
}

fn make(source: &Source, output: &Path, options: Options) -> Result<Image, ImageError> {
    build(source, &options, output, &|_| {})
}

/// A small root, with files created in this order.
fn sample(dir: &Path, order: &[&str]) {
    for path in order {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
    }
    fs::set_permissions(dir.join("bin/tool"), Permissions::from_mode(0o4755)).unwrap();
    fs::write(dir.join("large"), (0..400_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    fs::write(dir.join("zeros"), vec![0; 300_000]).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    symlink("/etc/shadow", dir.join("link")).unwrap();
    symlink("../gone/resolv.conf", dir.join("etc/resolv.conf")).unwrap();
}

#[test]
fn the_same_files_make_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    sample(&a, &["bin/tool", "etc/passwd", "etc/group"]);
    sample(&b, &["etc/group", "etc/passwd", "bin/tool"]);
    fs::File::open(b.join("etc/passwd")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let (to_a, to_b) = (dir.path().join("a.squashfs"), dir.path().join("b.squashfs"));
    let first = make(&Source::Directory(a.clone()), &to_a, Options::default()).unwrap();
    let second = make(&Source::Directory(b), &to_b, Options::default()).unwrap();
    assert_eq!(first, second);
    assert!(fs::read(&to_a).unwrap() == fs::read(&to_b).unwrap());
    assert_eq!((first.bytes, first.bytes % 4096), (to_a.metadata().unwrap().len(), 0));
    fs::write(a.join("etc/passwd"), "other").unwrap();
    let third = make(&Source::Directory(a), &to_a, Options::default()).unwrap();
    assert_ne!(first.sha256, third.sha256);
}

#[test]
fn what_is_in_it_can_be_read() {
    if !has("what_is_in_it_can_be_read", "unsquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    sample(&root, &["bin/tool", "etc/passwd"]);
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for i in 0..3000 {
        fs::write(many.join(format!("a file with a rather long name, number {i}")), i.to_string()).unwrap();
    }
    let socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let output = dir.path().join("image");
    let image = make(&Source::Directory(root.clone()), &output, Options::default()).unwrap();
    drop(socket);
    assert_eq!(image.left_out, 1);

    let back = dir.path().join("back");
    let unsquashfs = Command::new("unsquashfs").args(["-no-progress", "-d"]).args([&back, &output]).output().unwrap();
    assert!(unsquashfs.status.success(), "{unsquashfs:?}");
    for file in ["bin/tool", "etc/passwd", "large", "zeros", "empty"] {
        assert!(fs::read(root.join(file)).unwrap() == fs::read(back.join(file)).unwrap(), "{file}");
    }
    for i in 0..3000 {
        let name = format!("a file with a rather long name, number {i}");
        assert_eq!(fs::read_to_string(back.join("many").join(name)).unwrap(), i.to_string());
    }
    assert_eq!(back.join("bin/tool").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("/etc/shadow"));
    for (path, mode) in [("proc", 0o555), ("tmp", 0o1777), ("var/task", 0o755), ("etc/resolv.conf", 0o644)] {
        let meta = back.join(path).symlink_metadata().unwrap();
        assert!(!meta.is_symlink(), "{path}");
        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{path}");
    }
    let listed = Command::new("unsquashfs").args(["-lln", "-d", ""]).arg(&output).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let entries: Vec<&str> = listed.lines().filter(|line| line.contains("2025-01-01 00:00")).collect();
    // The root has no time: the writer has no way to set it.
    assert_eq!(entries.len() as u64, image.entries);
    assert!(entries.iter().all(|line| line.contains(" 0/0 ")), "{entries:?}");
}

#[test]
fn packages_get_no_mount_points() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("main.py"), "x").unwrap();
    let options = Options { root: false, ..Options::default() };
    assert_eq!(make(&Source::Directory(root), &dir.path().join("image"), options).unwrap().entries, 1);
}

#[test]
fn a_failure_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    sample(&root, &["bin/tool", "etc/passwd"]);
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let small = Options { limits: Limits { unpacked: 1000, ..Limits::default() }, ..Options::default() };
    let error = make(&Source::Directory(root), &out.join("image"), small).unwrap_err().to_string();
    assert_eq!(error, "the directory is larger than 1000 bytes, the limit for images");
    let missing = make(&Source::Directory(dir.path().join("none")), &out.join("image"), Options::default());
    assert!(missing.unwrap_err().to_string().contains("/none: No such file"));
    assert_eq!(out.read_dir().unwrap().count(), 0);
}

#[test]
fn a_debian_release_makes_the_same_bytes_twice() {
    let test = "a_debian_release_makes_the_same_bytes_twice";
    if !has(test, "mmdebstrap") || !given(test, "root", rustix::process::geteuid().is_root()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let debian = Debian { variant: "essential".into(), ..Debian::new("bookworm") };
    let source = Source::Debian(debian);
    let first = make(&source, &dir.path().join("a"), Options::default()).unwrap();
    let second = make(&source, &dir.path().join("b"), Options::default()).unwrap();
    assert_eq!(first, second);
    assert!(first.entries > 1000, "{first:?}");
}
