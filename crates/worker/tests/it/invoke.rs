//! Init and Invoke as a well-behaved runtime sees them.

use std::sync::atomic::Ordering;

use domain::{LogType, Step, Worker as _};

use crate::fixture::{Fixture, Setup, json, python, text, wait};

const ECHO: &str = r#"
n = 0
while True:
    id, headers, body = next()
    n += 1
    print("line", n)
    status, _, reply = answer(id, body, {"Lambda-Runtime-Invocation-Id": headers["lambda-runtime-invocation-id"]})
    assert (status, reply) == (202, b'{"status":"OK"}\n'), (status, reply)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn init_and_invoke() {
    let f = Fixture::new(&python(ECHO), Setup::default());
    let done = f.init().await;
    let steps: Vec<Step> = done.timeline.marks.iter().map(|m| m.step).collect();
    assert_eq!(steps, [Step::PackageFetched, Step::SandboxCreated, Step::RuntimeStarted, Step::InitDone]);
    let outcome = f.invoke(r#"{"a":1}"#).await;
    assert_eq!((text(&outcome), outcome.function_error), (r#"{"a":1}"#, None));
    assert!(outcome.timeline.at(Step::Invoked) <= outcome.timeline.at(Step::Answered));
    f.wait_told("idle", 1).await;
    let (outcome, tail) = f.invoke_tail("2").await;
    assert_eq!(text(&outcome), "2");
    let lines: Vec<&str> = tail.lines().collect();
    assert!(lines[0].starts_with("START RequestId: ") && lines[0].ends_with(" Version: $LATEST"), "{tail}");
    assert_eq!(lines[1], "line 2");
    assert!(lines[2].starts_with("END RequestId: "), "{tail}");
    assert!(lines[3].contains("\tMemory Size: 128 MB\tMax Memory Used: 30 MB\t"), "{tail}");
    assert!(!lines[3].contains("Init Duration"), "only the first invocation reports it: {tail}");
    let log = f.log().await;
    assert!(log[0].starts_with("INIT_START Runtime Version: provided:al2023.v1\t"), "{log:?}");
    assert!(log.iter().any(|l| l.contains("\tInit Duration: ")), "{log:?}");
    assert_eq!(f.service.report().slots_used, 1);
    f.shutdown().await;
    assert_eq!(f.service.report().slots_used, 0);
    assert_eq!(f.observed.live.load(Ordering::SeqCst), 0);
    assert_eq!(f.told.all(), ["answered", "idle", "answered", "idle", "dead"]);
    let gone = f.service.invoke(f.sandbox, f.request("1", LogType::None)).await.unwrap_err();
    assert!(gone.retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_has_the_documented_headers() {
    let code = r#"
id, headers, body = next()
answer(id, json.dumps(headers))
next()
"#;
    let f = Fixture::new(&python(code), Setup { timeout: std::time::Duration::from_secs(3), ..Setup::default() });
    f.init().await;
    let mut request = f.request("{}", LogType::None);
    request.client_context = Some("{\n\"client\":{}}".into());
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i128;
    let outcome = f.service.invoke(f.sandbox, request.clone()).await.unwrap();
    let headers = json(&outcome);
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["lambda-runtime-aws-request-id"], request.request_id.to_string());
    assert_eq!(headers["lambda-runtime-invoked-function-arn"], request.invoked_arn);
    assert_eq!(headers["lambda-runtime-trace-id"], request.trace_id);
    assert_eq!(headers["lambda-runtime-client-context"], "{ \"client\":{}}");
    assert!(headers.get("lambda-runtime-cognito-identity").is_none());
    let deadline: i128 = headers["lambda-runtime-deadline-ms"].as_str().unwrap().parse().unwrap();
    assert!((2900..3200).contains(&(deadline - before)), "{deadline} {before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_that_of_lambda() {
    let code = r#"
id, headers, body = next()
answer(id, json.dumps(dict(os.environ)))
next()
"#;
    let environment = [("PATH", "/usr/bin:/bin"), ("COLOUR", "green")];
    let environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let f = Fixture::new(&python(code), Setup { environment, ..Setup::default() });
    f.init().await;
    let env = json(&f.invoke("{}").await);
    for (name, value) in [
        ("COLOUR", "green"),
        ("PATH", "/usr/bin:/bin"),
        ("TZ", ":UTC"),
        ("AWS_LAMBDA_FUNCTION_NAME", "f"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/f"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "000000000000"),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("_HANDLER", "index.handler"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    assert!(env.get("AWS_EXECUTION_ENV").is_none(), "only managed runtimes have it");
    let stream = env["AWS_LAMBDA_LOG_STREAM_NAME"].as_str().unwrap();
    assert!(stream.ends_with(&format!("/[$LATEST]{}", f.sandbox.0.simple())), "{stream}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_sandbox_is_frozen_and_thawed() {
    let f = Fixture::new(&python(ECHO), Setup::default());
    f.init().await;
    wait(|| f.observed.frozen.load(Ordering::SeqCst), "frozen after Init").await;
    assert_eq!(text(&f.invoke("1").await), "1");
    assert!(!f.observed.frozen.load(Ordering::SeqCst));
    f.wait_told("idle", 1).await;
    let idle = std::time::Instant::now();
    wait(|| f.observed.frozen.load(Ordering::SeqCst), "frozen after an invocation").await;
    // The promise is 50 ms; a busy test machine gets some more.
    assert!(idle.elapsed().as_millis() < 500, "{:?}", idle.elapsed());
    assert_eq!(text(&f.invoke("2").await), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_error_is_an_outcome() {
    let code = r#"
while True:
    id, headers, body = next()
    status, _, _ = fail(id, b'{"errorMessage":"no","errorType":"ValueError"}', "Function.ValueError")
    assert status == 202
"#;
    let f = Fixture::new(&python(code), Setup::default());
    f.init().await;
    let (outcome, tail) = f.invoke_tail("{}").await;
    assert_eq!(outcome.function_error, Some("Unhandled"));
    assert_eq!(json(&outcome)["errorType"], "ValueError");
    assert!(!tail.contains("Status:"), "{tail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_logs_are_telemetry_events() {
    let f = Fixture::new(&python(ECHO), Setup { json: true, ..Setup::default() });
    f.init().await;
    let (_, tail) = f.invoke_tail("{}").await;
    let types: Vec<String> = tail
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter_map(|v| v["type"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(types, ["platform.start", "platform.report"], "{tail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_response_is_collected_and_its_trailer_is_an_error() {
    let code = r#"
import base64, socket
def chunked(id, chunks, trailers, mode="streaming"):
    s = socket.create_connection(api.split(":"))
    head = f"POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: x\r\nLambda-Runtime-Function-Response-Mode: {mode}\r\nTransfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n\r\n"
    s.sendall(head.encode())
    for c in chunks:
        s.sendall(b"%x\r\n%s\r\n" % (len(c), c))
    s.sendall(b"0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in trailers.items()).encode() + b"\r\n")
    return s.recv(4096)
id, _, _ = next()
assert b" 202 " in chunked(id, [b'"ab', b'cd"'], {})
id, _, _ = next()
error = base64.b64encode(b'{"errorType":"Boom"}').decode()
assert b" 202 " in chunked(id, [b'"ab'], {"Lambda-Runtime-Function-Error-Type": "Function.Boom", "Lambda-Runtime-Function-Error-Body": error})
id, _, _ = next()
assert b" 400 " in chunked(id, [b'1'], {}, "backwards")
next()
"#;
    let f = Fixture::new(&python(code), Setup::default());
    f.init().await;
    let (outcome, _) = f.invoke_tail("{}").await;
    assert_eq!((text(&outcome), outcome.function_error), ("\"abcd\"", None));
    let (outcome, _) = f.invoke_tail("{}").await;
    assert_eq!((text(&outcome), outcome.function_error), (r#"{"errorType":"Boom"}"#, Some("Unhandled")));
    let (outcome, _) = f.invoke_tail("{}").await;
    assert_eq!(json(&outcome)["errorType"], "Runtime.InvalidResponseModeHeader");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_functions_own_calls_reach_the_endpoint() {
    let endpoint = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", endpoint.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = endpoint.accept().await.unwrap();
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
    });
    let code = r#"
import urllib.request
id, _, _ = next()
answer(id, json.dumps([os.environ["AWS_ENDPOINT_URL"], urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL"]).read().decode()]))
next()
"#;
    let f = Fixture::new(&python(code), Setup { endpoint_url: Some(url.clone()), ..Setup::default() });
    f.init().await;
    let answer = json(&f.invoke("{}").await);
    assert_ne!(answer[0], url, "the listener of the sandbox, not the host's");
    assert_eq!(answer[1], "hi");
}

const LEAN: &str = r#"
import socket
s = socket.create_connection(api.split(":"))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while True:
    s.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
    event = s.recv(65536)
    at = event.index(b"lambda-runtime-aws-request-id: ") + 31
    s.sendall(b"POST /2018-06-01/runtime/invocation/" + event[at:at + 36] + b"/response HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    s.recv(65536)
"#;

/// The worker's part is a few dozen microseconds even in this build; the benchmark measures. Here only that nothing
/// waits for a timer or another task.
#[tokio::test(flavor = "multi_thread")]
async fn warm_invocations_wait_for_nothing() {
    let f = Fixture::new(&python(LEAN), Setup::default());
    f.init().await;
    let mut times = Vec::new();
    for n in 1..=500 {
        let began = std::time::Instant::now();
        f.invoke("{}").await;
        times.push(began.elapsed());
        f.wait_told("idle", n).await;
    }
    times.sort();
    println!("median {:?}, p99 {:?} for a warm invocation of a lean Python loop", times[250], times[495]);
    assert!(times[250] < std::time::Duration::from_millis(3), "{:?}", times[250]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_side_by_side_do_not_mix_up() {
    let f = std::sync::Arc::new(Fixture::new(&python(LEAN_ECHO), Setup::default()));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..12 {
        let f = std::sync::Arc::clone(&f);
        clients.spawn(async move {
            let sandbox = domain::SandboxId(uuid::Uuid::new_v4());
            f.service.init(domain::InitRequest { sandbox, version: f.version.clone() }).await.unwrap();
            for n in 0..40 {
                let event = format!("[{client},{n}]");
                let outcome = loop {
                    match f.service.invoke(sandbox, f.request(&event, LogType::None)).await {
                        Ok(outcome) => break outcome,
                        // Nobody waits for `idle` here.
                        Err(domain::WorkerError::Busy(_)) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                };
                assert_eq!(text(&outcome), event);
            }
            f.service.shutdown(sandbox, domain::RetireReason::Spindown).await;
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!((f.told.count("answered"), f.told.count("dead")), (480, 12));
    assert_eq!(f.observed.live.load(Ordering::SeqCst), 0);
}

const LEAN_ECHO: &str = r#"
while True:
    id, headers, body = next()
    answer(id, body, {"Lambda-Runtime-Invocation-Id": headers["lambda-runtime-invocation-id"]})
"#;
