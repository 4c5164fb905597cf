//! One client of a closed loop: it sends the same bytes again and again, as `wrk` does. What the load generator takes of
//! the machine is missing to what it measures, so that nothing is made anew for a request.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::load::{EVENT, Kind, same_json};

/// Fields of an answer's head that there is room for.
const FIELDS: usize = 32;
/// Largest answer, in bytes: every function here is an echo of a small event.
const LARGEST: usize = 64 << 10;

/// One keep-alive connection, with its request.
pub struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    kind: Kind,
    answer: Vec<u8>,
}

impl Client {
    /// Connects; each [`Client::invoke`] will post the event to `path`.
    pub async fn open(address: SocketAddr, path: &str, kind: Kind) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let invocation_type = match kind {
            Kind::RequestResponse => "",
            Kind::Event => "x-amz-invocation-type: Event\r\n",
        };
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n{invocation_type}\
             content-length: {}\r\n\r\n{EVENT}",
            EVENT.len()
        );
        Ok(Self { stream, request: request.into(), kind, answer: Vec::with_capacity(4096) })
    }

    /// Sends the event; the answer must be what this kind of invocation has.
    pub async fn invoke(&mut self) -> Result<()> {
        self.stream.write_all(&self.request).await.context("send the request")?;
        self.answer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the server closed the connection");
            if let Some((status, body)) = parse(&self.answer)? {
                let right = match self.kind {
                    Kind::RequestResponse => status == 200 && same_json(body),
                    Kind::Event => status == 202 && body.is_empty(),
                };
                ensure!(right, "{}", String::from_utf8_lossy(&self.answer));
                return Ok(());
            }
        }
    }
}

/// Status and body, once all of it is there.
fn parse(answer: &[u8]) -> Result<Option<(u16, &[u8])>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(begin) = head.parse(answer).context("the answer is not HTTP")? else {
        ensure!(answer.len() <= LARGEST, "the answer's head is too long");
        return Ok(None);
    };
    let status = head.code.context("no status")?;
    let Some(length) = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length")) else {
        bail!("an answer without length: {}", String::from_utf8_lossy(answer));
    };
    let length: usize = std::str::from_utf8(length.value)?.parse().context("the answer's length")?;
    ensure!(length <= LARGEST, "an answer of {length} bytes");
    ensure!(answer.len() <= begin + length, "more than one answer: {}", String::from_utf8_lossy(answer));
    Ok((answer.len() == begin + length).then(|| (status, &answer[begin..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_with_its_body() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(answer).unwrap(), Some((200, &b"{}"[..])));
        for end in 0..answer.len() {
            assert_eq!(parse(&answer[..end]).unwrap(), None);
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n{}").is_err());
        assert!(parse(b"nonsense\r\n\r\n").is_err());
    }
}
