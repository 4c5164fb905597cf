//! The synchronous path.

use std::sync::atomic::Ordering;

use tokio::io::AsyncWriteExt;

use crate::client::{PATIENCE, Reply, connect, head, reply, send};
use crate::fakes::{Running, start};

async fn invoke(server: &Running, function: &str, headers: &[(&str, &str)], payload: &str) -> Reply {
    let path = format!("/2015-03-31/functions/{function}/invocations");
    send(server.address, "POST", &path, headers, payload.as_bytes()).await
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn answers_with_the_functions_payload() {
    let server = start().await;
    let reply = invoke(&server, "echo", &[], r#"{"a": 1}"#).await;
    assert_eq!((reply.status, reply.text()), (200, r#"{"a": 1}"#));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-amz-executed-version"), Some("$LATEST"));
    assert_eq!(reply.header("x-amz-function-error"), None);
    assert_eq!(reply.header("x-amz-log-result"), None);
    assert_eq!(reply.header("x-emberbox-timeline"), None);
    let request = server.state.last();
    assert_eq!(reply.header("x-amzn-requestid"), Some(&*request.request_id.to_string()));
    assert_eq!(reply.header("x-amzn-trace-id"), Some(&*request.trace_id));
    assert!(request.trace_id.starts_with("Root=1-"), "{}", request.trace_id);
    assert!(request.trace_id.contains(";Sampled=0;Lineage="), "{}", request.trace_id);
    assert_eq!(request.invoked_arn, "arn:aws:lambda:us-east-1:000000000000:function:echo");
    assert!(reply.header("date").is_some());
}

#[tokio::test]
async fn takes_over_what_the_caller_chose() {
    let server = start().await;
    let id = "6f5b9f3c-3f0e-4b5f-9d4a-0123456789ab";
    let trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";
    let headers = [
        ("X-Amzn-RequestId", id),
        ("X-Amzn-Trace-Id", trace),
        ("X-Amz-Client-Context", "eyJjdXN0b20iOiB7ImsiOiAidiJ9fQ=="),
        ("X-Amz-Log-Type", "Tail"),
    ];
    let reply = invoke(&server, "echo", &headers, "1").await;
    assert_eq!(reply.header("x-amzn-requestid"), Some(id));
    assert!(reply.header("x-amzn-trace-id").unwrap().starts_with(&format!("{trace};Lineage=")));
    assert_eq!(reply.header("x-amz-log-result"), Some("U1RBUlQKRU5ECg=="));
    let request = server.state.last();
    assert_eq!(request.client_context.as_deref(), Some(r#"{"custom":{"k":"v"}}"#));
    let reply = invoke(&server, "echo", &[("x-amzn-requestid", "mine")], "1").await;
    assert_eq!((reply.status, reply.error().0), (400, "InvalidRequestContentException"));
}

#[tokio::test]
async fn a_qualifier_reaches_the_version() {
    let server = start().await;
    let path = "/2015-03-31/functions/echo/invocations?Qualifier=7";
    let reply = send(server.address, "POST", path, &[], b"").await;
    assert_eq!((reply.text(), reply.header("x-amz-executed-version")), ("{}", Some("7")));
    assert!(server.state.last().invoked_arn.ends_with(":function:echo:7"));
}

#[tokio::test]
async fn a_failed_function_is_an_outcome() {
    let server = start().await;
    let reply = invoke(&server, "fails", &[], "{}").await;
    assert_eq!((reply.status, reply.header("x-amz-function-error")), (200, Some("Unhandled")));
}

#[tokio::test]
async fn a_loop_is_stopped_unless_it_is_allowed() {
    let server = start().await;
    let mut trace = "Root=1-5759e988-bd862e3fe1be46a994272793".to_owned();
    for _ in 0..16 {
        let reply = invoke(&server, "echo", &[("X-Amzn-Trace-Id", &trace)], "{}").await;
        assert_eq!(reply.status, 200);
        trace = server.state.last().trace_id;
    }
    let reply = invoke(&server, "echo", &[("X-Amzn-Trace-Id", &trace)], "{}").await;
    assert_eq!((reply.status, reply.error().0), (400, "RecursiveInvocationException"));
    assert_eq!(invoke(&server, "other", &[("X-Amzn-Trace-Id", &trace)], "{}").await.status, 200);
    for _ in 0..20 {
        let reply = invoke(&server, "loops", &[("X-Amzn-Trace-Id", &trace)], "{}").await;
        assert_eq!(reply.status, 200);
        trace = server.state.last().trace_id;
    }
}

#[tokio::test]
async fn a_dry_run_runs_nothing() {
    let server = start().await;
    let reply = invoke(&server, "echo", &[("X-Amz-Invocation-Type", "DryRun")], "{}").await;
    assert_eq!((reply.status, reply.text()), (204, ""));
    assert_eq!(server.state.assigned.load(Ordering::SeqCst), 0);
    let reply = invoke(&server, "missing", &[("X-Amz-Invocation-Type", "DryRun")], "{}").await;
    assert_eq!((reply.status, reply.error().0), (404, "ResourceNotFoundException"));
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let server = start().await;
    for headers in [("X-Amz-Tenant-Id", "t"), ("X-Amz-Durable-Execution-Name", "d")] {
        let reply = invoke(&server, "echo", &[headers], "{}").await;
        assert_eq!((reply.status, reply.error().0), (501, "NotImplemented"), "{headers:?}");
    }
    assert_eq!(server.state.assigned.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn platform_errors_are_aws_errors() {
    let server = start().await;
    let reply = invoke(&server, "throttled", &[], "{}").await;
    assert_eq!(reply.status, 429);
    assert_eq!(
        reply.text(),
        r#"{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}"#
    );
    assert_eq!(reply.header("x-amzn-errortype"), Some("TooManyRequestsException"));
    for (function, status, name) in [
        ("missing", 404, "ResourceNotFoundException"),
        ("full", 503, "ServiceUnavailableException"),
        ("damaged", 502, "InvalidZipFileException"),
        ("unrestored", 400, "SnapStartException"),
        ("late", 408, "SnapStartTimeoutException"),
        ("broken", 500, "ServiceException"),
        ("panics", 500, "ServiceException"),
    ] {
        let reply = invoke(&server, function, &[], "{}").await;
        assert_eq!((reply.status, reply.error().0), (status, name), "{function}");
        assert!(reply.header("x-amzn-requestid").is_some());
    }
    assert_eq!(invoke(&server, "full", &[], "{}").await.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn a_lost_sandbox_is_replaced_a_few_times() {
    let server = start().await;
    let reply = invoke(&server, "flaky", &[], "{}").await;
    assert_eq!(reply.status, 200);
    assert_eq!(server.state.assigned.load(Ordering::SeqCst), 3);
    assert_eq!(server.state.invoked.lock().unwrap().len(), 1);
    let reply = invoke(&server, "gone", &[], "{}").await;
    assert_eq!((reply.status, reply.error().0), (500, "ServiceException"));
    assert_eq!(server.state.assigned.load(Ordering::SeqCst), 3 + 6);
}

#[tokio::test]
async fn an_invocation_goes_on_without_its_client() {
    let server = start().await;
    let mut stream = connect(server.address).await;
    let request = head(server.address, "POST", "/2015-03-31/functions/slow/invocations", &[], 2);
    stream.write_all(&request).await.unwrap();
    stream.write_all(b"{}").await.unwrap();
    until("the function to run", || !server.state.invoked.lock().unwrap().is_empty()).await;
    drop(stream);
    // A request after the first one was noticed to be gone: the server closed its half.
    assert_eq!(invoke(&server, "echo", &[], "{}").await.status, 200);
    assert_eq!(server.state.finished.load(Ordering::SeqCst), 0);
    server.state.proceed.notify_one();
    until("the function to finish", || server.state.finished.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_payload_must_be_json_of_six_megabytes_at_most() {
    let server = start().await;
    let reply = invoke(&server, "echo", &[], "hello").await;
    let (name, message) = reply.error();
    assert_eq!((reply.status, name), (400, "InvalidRequestContentException"));
    assert!(
        message.starts_with("Could not parse request body into json: Could not parse payload into json: "),
        "{message}"
    );

    let fits = format!("\"{}\"", "x".repeat(6_291_454));
    assert_eq!(invoke(&server, "echo", &[], &fits).await.body.len(), 6_291_456);
    let reply = invoke(&server, "echo", &[], &format!("{fits} ")).await;
    assert_eq!(
        (reply.status, reply.error()),
        (
            413,
            (
                "RequestTooLargeException",
                "Request must be smaller than 6291456 bytes for the InvokeFunction operation".into()
            )
        )
    );
    assert_eq!(reply.json()["Type"], "User");
}

#[tokio::test]
async fn the_timeline_is_there_for_those_who_ask() {
    let server = start().await;
    let reply = invoke(&server, "echo", &[("X-Emberbox-Timeline", "1")], "{}").await;
    let timeline: serde_json::Value = serde_json::from_str(reply.header("x-emberbox-timeline").unwrap()).unwrap();
    let steps: Vec<_> = timeline.as_array().unwrap().iter().map(|mark| mark["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["received", "assigned", "answered"]);
    assert_eq!(timeline[1]["note"], "warm");
    assert!(timeline[1]["us"].as_u64() < timeline[2]["us"].as_u64());
}

#[tokio::test]
async fn many_requests_share_a_connection() {
    let server = start().await;
    let mut stream = connect(server.address).await;
    for i in 0..50 {
        let body = i.to_string();
        let request = head(server.address, "POST", "/2015-03-31/functions/echo/invocations", &[], body.len());
        stream.write_all(&request).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        assert_eq!(reply(&mut stream).await.unwrap().text(), body);
    }
}
