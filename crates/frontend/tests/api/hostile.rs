//! Bad input: an error or a closed connection, never a crash, and the next client is served.

use std::time::Duration;

use frontend::{Config, Limits};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use crate::client::{Reply, connect, head, reply, send};
use crate::fakes::{Running, config, start, start_with};

async fn raw(server: &Running, bytes: &[u8]) -> Option<Reply> {
    let mut stream = connect(server.address).await;
    // The server may close before it has taken all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    reply(&mut stream).await
}

async fn is_well(server: &Running) {
    let reply = send(server.address, "POST", "/2015-03-31/functions/echo/invocations", &[], b"[]").await;
    assert_eq!((reply.status, reply.text()), (200, "[]"));
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let server = start().await;
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/2015-03-31/functions/../../etc/passwd"),
        ("GET", "/2015-03-31//functions"),
        ("PATCH", "/2015-03-31/functions"),
        ("POST", "/_emberbox/code/x"),
        ("DELETE", "/healthz"),
        ("GET", "/%00/%ff"),
        ("OPTIONS", "*"),
    ] {
        let reply = send(server.address, method, path, &[], b"").await;
        assert_eq!((reply.status, reply.error().0), (404, "UnknownOperationException"), "{method} {path}");
    }
    let reply = send(server.address, "GET", "/2018-10-31/layers", &[], b"").await;
    assert_eq!(reply.status, 501);
    assert_eq!(reply.error(), ("NotImplemented", "Emberbox does not implement ListLayers yet.".into()));
    let traversal = "/2015-03-31/functions/..%2f..%2fetc/invocations";
    let reply = send(server.address, "POST", traversal, &[], b"{}").await;
    assert_eq!((reply.status, reply.error().0), (400, "ValidationException"));
}

#[tokio::test]
async fn every_operation_that_is_not_served_says_so_by_name() {
    let server = start().await;
    let mut refused = 0;
    for operation in lambda_api::OperationId::ALL {
        let segments = operation.uri_template().split('/').map(|part| if part.starts_with('{') { "x" } else { part });
        let path = segments.collect::<Vec<_>>().join("/");
        let reply = send(server.address, operation.method().as_str(), &path, &[], b"{}").await;
        if reply.status == 501 {
            assert_eq!(reply.error(), ("NotImplemented", format!("Emberbox does not implement {operation} yet.")));
            refused += 1;
        }
    }
    // But for those that the suite's control plane has, and the two that invoke.
    assert_eq!(refused, lambda_api::OperationId::ALL.len() - 5);
}

#[tokio::test]
async fn garbage_instead_of_http() {
    let server = start().await;
    let invoke = "POST /2015-03-31/functions/echo/invocations HTTP/1.1\r\nhost: localhost\r\n";
    let long = "x".repeat(1 << 20);
    for bytes in [
        b"\x00\xff\xfe".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage that is no frame".to_vec(),
        format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes(),
        format!("{invoke}x: {long}\r\n\r\n").into_bytes(),
        format!("{invoke}{}\r\n", "a: b\r\n".repeat(2000)).into_bytes(),
        format!("{invoke}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n").into_bytes(),
        format!("{invoke}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n").into_bytes(),
        format!("{invoke}transfer-encoding: chunked\r\n\r\n5\r\n{{}}").into_bytes(),
        format!("{invoke}content-length: 1, 2\r\n\r\n{{}}").into_bytes(),
        format!("{invoke}content-length: -1\r\n\r\n{{}}").into_bytes(),
        format!("{invoke}content-length: 10\r\n\r\n{{}}").into_bytes(),
    ] {
        if let Some(reply) = raw(&server, &bytes).await {
            assert!((400..500).contains(&reply.status), "{reply:?}");
        }
        is_well(&server).await;
    }
    assert!(server.state.invoked.lock().unwrap().iter().all(|request| request.payload == "[]"));
}

