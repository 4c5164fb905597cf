//! Whatever a guest sends to the Runtime API: for the fuzzer, and for the tests, which do it with less patience.
//!
//! The bytes go through the same HTTP, the same reading of bodies and the same parsing of their meaning as a sandbox's.
//! Only the slot is missing: what calls do, and in which order they may come, is tried out in `machine`.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::extensions::{identifier, registration};
use super::runtime::{error_object, stream_error};
use super::{BodyError, MAX_PAYLOAD, Reply, Request, accepted, protocol, read_body};
use crate::machine::Answer;

/// A body as long as this is too long here, so that short inputs reach what is done about it.
const LIMIT: usize = 256;
/// Everything is in memory: what takes longer hangs.
const HANGS: Duration = Duration::from_secs(10);

/// Serves a connection on which this is sent, in two pieces, before its end.
///
/// # Panics
/// When it hangs, or when something of it is taken for what it is not.
pub fn serve_anything(sent: &[u8], cut: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let served = async {
        let (mut theirs, ours) = tokio::io::duplex(1 << 10);
        let (first, second) = sent.split_at(cut.min(sent.len()));
        let service =
            hyper::service::service_fn(|request| async move { Ok::<_, Infallible>(understand(request).await) });
        let serving = protocol().serve_connection(TokioIo::new(ours), service);
        let (mut answers, mut requests) = tokio::io::split(&mut theirs);
        let speaking = async {
            // It may hang up in the midst.
            for piece in [first, second] {
                let _ = requests.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            let _ = requests.shutdown().await;
        };
        let listening = async {
            let mut answer = Vec::new();
            let _ = answers.read_to_end(&mut answer).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "what was answered is HTTP");
        };
        let _ = tokio::join!(serving, speaking, listening);
    };
    runtime.block_on(async { tokio::time::timeout(HANGS, served).await }).expect("it ends");
}

/// Reads a request in all the ways in which one can be meant.
async fn understand(request: Request<Incoming>) -> Reply {
    let (head, mut body) = request.into_parts();
    let known = identifier(&head.headers);
    let reply = match read_body(&mut body, LIMIT).await {
        Ok((body, trailers)) => {
            assert!(body.len() <= LIMIT && LIMIT < MAX_PAYLOAD);
            let (payload, kind) = error_object(&head.headers, body.clone());
            assert!(!kind.is_empty() && kind.len() <= 1024, "a type is short: {kind}");
            assert!(body.is_empty() || payload.len() <= 6 * LIMIT);
            if let Some(Answer::Failure { payload, .. }) = stream_error(&trailers) {
                assert!(payload.len() < super::MAX_HEAD);
            }
            match (registration("name".into(), &body), known) {
                (Err(refused), _) | (Ok(_), Err(refused)) => *refused,
                (Ok(_), Ok(_)) => accepted(),
            }
        }
        Err(BodyError::TooLarge | BodyError::Truncated) => accepted(),
    };
    // As the server does it.
    while let Some(Ok(_)) = body.frame().await {}
    reply
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("POST /2018-06-01/runtime/invocation/x/response HTTP/1.1"),
            Just("POST /2018-06-01/runtime/init/error HTTP/1.1"),
            Just("POST /2018-06-01/runtime/restore/error HTTP/1.1"),
            Just("POST /2020-01-01/extension/register HTTP/1.0"),
            Just("GET /2018-06-01/runtime/invocation/next HTTP/1.1"),
            Just("\u{0} HTTP/1.1"),
        ];
        let header = prop_oneof![
            Just("Lambda-Extension-Identifier: 00000000-0000-0000-0000-000000000000".to_owned()),
            Just("Content-Type: application/vnd.aws.lambda.error.cause+json".to_owned()),
            Just("Transfer-Encoding: chunked".to_owned()),
            Just("Expect: 100-continue".to_owned()),
            "Lambda-Runtime-Function-Error-Type: [ -~]{0,40}",
            "[A-Za-z-]{1,10}: [ -~]{0,20}",
        ];
        let body = prop_oneof![
            Just(b"{\"events\": [\"INVOKE\", \"SHUTDOWN\"]}".to_vec()),
            Just(b"{\"errorMessage\": \"x\", \"errorCause\": {}}".to_vec()),
            Just(b"5\r\nhello\r\n0\r\nLambda-Runtime-Function-Error-Type: X\r\n\r\n".to_vec()),
            prop::collection::vec(any::<u8>(), 0..600),
        ];
        (line, prop::collection::vec(header, 0..5), prop::option::of(-1i64..700), body).prop_map(
            |(line, headers, length, body)| {
                let mut text = format!("{line}\r\nHost: x\r\n");
                for header in headers {
                    text.push_str(&format!("{header}\r\n"));
                }
                // Mostly what it is, at times not.
                let length = length.map_or(body.len() as i64, |length| length);
                text.push_str(&format!("Content-Length: {length}\r\n\r\n"));
                [text.into_bytes(), body].concat()
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_is_sent_ends(requests in prop::collection::vec(request(), 0..4), cut in 0usize..2000) {
            serve_anything(&requests.concat(), cut);
        }
    }
}
