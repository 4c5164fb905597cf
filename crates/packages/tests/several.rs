//! Several processes that use one directory: of one host, or shared by a fleet.

#[path = "support/zips.rs"]
mod zips;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use packages::{Config, Limits, PackageError, Packages, Storage};
use tempfile::tempdir;
use zips::{file, zip};

/// Names the directories of [`other_process`].
const OTHER: &str = "EMBERBOX_TEST_OTHER_PROCESS";

fn package(n: usize) -> Bytes {
    zip(&[file("a", &format!("content {n}"))])
}

fn try_open(dir: &Path, shared: Option<&Path>) -> Result<Packages, PackageError> {
    let storage = shared.map_or(Storage::Own, |shared| Storage::Shared(shared.to_owned()));
    Packages::open(Config { dir: dir.to_owned(), storage, limits: Limits::default(), s3: None, owner: None })
}

fn open(dir: &Path, shared: Option<&Path>) -> Packages {
    try_open(dir, shared).unwrap()
}

/// What another process does, see [`start_other`]: nothing in a run of the tests.
#[tokio::test]
async fn other_process() {
    let Some(dirs) = std::env::var_os(OTHER) else { return };
    let dirs: Vec<_> = std::env::split_paths(&dirs).collect();
    let (dir, shared) = (&dirs[0], dirs.get(1).map(AsRef::as_ref));
    for n in 0..100 {
        let packages = open(dir, shared);
        let code = packages.ingest(package(n)).await.unwrap();
        packages.unpacked(&code).await.unwrap();
    }
}

/// Starts a process that opens the storage a hundred times and uses it.
fn start_other(dirs: &[&Path]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_process", "--nocapture"])
        .env(OTHER, std::env::join_paths(dirs).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn processes_of_one_host_leave_each_others_work_alone() {
    let dir = tempdir().unwrap();
    let packages = open(dir.path(), None);
    let dropped = packages.ingest(package(1000)).await.unwrap();
    let in_use = packages.unpacked(&dropped).await.unwrap().path;
    packages.remove(&dropped.sha256).await.unwrap();
    let under_way = dir.path().join("temp/under-way");
    fs::write(&under_way, "").unwrap();

    let mut other = start_other(&[dir.path()]);
    let mut rounds = 0;
    while other.try_wait().unwrap().is_none() {
        rounds += 1;
        let code = packages.ingest(package(rounds % 100)).await.unwrap();
        packages.unpacked(&code).await.unwrap();
        packages.evict(&code.sha256).await.unwrap();
    }
    assert!(other.wait().unwrap().success());
    assert!(rounds > 1, "they ran at the same time");
    assert!(under_way.exists() && in_use.exists());
    drop(open(dir.path(), None));
    assert!(under_way.exists() && in_use.exists());
    drop(packages);
    drop(open(dir.path(), None));
    assert!(!under_way.exists() && !in_use.exists(), "who comes when nobody is there clears up");
}

#[tokio::test]
async fn hosts_share_a_directory_and_leave_each_others_work_alone() {
    let (shared, one, two) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    let packages = open(one.path(), Some(shared.path()));
    let temp = shared.path().join("temp");
    let (under_way, abandoned) = (temp.join("under-way"), temp.join("abandoned"));
    fs::write(&under_way, "").unwrap();
    fs::write(&abandoned, "").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 60 * 60);
    File::options().write(true).open(&abandoned).unwrap().set_modified(long_ago).unwrap();

    let mut other = start_other(&[two.path(), shared.path()]);
    let mut rounds = 0;
    while other.try_wait().unwrap().is_none() {
        rounds += 1;
        let code = packages.ingest(package(rounds % 100)).await.unwrap();
        packages.unpacked(&code).await.unwrap();
    }
    assert!(other.wait().unwrap().success());
    assert!(rounds > 1, "they ran at the same time");
    assert!(under_way.exists() && !abandoned.exists());

    let code = packages.ingest(package(5000)).await.unwrap();
    let path = open(two.path(), Some(shared.path())).unpacked(&code).await.unwrap().path;
    assert!(path.starts_with(two.path()), "unpacked on the host that runs it");
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "content 5000");
    assert!(!one.path().join("zips").exists() && !shared.path().join("unpacked").exists());
}