#[tokio::test]
async fn a_body_with_two_lengths_is_the_last_on_its_connection() {
    let server = start().await;
    let invoke = "POST /2015-03-31/functions/echo/invocations HTTP/1.1\r\nhost: localhost\r\n";
    let smuggled = format!("{invoke}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{invoke}\r\n");
    let answer = raw(&server, smuggled.as_bytes()).await.unwrap();
    assert_eq!((answer.text(), answer.header("connection")), ("{}", Some("close")));
    assert_eq!(server.state.invoked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_oversized_body_is_refused_while_it_is_still_sent() {
    let server = start().await;
    let path = "/2015-03-31/functions";
    let mut stream = connect(server.address).await;
    // Announces more than it ever sends: the answer must not wait for the rest.
    stream.write_all(&head(server.address, "POST", path, &[], 70_167_212)).await.unwrap();
    let answer = reply(&mut stream).await.unwrap();
    assert_eq!((answer.status, answer.error().0), (413, "RequestEntityTooLargeException"));
    assert_eq!(answer.error().1, "Request must be smaller than 70167211 bytes for the CreateFunction operation");

    // Announces nothing, and sends too much.
    let mut stream = connect(server.address).await;
    let invoke = "POST /2015-03-31/functions/echo/invocations HTTP/1.1\r\nhost: localhost\r\n";
    stream.write_all(format!("{invoke}transfer-encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    for _ in 0..97 {
        stream.write_all(&chunk).await.unwrap();
    }
    assert_eq!(reply(&mut stream).await.unwrap().status, 413);

    // Waits for leave to send, and does not get it.
    let mut stream = connect(server.address).await;
    stream.write_all(&head(server.address, "POST", path, &[("expect", "100-continue")], 70_167_212)).await.unwrap();
    assert_eq!(reply(&mut stream).await.unwrap().status, 413);
    is_well(&server).await;
}

#[tokio::test]
async fn large_bodies_wait_for_room_and_small_ones_do_not() {
    let limits = Limits { body_memory: 100 << 10, body_pause: Duration::from_millis(200), ..Limits::default() };
    let server = start_with(Config { limits, ..config() }).await;
    // Takes all the room and sends nothing.
    let mut greedy = connect(server.address).await;
    let path = "/2015-03-31/functions/echo/invocations";
    greedy.write_all(&head(server.address, "POST", path, &[], 200 << 10)).await.unwrap();
    let payload = format!("\"{}\"", "x".repeat(150 << 10));
    let large = send(server.address, "POST", path, &[], payload.as_bytes());
    is_well(&server).await;
    let large = large.await;
    assert_eq!((large.status, large.body.len()), (200, payload.len()));
    assert_eq!(reply(&mut greedy).await.unwrap().status, 400);
}

#[tokio::test]
async fn wrong_targets_and_bodies_of_logs() {
    let server = start().await;
    for (target, body, status) in [
        ("Logs_20140328.FilterLogEvents", "{", 400),
        ("Logs_20140328.FilterLogEvents", "[]", 400),
        ("Logs_20140328.FilterLogEvents", r#"{"limit": "x"}"#, 400),
        ("Logs_20140328.PutLogEvents", "{}", 501),
        ("Logs_20140328.", "{}", 501),
        ("DynamoDB_20120810.ListTables", "{}", 404),
        ("", "{}", 404),
    ] {
        let reply = send(server.address, "POST", "/", &[("x-amz-target", target)], body.as_bytes()).await;
        assert_eq!(reply.status, status, "{target} {body}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_at_all(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        runtime().block_on(async {
            let server = start().await;
            raw(&server, &bytes).await;
            is_well(&server).await;
        });
    }

    #[test]
    fn any_request_line_headers_and_body(
        path in "/[ -~]{0,60}",
        header in "(x-amz-client-context|x-amzn-trace-id|x-amzn-requestid|authorization|x-amz-date|host|x-amz-target): [ -~]{0,80}",
        body in "\\PC{0,60}",
    ) {
        runtime().block_on(async {
            let server = start().await;
            for path in [&*path, "/2015-03-31/functions/echo/invocations"] {
                let request = format!(
                    "POST {path} HTTP/1.1\r\nhost: localhost\r\n{header}\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                raw(&server, request.as_bytes()).await;
            }
            is_well(&server).await;
        });
    }
}
