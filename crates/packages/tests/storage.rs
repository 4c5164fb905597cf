//! Storing, reading back, unpacking and losing packages.

#[path = "support/zips.rs"]
mod zips;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use bytes::Bytes;
use packages::{Config, Limits, PackageError, Packages, Storage};
use tempfile::tempdir;
use zips::{entry, file, open, open_with, symlink, zip};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_package_comes_back_as_it_went_in() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let bytes = zip(&[
        entry("bin/", b"", 0o040_700),
        entry("bin/tool", b"#!", 0o104_755),
        file("pkg/index.py", "x = 1"),
        entry("plain", b"no mode", 0),
        symlink("lib.so", "lib.so.1"),
        file("lib.so.1", "elf"),
        symlink("venv/lib64", "../lib.so"),
    ]);
    let code = packages.ingest(bytes.clone()).await.unwrap();
    assert_eq!(code.size, bytes.len() as u64);
    assert_eq!(code, packages.ingest(bytes.clone()).await.unwrap());
    assert_eq!(packages.zip(&code.sha256).await.unwrap(), bytes);

    assert!(!packages.is_unpacked(&code.sha256));
    let unpacked = packages.unpacked(&code).await.unwrap();
    assert!(!unpacked.cached);
    assert!(packages.is_unpacked(&code.sha256));
    assert_eq!(packages.all_unpacked().unwrap(), [code.sha256.clone()]);
    let path = &unpacked.path;
    assert_eq!(mode(path), 0o755);
    assert_eq!(mode(&path.join("bin")), 0o755, "directories can be entered by all");
    assert_eq!(mode(&path.join("bin/tool")), 0o755, "without setuid");
    assert_eq!(mode(&path.join("plain")), 0o644);
    assert_eq!(fs::read_to_string(path.join("pkg/index.py")).unwrap(), "x = 1");
    assert_eq!(fs::read_to_string(path.join("venv/lib64")).unwrap(), "elf");
    assert_eq!(fs::metadata(path.join("plain")).unwrap().mtime(), 1_640_995_200, "2022-01-01");

    assert!(packages.unpacked(&code).await.unwrap().cached);
    assert!(open(&dir).unpacked(&code).await.unwrap().cached, "survives a restart of the process");
}

#[tokio::test]
async fn concurrent_callers_share_one_unpacking() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let code = packages.ingest(zip(&[file("a", "b")])).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (packages, code) = (packages.clone(), code.clone());
        tasks.spawn(async move { packages.unpacked(&code).await.unwrap().cached });
    }
    let cached = tasks.join_all().await;
    assert_eq!(cached.iter().filter(|cached| !**cached).count(), 1);
}

#[tokio::test]
async fn removal_leaves_running_sandboxes_their_files() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let code = packages.ingest(zip(&[file("a", "b")])).await.unwrap();
    let unpacked = packages.unpacked(&code).await.unwrap();
    packages.remove(&code.sha256).await.unwrap();
    packages.remove(&code.sha256).await.unwrap();
    assert!(matches!(packages.zip(&code.sha256).await, Err(PackageError::NotFound { .. })));
    assert!(unpacked.path.join("a").exists());
    drop(packages);
    let packages = open(&dir);
    assert!(!unpacked.path.exists(), "the next start clears it away");
    assert!(matches!(packages.unpacked(&code).await, Err(PackageError::NotFound { .. })));
}

#[tokio::test]
async fn damage_is_detected_and_repaired_by_another_upload() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let bytes = zip(&[file("a", "b")]);
    let code = packages.ingest(bytes.clone()).await.unwrap();
    let stored = fs::read_dir(dir.path().join("packages/zips")).unwrap().next().unwrap().unwrap().path();
    let mut damaged = bytes.to_vec();
    damaged[31] ^= 1;
    fs::write(&stored, damaged).unwrap();
    assert!(matches!(packages.zip(&code.sha256).await, Err(PackageError::Damaged { .. })));
    assert!(matches!(packages.unpacked(&code).await, Err(PackageError::Damaged { .. })));
    assert!(!packages.is_unpacked(&code.sha256));
    packages.ingest(bytes).await.unwrap();
    packages.unpacked(&code).await.unwrap();
}

#[tokio::test]
async fn opening_clears_leftovers_and_a_cache_of_an_earlier_boot() {
    let dir = tempdir().unwrap();
    let packages = open(&dir);
    let code = packages.ingest(zip(&[file("a", "b")])).await.unwrap();
    packages.unpacked(&code).await.unwrap();
    packages.evict(&code.sha256).await.unwrap();
    assert!(!packages.is_unpacked(&code.sha256));
    packages.unpacked(&code).await.unwrap();
    let temp = dir.path().join("packages/temp");
    fs::create_dir(temp.join("half")).unwrap();
    fs::write(temp.join("half/x"), "").unwrap();
    fs::write(temp.join("file"), "").unwrap();
    fs::write(dir.path().join("packages/unpacked/boot-id"), "another boot").unwrap();
    drop(packages);
    let packages = open(&dir);
    assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
    assert!(!packages.unpacked(&code).await.unwrap().cached);
}

#[tokio::test]
async fn unpacked_files_belong_to_the_configured_owner() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "needs root");
        println!("SKIPPED unpacked_files_belong_to_the_configured_owner: needs root");
        return;
    }
    let dir = tempdir().unwrap();
    let config = Config {
        dir: dir.path().join("packages"),
        storage: Storage::Own,
        limits: Limits::default(),
        s3: None,
        owner: Some(993),
    };
    let packages = Packages::open(config).unwrap();
    let code = packages.ingest(zip(&[file("d/f", "b"), symlink("l", "d/f")])).await.unwrap();
    let path = packages.unpacked(&code).await.unwrap().path;
    for name in ["", "d", "d/f", "l"] {
        let meta = fs::symlink_metadata(path.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (993, 993), "{name:?}");
    }
}

#[tokio::test]
async fn limits_have_the_messages_of_aws() {
    let dir = tempdir().unwrap();
    let limits = Limits { zipped: 1000, unzipped: 300, entries: 2, path: 10 };
    let packages = open_with(&dir, limits);
    let refused = async |bytes: Bytes| packages.ingest(bytes).await.unwrap_err().to_string();
    assert_eq!(refused(vec![0; 1001].into()).await, "Zipped size must be smaller than 1000 bytes");
    let big = "x".repeat(151);
    assert_eq!(refused(zip(&[file("a", &big), file("b", &big)])).await, "Unzipped size must be smaller than 300 bytes");
    let unzip = "Could not unzip uploaded file. Please check your file, then try to upload again.";
    assert_eq!(refused(zip(&[file("a", ""), file("b", ""), file("c", "")])).await, unzip);
    assert_eq!(refused(zip(&[file("12345678901", "")])).await, unzip);
    assert_eq!(refused(Bytes::from_static(b"this is no zip")).await, unzip);
    assert_eq!(refused(Bytes::new()).await, unzip);
    packages.ingest(zip(&[file("a", "b")])).await.unwrap();
}
