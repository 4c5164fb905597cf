//! Packages in a bucket whose service fails in every way that a service can.

#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/zips.rs"]
mod zips;

use std::fs;
use std::path::Path;

use bucket::{ACCESS_KEY, Bucket, Fault, SECRET, open, storage};
use bytes::Bytes;
use packages::{PackageError, S3Storage};
use tempfile::tempdir;
use tokio::net::TcpListener;
use zips::{file, zip};

fn package(n: usize) -> Bytes {
    zip(&[file("a", &format!("content {n}")), file("b", &"x".repeat(1000))])
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_package_travels_from_one_host_to_another() {
    let bucket = Bucket::start().await;
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    let bytes = package(1);
    let code = bucket.host(&one).ingest(bytes.clone()).await.unwrap();
    {
        let state = bucket.state.lock().unwrap();
        let [(key, object)] = &state.objects.iter().collect::<Vec<_>>()[..] else { panic!("one object") };
        assert!(key.starts_with("/code/fleet/one/zips/") && key.ends_with(".zip"), "{key}");
        assert_eq!(object.as_slice(), bytes);
    }
    assert!(names(&one.path().join("cache")).is_empty(), "who takes it in does not run it");

    let host = bucket.host(&two);
    assert_eq!(host.zip(&code.sha256).await.unwrap(), bytes);
    assert!(names(&two.path().join("cache")).is_empty(), "nor who hands it out");
    let unpacked = host.unpacked(&code).await.unwrap();
    assert!(!unpacked.cached);
    assert_eq!(fs::read_to_string(unpacked.path.join("a")).unwrap(), "content 1");
    assert_eq!(bucket.requests("GET"), 2);

    host.evict(&code.sha256).await.unwrap();
    host.unpacked(&code).await.unwrap();
    assert_eq!(host.zip(&code.sha256).await.unwrap(), bytes);
    drop(host);
    let host = bucket.host(&two);
    assert!(host.unpacked(&code).await.unwrap().cached, "survives a restart of the process");
    assert_eq!(bucket.requests("GET"), 0, "all of it from the cache");

    host.remove(&code.sha256).await.unwrap();
    host.remove(&code.sha256).await.unwrap();
    assert!(bucket.state.lock().unwrap().objects.is_empty());
    assert!(unpacked.path.exists(), "sandboxes may still run from it");
    assert!(matches!(host.zip(&code.sha256).await, Err(PackageError::NotFound { .. })));
    drop(host);
    let host = bucket.host(&two);
    assert!(matches!(host.unpacked(&code).await, Err(PackageError::NotFound { .. })));
}

#[tokio::test]
async fn what_passes_by_itself_is_waited_for() {
    let bucket = Bucket::start().await;
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    let host = bucket.host(&one);
    bucket.fail([Fault::Status(503, "SlowDown"), Fault::Closed, Fault::Silent]);
    let code = host.ingest(package(1)).await.unwrap();
    assert_eq!(bucket.requests("PUT"), 4);
    assert_eq!(bucket.state.lock().unwrap().objects.len(), 1);

    bucket.fail([Fault::Status(500, "InternalError"), Fault::Truncated, Fault::Silent]);
    bucket.host(&two).unpacked(&code).await.unwrap();
    assert_eq!(bucket.requests("GET"), 4);

    bucket.fail([Fault::Status(503, "ServiceUnavailable"), Fault::Closed]);
    host.remove(&code.sha256).await.unwrap();
    assert!(bucket.state.lock().unwrap().objects.is_empty());
}

#[tokio::test]
async fn content_that_is_not_the_packages_is_never_used() {
    let bucket = Bucket::start().await;
    let dir = tempdir().unwrap();
    let host = bucket.host(&dir);
    let bytes = package(1);
    let code = host.ingest(bytes.clone()).await.unwrap();
    for fault in [Fault::Wrong, Fault::Short, Fault::Long, Fault::Truncated] {
        bucket.always(Some(fault));
        let error = host.unpacked(&code).await.unwrap_err();
        let zip_error = host.zip(&code.sha256).await.unwrap_err();
        assert_eq!(error.to_string(), zip_error.to_string());
        match fault {
            Fault::Truncated => assert!(matches!(error, PackageError::Storage { .. }), "{error}"),
            _ => {
                assert!(matches!(error, PackageError::Damaged { .. }), "{fault:?}: {error}");
                assert!(error.to_string().contains("(s3://code/fleet/one/zips/"), "{error}");
                assert!(error.to_string().ends_with("; upload it again"), "{error}");
            }
        }
        assert!(!host.is_unpacked(&code.sha256));
        for part in ["cache", "temp"] {
            assert!(names(&dir.path().join(part)).is_empty(), "{fault:?}: {part}");
        }
        bucket.always(None);
    }
    bucket.fail([Fault::Wrong, Fault::Short, Fault::Long]);
    let unpacked = host.unpacked(&code).await.unwrap();
    assert_eq!(fs::read_to_string(unpacked.path.join("a")).unwrap(), "content 1");
    assert_eq!(host.zip(&code.sha256).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_damaged_cache_is_filled_again() {
    let bucket = Bucket::start().await;
    let dir = tempdir().unwrap();
    let host = bucket.host(&dir);
    let code = host.ingest(package(1)).await.unwrap();
    host.unpacked(&code).await.unwrap();
    host.evict(&code.sha256).await.unwrap();
    let cached = dir.path().join("cache").join(&names(&dir.path().join("cache"))[0]);
    fs::write(&cached, "nonsense").unwrap();
    bucket.requests("GET");
    host.unpacked(&code).await.unwrap();
    assert_eq!(bucket.requests("GET"), 1);
    assert_eq!(fs::read(&cached).unwrap(), package(1));
}

#[tokio::test]
async fn concurrent_callers_share_one_download_and_need_not_stay() {
    let bucket = Bucket::start().await;
    let dir = tempdir().unwrap();
    let host = bucket.host(&dir);
    let code = host.ingest(package(1)).await.unwrap();
    bucket.open.send_replace(false);
    let call = || {
        let (host, code) = (host.clone(), code.clone());
        tokio::spawn(async move { host.unpacked(&code).await.unwrap().cached })
    };
    let first = call();
    // The request is under way when its caller goes away.
    while !bucket.state.lock().unwrap().requests.iter().any(|request| request.starts_with("GET")) {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let others: Vec<_> = (0..20).map(|_| call()).collect();
    bucket.open.send_replace(true);
    for other in others {
        assert!(other.await.unwrap(), "the one that went away had asked for it");
    }
    assert_eq!(bucket.requests("GET"), 1);
}

#[tokio::test]
async fn the_cache_holds_its_limit_and_what_is_unpacked_stays_until_the_next_start() {
    let bucket = Bucket::start().await;
    let dir = tempdir().unwrap();
    let size = package(1).len() as u64;
    let config = S3Storage { cache_bytes: 2 * size + size / 2, ..bucket.config() };
    let host = open(&dir, config.clone());
    let mut codes = Vec::new();
    for n in 1..=5 {
        let code = host.ingest(package(n)).await.unwrap();
        host.unpacked(&code).await.unwrap();
        codes.push(code);
    }
    let cached = names(&dir.path().join("cache"));
    assert_eq!(cached.len(), 2, "{cached:?}");
    assert!(codes.iter().all(|code| host.is_unpacked(&code.sha256)));
    drop(host);
    let host = open(&dir, config);
    assert_eq!(codes.iter().filter(|code| host.is_unpacked(&code.sha256)).count(), 2);
    for code in &codes {
        host.unpacked(code).await.unwrap();
    }
    assert_eq!(names(&dir.path().join("cache")).len(), 2);
}

#[tokio::test]
async fn what_is_refused_for_good_is_asked_once_and_says_what_to_do() {
    let bucket = Bucket::start().await;
    let dir = tempdir().unwrap();
    let host = bucket.host(&dir);
    bucket.always(Some(Fault::Status(403, "AccessDenied")));
    let error = host.ingest(package(1)).await.unwrap_err();
    assert_eq!(bucket.requests(""), 1);
    assert!(matches!(error, PackageError::Storage { .. }));
    let error = error.to_string();
    let start = "store the package as s3://code/fleet/one/zips/";
    let end = format!(
        ".zip at {}: S3 answered AccessDenied: Because of AccessDenied; check the access key of the package storage, and \
         that it may s3:GetObject, s3:PutObject and s3:DeleteObject on these keys and s3:ListBucket on the bucket",
        bucket.endpoint
    );
    assert!(error.starts_with(start) && error.ends_with(&end), "{error}");
    assert!(!error.contains(SECRET) && !error.contains(ACCESS_KEY), "{error}");

    bucket.always(Some(Fault::Status(503, "SlowDown")));
    let error = host.ingest(package(1)).await.unwrap_err().to_string();
    assert_eq!(bucket.requests(""), 4);
    let end =
        "S3 answered SlowDown: Because of SlowDown (4 tries); the storage is overloaded or failing: try again later";
    assert!(error.ends_with(end), "{error}");

    bucket.always(None);
    let other = open(&tempdir().unwrap(), S3Storage { bucket: "none".to_owned(), ..bucket.config() });
    let error = other.ingest(package(1)).await.unwrap_err().to_string();
    assert!(error.contains("make the bucket"), "{error}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_named_without_secrets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let dir = tempdir().unwrap();
    let host = open(&dir, storage(&format!("http://{address}")));
    let error = host.ingest(package(1)).await.unwrap_err().to_string();
    assert!(error.contains(&format!("connect to http://{address}")) && error.contains("(4 tries)"), "{error}");
    assert!(error.contains("check that the package storage runs"), "{error}");

    let host = open(&tempdir().unwrap(), storage(&format!("http://user:{SECRET}@{address}")));
    let error = host.ingest(package(1)).await.unwrap_err();
    assert!(error.to_string().contains("is given with a user"), "{error}");
    let config = storage(&format!("http://user:{SECRET}@{address}"));
    assert!(!format!("{error:?} {error} {config:?}").contains(SECRET), "{error:?} {config:?}");
}
