//! The images of functions, from a real registry.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use images::oci::{Remote, Store, StoreConfig};
use images::{ImageError, Limits, Refusal};
use serde_json::json;

use crate::registry::{Registry, run};
use crate::support::*;

fn store(dir: &Path) -> Store {
    let limits = Limits { unpacked: 50_000_000, ..Limits::default() };
    let dir = dir.join("images");
    Store::open(StoreConfig { dir, limits, pull_limit: Duration::from_secs(60), registries: Default::default() })
        .unwrap()
}

#[test]
fn images_are_kept_by_digest_and_share_their_layers() {
    let test = "images_are_kept_by_digest_and_share_their_layers";
    let Some(registry) = Registry::start(test, "") else { return };
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path());
    let base = tar(&[("bin/", ""), ("bin/sh", &"shell".repeat(1000))]);
    let push = |repository: &str, tag: &str| {
        let made = Made::new();
        let layers = [(GZIP, base.clone()), (TAR, tar(&[("version", tag)]))];
        let config = json!({ "os": "linux", "architecture": architecture(), "config": { "Cmd": ["/bin/sh"] },
            "rootfs": { "type": "layers", "diff_ids": layers.clone().map(|(_, tar)| digest(&tar)) } });
        let image = made.image_with(&layers, &config);
        registry.push(&made, repository, tag, &[image]);
        Remote::parse(&registry.name(&format!("{repository}:{tag}"))).unwrap()
    };
    let (one, two) = (push("app", "1"), push("app", "2"));
    let foreign = push("other", "3");
    let (first, second) = (run(images.resolve(&one)).unwrap(), run(images.resolve(&two)).unwrap());
    let unpacked = run(images.ensure(&one, &first)).unwrap();
    assert_eq!(fs::read_to_string(unpacked.root.join("version")).unwrap(), "1");
    assert_eq!(unpacked.config.command, ["/bin/sh"]);
    assert!(unpacked.root.join("proc").is_dir() && unpacked.root.join("etc/hosts").is_file());

    // The registry has lost what both share.
    let shared = digest(&gzip(&base));
    fs::remove_file(registry.file(&shared)).unwrap();
    let other = run(images.ensure(&two, &second)).unwrap();
    assert_eq!(fs::read_to_string(other.root.join("version")).unwrap(), "2");
    // Who can name a layer of another's repository does not get it for that.
    let named = run(images.ensure(&foreign, &run(images.resolve(&foreign)).unwrap())).unwrap_err();
    assert!(matches!(named, ImageError::Registry { kind: Refusal::Missing, .. }), "{named}");
    run(images.remove(&first)).unwrap();
    assert!(!unpacked.root.exists() && !images.is_here(&first) && images.is_here(&second));
    assert_eq!(images.all().unwrap(), [second.clone()]);
    let gone = run(images.ensure(&one, &first));
    // Its base is taken from the other, and its own layer pulled again.
    assert!(gone.is_ok(), "{gone:?}");
    run(images.remove(&first)).unwrap();
    run(images.remove(&second)).unwrap();
    let missing = run(images.ensure(&one, &first)).unwrap_err();
    assert!(matches!(missing, ImageError::Registry { kind: Refusal::Missing, .. }), "{missing}");
    assert_eq!(fs::read_dir(dir.path().join("images/temp")).unwrap().count(), 0);
    for wrong in ["", "sha256:", "sha256:../../../../etc", &first[7..]] {
        assert!(run(images.ensure(&one, wrong)).is_err() && run(images.remove(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn a_hostile_image_stays_in_its_directory() {
    let Some(registry) = Registry::start("a_hostile_image_stays_in_its_directory", "") else { return };
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |kind, path: &str, link: &str, mode, text: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(text.len() as u64);
        if link.is_empty() {
            archive.append_data(&mut header, path, text).unwrap();
        } else {
            archive.append_link(&mut header, path, link).unwrap();
        }
    };
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    add(Symlink, "out", target.to_str().unwrap(), 0o777, b"");
    add(Regular, "out/file", "", 0o644, b"inside");
    add(Symlink, "proc", "/etc", 0o777, b"");
    add(Directory, "closed", "", 0o000, b"");
    add(Regular, "closed/setuid", "", 0o6000, b"x");
    let large = vec![0; 1_000_000];
    add(Regular, "large", "", 0o644, &large);
    for n in 0..500 {
        add(Link, &format!("again/{n}"), "large", 0o644, b"");
    }
    let made = Made::new();
    let image = made.image(&[(TAR, archive.into_inner().unwrap())]);
    registry.push(&made, "bad", "1", &[image]);
    let images = store(dir.path());
    let remote = Remote::parse(&registry.name("bad:1")).unwrap();
    let digest = run(images.resolve(&remote)).unwrap();
    let root = run(images.ensure(&remote, &digest)).unwrap().root.clone();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(root.join(target.strip_prefix("/").unwrap()).join("file")).unwrap(), "inside");
    assert!(root.join("proc").symlink_metadata().unwrap().is_dir());
    let mode = |path: &str| root.join(path).symlink_metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("closed"), mode("closed/setuid"), mode("tmp")), (0o700, 0o400, 0o1777));
    // 500 names are not 500 files.
    assert_eq!(root.join("large").metadata().unwrap().nlink(), 501);
    run(images.remove(&digest)).unwrap();
    assert!(!root.exists());
}
