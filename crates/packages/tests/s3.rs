//! `fetch_s3` against a small HTTP server that answers as S3 does.

#[path = "support/zips.rs"]
mod zips;

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use packages::{Config, Limits, PackageError, Packages, S3Config, Storage};
use tempfile::{TempDir, tempdir};
use tokio::net::TcpListener;
use zips::{file, zip};

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let error = |status: u16, code: &str, message: &str| {
        let body = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        Response::builder().status(status).body(Full::new(body.into())).unwrap()
    };
    let authorization = request.headers().get("authorization").map_or("", |v| v.to_str().unwrap());
    if !authorization.starts_with("AWS4-HMAC-SHA256 Credential=key/") || !request.headers().contains_key("x-amz-date") {
        return error(403, "AccessDenied", "Access Denied");
    }
    match (request.uri().path(), request.uri().query()) {
        ("/code/dir/my%20function.zip", None) => Response::new(Full::new(zip(&[file("v", "2")]))),
        ("/code/dir/my%20function.zip", Some("versionId=one%2B")) => Response::new(Full::new(zip(&[file("v", "1")]))),
        ("/code/secret", _) => error(403, "AccessDenied", "Access Denied"),
        ("/code/busy", _) => error(503, "SlowDown", "Please reduce &amp; wait."),
        ("/code/big", _) => Response::new(Full::new(vec![0; 2000].into())),
        (path, _) if path.starts_with("/code/") => error(404, "NoSuchKey", "The specified key does not exist."),
        _ => error(404, "NoSuchBucket", "The specified bucket does not exist"),
    }
}

async fn storage() -> (TempDir, Packages) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |request| Ok::<_, Infallible>(answer(&request)));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    });
    (open(Some(&endpoint))).await
}

async fn open(endpoint: Option<&str>) -> (TempDir, Packages) {
    let dir = tempdir().unwrap();
    let s3 = endpoint.map(|endpoint| S3Config {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        access_key: "key".to_owned(),
        secret_key: "secret".to_owned(),
        session_token: Some("token".to_owned()),
    });
    let limits = Limits { unzipped: 1000, ..Limits::default() };
    let packages =
        Packages::open(Config { dir: dir.path().to_owned(), storage: Storage::Own, limits, s3, owner: None }).unwrap();
    (dir, packages)
}

#[tokio::test]
async fn objects_and_their_versions_are_read() {
    let (_dir, packages) = storage().await;
    let key = "dir/my function.zip";
    assert_eq!(packages.fetch_s3("code", key, None).await.unwrap(), zip(&[file("v", "2")]));
    let code = packages.ingest_s3("code", key, Some("one+")).await.unwrap();
    assert_eq!(packages.zip(&code.sha256).await.unwrap(), zip(&[file("v", "1")]));
}

#[tokio::test]
async fn refusals_have_the_messages_of_aws() {
    let (_dir, packages) = storage().await;
    let refused = async |bucket, key| packages.fetch_s3(bucket, key, None).await.unwrap_err().to_string();
    assert_eq!(
        refused("code", "none").await,
        "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not exist."
    );
    assert_eq!(
        refused("none", "none").await,
        "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does not exist"
    );
    assert_eq!(
        refused("code", "secret").await,
        "Your access has been denied by S3, please make sure your request credentials have permission to GetObject for \
         code/secret. S3 Error Code: AccessDenied. S3 Error Message: Access Denied"
    );
    assert_eq!(refused("code", "big").await, "Unzipped size must be smaller than 1000 bytes");
    assert_eq!(refused("code", "busy").await, "get s3://code/busy: SlowDown: Please reduce & wait.");
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (_dir, packages) = open(Some(&endpoint)).await;
    let error = packages.fetch_s3("b", "k", None).await.unwrap_err();
    assert!(matches!(&error, PackageError::S3Unreachable { cause, .. } if cause.contains(&endpoint)), "{error}");
    let (_dir, packages) = open(None).await;
    assert!(packages.fetch_s3("b", "k", None).await.unwrap_err().to_string().contains("[s3]"));
}
