//! The client's end of one HTTP/2 connection.
//!
//! By h2 itself: hyper's client hands a request's body over only once its head is written, which are two writes, two records of TLS and
//! two times that the peer is woken. Here head and body are there when the connection is, and go in one.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong, RecvStream};
use http::{Request, Response};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::failure::{Failure, chain};

/// The largest head of an answer, in bytes.
const MAX_HEAD: u32 = 16 << 10;

/// Cheap to clone. The connection ends with the last clone and the last call.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    /// Set when it has ended; why, if it was this end that ended it.
    ended: Arc<OnceLock<Option<String>>>,
}

/// A request that was not sent.
pub(crate) struct Unsent(pub String);

impl Connection {
    /// Shakes hands. `cut` returns when the connection must end, and says why; `log` is told when it ends with an error.
    pub(crate) async fn open<T>(
        io: T,
        cut: impl Future<Output = String> + Send + 'static,
        log: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, h2::Error>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let heard = Arc::new(AtomicU64::new(0));
        let io = Heard { io, bytes: Arc::clone(&heard) };
        let (sender, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(crate::STREAM_WINDOW)
            .initial_connection_window_size(crate::CONNECTION_WINDOW)
            .max_frame_size(crate::FRAME)
            .max_header_list_size(MAX_HEAD)
            .handshake::<_, Bytes>(io)
            .await?;
        let ended = Arc::new(OnceLock::new());
        let end = Arc::clone(&ended);
        let pings = connection.ping_pong().expect("it is taken once");
        tokio::spawn(async move {
            let why = tokio::select! {
                ended = &mut connection => ended.err().map(|error| (chain(&error), None)),
                () = silent(pings, &heard) => {
                    let words = format!("no sign of life within {:?}", crate::PING_LIMIT);
                    Some((words.clone(), Some(words)))
                }
                words = cut => Some((words.clone(), Some(words))),
            };
            let (words, own) = why.unzip();
            // Before its calls end.
            let _ = end.set(own.flatten());
            drop(connection);
            if let Some(words) = words {
                log(words);
            }
        });
        Ok(Self { sender, ended })
    }

    pub(crate) fn is_live(&self) -> bool {
        self.ended.get().is_none()
    }

    /// Sends a request, and waits for the head of its answer. Whoever drops the future takes the request back, as far as that goes.
    pub(crate) async fn send(
        self,
        request: Request<()>,
        body: Vec<Bytes>,
    ) -> Result<Result<Response<Incoming>, Failure>, Unsent> {
        let unsent = |error: h2::Error| Unsent(chain(&error));
        let mut sender = self.sender.ready().await.map_err(unsent)?;
        let (answer, mut stream) = sender.send_request(request, body.is_empty()).map_err(unsent)?;
        // As long as there is one, the connection does not end, and it has no other use.
        drop(sender);
        let failed = |error: h2::Error| match self.ended.get() {
            Some(Some(own)) => Failure::unknown(own.clone()),
            _ => Failure::of_connection(&error),
        };
        let last = body.len().saturating_sub(1);
        for (at, data) in body.into_iter().enumerate() {
            // All of it at once: it is in memory in any case, and is counted against the peer's window as it goes out.
            if let Err(error) = stream.send_data(data, at == last) {
                return Ok(Err(failed(error)));
            }
        }
        drop(stream);
        Ok(match answer.await {
            Ok(answer) => Ok(answer.map(|stream| Incoming { stream, data: true })),
            Err(error) => Err(failed(error)),
        })
    }
}

/// Returns when nothing has come from the peer, not even the answer to a ping. `heard` counts what comes.
async fn silent(mut pings: PingPong, heard: &AtomicU64) {
    let mut before = heard.load(Ordering::Relaxed);
    let mut spoke = || {
        let now = heard.load(Ordering::Relaxed);
        std::mem::replace(&mut before, now) != now
    };
    loop {
        // While idle too: a peer that died is then known before the next call, which can go elsewhere.
        tokio::time::sleep(crate::PING_EVERY).await;
        if spoke() {
            continue;
        }
        let mut answer = std::pin::pin!(pings.ping(Ping::opaque()));
        loop {
            match tokio::time::timeout(crate::PING_LIMIT, answer.as_mut()).await {
                Ok(Ok(_)) => break,
                // The connection has ended, and says so itself.
                Ok(Err(_)) => std::future::pending().await,
                // It waits behind what comes before it, on a slow way.
                Err(_) if spoke() => {}
                Err(_) => return,
            }
        }
        spoke();
    }
}

/// Counts what is read.
struct Heard<T> {
    io: T,
    bytes: Arc<AtomicU64>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.bytes.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The body of an answer.
pub struct Incoming {
    stream: RecvStream,
    /// Trailers come after it.
    data: bool,
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Whoever polls takes it: the peer may send as much again. Fails only for more than has come.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data = false,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use http_body::Body as _;
    use tokio::io::DuplexStream;

    use super::*;

    /// Counts writes.
    struct Counted(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn head_and_body_of_a_request_go_in_one_write() {
        let (client, server) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(server).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"answer"), true).unwrap();
            }
        });
        let writes = Arc::new(AtomicUsize::new(0));
        let connection =
            Connection::open(Counted(client, Arc::clone(&writes)), std::future::pending(), |_| ()).await.unwrap();
        for round in 0..10 {
            let before = writes.load(Ordering::SeqCst);
            let request = Request::post("http://fleet.emberbox/call").body(()).unwrap();
            let answer = connection.clone().send(request, vec![Bytes::from_static(b"question")]).await;
            let mut body = answer.map_err(|Unsent(cause)| cause).unwrap().unwrap().into_body();
            let mut answer = Vec::new();
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                answer.extend(frame.unwrap().into_data().unwrap());
            }
            assert_eq!(answer, b"answer");
            // The first ones have the connection's own frames among them.
            if round >= 3 {
                assert_eq!(writes.load(Ordering::SeqCst) - before, 1);
            }
        }
        assert!(connection.is_live());
    }
}
