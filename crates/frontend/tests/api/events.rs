//! Asynchronous invocation.

use serde_json::json;

use crate::client::{Reply, send};
use crate::fakes::{Running, start};

const EVENT: (&str, &str) = ("X-Amz-Invocation-Type", "Event");

async fn event(server: &Running, function: &str, headers: &[(&str, &str)], payload: &str) -> Reply {
    let path = format!("/2015-03-31/functions/{function}/invocations");
    send(server.address, "POST", &path, &[headers, &[EVENT]].concat(), payload.as_bytes()).await
}

async fn get(server: &Running, path: &str) -> Reply {
    send(server.address, "GET", path, &[], b"").await
}

fn last(server: &Running) -> frontend::ports::Event {
    server.state.events.lock().unwrap().last().expect("an event").clone()
}

#[tokio::test]
async fn an_event_is_queued_and_answered_without_a_body() {
    let server = start().await;
    let id = "6f5b9f3c-3f0e-4b5f-9d4a-0123456789ab";
    let trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1;Lineage=1:a87bd80c:0";
    let headers = [("X-Amzn-RequestId", id), ("X-Amzn-Trace-Id", trace)];
    let reply = event(&server, "echo", &headers, r#"{"a": 1}"#).await;
    assert_eq!((reply.status, reply.text()), (202, ""));
    assert_eq!(reply.header("x-amzn-requestid"), Some(id));
    assert_eq!(reply.header("x-amzn-trace-id"), Some(trace));
    assert_eq!((reply.header("content-type"), reply.header("x-amz-executed-version")), (None, None));
    let event = last(&server);
    assert_eq!(event.function.to_string(), "arn:aws:lambda:us-east-1:000000000000:function:echo");
    assert_eq!((event.qualifier, event.trace_id.as_str()), (None, trace));
    assert_eq!((event.request_id.to_string().as_str(), &event.payload[..]), (id, &br#"{"a": 1}"#[..]));
    assert!(server.state.invoked.lock().unwrap().is_empty(), "the pollers run it");
}

#[tokio::test]
async fn a_qualifier_goes_along_and_no_payload_is_an_empty_object() {
    let server = start().await;
    let path = "/2015-03-31/functions/echo/invocations?Qualifier=live";
    assert_eq!(send(server.address, "POST", path, &[EVENT], b"").await.status, 202);
    let event = last(&server);
    assert_eq!((event.qualifier.as_deref(), &event.payload[..]), (Some("live"), &b"{}"[..]));
    assert!(event.trace_id.starts_with("Root=1-"), "{}", event.trace_id);
}

#[tokio::test]
async fn what_cannot_run_is_refused_before_it_is_queued() {
    let server = start().await;
    for (function, payload, status, name) in [
        ("echo", "hello", 400, "InvalidRequestContentException"),
        ("missing", "{}", 404, "ResourceNotFoundException"),
        ("undurable", "{}", 500, "ServiceException"),
    ] {
        let reply = event(&server, function, &[], payload).await;
        assert_eq!((reply.status, reply.error().0), (status, name), "{function}");
    }
    assert!(server.state.events.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_event_has_one_megabyte_at_most() {
    let server = start().await;
    let fits = format!("\"{}\"", "x".repeat((1 << 20) - 2));
    assert_eq!(event(&server, "echo", &[], &fits).await.status, 202);
    let reply = event(&server, "echo", &[], &format!("{fits} ")).await;
    let message = "1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)";
    assert_eq!((reply.status, reply.error()), (413, ("RequestEntityTooLargeException", message.into())));
    assert_eq!(server.state.events.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_the_queue_cannot_take_is_too_large() {
    let server = start().await;
    assert_eq!(event(&server, "small", &[], "[1234567]").await.status, 202);
    let reply = event(&server, "small", &[], "[123456789]").await;
    let message = "11 byte payload is too large for the Event invocation type (limit 10 bytes)";
    assert_eq!((reply.status, reply.error()), (413, ("RequestEntityTooLargeException", message.into())));
    let reply = send(server.address, "POST", "/2014-11-13/functions/small/invoke-async", &[], b"[123456789]").await;
    let message = "Request must be smaller than 10 bytes for the InvokeAsync operation";
    assert_eq!((reply.status, reply.error()), (413, ("RequestEntityTooLargeException", message.into())));
    assert_eq!(server.state.events.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn invoke_async_queues_as_well() {
    let server = start().await;
    let path = "/2014-11-13/functions/echo/invoke-async";
    let reply = send(server.address, "POST", path, &[], b"[1]").await;
    // The member `Status` of the answer is the HTTP status itself.
    assert_eq!((reply.status, reply.text()), (202, "{}"));
    assert_eq!(&last(&server).payload[..], b"[1]");
    assert_eq!(send(server.address, "POST", path, &[], b"x").await.status, 400);
}

#[tokio::test]
async fn events_are_shown() {
    let server = start().await;
    let reply = event(&server, "echo", &[("X-Emberbox-Timeline", "1")], "{}").await;
    let id = reply.header("x-amzn-requestid").unwrap().to_owned();
    let reply = get(&server, "/_emberbox/events/echo").await;
    assert_eq!((reply.status, &reply.json()["depth"], &reply.json()["oldestAgeMs"]), (200, &json!(1), &json!(1500)));
    let reply = get(&server, &format!("/_emberbox/events/echo/{id}")).await;
    assert_eq!((reply.status, reply.json()), (200, json!({"attempts": 1, "settled": true, "timeline": []})));
    for (path, status) in [
        ("/_emberbox/events/missing", 404),
        ("/_emberbox/events/echo/6f5b9f3c-3f0e-4b5f-9d4a-0123456789ab", 404),
        ("/_emberbox/events/echo/nonsense", 404),
        ("/_emberbox/events/%ff", 404),
    ] {
        assert_eq!(get(&server, path).await.status, status, "{path}");
    }
    let reply = send(server.address, "POST", "/_emberbox/events/echo", &[], b"").await;
    assert_eq!(reply.status, 404);
}
