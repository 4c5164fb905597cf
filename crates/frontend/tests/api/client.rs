//! A client that sends exactly the bytes it is told to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.text()))
    }

    /// The error's name and message.
    pub fn error(&self) -> (&str, String) {
        let json = self.json();
        let message = json["message"].as_str().or_else(|| json["Message"].as_str()).unwrap_or_default().to_owned();
        (self.header("x-amzn-errortype").unwrap_or_default(), message)
    }
}

pub async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// One request on a connection of its own.
pub async fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut stream = connect(address).await;
    stream.write_all(&head(address, method, path, headers, body.len())).await.unwrap();
    stream.write_all(body).await.unwrap();
    reply(&mut stream).await.expect("a reply")
}

pub fn head(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\ncontent-length: {length}\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    (text + "\r\n").into_bytes()
}

/// Reads one reply; `None` if the server closes instead.
pub async fn reply(stream: &mut (impl AsyncRead + Unpin)) -> Option<Reply> {
    let mut bytes = Vec::new();
    let read = async {
        loop {
            if let Some(reply) = parse(&bytes) {
                return Some(reply);
            }
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("a reply in time")
}

fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |l| l.parse().unwrap());
    let body = bytes[end + 4..].to_vec();
    (body.len() >= length).then_some(Reply { status, headers, body })
}
