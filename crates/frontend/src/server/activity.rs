//! Tells a connection that waits for us from one whose client has stalled.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
