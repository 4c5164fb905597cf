//! Reading request bodies within bounds.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::Limits;

/// Longest that an oversized body is read on and thrown away, so that a client that sends before it reads gets to see
/// the refusal rather than a reset connection.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Most of it that is thrown away, in bytes.
const DRAIN_BYTES: usize = 256 << 20;
/// Most that is reserved on the word of a `Content-Length`, in bytes.
const RESERVE: u64 = 1 << 20;

/// Why a request has no body to work with.
#[derive(Debug)]
pub enum ReadError<B> {
    /// More than the operation takes. The rest of it, for [`drain`].
    TooLarge(B),
    /// The client paused or took too long.
    Slow,
    /// The connection or its framing broke.
    Broken(String),
}

/// Reads a whole body of at most `limit` bytes. Never holds more than that, and stops at the first byte beyond it, or
/// at once if the client announces more.
pub async fn read<B>(mut body: B, limit: usize, limits: &Limits) -> Result<Bytes, ReadError<B>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let announced = body.size_hint().lower();
    if announced > limit as u64 {
        return Err(ReadError::TooLarge(body));
    }
    let deadline = Instant::now() + limits.body;
    // Most requests are one frame, which is passed on without a copy.
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while !body.is_end_stream() {
        let pause = deadline.min(Instant::now() + limits.body_pause);
        let data = match timeout_at(pause, body.frame()).await {
            Err(_) => return Err(ReadError::Slow),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(ReadError::Broken(error.to_string())),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        if first.len() + all.len() + data.len() > limit {
            return Err(ReadError::TooLarge(body));
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                all.reserve((first.len() + data.len()).max(announced.min(RESERVE) as usize));
            }
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads on and throws away, within bounds.
pub async fn drain<B: Body<Data = Bytes> + Unpin>(mut body: B) {
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

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    async fn read_frames(frames: &[&'static str], limit: usize) -> Option<Bytes> {
        let frames = frames.iter().map(|f| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(f.as_bytes()))));
        let body = StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>()));
        read(body, limit, &Limits::default()).await.ok()
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        assert_eq!(read_frames(&[], 4).await.unwrap(), "");
        assert_eq!(read_frames(&["abcd"], 4).await.unwrap(), "abcd");
        assert_eq!(read_frames(&["", "ab", "", "c", "d"], 4).await.unwrap(), "abcd");
        assert!(read_frames(&["abcde"], 4).await.is_none());
        assert!(read_frames(&["ab", "cd", "e"], 4).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_pauses_is_given_up() {
        let body = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        assert!(matches!(read(body, 4, &Limits::default()).await, Err(ReadError::Slow)));
    }
}
