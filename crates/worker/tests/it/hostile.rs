//! Runtimes that lie: they hurt nobody but themselves.

use std::time::Duration;

use crate::fixture::{Fixture, Setup, json, python, text};

fn setup() -> Setup {
    Setup { timeout: Duration::from_secs(10), ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_stale_and_double_answers_are_refused() {
    let code = r#"
def kind(result):
    return [result[0], json.loads(result[2]).get("errorType")]
zero = "00000000-0000-0000-0000-000000000000"
results = [kind(answer(zero, "1"))]
results.append(kind(call("POST", "/2018-06-01/runtime/invocation/nonsense/error", "{}")))
old, old_headers, _ = next()
answer(old, "null")
results.append(kind(answer(old, "2")))
id, headers, _ = next()
results.append(kind(call("POST", "/2018-06-01/runtime/init/error", "{}")))
results.append(kind(answer(old, "3")))
results.append(kind(answer(id, "4", {"Lambda-Runtime-Invocation-Id": old_headers["lambda-runtime-invocation-id"]})))
results.append(kind(answer(id, "5", {"Lambda-Runtime-Invocation-Id": "x" * 1000})))
answer(id, json.dumps(results), {"Lambda-Runtime-Invocation-Id": headers["lambda-runtime-invocation-id"]})
next()
"#;
    let f = Fixture::new(&python(code), setup());
    f.init().await;
    f.invoke("{}").await;
    f.wait_told("idle", 1).await;
    let results = json(&f.invoke("{}").await);
    let expected = serde_json::json!([
        [400, "InvalidRequestID"],
        [400, "InvalidRequestID"],
        [403, "InvalidStateTransition"],
        [403, "InvalidStateTransition"],
        [400, "InvalidRequestID"],
        [400, "InvalidRequestID"],
        [400, "InvalidRequestID"],
    ]);
    assert_eq!(results, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_is_an_error_for_both() {
    let code = r#"
while True:
    id, _, body = next()
    limit = 6 * 1024 * 1024 + 100
    status, _, reply = answer(id, b"x" * (limit + json.loads(body)))
    print("status", status, reply[:200])
"#;
    let f = Fixture::new(&python(code), setup());
    f.init().await;
    let (outcome, _) = f.invoke_tail("0").await;
    assert_eq!((outcome.payload.len(), outcome.function_error), (6 * 1024 * 1024 + 100, None));
    let (outcome, tail) = f.invoke_tail("1").await;
    let error = json(&outcome);
    assert_eq!(error["errorType"], "Function.ResponseSizeTooLarge");
    assert_eq!(error["errorMessage"], "Response payload size exceeded maximum allowed payload size (6291556 bytes).");
    assert!(tail.contains("status 413") && tail.contains("RequestEntityTooLarge"), "{tail}");
    let (outcome, tail) = f.invoke_tail("30000000").await;
    assert_eq!(json(&outcome)["errorType"], "Function.ResponseSizeTooLarge");
    assert!(tail.contains("status 413"), "{tail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_next_takes_over_from_the_first() {
    let code = r#"
import threading
first = []
def wait():
    first.append(call("GET", "/2018-06-01/runtime/invocation/next", conn=fresh()))
thread = threading.Thread(target=wait)
thread.start()
time.sleep(0.3)
id, _, _ = next()
thread.join()
answer(id, json.dumps([first[0][0], json.loads(first[0][2])["errorType"]]))
next()
"#;
    // Init ends with the first of them; the event must go to the second, so it must not be frozen before.
    let f = Fixture::new(&python(code), Setup { freeze_after: Duration::from_secs(60), ..setup() });
    f.init().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(text(&f.invoke("{}").await), r#"[403, "InvalidStateTransition"]"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_that_hung_up_loses_no_event() {
    let code = r#"
import socket
for _ in range(2):
    s = socket.create_connection(api.split(":"))
    s.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.05)
    s.close()
time.sleep(0.3)
id, _, _ = next()
answer(id, "1")
next()
"#;
    let f = Fixture::new(&python(code), setup());
    f.init().await;
    assert_eq!(text(&f.invoke("{}").await), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_connections_headers_and_logs_are_bounded() {
    let code = r#"
import socket
def raw(data):
    s = socket.create_connection(api.split(":"))
    s.settimeout(0.2)
    try:
        s.sendall(data)
        return s
    except OSError:
        return s
id, _, _ = next()
held = [raw(b"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{") for _ in range(3)]
held += [raw(b"GET / HTTP/1.1\r\nX: ") for _ in range(20)]
s = raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 1000000 + b"\r\n\r\n")
try:
    reply = s.recv(100)
except OSError:
    reply = b""
assert reply == b"" or b" 431 " in reply or b" 400 " in reply, reply
s = raw(b"\x00\xff garbage\r\n\r\n")
try:
    assert b" 400 " in s.recv(100)
except OSError:
    pass
for _ in range(20):
    print("x" * 100000)
os.write(1, b"\xff\xfe no text\n" + b"y" * 1000000)
answer(id, "1")
next()
"#;
    let f = Fixture::new(&python(code), setup());
    f.init().await;
    let (outcome, tail) = f.invoke_tail("{}").await;
    assert_eq!(text(&outcome), "1");
    assert!(tail.len() <= 4096 && tail.contains("REPORT RequestId: "));
    let log = f.log().await;
    assert!(log.iter().any(|l| l == "\u{fffd}\u{fffd} no text"));
    assert!(log.iter().all(|l| l.len() <= 256 << 10));
    f.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_of_a_dead_runtime_do_not_reach_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let environment = [("DIR".to_owned(), dir.path().to_str().unwrap().to_owned())].into();
    // The first runtime leaves requests behind in connections that nobody has read, then hangs.
    let code = r#"
import socket
path = os.environ["DIR"] + "/count"
starts = int(open(path).read()) + 1 if os.path.exists(path) else 1
open(path, "w").write(str(starts))
id, _, _ = next()
if starts == 1:
    for _ in range(200):
        s = socket.create_connection(api.split(":"))
        s.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
        globals().setdefault("held", []).append(s)
    time.sleep(60)
time.sleep(0.2)
answer(id, str(starts))
next()
"#;
    let f = Fixture::new(&python(code), Setup { environment, timeout: Duration::from_secs(3), ..Setup::default() });
    f.init().await;
    assert_eq!(json(&f.invoke("{}").await)["errorType"], "Sandbox.Timedout");
    f.wait_told("idle", 1).await;
    assert_eq!(text(&f.invoke("{}").await), "2");
}
