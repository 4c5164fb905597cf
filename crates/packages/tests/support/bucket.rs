//! An HTTP server that keeps objects as S3 does, and fails as it is told to. It speaks HTTP by hand, since it has to break it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use packages::{Config, Limits, Packages, Retry, S3Config, S3Storage, Storage};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub const SECRET: &str = "secret-of-the-fleet";
pub const ACCESS_KEY: &str = "AKIDOFTHEFLEET";

/// What is wrong with one answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Status and S3's code.
    Status(u16, &'static str),
    /// The connection is closed without an answer.
    Closed,
    /// No answer, for longer than anybody waits.
    Silent,
    /// The connection ends in the middle of the body.
    Truncated,
    /// The body ends early, and looks whole.
    Short,
    /// More bytes than there are.
    Long,
    /// Other content of the same length.
    Wrong,
}

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Vec<u8>>,
    /// For the next requests, in this order.
    pub faults: VecDeque<Fault>,
    /// For all requests after those.
    pub always: Option<Fault>,
    /// `METHOD path` of all requests.
    pub requests: Vec<String>,
}

#[derive(Clone)]
pub struct Bucket {
    pub endpoint: String,
    pub state: Arc<Mutex<State>>,
    /// Answers wait for it.
    pub open: watch::Sender<bool>,
}

impl Bucket {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let bucket = Self { endpoint, state: Arc::default(), open: watch::Sender::new(true) };
        let served = bucket.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let bucket = served.clone();
                // A client that went away is no concern of this server's.
                tokio::spawn(async move { bucket.answer(stream).await.ok() });
            }
        });
        bucket
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut read = Vec::new();
        let head_end = loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8(read[..head_end].to_vec()).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
        while read.len() < head_end + length {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        assert!(head.contains("authorization: aws4-hmac-sha256 credential="), "{head}");
        let first = std::str::from_utf8(&read[..head_end]).unwrap().lines().next().unwrap().to_owned();
        let (method, path) = first.trim_end_matches(" HTTP/1.1").split_once(' ').unwrap();
        let fault = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(format!("{method} {path}"));
            let always = state.always;
            state.faults.pop_front().or(always)
        };
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        let (status, body) = match fault {
            Some(Fault::Status(status, code)) => (status, error(code)),
            Some(Fault::Closed) => return Ok(()),
            Some(Fault::Silent) => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                return Ok(());
            }
            _ => self.serve(method, path, &read[head_end..head_end + length]),
        };
        let (mut claimed, mut body) = (body.len(), body);
        match fault {
            Some(Fault::Truncated) => body.truncate(claimed / 2),
            Some(Fault::Short) => {
                body.truncate(claimed / 2);
                claimed = body.len();
            }
            Some(Fault::Long) => {
                body.push(0);
                claimed += 1;
            }
            Some(Fault::Wrong) => body[claimed / 2] ^= 1,
            _ => {}
        }
        let head = format!("HTTP/1.1 {status} S\r\ncontent-length: {claimed}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.shutdown().await
    }

    fn serve(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        if !path.starts_with("/code/") {
            return (404, error("NoSuchBucket"));
        }
        match method {
            "PUT" => {
                state.objects.insert(path.to_owned(), body.to_vec());
                (200, Vec::new())
            }
            "GET" => match state.objects.get(path) {
                Some(object) => (200, object.clone()),
                None => (404, error("NoSuchKey")),
            },
            "DELETE" => match state.objects.remove(path) {
                Some(_) => (204, Vec::new()),
                None => (404, error("NoSuchKey")),
            },
            method => panic!("nobody sends {method}"),
        }
    }

    pub fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().faults.extend(faults);
    }

    pub fn always(&self, fault: Option<Fault>) {
        self.state.lock().unwrap().always = fault;
    }

    /// How many requests of this method there were since the last call of this.
    pub fn requests(&self, method: &str) -> usize {
        let requests = std::mem::take(&mut self.state.lock().unwrap().requests);
        requests.iter().filter(|request| request.starts_with(method)).count()
    }

    pub fn config(&self) -> S3Storage {
        storage(&self.endpoint)
    }

    /// A host's storage in the bucket.
    pub fn host(&self, dir: &TempDir) -> Packages {
        open(dir, self.config())
    }
}

pub fn storage(endpoint: &str) -> S3Storage {
    let s3 = S3Config {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET.to_owned(),
        session_token: None,
    };
    let retry = Retry {
        tries: 4,
        first: Duration::from_millis(1),
        longest: Duration::from_millis(5),
        patience: Duration::from_millis(500),
    };
    S3Storage { retry, ..S3Storage::new(s3, "code", "/fleet/one/") }
}

pub fn open(dir: &TempDir, s3: S3Storage) -> Packages {
    let dir = dir.path().to_owned();
    let config = Config { dir, storage: Storage::S3(Box::new(s3)), limits: Limits::default(), s3: None, owner: None };
    Packages::open(config).unwrap()
}

fn error(code: &str) -> Vec<u8> {
    format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>Because of {code}.</Message></Error>").into()
}
