//! Tells a connection that waits for us from one whose client has stalled.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Up to so many bytes are sent in one piece, of which the kernel makes less ado than of a head and a body apart.
const TOGETHER: usize = 1 << 10;

/// What moves on one connection.
#[derive(Clone, Default)]
pub(super) struct Activity(Arc<Counters>);

#[derive(Default)]
struct Counters {
    /// Requests being worked on.
    running: AtomicUsize,
    /// Requests begun and ended, and writes that moved bytes.
    progress: AtomicU64,
}

impl Activity {
    /// Sees what is written.
    pub(super) fn watch<S>(&self, stream: S) -> Watched<S> {
        Watched { stream, counters: Arc::clone(&self.0) }
    }

    /// A request is being worked on until the guard is dropped.
    pub(super) fn request(&self) -> Running {
        self.0.running.fetch_add(1, Ordering::Relaxed);
        self.0.moved();
        Running(Arc::clone(&self.0))
    }

    /// Ends when, for `limit` to twice that, no request was worked on and no byte of an answer was taken: the client sends
    /// no request, takes too long for the head of one, however steadily it dribbles, or does not take its answer. (A
    /// client that stalls within a body is noticed by whoever reads it.)
    pub(super) async fn stalled(&self, limit: Duration) {
        let mut seen = None;
        loop {
            let progress = self.0.progress.load(Ordering::Relaxed);
            if self.0.running.load(Ordering::Relaxed) == 0 && seen == Some(progress) {
                return;
            }
            seen = Some(progress);
            tokio::time::sleep(limit).await;
        }
    }
}

impl Counters {
    fn moved(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// See [`Activity::request`].
pub(super) struct Running(Arc<Counters>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.moved();
    }
}

/// A stream whose writes are counted.
pub(super) struct Watched<S> {
    stream: S,
    counters: Arc<Counters>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.counters.moved();
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if length <= TOGETHER {
            let mut room = [0; TOGETHER];
            let mut free = &mut room[..];
            for buf in bufs {
                let (taken, rest) = free.split_at_mut(buf.len());
                taken.copy_from_slice(buf);
                free = rest;
            }
            return self.poll_write(cx, &room[..length]);
        }
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.counters.moved();
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn parts_arrive_in_their_order_whatever_their_size() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut server = Activity::default().watch(server);
        let mut sent = Vec::new();
        for size in [0, 1, TOGETHER - 10, TOGETHER - 9, 3 * TOGETHER] {
            let (head, body) = (vec![b'h'; 10], vec![b'b'; size]);
            let mut parts = [io::IoSlice::new(&head), io::IoSlice::new(&body)];
            let mut parts = &mut parts[..];
            while !parts.is_empty() {
                let count = server.write_vectored(parts).await.unwrap();
                io::IoSlice::advance_slices(&mut parts, count);
            }
            sent.extend([head, body].concat());
        }
        drop(server);
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, sent);
    }
}
