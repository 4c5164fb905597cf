//! A [`Channel`] in the asynchronous world.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use guest::wire::Channel;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One end of a two-way stream of messages; both directions can be used at once.
#[derive(Debug)]
pub struct Connection(AsyncFd<Channel>);

impl Connection {
    /// Takes over a channel. Within a tokio runtime.
    pub fn new(channel: Channel) -> io::Result<Self> {
        channel.set_nonblocking(true)?;
        // SAFETY: a channel owns its descriptor, and gives it up only when it is taken apart, which nobody can do to one
        // inside an AsyncFd.
        let registered = unsafe { AsyncFd::register(channel) };
        Ok(Self(registered?))
    }

    /// Sends a message.
    pub async fn send<T: Serialize>(&self, message: &T, descriptors: &[OwnedFd]) -> io::Result<()> {
        let borrowed = |channel: &Channel| {
            let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
            channel.send(message, &descriptors)
        };
        self.0.async_io(Interest::WRITABLE, borrowed).await
    }

    /// Receives one; `None` when the other end is closed.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.0.async_io(Interest::READABLE, |channel| channel.receive()).await
    }
}
