//! Request and response bodies.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Body as _;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::Limits;

/// What is sent back: in one piece, or read from storage while it is sent.
pub type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;

/// A body in one piece.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Either::Left(Full::new(bytes.into()))
}

/// Longest that an oversized body is read on and thrown away, so that a client that sends before it reads gets to see
/// the refusal rather than a reset connection.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Most of it that is thrown away.
const DRAIN_BYTES: usize = 256 << 20;
/// Most that is reserved on the word of a `Content-Length`.
const RESERVE: usize = 1 << 20;

/// Why a request has no body to work with.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<B> {
    /// More than the operation takes. The rest of it, for [`drain`].
    #[error("body is too large")]
    TooLarge(B),
    /// The client paused or took too long.
    #[error("body took too long")]
    Slow,
    /// The connection or its framing broke.
    #[error("body: {0}")]
    Broken(hyper::Error),
}

/// Reads a whole body of at most `limit` bytes. Never holds more than that, and stops at the first byte beyond it, or
/// at once if the client announces more.
pub async fn read<B>(mut body: B, limit: usize, limits: &Limits) -> Result<Bytes, ReadError<B>>
where
    B: hyper::body::Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let announced = body.size_hint().lower();
    if announced > limit as u64 {
        return Err(ReadError::TooLarge(body));
    }
    let deadline = Instant::now() + limits.body;
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while !body.is_end_stream() {
        let pause = deadline.min(Instant::now() + limits.body_pause);
        let data = match timeout_at(pause, body.frame()).await {
            Err(_) => return Err(ReadError::Slow),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(ReadError::Broken(error)),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => data,
                Err(_trailers) => continue,
            },
        };
        let held = first.as_ref().map_or(0, Bytes::len) + rest.len();
        if held + data.len() > limit {
            return Err(ReadError::TooLarge(body));
        }
        match &first {
            // Most requests are one frame, which is passed on without a copy.
            None if rest.is_empty() => first = Some(data),
            None => rest.extend_from_slice(&data),
            Some(_) => {
                let first = first.take().expect("matched Some");
                rest.reserve(first.len() + data.len() + usize::try_from(announced).unwrap_or(RESERVE).min(RESERVE));
                rest.extend_from_slice(&first);
                rest.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}

/// Reads on and throws away, within bounds.
pub async fn drain<B>(mut body: B)
where
    B: hyper::body::Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let all = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > DRAIN_BYTES {
                break;
            }
        }
    };
    let _ = timeout(DRAIN_TIME, all).await;
}
