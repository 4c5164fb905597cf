//! One end of a connection.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

use super::Net;
use super::pipe::Segment;
use crate::clock;

pub(super) struct Stream {
    net: Net,
    number: u64,
    /// This is the end that has dialed.
    dialed: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    pub fn new(net: Net, number: u64, dialed: bool) -> Self {
        Self { net, number, dialed, sleep: None }
    }

    fn outward(&self) -> (u64, bool) {
        (self.number, self.dialed)
    }

    fn inward(&self) -> (u64, bool) {
        (self.number, !self.dialed)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let at = {
                let mut guard = self.net.0.lock();
                let state = &mut *guard;
                let key = self.inward();
                let Some(pipe) = state.pipes.get(&key) else {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                };
                let cut = state.is_cut(pipe.from.host, pipe.to.host);
                let pipe = state.pipes.get_mut(&key).expect("found just now");
                let due = pipe.segments.front().map(|(at, _)| *at);
                match due {
                    Some(at) if !cut && at <= clock::now() => {
                        let (at, segment) = pipe.segments.pop_front().expect("it was there");
                        return Poll::Ready(match segment {
                            Segment::Bytes(mut bytes) => {
                                let n = bytes.len().min(buf.remaining());
                                buf.put_slice(&bytes[..n]);
                                bytes.advance(n);
                                if !bytes.is_empty() {
                                    pipe.segments.push_front((at, Segment::Bytes(bytes)));
                                }
                                pipe.took(n);
                                Ok(())
                            }
                            Segment::End => {
                                pipe.segments.push_front((at, Segment::End));
                                Ok(())
                            }
                            Segment::Reset => {
                                pipe.segments.push_front((at, Segment::Reset));
                                Err(io::ErrorKind::ConnectionReset.into())
                            }
                        });
                    }
                    // Woken by what comes, or when the link is mended.
                    None => {
                        pipe.reader = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    Some(_) if cut => {
                        pipe.reader = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    Some(at) => {
                        pipe.reader = Some(cx.waker().clone());
                        at
                    }
                }
            };
            let until = clock::instant(at);
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(until),
                none => *none = Some(Box::pin(sleep_until(until))),
            }
            ready!(self.sleep.as_mut().expect("set just now").as_mut().poll(cx));
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut guard = self.net.0.lock();
        let state = &mut *guard;
        let key = self.outward();
        let Some(pipe) = state.pipes.get_mut(&key) else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        if pipe.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.is_full(cx.waker()) {
            return Poll::Pending;
        }
        let (from, to) = (pipe.from.host, pipe.to.host);
        state.send(key, Segment::Bytes(Bytes::copy_from_slice(bytes)));
        state.log.line(format_args!(
            "net {} to {}: {} bytes ({})",
            state.hosts[from].name,
            state.hosts[to].name,
            bytes.len(),
            self.number
        ));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let key = self.outward();
        self.net.0.lock().send(key, Segment::End);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    /// Says the end, if there is still somebody to say it.
    fn drop(&mut self) {
        let (outward, inward) = (self.outward(), self.inward());
        let mut state = self.net.0.lock();
        let near = state.pipes.get(&outward).map(|pipe| pipe.from);
        if near.is_some_and(|near| state.lives(near)) {
            // A peer that still writes would be told that nobody reads.
            state.send(outward, Segment::Reset);
        }
        let alone = state.pipes.get(&outward).is_some_and(|pipe| pipe.unread || !state.lives(pipe.to));
        if alone {
            state.pipes.remove(&inward);
            state.pipes.remove(&outward);
        } else if let Some(pipe) = state.pipes.get_mut(&inward) {
            pipe.abandon();
        }
    }
}
