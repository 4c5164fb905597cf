//! Against `moto_server`, which is in the whole-system suite's Python environment or named by `EMBERBOX_TEST_MOTO`.

#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/zips.rs"]
mod zips;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bucket::{open, storage};
use packages::PackageError;
use tempfile::tempdir;
use zips::{file, zip};

/// A process that ends with its test.
struct Moto {
    process: Child,
    url: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    /// `None` where it is not installed.
    fn start() -> Option<Self> {
        let program = std::env::var_os("EMBERBOX_TEST_MOTO").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin/moto_server")),
            PathBuf::from,
        );
        if !program.exists() {
            let message = format!("SKIPPED third_party: needs moto_server, which is not at {}", program.display());
            assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{message}, and EMBERBOX_REQUIRE_ALL is set");
            eprintln!("{message}");
            return None;
        }
        let mut process = Command::new(program)
            .args(["-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto_server starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let url = lines
            .find_map(|line| Some(format!("http://{}", line.split_once("Running on http://")?.1.trim())))
            .expect("moto_server says where it listens");
        // it logs each request, and must not block on that
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, url })
    }

    /// Status and body of the answer to a plain request; this server looks at no signature, but wants one.
    fn http(&self, method: &str, path: &str) -> String {
        let host = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).expect("connected");
        let signature = "AWS4-HMAC-SHA256 Credential=000000000000/20260101/us-east-1/s3/aws4_request";
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: {signature}\r\n\r\n").expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test]
async fn packages_are_kept_in_a_bucket() {
    let Some(moto) = Moto::start() else { return };
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    let (host, worker) = (open(&one, storage(&moto.url)), open(&two, storage(&moto.url)));
    let bytes = zip(&[file("index.py", &"x = 1\n".repeat(100_000))]);
    let error = host.ingest(bytes.clone()).await.unwrap_err().to_string();
    assert!(error.contains("NoSuchBucket") && error.contains("make the bucket"), "{error}");

    moto.http("PUT", "/code");
    let code = host.ingest(bytes.clone()).await.unwrap();
    assert_eq!(code, host.ingest(bytes.clone()).await.unwrap(), "again is no other");
    let listed = moto.http("GET", "/code");
    assert!(listed.contains("<Key>fleet/one/zips/") && listed.matches("<Key>").count() == 1, "{listed}");

    let unpacked = worker.unpacked(&code).await.unwrap();
    assert_eq!(std::fs::metadata(unpacked.path.join("index.py")).unwrap().len(), 600_000);
    assert_eq!(host.zip(&code.sha256).await.unwrap(), bytes);
    host.remove(&code.sha256).await.unwrap();
    host.remove(&code.sha256).await.unwrap();
    assert!(!moto.http("GET", "/code").contains("<Key>"));
    assert!(matches!(host.zip(&code.sha256).await, Err(PackageError::NotFound { .. })));
}
