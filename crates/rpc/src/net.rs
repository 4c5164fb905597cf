//! Where connections come from: TCP, or what a simulation has in its place.

use std::io::Result;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// One end of a connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Makes connections, see [`crate::Channels::over`].
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// To whoever listens at `address` (`host:port`). The caller limits how long it takes.
    async fn dial(&self, address: &str) -> Result<Box<dyn Io>>;
}

/// Takes connections, see [`crate::Server::over`].
#[async_trait]
pub trait Listen: Send + 'static {
    /// The next one, and who made it. Safe to cancel.
    async fn accept(&mut self) -> Result<(Box<dyn Io>, SocketAddr)>;
}
