//! Connections from a sandbox, whatever it is made of.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use sandbox::api::LinkDecoder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Up to so many bytes are sent in one piece, of which the kernel makes less ado than of a head and a body apart.
const TOGETHER: usize = 1 << 10;

/// Where they arrive.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// One of them.
pub(crate) enum Stream {
    Tcp(TcpStream),
    /// From a virtual machine: what it says is in frames.
    Unix(UnixStream, LinkDecoder),
}

impl Listener {
    /// Within a tokio runtime.
    pub(crate) fn new(listener: sandbox::Listener) -> io::Result<Self> {
        Ok(match listener {
            sandbox::Listener::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            sandbox::Listener::Unix(listener) => Self::Unix(UnixListener::from_std(listener)?),
        })
    }

    /// How the sandbox sees it, if it asked for it on `port`.
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        let bound = match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        };
        bound.unwrap_or_else(|| sandbox::api::link_socket(port))
    }

    /// Waits for one. Nothing is lost when it is dropped before.
    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Without it answers are only slower.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0, LinkDecoder::default())),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream, frames) => {
                while !frames.over() {
                    let before = buffer.filled().len();
                    ready!(Pin::new(&mut *stream).poll_read(cx, buffer))?;
                    let arrived = &mut buffer.filled_mut()[before..];
                    if arrived.is_empty() {
                        break;
                    }
                    let carried = frames.decode(arrived);
                    buffer.set_filled(before + carried);
                    if carried > 0 {
                        break;
                    }
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length <= TOGETHER {
            let mut room = [0; TOGETHER];
            let mut free = &mut room[..];
            for part in parts {
                let (taken, rest) = free.split_at_mut(part.len());
                taken.copy_from_slice(part);
                free = rest;
            }
            return self.poll_write(cx, &room[..length]);
        }
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Unix(stream, _) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
